import math

import pytest
import torch
from tests.miniature import images, lively

from diorama.models.vggt import SIZES, VGGT, cameras_from_codes


@pytest.fixture(scope="module")
def model():
    return lively(VGGT(**SIZES["tiny"]))


def photos(views=3, height=28, width=42, seed=0, batch=1):
    return images(views, height, width, seed, (batch,))


def close(found, expected):
    """Two outputs, whose numbers are of very different sizes, map by map."""
    for name, one, other in zip(found._fields, found, expected, strict=True):
        if name == "cameras":
            one, other = one.camera_to_world, other.camera_to_world
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=0)


def views(output, index):
    """Some of the views of every batch element."""
    maps = {
        name: value[:, index] for name, value in output._asdict().items() if name not in ("cameras", "camera_codes")
    }
    return output._replace(cameras=output.cameras[index], camera_codes=output.camera_codes[:, :, index], **maps)


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        model = VGGT(**SIZES["1B"])
        assert all(VGGT().config[name] == value for name, value in SIZES["1B"].items())

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    head = model.readout
    assert count(model) == 1_190_596_120
    assert count(model.encoder) == 304_372_736
    assert count(model) - count(head) == 909_112_320
    assert count(head.camera) == 216_174_610
    assert (count(head.points), count(head.depth)) == (32_654_628, 32_654_562)
    assert len(model.state_dict()) == 1403


@pytest.mark.parametrize(("batch", "count", "height", "width"), [(1, 1, 14, 14), (2, 2, 14, 70), (1, 4, 56, 28)])
@torch.no_grad()
def test_any_number_of_views_of_any_size(model, batch, count, height, width):
    layers = model.encode(photos(count, height, width, batch=batch))
    patches = height * width // 14**2
    assert [tuple(layer.shape) for layer in layers] == [(batch, count, 5 + patches, 128)] * 4
    output = model.decode(layers, height, width)
    assert output.depth.shape == output.depth_confidence.shape == (batch, count, height, width)
    assert output.points_confidence.shape == (batch, count, height, width)
    assert output.points.shape == (batch, count, height, width, 3)
    assert output.camera_codes.shape == (4, batch, count, 9)
    assert (output.cameras.height, output.cameras.width) == (height, width)
    assert output.depth.min() > 0
    assert min(output.depth_confidence.min(), output.points_confidence.min()) >= 1
    output.cameras.checked()


@torch.no_grad()
def test_scenes_of_a_batch_do_not_see_each_other(model):
    both = photos(batch=2)
    output = model(both)
    for scene in range(2):
        alone = model(both[scene : scene + 1])
        for name in ("depth", "depth_confidence", "points", "points_confidence"):
            expected = getattr(output, name)[scene]
            torch.testing.assert_close(getattr(alone, name)[0], expected, atol=1e-4 * float(expected.max()), rtol=0)
        poses = output.cameras.camera_to_world[scene]
        torch.testing.assert_close(alone.cameras.camera_to_world[0], poses, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_order_of_all_views_but_the_first_is_of_no_meaning(model):
    given = photos(4)
    output = model(given)
    close(model(given[:, [0, 2, 3, 1]]), views(output, [0, 2, 3, 1]))
    moved = views(model(given[:, [1, 0, 2, 3]]), [1, 0, 2, 3])
    assert (moved.depth - output.depth).abs().max() > 1e-2 * output.depth.abs().max()


@torch.no_grad()
def test_more_views_than_the_heads_take_at_once_are_read_alike(model):
    layers = model.encode(photos(19, 14, 28))
    output = model.decode(layers, 14, 28)
    for view in (0, 7, 8, 18):
        alone = model.decode([layer[:, view : view + 1] for layer in layers], 14, 28)
        torch.testing.assert_close(alone.depth, output.depth[:, view : view + 1])
        torch.testing.assert_close(alone.points, output.points[:, view : view + 1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_tapped_layers_are_those_that_a_model_of_fewer_layers_ends_with():
    sizes = SIZES["tiny"] | dict(layers=3, taps=(0, 0, 2, 2))
    model = lively(VGGT(**sizes))
    first, again, last, end = model.encode(photos())
    assert torch.equal(first, again) and torch.equal(last, end) and not torch.equal(first, last)
    shallow = VGGT(**sizes | dict(layers=1, taps=(0, 0, 0, 0))).eval()
    shallow.load_state_dict({name: model.state_dict()[name] for name in shallow.state_dict()})
    torch.testing.assert_close(shallow.encode(photos())[0], first)


@torch.no_grad()
def test_the_position_table_is_itself_at_its_own_size_and_resized_without_aliases(model):
    encoder = model.encoder
    torch.testing.assert_close(encoder.positions((37, 37)), encoder.position[:, 1:])
    kept = encoder.position.clone()
    row = torch.arange(37.0)[:, None].expand(37, 37)
    encoder.position[0, 1:] = torch.stack([row, row.T, (-1) ** row] + 61 * [row], -1).flatten(0, 1)
    rows, columns, stripes = encoder.positions((12, 9))[0].unflatten(0, (12, 9)).unbind(-1)[:3]
    encoder.position.copy_(kept)
    assert (rows - rows[:, :1]).abs().max() < 1e-4 and (columns - columns[:1]).abs().max() < 1e-4
    assert (rows.diff(dim=0) > 2).all() and (columns.diff(dim=1) > 3).all()
    assert stripes[2:-2].abs().max() < 0.1  # sampled at every third place they would keep their height


def test_a_code_is_a_camera():
    """A quarter turn about y that brings the world's x before the camera, and a translation in the camera's axes."""
    half = math.sqrt(0.5)
    code = torch.tensor([1.0, 2.0, 3.0, 0.0, -2 * half, 0.0, 2 * half, math.radians(60), math.radians(90)])
    cameras = cameras_from_codes(code.expand(2, 3, 9), 28, 42).checked()
    assert cameras.camera_to_world.shape == (2, 3, 4, 4)
    pixel, depth = cameras.project(torch.tensor([5.0, 0.0, 0.0]).expand(2, 3, 3))
    torch.testing.assert_close(depth, torch.full((2, 3), 3.0 + 5.0))
    focal = 14 / math.tan(math.radians(30))
    expected = torch.tensor([21 + 21 * 1.0 / 8, 14 + focal * 2 / 8])
    torch.testing.assert_close(pixel, expected.expand(2, 3, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(cameras.fov, torch.full((2, 3), 90.0))


def test_angles_that_no_camera_has_still_give_cameras():
    codes = torch.tensor([[0.0, 0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 9, 4]])
    cameras_from_codes(codes, 28, 42).checked()


@torch.no_grad()
def test_half_precision_leaves_the_heads_in_single(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = VGGT.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    cast = VGGT.from_pretrained(tmp_path).bfloat16()
    expected = dict(model.readout.named_parameters())
    for half in (loaded, cast):
        assert half.encoder.embed.weight.dtype == half.camera_token.dtype == half.dtype == torch.bfloat16
        assert all(torch.equal(value, expected[name]) for name, value in half.readout.named_parameters())
        layers = half.encode(photos())
        assert {layer.dtype for layer in layers} == {torch.bfloat16}
        output = half.decode(layers, 28, 42)
        assert {x.dtype for x in (*output[1:], output.cameras.intrinsics)} == {torch.float32}
        assert len(output.depth.unique()) > output.depth.numel() / 2  # bfloat16 would keep a few hundred values
    with torch.autocast("cpu", torch.bfloat16):
        close(model.decode(layers, 28, 42), output)


@torch.no_grad()
def test_a_saved_model_is_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    close(VGGT.from_pretrained(tmp_path)(photos()), model(photos()))


def test_every_weight_but_the_mask_token_has_a_gradient():
    model = lively(VGGT(**SIZES["tiny"]))
    output = model(photos())
    sum(x.square().mean() for x in output[1:]).backward()
    idle = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0}
    assert idle == {"encoder.mask_token"}


@pytest.mark.parametrize(("height", "width"), [(28, 40), (13, 28), (0, 14)])
def test_sizes_that_are_no_multiples_of_the_patch_are_refused(model, height, width):
    with pytest.raises(ValueError, match=rf"^image size {height}x{width}: both sides must be multiples of 14$"):
        model(photos(1, height, width))


def test_layers_that_are_too_few_or_too_short_are_refused(model):
    layers = [torch.zeros(1, 2, 9, 128)] * 4
    model.decode(layers, 28, 56)
    for wrong, size in ((layers[:3], (28, 56)), (layers, (42, 42))):
        with pytest.raises(ValueError, match=r"^layers of \[9, 9, 9.*\] tokens a view: accepted are 4 of"):
            model.decode(wrong, *size)


@pytest.mark.parametrize("taps", [(0, 1, 3), (0, 2, 1, 3), (0, 1, 1, 2), (-1, 0, 1, 3), (0, 1, 2, 4)])
def test_taps_that_are_not_four_layers_up_to_the_last_are_refused(taps):
    with pytest.raises(ValueError, match=r"^taps \(.*\): accepted are four layers in order, the last one being 3$"):
        VGGT(**SIZES["tiny"] | dict(taps=taps))
