import json
import shutil

import pytest
import torch
from tests.miniature import DIM, PATCH, TOKENS, images, lively, path, rae3d
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_quaternion
from diorama.geometry.similarity import Similarity
from diorama.models.perceptual import Unavailable
from diorama.models.rae3d import RAE3D, SIZES
from diorama.nn.neck import ATTENTIONS


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def model():
    return rae3d()


@pytest.fixture(scope="module")
def mutual():
    return rae3d(attention="mutual")


def rays(views=3, height=32, width=32, seed=0):
    return path(views, height, width, seed, (1,)).normalized()[0].plucker()


def encoded(model, views=3, height=32, width=32, hidden=()):
    visible = torch.tensor([[view not in hidden for view in range(views)]])
    with torch.no_grad():
        return model.encode(images(views, height, width, batch=(1,)), rays(views, height, width), visible)


@torch.no_grad()
def test_looking_once_serves_encodings_that_show_different_views(model):
    pictures, looks = images(3, batch=(1,)), []
    looked = model.look(pictures)
    hook = model.image_embed.register_forward_hook(lambda *_: looks.append(1))
    for shown in ([1, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]):
        visible = torch.tensor([shown], dtype=torch.bool)
        again = model.encode(pictures, rays(), visible, looked)
        assert not looks
        assert torch.equal(again, model.encode(pictures, rays(), visible))
        assert looks.pop()
    hook.remove()


def test_the_papers_size_has_the_papers_parameters():
    with torch.device("meta"):
        model = RAE3D(**SIZES["base-1024"])
    assert count(model.neck) == 12 * (12 * 768**2 + 2 * 768 + 2 * 48) == 84_954_240  # "84.9 M"
    assert count(model.decoder) == 16 * (12 * 768**2 + 2 * 768 + 2 * 48) + 768 == 113_273_088  # "113.2 M"
    assert count(model.point_decoder) == count(model.decoder)
    assert count(model.ray_embed) == 7 * 14 * 14 * 768 + 768 == 1_054_464
    assert count(model.output) == 768 * 588 + 588
    assert model.queries.shape == (1024, 768)


@pytest.mark.parametrize("name", SIZES)
def test_the_table_of_sizes_builds(name):
    with torch.device("meta"):
        model = RAE3D(**SIZES[name])
    assert model.latent_mean.shape == (SIZES[name]["tokens"], SIZES[name]["dim"])
    assert max(SIZES[name]["point_taps"]) == SIZES[name]["point_layers"] - 1


@pytest.mark.parametrize(("views", "height", "width"), [(1, 8, 8), (2, 16, 40), (7, 48, 24)])
@torch.no_grad()
def test_any_number_of_views_of_any_size(model, views, height, width):
    latents = encoded(model, views, height, width)
    assert latents.shape == (1, TOKENS, DIM)
    made = model.decode(latents, rays(views + 1, width, height))
    assert made.images.shape == (1, views + 1, 3, width, height)
    assert made.points.shape == (1, views + 1, width, height, 3)
    assert made.confidence.shape == (1, views + 1, width, height) and (made.confidence > 0).all()


def test_sides_that_are_no_multiples_of_the_patch_are_refused_in_one_line(model):
    message = r"^image size 32x30: both sides must be multiples of 8$"
    with pytest.raises(ValueError, match=message):
        encoded(model, width=30)
    with pytest.raises(ValueError, match=message):
        model.decode(torch.zeros(1, TOKENS, DIM), rays(width=30))


def test_latents_have_mean_0_and_variance_1_over_channels(model):
    latents = encoded(model)
    torch.testing.assert_close(latents.mean(-1), torch.zeros(1, TOKENS), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.var(-1, correction=0), torch.ones(1, TOKENS), atol=1e-3, rtol=0)


@torch.no_grad()
def test_the_image_of_a_hidden_view_does_not_matter_but_its_pose_does(model):
    pictures, places, visible = images(3, batch=(1,)), rays(), torch.tensor([[True, False, True]])
    before = model.encode(pictures, places, visible)
    other, moved = pictures.clone(), places.clone()
    other[:, 1] = images(1, seed=5)
    moved[:, 1] = rays(seed=5)[:, 1]
    assert torch.equal(model.encode(other, places, visible), before)
    assert (model.encode(pictures, moved, visible) - before).abs().max() > 1e-2
    assert (model.encode(pictures, places, torch.ones_like(visible)) - before).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_the_order_of_the_views_does_not_matter(attention):
    model = rae3d(neck_attention=attention)
    pictures, places, visible = images(4, batch=(1,)), rays(4), torch.tensor([[True, True, False, True]])
    order = [0, 3, 1, 2]
    before = model.encode(pictures, places, visible)
    after = model.encode(pictures[:, order], places[:, order], visible[:, order])
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    swapped = model.encode(pictures[:, order], places, visible)
    assert (swapped - before).abs().max() > 1e-2  # images at other poses are another scene


@torch.no_grad()
def test_moving_turning_and_scaling_the_whole_world_changes_nothing(model):
    cameras = path(3, batch=(1,))
    turn = matrix_from_quaternion(torch.nn.functional.normalize(torch.tensor([0.4, -0.2, 0.7, 0.5]), dim=0))
    world = Similarity(turn[None], torch.tensor([[3.0, -4.0, 2.0]]), torch.tensor([7.0]))
    pictures, visible = images(3, batch=(1,)), torch.ones(1, 3, dtype=torch.bool)
    results = []
    for poses in (cameras, cameras.transformed(world)):
        local = poses.normalized()[0].plucker()
        results.append(model.decode(model.encode(pictures, local, visible), local))
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(after, before, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("mode", ["one_way", "mutual"])
@torch.no_grad()
def test_a_target_does_not_depend_on_the_other_targets(model, mutual, mode):
    model = {"one_way": model, "mutual": mutual}[mode]
    latents, places = encoded(model), rays(4)
    together, alone = model.decode(latents, places), model.decode(latents, places[:, 2:3])
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[:, 2:3], one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_views_of_several_scenes_come_from_their_own_latents(model):
    latents = torch.randn(2, TOKENS, DIM, generator=torch.Generator().manual_seed(0))
    places = torch.cat([rays(3), rays(3, seed=4)])
    both = model.decode(latents, places)
    for row in range(2):
        for many, one in zip(both, model.decode(latents[row : row + 1], places[row : row + 1]), strict=True):
            torch.testing.assert_close(many[row : row + 1], one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cache_saves_work_and_changes_nothing(model):
    latents, places = encoded(model), rays(4)
    cache = model.cache(latents)
    assert len(cache.images) == len(model.decoder.blocks)
    for kept, fresh in zip(model.decode(cache, places), model.decode(latents, places), strict=True):
        assert torch.equal(kept, fresh)
    tokens = model.ray_embed(places.flatten(0, 1), torch.zeros(4, dtype=torch.bool))
    cached, uncached = (model.decoder(tokens, latents, memory)[-1] for memory in (cache.images, None))
    assert torch.equal(cached, uncached)


@torch.no_grad()
def test_one_way_is_attention_in_which_latents_do_not_see_the_rays(model):
    """The cached decoder against its definition: one sequence of latents and rays under a mask."""
    decoder, latents = model.decoder, encoded(model)
    tokens = model.ray_embed(rays(1).flatten(0, 1), torch.zeros(1, dtype=torch.bool))
    x = decoder.input_norm(torch.cat([latents, tokens], 1))
    allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    allowed[:TOKENS, TOKENS:] = False
    for block in decoder.blocks:
        attention = block.attention
        queries, keys, values = map(attention._split, attention.qkv(block.attention_norm(x)).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            attention.q_norm(queries), attention.k_norm(keys), values, attn_mask=allowed
        )
        x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.mlp_norm(x))
    torch.testing.assert_close(decoder(tokens, latents, None)[-1], x[:, TOKENS:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_mutual_attention_works_and_is_another_function_of_the_same_weights(model, mutual):
    latents, places = encoded(model), rays(2)
    assert model.state_dict().keys() == mutual.state_dict().keys()
    assert mutual.cache(latents).images is None
    before, after = model.decode(latents, places), mutual.decode(latents, places)
    assert before.images.shape == after.images.shape
    assert (before.images - after.images).abs().max() > 1e-2


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match=r"^attention 'joint': accepted are 'one_way' and 'mutual'$"):
        rae3d(attention="joint")


def test_normalising_with_the_datasets_statistics_gives_unit_variance_and_can_be_undone():
    model = rae3d()
    latents = 3 + 2 * torch.randn(64, TOKENS, DIM, generator=torch.Generator().manual_seed(0))
    model.latent_mean.copy_(latents.mean(0))
    model.latent_std.copy_(latents.std(0))
    normal = model.normalize(latents)
    torch.testing.assert_close(normal.mean(0), torch.zeros(TOKENS, DIM), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0), torch.ones(TOKENS, DIM))
    torch.testing.assert_close(model.denormalize(normal), latents)


def test_without_a_point_decoder_there_are_no_points():
    model = rae3d(point_layers=0)
    made = model.decode(torch.randn(1, TOKENS, DIM), rays(2))
    assert made.points is None and made.confidence is None
    with pytest.raises(ValueError, match="no point-map decoder"):
        model.decode_points(model.cache(torch.randn(1, TOKENS, DIM)), rays(2))


@torch.no_grad()
def test_a_small_confidence_is_still_one(model):
    """Next to VGGT's 1 it would round to none, which says that there is no surface."""
    model.point_head.out[-1].bias.data[3] = -30
    made = model.decode(torch.randn(1, TOKENS, DIM), rays(2))
    assert (made.confidence > 0).all() and (made.confidence < 1e-6).all()


def test_points_and_confidence_are_vggts_functions_of_the_heads_output(model):
    latents, places = encoded(model), rays(1)
    cache = model.cache(latents)
    layers = model.point_decoder(
        model.ray_embed(places.flatten(0, 1), torch.zeros(1, dtype=torch.bool)), latents, cache.points
    )
    raw = model.point_head([layers[tap] for tap in (0, 0, 1, 1)], (4, 4), (32, 32))[0]
    points, confidence = model.decode_points(cache, places)
    torch.testing.assert_close(points[0, 0], (raw[:3].sign() * (raw[:3].abs().exp() - 1)).permute(1, 2, 0))
    torch.testing.assert_close(confidence[0, 0], raw[3].exp())


def test_a_picture_of_the_training_mean_is_what_no_output_means(model):
    """The decoder speaks in normalised colours: 0 is ImageNet's mean."""
    silent = rae3d()
    torch.nn.init.zeros_(silent.output.weight)
    torch.nn.init.zeros_(silent.output.bias)
    made = silent.decode_images(silent.cache(torch.zeros(1, TOKENS, DIM)), rays(1))
    expected = torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(3, 32, 32)
    torch.testing.assert_close(made[0, 0], expected)


@pytest.mark.parametrize("neck", ATTENTIONS)
@pytest.mark.parametrize("mode", ["one_way", "mutual"])
def test_gradients_reach_every_parameter(mode, neck):
    model = rae3d(attention=mode, neck_attention=neck, point_taps=(0, 1, 1, 1)).train()
    latents = model.encode(images(2, batch=(1,)), rays(2), torch.tensor([[True, False]]))
    made = model.decode(latents, rays(2, seed=1))
    (made.images.square().mean() + made.points.square().mean() + made.confidence.mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_saving_and_loading_gives_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = RAE3D.from_pretrained(tmp_path)
    latents = encoded(again)
    assert torch.equal(latents, encoded(model))
    assert torch.equal(again.decode(latents, rays(1)).images, model.decode(latents, rays(1)).images)


def test_a_neck_that_nobody_asked_for_is_not_in_the_config(model, tmp_path):
    """So models from before there was a choice load as they are, and those of today load there."""
    model.save_pretrained(tmp_path / "full")
    assert "neck_attention" not in json.loads((tmp_path / "full/config.json").read_text())
    assert RAE3D.from_pretrained(tmp_path / "full").neck.attention == "full"
    hub = rae3d(neck_attention="hub")
    hub.load_state_dict(model.state_dict())  # the same weights
    hub.save_pretrained(tmp_path / "hub")
    again = RAE3D.from_pretrained(tmp_path / "hub")
    assert again.neck.attention == "hub" and torch.equal(encoded(again), encoded(hub))
    assert (encoded(hub) - encoded(model)).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"^neck_attention 'mutual': accepted are 'full', 'hub', 'one_way'$"):
        rae3d(neck_attention="mutual")


@torch.no_grad()
def test_full_attention_is_one_sequence_of_latents_and_views(model):
    """As it was before the last block left out what nobody reads."""
    pictures, places, visible = images(3, batch=(1,)), rays(), torch.tensor([[True, False, True]])
    tokens = model._seen(pictures[0], visible[0]) + model.ray_embed(places[0], visible[0])
    x = torch.cat([model.queries, tokens.flatten(0, 1)])[None]
    for block in model.neck:
        x = block(x)[0]
    expected = model.latent_norm(x[:, :TOKENS])
    torch.testing.assert_close(model.encode(pictures, places, visible), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_further_views_of_any_size_join_those_encoded_before():
    model = rae3d(neck_attention="one_way")
    pictures, places, visible = images(5, batch=(2,)), rays(5).expand(2, -1, -1, -1, -1), torch.rand(2, 5) < 0.7
    whole = model.encode(pictures, places, visible)
    found, read = model.extend(None, pictures[:, 3:], places[:, 3:], visible[:, 3:])
    torch.testing.assert_close(found, model.encode(pictures[:, 3:], places[:, 3:], visible[:, 3:]))
    for view in (1, 2, 0):
        found, read = model.extend(read, *(x[:, view : view + 1] for x in (pictures, places, visible)))
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    wide = rays(1, 16, 40, seed=3).expand(2, -1, -1, -1, -1)
    more = model.extend(read, images(1, 16, 40, batch=(2,)), wide, torch.ones(2, 1, dtype=torch.bool)).latents
    assert (more - whole).abs().max() > 1e-2


@torch.no_grad()
def test_a_hub_is_exact_for_the_first_views_and_near_for_further_ones(model):
    hub = rae3d(neck_attention="hub", neck_layers=4)
    pictures, places, visible = images(4, batch=(1,)), rays(4), torch.ones(1, 4, dtype=torch.bool)
    first, read = hub.extend(None, pictures[:, :3], places[:, :3], visible[:, :3])
    torch.testing.assert_close(first, hub.encode(pictures[:, :3], places[:, :3], visible[:, :3]))
    found, _ = hub.extend(read, *(x[:, 3:] for x in (pictures, places, visible)))
    whole = hub.encode(pictures, places, visible)
    assert 1e-4 < (found - whole).square().mean() < 0.5 * (first - whole).square().mean()
    with pytest.raises(ValueError, match=r"^neck_attention 'full', .*: accepted here are 'hub' and 'one_way'$"):
        model.extend(None, pictures, places, visible)


def test_cameras_of_one_place_encode_without_a_scale(model):
    turning = Cameras.from_fov(60.0, 32, 32, path(3).camera_to_world.clone())
    turning.camera_to_world[:, :3, 3] = 1.0
    local = turning.normalized()[0].plucker()[None]
    assert encoded(model).isfinite().all() and local.isfinite().all()
    assert model.encode(images(3, batch=(1,)), local, torch.ones(1, 3, dtype=torch.bool)).isfinite().all()


def published(folder, seed=0, **changes):
    """DINOv2 in miniature, as its weights are published."""
    sizes = dict(hidden_size=DIM, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14, mlp_ratio=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes | changes))
    lively(model, seed).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return published(tmp_path_factory.mktemp("encoder") / "dinov2")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's caches, empty."""
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def seeing(folder, **changes):
    model = rae3d(encoder="dinov2", **changes)
    model.load_encoder(folder)
    return model


@torch.no_grad()
def test_a_frozen_encoders_tokens_stand_where_the_patches_would(dinov2):
    model, pictures, places = seeing(dinov2), images(2, 24, 32, batch=(1,)), rays(2, 24, 32)
    tokens = model.load_encoder()(pictures[0], (3, 4))
    patched = rae3d()
    patched.load_state_dict(model.state_dict(), strict=False)
    patched.image_embed.forward = lambda normal: tokens
    visible = torch.tensor([[True, True]])
    found = model.encode(pictures, places, visible)
    torch.testing.assert_close(found, patched.encode(pictures, places, visible), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_frozen_encoder_looks_at_few_images_at_once(dinov2, monkeypatch):
    model, pictures, places, looked = seeing(dinov2), images(5, batch=(2,)), rays(5).expand(2, -1, -1, -1, -1), []
    visible = torch.tensor([[True, False, True, True, False], [True, False, True, True, True]])
    before = model.encode(pictures, places, visible)
    model.load_encoder().register_forward_pre_hook(lambda module, given: looked.append(len(given[0])))
    monkeypatch.setattr("diorama.models.rae3d.IMAGES_AT_ONCE", 5)
    torch.testing.assert_close(model.encode(pictures, places, visible), before, atol=1e-5, rtol=1e-5)
    assert looked == [2, 4, 1]


@torch.no_grad()
@pytest.mark.parametrize("pixel_branch", [False, True])
def test_a_frozen_encoder_is_not_even_shown_hidden_views(dinov2, pixel_branch):
    model, pictures, places = seeing(dinov2, pixel_branch=pixel_branch), images(3, batch=(1,)), rays()
    visible = torch.tensor([[True, False, True]])
    before = model.encode(pictures, places, visible)
    looked = []
    model.load_encoder().register_forward_pre_hook(lambda module, given: looked.append(len(given[0])))
    other = pictures.clone()
    other[:, 1] = images(1, seed=5)
    assert torch.equal(model.encode(other, places, visible), before)
    assert looked == [2]
    assert (model.encode(pictures, places, torch.ones_like(visible)) - before).abs().max() > 1e-2
    blind = model.encode(pictures, places, torch.zeros_like(visible))
    assert torch.equal(model.encode(other, places, torch.zeros_like(visible)), blind) and blind.isfinite().all()


def test_a_frozen_encoder_is_no_part_of_the_model_and_moves_along(dinov2):
    model, bare = seeing(dinov2), rae3d(encoder="dinov2")
    assert model.state_dict().keys() == bare.state_dict().keys()
    assert [name for name in rae3d().state_dict() if name not in model.state_dict()] == [
        "image_embed.weight", "image_embed.bias",
    ]  # fmt: skip
    assert count(model) == count(bare)
    frozen = model.train().load_encoder()
    assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())
    assert model.to(torch.float64).load_encoder() is frozen
    assert {tensor.dtype for tensor in frozen.parameters()} == {torch.float64}


def test_gradients_reach_everything_but_the_frozen_encoder(dinov2):
    model = seeing(dinov2, pixel_branch=True, point_layers=0).train()
    latents = model.encode(images(2, batch=(1,)), rays(2), torch.tensor([[True, False]]))
    model.decode(latents, rays(2, seed=1)).images.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(parameter.grad is None for parameter in model.load_encoder().parameters())


@torch.no_grad()
def test_the_pixel_branch_begins_closed_and_adds_plain_patches(dinov2):
    model, alone = seeing(dinov2, pixel_branch=True), seeing(dinov2)
    alone.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in alone.state_dict()})
    fresh = RAE3D(**{key: model.config[key] for key in ("patch", "tokens", "dim", "heads")} | dict(
        neck_layers=1, decoder_layers=1, point_layers=0, encoder="dinov2", pixel_branch=True,
    ))  # fmt: skip
    assert not fresh.pixel_gate.any() and fresh.image_embed.weight.any()
    opened = encoded(model)
    gate = model.pixel_gate.clone()
    model.pixel_gate.zero_()
    torch.testing.assert_close(encoded(model), encoded(alone), atol=1e-6, rtol=0)
    assert (opened - encoded(alone)).abs().max() > 1e-2
    model.pixel_gate.copy_(gate)
    pictures = images(2)
    normal = (pictures - model.image_mean) / model.image_std
    expected = model.load_encoder()(pictures, (4, 4)) + gate * model.image_embed(normal)
    torch.testing.assert_close(model._seen(pictures, torch.tensor([True, True])), expected)


@torch.no_grad()
def test_layers_are_summed_where_asked(dinov2):
    model = seeing(dinov2, encoder_layers=3)
    assert model.load_encoder().layers == 3
    assert (encoded(model) - encoded(seeing(dinov2))).abs().max() > 1e-2


@torch.no_grad()
def test_a_saved_model_finds_its_encoder_in_the_cache_and_takes_no_other(dinov2, cache, tmp_path):
    model = seeing(dinov2, encoder_layers=2)
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["encoder"] == "dinov2" and config["encoder_layers"] == 2
    assert config["encoder_digest"] == model.load_encoder().digest
    again = RAE3D.from_pretrained(tmp_path / "saved")
    latents = encoded(model)
    assert torch.equal(again.decode(latents, rays(1)).images, model.decode(latents, rays(1)).images)
    message = (
        rf"^encoder 'dinov2': found no weights .*looked in {tmp_path / 'saved' / 'encoder'}, {cache / 'dinov2'} and"
    )
    with pytest.raises(Unavailable, match=message):
        encoded(again)
    published(cache / "dinov2", seed=1)
    with pytest.raises(
        ValueError, match=rf"^{cache / 'dinov2'}: encoder of digest \w+; accepted by this RAE3D is \w+$"
    ):
        encoded(again)
    shutil.rmtree(cache)
    shutil.copytree(dinov2, cache / "dinov2")
    assert torch.equal(encoded(again), latents)


@torch.no_grad()
def test_a_model_saved_with_its_encoder_needs_no_cache(dinov2, cache, tmp_path):
    model = seeing(dinov2)
    for _ in range(2):  # into itself the second time
        model.save_pretrained(tmp_path / "saved")
        model.save_encoder(tmp_path / "saved")
        again = RAE3D.from_pretrained(tmp_path / "saved")
        assert torch.equal(encoded(again), encoded(model))
        model = again


def test_an_encoder_of_other_channels_is_refused(tmp_path):
    published(tmp_path / "wide", hidden_size=2 * DIM)
    with pytest.raises(ValueError, match=rf"wide: encoder of channels {2 * DIM}; accepted by this RAE3D is {DIM}$"):
        seeing(tmp_path / "wide")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"encoder": "clip"}, "^encoder 'clip': accepted are patches, dinov2, siglip2, da3$"),
        ({"pixel_branch": True}, "^encoder 'patches': .*accepted is neither$"),
        ({"encoder_layers": 2}, "^encoder 'patches': .*accepted is neither$"),
    ],
)
def test_encoders_that_are_none_are_refused(told, message):
    with pytest.raises(ValueError, match=message):
        rae3d(**told)


def test_plain_patches_need_no_encoder_and_say_nothing_of_one(model, tmp_path):
    assert model.load_encoder() is None
    model.save_pretrained(tmp_path)
    model.save_encoder(tmp_path)
    assert not [key for key in json.loads((tmp_path / "config.json").read_text()) if "encoder" in key or "pixel" in key]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    normal = (images(2) - model.image_mean) / model.image_std
    with torch.no_grad():
        seen = model._seen(images(2), torch.tensor([True, False]))
        assert torch.equal(seen[0], model.image_embed(normal)[0]) and not seen[1].any()
    assert seen.shape == (2, (32 // PATCH) ** 2, DIM)
