import math

import pytest
import torch
from tests.miniature import images, observed_memory, path

from diorama.geometry.cameras import Cameras
from diorama.models.observed_memory import SIZES, Level, ObservedMemory, Sweep, _median, look_up

SIDE = 16


@pytest.fixture(scope="module")
def model():
    return observed_memory(5)  # whose search finds some sky, not all


def towards(views, height=SIDE, width=SIDE, seed=0, batch=(2,)):
    """Cameras side by side that look the same way, so that each sees most of what the others see."""
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(*batch, views, 1, 1)
    poses[..., :3, 3] = 0.3 * torch.randn(*batch, views, 3, generator=generator)
    return Cameras.from_fov(70.0, height, width, poses)


def depths(views, height=SIDE, width=SIDE, seed=0, batch=(2,)):
    return 1.5 + torch.rand(*batch, views, height, width, generator=torch.Generator().manual_seed(seed))


def made(model, known, wanted, visible=None, scale=1.0):
    """What the memory makes of random pictures."""
    batch, count, size = known.camera_to_world.shape[0], known.views, (known.height, known.width)
    visible = torch.ones(batch, count, dtype=torch.bool) if visible is None else visible
    scaled = [_scaled(cameras, scale) for cameras in (known, wanted)]
    with torch.no_grad():
        memory = model.read(
            images(count, *size, batch=(batch,)), scale * depths(count, *size, batch=(batch,)), scaled[0], visible
        )
        size = (wanted.height, wanted.width)
        pictures = images(wanted.views, *size, seed=5, batch=(batch,))
        return model(memory, pictures, scale * depths(wanted.views, *size, seed=5, batch=(batch,)), scaled[1])


def _scaled(cameras, scale):
    poses = cameras.camera_to_world.clone()
    poses[..., :3, 3] *= scale
    return Cameras(poses, cameras.intrinsics, cameras.height, cameras.width)


def test_points_are_looked_up_where_cameras_project_them():
    known, wanted = path(3, 12, 20, batch=(2,)), path(2, 8, 6, seed=1, batch=(2,))
    depth = 0.5 + 3 * torch.rand(2, 2, 5, 8, 6, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(20) + 0.5, indexing="ij")
    features = torch.stack([x, y, *torch.ones(4, 12, 20)]).expand(2, 3, -1, -1, -1)  # each pixel shows its own place
    found = look_up(Level(features, known), torch.ones(2, 3, dtype=torch.bool), 1 / depth, wanted)
    hits = 0
    for place in range(5):
        points = wanted.unproject(depth[:, :, place])
        for view in range(3):
            pixels, ahead = known[view].project(points.reshape(2, 1, -1, 1, 3))
            pixels = pixels.reshape(2, 2, 8, 6, 2)
            inside = (pixels >= 0).all(-1) & (pixels <= torch.tensor([20.0, 12.0])).all(-1)
            inside &= ahead.reshape(inside.shape) > 0.01
            seen = found.seen.unflatten(0, (2, 2))[:, :, 0, view, place] > 0
            assert torch.equal(seen, inside)
            well = inside & (pixels >= 0.5).all(-1) & (pixels <= torch.tensor([19.5, 11.5])).all(-1)
            shown = found.features.unflatten(0, (2, 2))[:, :, :2, view, place].movedim(2, -1)
            torch.testing.assert_close(shown[well], pixels[well], atol=1e-3, rtol=1e-4)
            hits += int(well.sum())
    assert hits > 20


def test_infinity_is_seen_along_the_rays_direction():
    known, wanted = towards(1), towards(1, seed=3)  # same orientation, other places
    features = images(2, SIDE, SIDE, batch=(1,))[:, :, :1].expand(1, 2, 5, SIDE, SIDE).reshape(2, 1, 5, SIDE, SIDE)
    found = look_up(
        Level(features, known), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1, 1, SIDE, SIDE), wanted
    )
    assert found.seen.all()
    torch.testing.assert_close(found.features[:, 0, 0, 0], features[:, 0, 0], atol=1e-5, rtol=1e-5)


def test_a_known_camera_shows_its_photo_whatever_was_decoded_there(model):
    known, pictures = towards(3), images(3, SIDE, SIDE, batch=(2,))
    with torch.no_grad():
        memory = model.read(pictures, depths(3), known, torch.ones(2, 3, dtype=torch.bool))
        found = model(memory, torch.zeros_like(pictures), depths(3, seed=4), known)
        torch.testing.assert_close(found.images, pictures, atol=2e-3, rtol=0)
        turned = Cameras(known.camera_to_world.clone(), known.intrinsics, SIDE, SIDE)
        turned.camera_to_world[..., 0, 3] += 0.5
        elsewhere = model(memory, torch.zeros_like(pictures), depths(3, seed=4), turned)
    assert elsewhere.sweeps[1].same.mean() < 0.1
    assert (elsewhere.images - pictures).abs().mean() > 0.1


@pytest.mark.parametrize(("height", "width"), [(16, 24), (18, 14), (17, 15)])
def test_any_size_and_number_of_views(model, height, width):
    result = made(model, towards(3), towards(2, height, width, seed=1))
    assert result.images.shape == (2, 2, 3, height, width) and result.depth.shape == (2, 2, height, width)
    assert result.images.isfinite().all() and (result.depth > 0).all()
    half = -(-height // 2), -(-width // 2)
    assert [tuple(sweep.likely.shape) for sweep in result.sweeps] == [(2, 2, 6, *half), (2, 2, 3, height, width)]
    for sweep in result.sweeps:
        torch.testing.assert_close(sweep.likely.sum(2), torch.ones_like(sweep.likely[:, :, 0]))


def test_hidden_views_are_as_if_they_were_not_there(model):
    known, wanted = towards(3), towards(2, seed=1)
    visible = torch.tensor([[True, True, False]] * 2)
    hidden, absent = made(model, known, wanted, visible), _fewer(model, known, wanted)
    torch.testing.assert_close(hidden.images, absent.images, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden.depth, absent.depth, atol=1e-4, rtol=1e-4)
    assert (hidden.images - made(model, known, wanted).images).abs().max() > 1e-2


def _fewer(model, known, wanted):
    with torch.no_grad():
        pictures, depth = images(3, SIDE, SIDE, batch=(2,))[:, :2], depths(3)[:, :2]
        memory = model.read(pictures, depth, known[:2], torch.ones(2, 2, dtype=torch.bool))
        return model(memory, images(2, SIDE, SIDE, seed=5, batch=(2,)), depths(2, seed=5), wanted)


def test_the_order_of_known_views_does_not_matter(model):
    known, wanted, order = towards(3), towards(2, seed=1), [2, 0, 1]
    visible = torch.ones(2, 3, dtype=torch.bool)
    pictures, depth = images(3, SIDE, SIDE, batch=(2,)), depths(3)
    with torch.no_grad():
        rest = (images(2, SIDE, SIDE, seed=5, batch=(2,)), depths(2, seed=5), wanted)
        one = model(model.read(pictures, depth, known, visible), *rest)
        other = model(model.read(pictures[:, order], depth[:, order], known[order], visible), *rest)
    torch.testing.assert_close(one.images, other.images, atol=1e-4, rtol=1e-4)


def test_wanted_views_do_not_see_each_other(model):
    known, wanted = towards(2), towards(3, seed=1)
    with torch.no_grad():
        memory = model.read(images(2, SIDE, SIDE, batch=(2,)), depths(2), known, torch.ones(2, 2, dtype=torch.bool))
        pictures, depth = images(3, SIDE, SIDE, seed=5, batch=(2,)), depths(3, seed=5)
        together = model(memory, pictures, depth, wanted)
        alone = model(memory, pictures[:, 1:2], depth[:, 1:2], wanted[1])
    torch.testing.assert_close(together.images[:, 1:2], alone.images, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_a_scenes_unit_changes_depth_alone(model, scale):
    known, wanted = towards(3), towards(2, seed=1)
    one, other = made(model, known, wanted), made(model, known, wanted, scale=scale)
    torch.testing.assert_close(other.images, one.images, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(other.depth, scale * one.depth, atol=1e-3, rtol=1e-3)


def test_depth_stays_within_the_searches_reach(model):
    guess = depths(2, seed=5)
    result = made(model, towards(3), towards(2, seed=1))
    reach = 0.9 + 0.9 / 4 + 1e-3  # half a step beyond the outermost hypotheses
    near = torch.nn.functional.max_pool2d(guess, 5, 1, 2) * math.exp(reach)
    far = -torch.nn.functional.max_pool2d(-guess, 5, 1, 2) * math.exp(-reach)
    assert ((result.depth <= near) & (result.depth >= far)).all()
    assert (result.depth / guess).log().std() > 0.1


def test_depth_is_what_has_the_least_expected_relative_error():
    generator = torch.Generator().manual_seed(0)
    tried = torch.linspace(-1, 1, 9).exp()[:, None, None].expand(1, 1, 9, 4, 4)
    likely = torch.rand(1, 1, 9, 4, 4, generator=generator).pow(4)
    likely = likely / likely.sum(2, keepdim=True)
    one = torch.zeros(1, 1, 1, 4, 4)
    rest = (torch.zeros(1, 1, 4, 4), one.expand(1, 1, 3, 4, 4), one, one)
    depth = 1 / _median(Sweep(likely, tried, 0.25, *rest))
    candidates = torch.linspace(-1.2, 1.2, 2001).exp()
    error = (likely[..., None] * (candidates * tried[..., None] - 1).abs()).sum(2)
    best = candidates[error.argmin(-1)]
    assert ((depth / best).log().abs() <= 0.125 + 2e-3).all()  # hypotheses stand for half a step around them


def test_every_weight_learns_from_pictures_alone():
    model = observed_memory().train()
    known, wanted = towards(3), towards(2, seed=1)
    memory = model.read(images(3, SIDE, SIDE, batch=(2,)), depths(3), known, torch.ones(2, 3, dtype=torch.bool))
    model(
        memory, images(2, SIDE, SIDE, seed=5, batch=(2,)), depths(2, seed=5), wanted
    ).images.square().mean().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().max()]
    assert idle == []


def test_half_precision_is_close(model):
    known, wanted = towards(3), towards(2, seed=1)
    half = observed_memory(5).bfloat16()
    one, other = made(model, known, wanted), made(half, known, wanted)
    assert other.depth.dtype == torch.float32
    assert (other.images.float() - one.images).square().mean().sqrt() < 0.1


def test_sizes_build_and_round_trip(tmp_path):
    for name, arguments in SIZES.items():
        model = ObservedMemory(**arguments)
        model.save_pretrained(tmp_path / name)
        again = ObservedMemory.from_pretrained(tmp_path / name)
        assert {n: tuple(w.shape) for n, w in again.state_dict().items()} == {
            n: tuple(w.shape) for n, w in model.state_dict().items()
        }
