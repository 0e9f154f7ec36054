from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.miniature import DIM, SIDE, TOKENS, images, path, pipeline

from diorama.geometry.rotations import matrix_from_quaternion
from diorama.geometry.similarity import Similarity
from diorama.pipelines.base import Cancelled, ScenePipeline
from diorama.scene import Condition, Shot, Views

CAMERAS = path()
PHOTO = Condition(Views(images()), (0,))


def views_at(cameras, *places, seed=0):
    """A condition that knows these places of a path, with their cameras."""
    chosen = cameras[list(places)]
    return Condition(Views(images(len(places), chosen.height, chosen.width, seed), chosen), places)


@pytest.mark.parametrize("condition", [Condition(), PHOTO, views_at(CAMERAS, 0, 2)], ids=["nothing", "photo", "two"])
def test_a_scene_is_complete(model, condition):
    scene = model.generate(condition, CAMERAS, seed=5)
    assert scene.views.images.shape == (3, 3, SIDE, SIDE)
    assert 0 <= scene.views.images.min() < scene.views.images.max() <= 1
    assert torch.equal(scene.views.cameras.camera_to_world, CAMERAS.camera_to_world)
    assert torch.equal(scene.views.cameras.intrinsics, CAMERAS.intrinsics)
    assert scene.views.points.shape == (3, SIDE, SIDE, 3) and (scene.views.confidence >= 0).all()
    assert scene.latents.shape == (TOKENS, DIM)
    assert scene.condition.at == condition.at
    if condition.views is not None:
        assert torch.equal(scene.condition.views.images, condition.views.images)
    told = scene.provenance
    assert (told.model, told.licence, told.seed) == ("miniature", "CC0-1.0", 5)
    assert told.settings == {"steps": 3, "guidance": 2.0, "interval": [0.0, 1.0]}
    assert {"diorama", "torch", "diffusers"} <= told.versions.keys()


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@torch.no_grad()
def test_sampling_is_euler_with_guidance(model, guidance):
    """The whole loop once more, from the models alone."""
    local = CAMERAS.normalized()[0].plucker()[None]
    pictures = torch.zeros(1, 3, 3, SIDE, SIDE)
    pictures[:, 0] = PHOTO.views.images
    visible = torch.tensor([[True, False, False]])
    autoencoder = model.autoencoder
    known, blind = (
        autoencoder.normalize(autoencoder.encode(pictures, local, flags)) for flags in (visible, visible & False)
    )
    x = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(7))[None]
    times = [1.5 * t / (1 + 0.5 * t) for t in (1.0, 0.75, 0.5, 0.25, 0.0)]
    for t, following in pairwise(times):
        with_photo, without = (model.denoiser(x, torch.tensor([t]), tokens).velocity for tokens in (known, blind))
        x = x + (following - t) * (without + guidance * (with_photo - without))
    scene = model.generate(PHOTO, CAMERAS, seed=7, steps=4, guidance=guidance)
    torch.testing.assert_close(scene.latents, autoencoder.denormalize(x)[0], atol=1e-4, rtol=1e-4)
    expected = autoencoder.decode(autoencoder.denormalize(x), local).images[0].clamp(0, 1)
    torch.testing.assert_close(scene.views.images, expected, atol=1e-4, rtol=1e-4)


def test_a_seed_is_a_scene(model):
    first, again, other = (model.generate(PHOTO, CAMERAS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.latents, again.latents) and torch.equal(first.views.images, again.views.images)
    assert (first.latents - other.latents).abs().max() > 0.1


def test_what_is_known_matters(model):
    photos = [Condition(), PHOTO, replace(PHOTO, views=Views(images(seed=8))), replace(PHOTO, at=(1,))]
    scenes = model.generate(photos, CAMERAS, seed=1)
    for first in range(4):
        for second in range(first):
            assert (scenes[first].latents - scenes[second].latents).abs().max() > 1e-2


def test_a_list_is_as_if_each_was_asked_for_alone(model):
    """Requests of different shapes and numbers of known views, in an order that no grouping keeps."""
    wide, long = path(2, 16, 40, seed=3), path(5, seed=4)
    asked = [
        (PHOTO, CAMERAS, 1),
        (Condition(), wide, 2),
        (views_at(CAMERAS, 2, 1), CAMERAS, 3),
        (views_at(long, 4, seed=2), long, 4),
        (views_at(wide, 1, seed=2), wide, 5),
        (Condition(), CAMERAS, 1),
    ]
    conditions, paths, seeds = (list(column) for column in zip(*asked, strict=True))
    together = model.generate(conditions, paths, seed=seeds)
    assert [scene.provenance.seed for scene in together] == seeds
    for scene, (condition, cameras, seed) in zip(together, asked, strict=True):
        alone = model.generate(condition, cameras, seed=seed)
        assert scene.condition.at == condition.at
        assert scene.views.images.shape == alone.views.images.shape
        assert (scene.views.images - alone.views.images).abs().max() <= 1e-4
        assert (scene.latents - alone.latents).abs().max() <= 1e-4
        torch.testing.assert_close(scene.latent_frame.translation, alone.latent_frame.translation)


def test_one_path_and_one_seed_may_serve_a_list(model):
    scenes = model.generate([PHOTO, Condition()], CAMERAS, seed=6)
    assert [scene.provenance.seed for scene in scenes] == [6, 6]
    assert model.generate([], CAMERAS) == []


def test_lists_of_unequal_length_are_refused(model):
    with pytest.raises(ValueError, match=r"^2 conditions, 3 camera paths and 2 seeds: accepted is one each$"):
        model.generate([PHOTO, PHOTO], [CAMERAS] * 3)
    with pytest.raises(ValueError, match=r"^1 conditions, 2 camera paths and 1 seeds"):
        model.generate(PHOTO, [CAMERAS] * 2)


def test_progress_is_told_from_the_first_step_to_the_last(model):
    calls = []
    model.generate(PHOTO, CAMERAS, steps=4, on_step=lambda done, steps: calls.append((done, steps)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    calls.clear()
    model.generate([PHOTO, Condition()], [CAMERAS, path(2)], on_step=lambda done, steps: calls.append((done, steps)))
    assert calls == [(done, 6) for done in range(1, 7)]


def test_a_generation_can_be_cancelled(model):
    calls = []

    def stop(done, steps):
        calls.append(done)
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        model.generate(PHOTO, CAMERAS, on_step=stop)
    assert calls == [1, 2]
    assert model.generate(PHOTO, CAMERAS, seed=1).views.images.isfinite().all()


@pytest.mark.parametrize(
    ("options", "encoded", "batches"),
    [
        (dict(guidance=1.0), 1, [1, 1, 1]),
        (dict(), 2, [2, 2, 2]),
        (dict(interval=(0.5, 0.9)), 2, [1, 2, 1]),  # at times 1, 0.75 and 0.43
        (dict(condition=Condition()), 1, [1, 1, 1]),  # nothing to guide by
        (dict(condition=[PHOTO, Condition()]), 3, [2, 2, 2, 1, 1, 1]),
    ],
)
def test_guidance_costs_only_where_it_acts(model, monkeypatch, options, encoded, batches):
    seen, encodings, denoise, encode = [], [], model.denoise, model.autoencoder.encode
    monkeypatch.setattr(model, "denoise", lambda x, t, known: seen.append(len(x)) or denoise(x, t, known))
    monkeypatch.setattr(model.autoencoder, "encode", lambda *what: encodings.append(what) or encode(*what))
    model.generate(**dict(condition=PHOTO, wanted=CAMERAS) | options)
    assert seen == batches and len(encodings) == encoded


def test_moving_turning_and_scaling_the_callers_world_moves_the_scene_with_it(model):
    turn = matrix_from_quaternion(torch.nn.functional.normalize(torch.tensor([0.4, -0.2, 0.7, 0.5]), dim=0))
    world = Similarity(turn, torch.tensor([3.0, -4.0, 2.0]), torch.tensor(50.0))
    condition = views_at(CAMERAS, 0, 1)
    moved = replace(condition, views=condition.views.transformed(world))
    before, after = model.generate([condition, moved], [CAMERAS, CAMERAS.transformed(world)], seed=1)
    expected = before.views.transformed(world)
    torch.testing.assert_close(after.views.cameras.camera_to_world, expected.cameras.camera_to_world)
    torch.testing.assert_close(after.latents, before.latents, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(after.views.images, before.views.images, atol=5e-3, rtol=0)
    size = (expected.points - expected.cameras.centers[:, None, None]).norm(dim=-1)
    error = (after.views.points - expected.points).norm(dim=-1) / size
    assert error.median() < 1e-3 and error.quantile(0.99) < 2e-2


def test_points_lie_in_front_of_the_camera_on_the_rays_of_their_pixels(model):
    views = model.generate(PHOTO, CAMERAS, seed=1).views
    pixels, depth = views.cameras.project(views.points)
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    far = depth > 1e-2  # nearer, the projection itself loses digits
    assert (depth > 0).all() and far.float().mean() > 0.1
    error = (pixels - torch.stack([columns, rows], -1)).abs().amax(-1)
    assert error[far].max() < 0.05
    torch.testing.assert_close(views.depth, depth, atol=1e-4, rtol=1e-4)


def test_a_photo_without_a_camera_takes_the_wanted_one(model):
    known = model.generate(PHOTO, CAMERAS, seed=1)
    assert torch.equal(known.condition.views.cameras.camera_to_world, CAMERAS[0].camera_to_world)
    told = model.generate(replace(PHOTO, views=replace(PHOTO.views, cameras=CAMERAS[0])), CAMERAS, seed=1)
    assert torch.equal(known.latents, told.latents)


def test_large_photos_and_paths_come_to_the_models_size(model):
    photo, cameras = Views(images(1, 120, 200)), path(2, 120, 200)
    scene = model.generate(Condition(photo, (0,)), cameras, seed=1)
    height, width = scene.views.images.shape[-2:]
    assert height % 8 == width % 8 == 0 and 0.5 < height * width / SIDE**2 < 2
    assert (scene.views.cameras.height, scene.views.cameras.width) == (height, width)
    torch.testing.assert_close(scene.views.cameras.fov, cameras.fov)
    assert torch.equal(scene.condition.views.images, photo.images)  # the photo keeps its pixels
    assert scene.condition.views.cameras.height == 120


def test_sizes_that_the_model_can_make_are_kept(model):
    assert model.generate(Condition(), path(1, 40, 64)).views.images.shape == (1, 3, 40, 64)
    assert model.generate(Condition(), path(1, 30, 33)).views.images.shape == (1, 3, 32, 32)


def test_a_long_path_is_encoded_from_as_many_poses_as_were_trained():
    model, read = pipeline(encoder_views=4), []
    encode = model.autoencoder.encode
    model.autoencoder.encode = lambda *what: read.append(what[2]) or encode(*what)
    cameras = path(9)
    model.generate(views_at(cameras, 5), cameras, guidance=1.0)
    model.generate(views_at(cameras, 8, 1, 2, 3, 4), cameras, guidance=1.0)
    assert [flags.shape[1] for flags in read] == [4, 6]  # the first pose and all known ones in any case
    assert [int(flags.sum()) for flags in read] == [1, 5]


def test_guidance_compares_what_is_known_of_the_same_poses():
    model, read = pipeline(encoder_views=4), []
    encode = model.autoencoder.encode
    model.autoencoder.encode = lambda *what: read.append(what) or encode(*what)
    cameras = path(9)
    model.generate(views_at(cameras, 5, 7), cameras)  # neither is among the four that are evenly spread
    (pictures, rays, visible), (blank, other_rays, hidden) = (what[:3] for what in read)
    assert torch.equal(rays, other_rays)
    assert visible.sum() == 2 and not hidden.any()
    assert pictures.any() and not blank.any()


def test_a_list_may_know_more_views_than_were_trained_beside_fewer():
    model, cameras = pipeline(encoder_views=2), path(5)
    conditions = [views_at(cameras, 1), views_at(cameras, 0, 2, 3, 4), Condition()]
    for scene, condition in zip(model.generate(conditions, cameras), conditions, strict=True):
        assert (scene.latents - model.generate(condition, cameras).latents).abs().max() <= 1e-4


@pytest.mark.parametrize("shape", [(30, 33), (100, 75), (48, 64), (200, 355), (22, 30), (9, 90)])
def test_pixels_stay_square_and_little_is_cropped(model, shape):
    cameras = path(1, *shape)
    made = model.generate(Condition(), cameras).views.cameras
    assert made.height % 8 == made.width % 8 == 0 and 0.5 < made.height * made.width / SIDE**2 <= 4
    torch.testing.assert_close(made.intrinsics[:, 0, 0], made.intrinsics[:, 1, 1])
    torch.testing.assert_close(made.intrinsics[0, :2, 2], torch.tensor([made.width, made.height]) / 2)
    fields = [torch.tensor([c.width, c.height]) / c.intrinsics[0, (0, 1), (0, 1)] for c in (made, cameras)]
    share = fields[0] / fields[1]
    torch.testing.assert_close(share.max(), torch.tensor(1.0))  # of the longer or the shorter side nothing is lost
    assert share.min() > 0.75


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("shape", [(90, 150), (150, 90), (47, 65)])
def test_a_circle_stays_a_circle(shape, told):
    """A photo of another shape than the path's, with its camera or without, is cropped, not squeezed."""
    model, read = pipeline(), []
    encode = model.autoencoder.encode
    model.autoencoder.encode = lambda pictures, *what: read.append(pictures) or encode(pictures, *what)
    wanted = path(2)
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 - side / 2 for side in shape), indexing="ij")
    disc = (x.hypot(y) < 0.35 * min(shape)).float().expand(1, 3, *shape)
    scene = model.generate(Condition(Views(disc, wanted[0].widened(*shape) if told else None), (0,)), wanted)
    seen = read[0][0, 0, 0]
    across = torch.stack([seen.sum(0).max(), seen.sum(1).max()])  # height and width of the disc, in pixels
    torch.testing.assert_close(across, torch.full((2,), 0.7 * SIDE), atol=0.5, rtol=0)
    steps = torch.arange(SIDE) + 0.5
    middle = torch.stack([(seen.sum(0) * steps).sum(), (seen.sum(1) * steps).sum()]) / seen.sum()
    torch.testing.assert_close(middle, torch.full((2,), SIDE / 2), atol=0.5, rtol=0)
    assert scene.condition.views.images.shape[-2:] == shape
    focal = scene.condition.views.cameras.intrinsics[0]
    torch.testing.assert_close(focal[0, 0], focal[1, 1])


def test_far_from_the_origin_a_scene_is_the_same(model):
    """Half of the earth's circumference away, where singles are two metres apart: doubles go in, doubles come out."""
    near = CAMERAS.to(torch.float64)
    world = Similarity.identity(torch.float64)
    world = replace(world, translation=torch.tensor([5e5, -2e5, 3e5], dtype=torch.float64))
    far = near.transformed(world)
    before, after = (model.generate(views_at(cameras, 0, 1), cameras, seed=1) for cameras in (near, far))
    torch.testing.assert_close(after.latents, before.latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.views.images, before.views.images, atol=1e-4, rtol=0)
    assert torch.equal(after.views.cameras.camera_to_world, far.camera_to_world)
    torch.testing.assert_close(after.views.points, world.apply(before.views.points), atol=1e-2, rtol=0)
    again = model.render(after, far)
    torch.testing.assert_close(again.images, after.views.images, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 8e-4)])
def test_half_precision_makes_nearly_the_same(model, kind, tolerance):
    half = pipeline().to(kind)
    assert half.denoiser.dtype == half.autoencoder.dtype == kind
    exact, rough = (made.generate(PHOTO, CAMERAS, seed=1) for made in (model, half))
    assert rough.views.images.dtype == rough.latents.dtype == rough.views.points.dtype == torch.float32
    assert (rough.views.images - exact.views.images).square().mean().sqrt() < tolerance
    assert (rough.latents - exact.latents).square().mean().sqrt() < 5 * tolerance * exact.latents.std()
    known = Views(images(3), CAMERAS)
    exact, rough = (made.reconstruct(known).views.images for made in (model, half))
    assert (rough - exact).square().mean().sqrt() < tolerance


def test_a_family_that_leaves_something_out_cannot_be_made():
    class Unfinished(ScenePipeline):
        def noise(self, wanted, seeds):
            return torch.zeros(1)

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()


def refused(model, condition, wanted=CAMERAS, **options):
    called = []
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        model.generate(condition, wanted, on_step=lambda *_: called.append(1), **options)
    assert not called
    return str(error.value)


def test_requests_that_the_model_cannot_fulfil(model):
    assert refused(model, PHOTO, Shot(3, SIDE, SIDE)).endswith("pass Cameras, not a Shot")
    assert refused(model, replace(PHOTO, prompt="a room")).endswith("leave the prompt out")
    assert refused(model, replace(PHOTO, label=3)).endswith("leave the label out")
    assert refused(model, replace(PHOTO, at=(3,))) == "known view at place 3 of 3 wanted views; places count from 0"
    assert refused(model, PHOTO, steps=0) == "0 steps: at least 1 is needed"
    assert refused(model, PHOTO, path(2, batch=(1,))).startswith("cameras of shape (1, 2, 4, 4): accepted is")
    assert refused(model, PHOTO, CAMERAS[[]]).startswith("cameras of shape (0, 4, 4): accepted is")
    broken = replace(CAMERAS, intrinsics=-CAMERAS.intrinsics)
    assert refused(model, PHOTO, broken).startswith("camera 0 has")
    batched = Views(images(batch=(1,)))
    assert refused(model, replace(PHOTO, views=batched)).startswith("known images of shape (1, 1, 3, 32, 32)")
    assert refused(model, PHOTO, interval=(0.8, 0.2)).startswith("guidance interval (0.8, 0.2): accepted is 0 <=")


def turned(cameras):
    angle = torch.tensor(0.01)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    poses = cameras.camera_to_world.clone()
    poses[:, :3, :3] = poses[:, :3, :3] @ turn
    return replace(cameras, camera_to_world=poses)


def shifted(cameras):
    poses = cameras.camera_to_world.clone()
    poses[:, 0, 3] += 0.02
    return replace(cameras, camera_to_world=poses)


def zoomed(cameras):
    return replace(cameras, intrinsics=cameras.intrinsics * torch.tensor([1.05, 1.05, 1])[:, None])


@pytest.mark.parametrize(("change", "what"), [(turned, "orientation"), (shifted, "position"), (zoomed, "intrinsics")])
def test_a_known_camera_must_be_the_wanted_one(model, change, what):
    condition = views_at(CAMERAS, 0, 2)
    cameras = condition.views.cameras
    poses, intrinsics = cameras.camera_to_world.clone(), cameras.intrinsics.clone()
    odd = change(cameras[1])
    poses[1], intrinsics[1] = odd.camera_to_world[0], odd.intrinsics[0]
    views = replace(condition.views, cameras=replace(cameras, camera_to_world=poses, intrinsics=intrinsics))
    found = refused(model, replace(condition, views=views))
    assert found == f"the known view at place 2 has another {what} than the wanted camera there"


def test_a_known_camera_may_differ_by_rounding_and_by_resolution(model):
    cameras = CAMERAS[0].resized(50, 50).to(torch.float64)
    cameras.camera_to_world[:, :3, 3] += 1e-5
    scene = model.generate(Condition(Views(images(1, 50, 50), cameras), (0,)), CAMERAS)
    assert scene.views.images.shape[-2:] == (SIDE, SIDE)
