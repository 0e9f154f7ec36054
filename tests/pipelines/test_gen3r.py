"""Gen3R as a pipeline: what it must keep whatever the weights are. tests/parity has its numbers."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.miniature import images, path

from diorama.geometry.similarity import Similarity
from diorama.geometry.trajectories import pan
from diorama.pipelines.base import size_in_units
from diorama.pipelines.gen3r import UNIT
from diorama.pipelines.gen3r_reconstruction import two_stage
from diorama.scene import Condition, Shot, Views

SIDE = 112
SHOT = Shot(5, SIDE, SIDE)


def cameras(views=5):
    return path(views, SIDE, SIDE)


def photo(place=0, prompt=None, views=1, seed=0):
    return Condition(Views(images(views, SIDE, SIDE, seed)), tuple(range(place, place + views)), prompt)


def world(scale=1.0):
    """A similarity of no special numbers."""
    turn = torch.tensor([[0, -0.3, 0.2], [0.3, 0, -0.4], [-0.2, 0.4, 0]])
    return Similarity(torch.linalg.matrix_exp(turn), torch.tensor([3.0, -1.0, 2.0]), torch.tensor(scale))


@pytest.fixture
def model(gen3r):
    """The miniature with two steps; what a test registers is undone."""
    before = {key: gen3r.config[key] for key in ("parity", "negative_prompt")}
    yield gen3r
    gen3r.register_to_config(**before)


def known_of(model, condition, wanted, seed=0, **options):
    """What the denoiser is told, as `generate` tells it."""
    settings = {"guidance": 5.0} | model.options(**options)
    requests = [model.prepared(condition, wanted)]
    with torch.no_grad():
        context, null = model.branches([requests[0][0]], [requests[0][1]], [seed], settings)
    return context, null


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        (photo(), SHOT),
        (photo(2), cameras(6)),
        (Condition(Views(images(2, 150, 130)), (0, 4), "a red room"), replace(cameras(), width=130, height=150)),
        (photo(views=5), Shot(5, 100, 200)),
    ],
    ids=["first", "in the middle of six", "first and last of another size", "all"],
)
def test_any_known_views_become_a_whole_scene(model, condition, wanted):
    scene = model.generate(condition, wanted, seed=3)
    views, (height, width) = scene.views, model.size_near(wanted.height, wanted.width)
    assert height % 112 == width % 112 == 0
    assert views.images.shape == (wanted.views, 3, height, width) and views.points.shape[1:3] == (height, width)
    assert views.images.min() >= 0 and views.images.max() <= 1 and views.points.isfinite().all()
    assert (views.depth > 0).all() and 0.9 < float((views.confidence > 0).float().mean()) < 1
    assert scene.latents.shape == (16, 2 if wanted.views == 5 else 3, height // 8, width // 4)
    places, _ = views.cameras.project(views.points)
    columns = (torch.arange(width) + 0.5).expand(height, width)
    torch.testing.assert_close(places[-1, ..., 0], columns, atol=0.05, rtol=0)
    if not isinstance(wanted, Shot):
        expected = wanted.fitted(height, width)
        assert torch.equal(views.cameras.camera_to_world, expected.camera_to_world)
        assert torch.equal(views.cameras.intrinsics, expected.intrinsics)
    made = scene.provenance
    assert (made.seed, made.settings["steps"], made.settings["negative_prompt"]) == (3, 2, "bad detailed")
    assert "non-commercial" in made.licence


def test_together_is_as_alone(model):
    conditions = [photo(prompt="a"), photo(2, seed=1), photo(views=2, seed=2)]
    paths = [cameras(), SHOT, cameras()]
    together = model.generate(conditions, paths, seed=[4, 5, 6])
    for index in (0, 1):
        alone = model.generate(conditions[index], paths[index], seed=[4, 5, 6][index])
        torch.testing.assert_close(together[index].latents, alone.latents, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[index].views.images, alone.views.images, atol=1e-4, rtol=1e-4)


def test_the_scene_moves_with_the_callers_world(model):
    condition, wanted = Condition(Views(images(2, SIDE, SIDE)), (0, 4)), cameras()
    here = model.generate(condition, wanted)
    for scale in (1.0, 3.0):  # two known cameras tell the scale too
        there = model.generate(condition, wanted.transformed(world(scale)))
        torch.testing.assert_close(there.views.images, here.views.images, atol=1e-3, rtol=1e-3)
        expected = world(scale).apply(here.views.points)
        torch.testing.assert_close(there.views.points, expected, atol=3e-3 * float(expected.abs().max()), rtol=0)


def test_without_cameras_they_are_predicted(model):
    scene = model.generate(photo(), SHOT)
    torch.testing.assert_close(scene.views.cameras.camera_to_world[0], torch.eye(4), atol=1e-5, rtol=0)
    assert float(scene.views.cameras.extent) > 0
    known = Condition(Views(images(1, SIDE, SIDE), cameras()[3]), (0,))
    moved = model.generate(known, SHOT).views.cameras.camera_to_world
    torch.testing.assert_close(moved[0], cameras().camera_to_world[3], atol=1e-5, rtol=0)


def test_predicted_cameras_in_the_place_of_wanted_ones(model):
    wanted, asked = (model.generate(photo(), cameras(), cameras=kind).views for kind in ("wanted", "predicted"))
    assert torch.equal(wanted.images, asked.images)
    first = cameras().camera_to_world[0]
    torch.testing.assert_close(asked.cameras.camera_to_world[0], first, atol=1e-5, rtol=0)
    assert not torch.allclose(wanted.cameras.camera_to_world, asked.cameras.camera_to_world, atol=1e-2)
    torch.testing.assert_close(wanted.depth, asked.depth, atol=1e-3, rtol=1e-3)


def test_points_of_the_other_head(model):
    by_depth, by_points = (model.generate(photo(), SHOT, points=kind).views for kind in ("depth", "head"))
    assert not torch.allclose(by_depth.depth, by_points.depth, rtol=1e-2)
    places, _ = by_points.cameras.project(by_points.points)
    ahead = by_points.depth > 0.3  # nearer ones are of few digits, cameras apart
    assert int(ahead.sum()) > 100
    assert float((places[..., 0] - torch.arange(SIDE) - 0.5)[ahead].abs().max()) < 0.01


def test_text_and_cameras_reach_the_denoiser(model):
    context, null = known_of(model, photo(prompt="a red room"), cameras())
    assert not torch.equal(context.known.text, null.known.text)
    assert context.known.latents is null.known.latents and context.known.control is null.known.control
    bare, _ = known_of(model, photo(), SHOT)
    assert not bare.known.control.any() and context.known.control.any()
    assert torch.equal(bare.known.latents, context.known.latents)
    assert torch.equal(bare.known.image, context.known.image)


def test_where_both_branches_are_one_there_is_one(model):
    assert known_of(model, photo(prompt="bad detailed"), SHOT)[1] is None
    assert known_of(model, photo(prompt="a"), SHOT, negative_prompt="a")[1] is None
    condition, wanted = model.prepared(photo(prompt="a"), SHOT)
    assert model.null([condition], [wanted]) is not None
    model.register_to_config(negative_prompt="a")
    assert model.null([condition], [wanted]) is None


def test_the_negative_prompt_counts_with_guidance_only(model):
    plain, other = (model.generate(photo(), SHOT, negative_prompt=text).latents for text in ("blurred", "sharp 2"))
    assert not torch.allclose(plain, other, atol=1e-5)
    plain, other = (
        model.generate(photo(), SHOT, guidance=1.0, negative_prompt=text).latents for text in ("blurred", "sharp 2")
    )
    assert torch.equal(plain, other)


def test_vggt_looks_only_where_the_path_moves_and_no_scale_is_told(model, monkeypatch):
    looked, look = [], model.vggt.forward
    monkeypatch.setattr(model.vggt, "forward", lambda images: looked.append(images.shape[1]) or look(images))
    still = pan(cameras()[0], 5)
    for wanted, options in ((SHOT, {}), (still, {}), (cameras(), {"scale": 1.0})):
        context, _ = known_of(model, photo(), wanted, **options)
        assert not looked and (context.frames[0] is None or float(context.frames[0].scale) == 1)
    known_of(model, photo(views=5), cameras())
    known_of(model, photo(views=12), cameras(13))
    assert looked == [5, 8]


def test_translations_are_scaled_as_told(model):
    one, two = (known_of(model, photo(), cameras(), scale=scale)[0] for scale in (1.0, 2.0))
    moment, direction = slice(0, 12), slice(12, 24)  # four frames of three moments, then of three directions
    torch.testing.assert_close(2 * one.known.control[:, moment], two.known.control[:, moment], atol=1e-5, rtol=1e-5)
    assert torch.equal(one.known.control[:, direction], two.known.control[:, direction])


def test_repeated_frames_are_known_only_where_all_views_are(model):
    six = known_of(model, photo(views=6), Shot(6, SIDE, SIDE))[0].known.latents
    assert six.shape[2] == 3 and (six[:, 16:, ..., : SIDE // 8] == 1).all()
    ends = Condition(Views(images(2, SIDE, SIDE)), (0, 5))
    mask = known_of(model, ends, Shot(6, SIDE, SIDE))[0].known.latents[0, 16:, :, 0, 0]
    assert mask.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]


def test_drawn_posteriors_are_parity(model):
    latents = {}
    for parity in (False, True):
        model.register_to_config(parity=parity)
        one, again, two = (known_of(model, photo(), SHOT, seed)[0].known.latents for seed in (1, 1, 2))
        assert torch.equal(one, again) and torch.equal(one, two) != parity
        latents[parity] = one
    noise = (latents[True] - latents[False])[:, :16, ..., : SIDE // 8]
    model.register_to_config(parity=False)
    with torch.no_grad():
        clip = -torch.ones(1, 3, 5, SIDE, SIDE)
        clip[0, :, 0] = 2 * photo().views.images[0] - 1
        deviation = (0.5 * model.vae.encode(clip).latent_dist.logvar).exp()
    assert float((noise / deviation).std()) == pytest.approx(1, abs=0.05)


def test_photos_cut_to_bytes_are_parity(model):
    cut = (photo().views.images * 255).floor() / 255
    coarse = Condition(Views(cut + 1e-4), (0,))
    tokens = {}
    for parity in (False, True):
        model.register_to_config(parity=parity)
        tokens[parity] = [known_of(model, c, SHOT)[0].known.image for c in (photo(), coarse)]
    assert torch.equal(*tokens[True]) and not torch.equal(*tokens[False])


def test_a_rounded_state_is_parity(model):
    whole = model.transformer
    model.transformer = copy.deepcopy(whole).to(torch.bfloat16)  # a way back would leave the rotations' table rounded
    try:
        for parity in (False, True):
            model.register_to_config(parity=parity)
            latents = model.generate(photo(), SHOT).latents
            assert latents.dtype == torch.float32
            assert torch.equal(latents.bfloat16().float(), latents) == parity
    finally:
        model.transformer = whole


def test_points_beside_their_rays_are_parity(model):
    offsets = {}
    for parity in (False, True):
        model.register_to_config(parity=parity)
        views = model.generate(photo(), SHOT, guidance=1.0).views
        places, _ = views.cameras.project(views.points)
        offsets[parity] = float((places[0, 7, :, 0] - torch.arange(SIDE)).mean())
    assert offsets[False] == pytest.approx(0.5, abs=1e-2) and offsets[True] == pytest.approx(0, abs=1e-2)


def test_all_views_with_and_without_cameras(model):
    known = Views(images(5, SIDE, SIDE))
    free = model.reconstruct(known, prompt="a room", seed=2)
    same = model.generate(photo(views=5, prompt="a room"), SHOT, seed=2)
    assert torch.equal(free.latents, same.latents) and free.condition.prompt == "a room"
    posed = replace(known, cameras=cameras())
    bound = model.reconstruct([posed, posed], seed=2)
    torch.testing.assert_close(bound[0].latents, bound[1].latents, atol=1e-4, rtol=1e-4)
    assert torch.equal(bound[0].views.cameras.camera_to_world, cameras().camera_to_world)
    assert not torch.allclose(free.latents, bound[0].latents, atol=1e-3)


def test_without_diffusion_the_photos_go_through_the_autoencoders(model):
    known = Views(images(5, SIDE, SIDE), cameras())
    scene = model.reconstruct(known, steps=0)
    assert scene.provenance.seed is None and scene.provenance.settings["steps"] == 0
    with torch.no_grad():
        clip = 2 * known.images.transpose(0, 1)[None] - 1
        video = model.vae.decode(model.vae.encode(clip).latent_dist.mode()).sample[0].transpose(0, 1) / 2 + 0.5
    torch.testing.assert_close(scene.views.images, video.clamp(0, 1), atol=1e-4, rtol=1e-4)
    backwards = model.reconstruct(known[[4, 3, 2, 1, 0]], cameras(), steps=0)
    torch.testing.assert_close(backwards.views.images, scene.views.images, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"^2 known of 5 views: without diffusion accepted are all$"):
        model.reconstruct(known[[0, 4]], cameras(), steps=0)
    named = model.reconstruct(known, by="vae")
    assert torch.equal(named.latents, scene.latents) and named.provenance.settings["by"] == "vae"
    with pytest.raises(ValueError, match=r"^3 steps by 'vae': it leaves diffusion out; accepted is no number"):
        model.reconstruct(known, by="vae", steps=3)
    with pytest.raises(ValueError, match=r"^by 'magic': accepted are diffusion, vae, vggt$"):
        model.reconstruct(known, by="magic")


def test_by_vggt_alone_the_photos_stay_and_their_geometry_is_vggts(model):
    known = Views(images(5, SIDE, SIDE))
    scene = model.reconstruct(known, by="vggt")
    assert torch.equal(scene.views.images, known.images) and scene.latents is None
    with torch.no_grad():
        seen = model.vggt(known.images[None])
    depth = scene.views.depth / scene.views.depth.median() * seen.depth[0].median()
    torch.testing.assert_close(depth, seen.depth[0], rtol=1e-3, atol=1e-3)
    backwards = model.reconstruct(replace(known, cameras=cameras())[[4, 3, 2, 1, 0]], cameras(), by="vggt")
    assert torch.equal(backwards.views.images, known.images)
    assert torch.equal(backwards.views.cameras.camera_to_world, cameras().camera_to_world)


def test_two_stage_is_the_generated_pictures_as_vggt_sees_them(model):
    scene = model.generate(photo(), cameras())
    other = two_stage(model, scene)
    assert torch.equal(other.views.images, scene.views.images)
    assert torch.equal(other.views.cameras.camera_to_world, cameras().camera_to_world)
    again = model.reconstruct(Views(scene.views.images, cameras()), by="vggt").views
    ratio = other.views.depth / again.depth  # the scene's scale may be another where the path tells none
    assert float(ratio.std() / ratio.mean()) < 1e-3 and not torch.allclose(other.views.depth, scene.views.depth)
    free = two_stage(model, model.generate(photo(), SHOT))
    torch.testing.assert_close(free.views.cameras.camera_to_world[0], torch.eye(4), atol=1e-5, rtol=0)


def test_steps_that_hardly_change_keep_their_answer(model):
    counts, latents, last = {}, {}, model.transformer.blocks[-1].ffn
    for threshold in (0.0, 1e-9, 0.99):
        calls = []
        hook = last.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        latents[threshold] = model.generate(photo(), SHOT, steps=6, step_cache=threshold).latents
        hook.remove()
        counts[threshold] = len(calls)
    assert counts[0.0] == counts[1e-9] == 12 and 2 <= counts[0.99] < 12
    assert torch.equal(latents[0.0], latents[1e-9]) and not torch.equal(latents[0.0], latents[0.99])
    assert latents[0.99].isfinite().all() and not model.transformer.is_cache_enabled


def test_tiles_of_the_video_are_nearly_the_whole(model):
    whole, tiled = (
        model.reconstruct(Views(images(1, 112, 336)), steps=0, tiling=tiling).views.images for tiling in (False, True)
    )
    assert whole.shape == tiled.shape and not torch.equal(whole, tiled)
    assert torch.equal(model.reconstruct(Views(images(1, 112, 336)), steps=0).views.images, whole)


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ((560, 560), (560, 560)),
        ((336, 1008), (336, 1008)),  # whole units are kept
        ((300, 400), (336, 448)),  # others go to the nearest proportions beside them
        ((84, 112), (112, 112)),
        ((1, 1), (112, 112)),
        ((3000, 4000), (448, 560)),  # what is far too large, to about the area trained at
        ((84, 149), (112, 112)),  # nearer proportions at twice the area are not near
        ((112, 224), (112, 224)),
    ],
)
def test_sizes_that_it_makes(asked, made):
    assert size_in_units(*asked, UNIT, 560 * 560) == made


@pytest.mark.parametrize(
    ("condition", "wanted", "options", "message"),
    [
        (Condition(prompt="a"), SHOT, {}, "starts from photos: give at least one known view"),
        (replace(photo(), label=3), SHOT, {}, "was trained without classes"),
        (photo(7), SHOT, {}, "known view at place 7 of 5 wanted views"),
        (photo(7), cameras(), {}, "known view at place 7 of 5 wanted views"),
        (photo(), SHOT, {"scale": -1.0}, "scale -1.0: accepted is more than 0"),
        (photo(), SHOT, {"points": "mesh"}, "points 'mesh': accepted are depth, head"),
        (photo(), SHOT, {"cameras": "mine"}, "cameras 'mine': accepted are wanted, predicted"),
        (photo(), SHOT, {"warp": 9}, "Gen3R knows no warp"),
        (photo(), SHOT, {"step_cache": 1.0}, "step_cache 1.0: accepted is 0 up to, not including, 1"),
        (photo(), SHOT, {"steps": 0}, "0 steps"),
    ],
)
def test_what_it_cannot_use(model, condition, wanted, options, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        model.generate(condition, wanted, **options)
    assert message in str(error.value)


def test_its_scenes_cannot_be_rendered_again(model):
    scene = model.reconstruct(Views(images(1, SIDE, SIDE)), steps=0)
    with pytest.raises(ValueError, match=r"^Gen3R cannot show a scene from other cameras: generate it along the new"):
        model.render(scene, cameras())


def test_no_part_works_before_it_is_fetched_nor_stays_after(model, monkeypatch, tmp_path):
    """What offloading needs: parts are used inside their visit only, through whichever of their methods."""
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    here, stages, hooks = [], [], []

    class Visit:
        def __init__(self, *modules):
            self.modules = modules

        def __enter__(self):
            assert not here, "two parts at once"
            here.extend(self.modules)
            stages.append(type(self.modules[0]).__name__)

        def __exit__(self, *_):
            here.clear()

    def checked(module, _):
        assert any(module in set(visitor.modules()) for visitor in here), type(module).__name__

    parts = [part for part in model.components.values() if isinstance(part, torch.nn.Module)]
    hooks = [module.register_forward_pre_hook(checked) for part in parts for module in part.modules()]
    monkeypatch.setattr(model, "visiting", Visit)
    try:
        model.generate(photo(), cameras(), steps=1)
        model.reconstruct(Views(images(5, SIDE, SIDE)), steps=0)
    finally:
        for hook in hooks:
            hook.remove()
    decoding = ["AutoencoderKLWan", "GeometryAdapter", "Readout"]
    sampling = ["CLIPVisionModel", "AutoencoderKLWan", "VGGT", "Gen3RTransformer"]
    assert stages == [*sampling, *decoding, "AutoencoderKLWan", "VGGT", "GeometryAdapter", *decoding]
