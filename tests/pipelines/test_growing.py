from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.miniature import SIDE, images, observed_memory, path, pipeline, rae3d

from diorama.pipelines.growing import GrowingScene
from diorama.scene import Views

CAMERAS = path(5)
KNOWN = Views(images(5), CAMERAS)


def model(attention, **changes):
    made = pipeline(**changes)
    made.autoencoder.load_state_dict((other := rae3d(neck_attention=attention)).state_dict())
    made.register_modules(autoencoder=other)
    return made


@pytest.fixture(scope="module")
def one_way():
    return model("one_way")


def grown(model, parts, reach=CAMERAS):
    scene = GrowingScene(model, reach)
    return [scene.add(part) for part in parts]


@pytest.mark.parametrize("cuts", [(0, 5), (0, 2, 5), (0, 1, 2, 3, 5)], ids=str)
def test_a_scene_grown_view_by_view_is_the_one_of_all_views_at_once(one_way, cuts):
    whole = one_way.reconstruct(KNOWN)
    scenes = grown(one_way, [KNOWN[a:b] for a, b in pairwise(cuts)])
    torch.testing.assert_close(scenes[-1].latents, whole.latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scenes[-1].latent_frame.scale, whole.latent_frame.scale)
    last = scenes[-1].views
    assert (last.images - whole.views.images[cuts[-2] :]).abs().max() <= 1e-4
    torch.testing.assert_close(last.points, whole.views.points[cuts[-2] :], atol=1e-3, rtol=1e-3)
    again = one_way.render(scenes[-1], CAMERAS)
    assert (again.images - whole.views.images).abs().max() <= 1e-4
    assert [scene.provenance.settings["known_views"] for scene in scenes] == list(cuts[1:])


def test_every_step_is_the_scene_of_the_views_so_far(one_way):
    wanted, grows = path(2, seed=7), GrowingScene(one_way, CAMERAS.joined(path(2, seed=7)))
    for count in (1, 2):
        scene = grows.add(KNOWN[count - 1], wanted)
        assert scene.views.images.shape == (2, 3, SIDE, SIDE) and scene.condition.views is None
        expected = one_way.autoencoder.encode(
            KNOWN.images[None, :count],
            CAMERAS.joined(wanted).normalized()[0].plucker()[None, :count],
            torch.ones(1, count, dtype=torch.bool),
        )
        torch.testing.assert_close(scene.latents, expected[0], atol=1e-5, rtol=1e-5)


def test_the_first_views_and_the_reach_fix_the_frame(one_way):
    far = replace(CAMERAS, camera_to_world=CAMERAS.camera_to_world.clone())
    far.camera_to_world[3, :3, 3] += 50
    one, two = GrowingScene(one_way), GrowingScene(one_way, far)
    frames = [one.add(KNOWN[:3]).latent_frame, one.add(Views(KNOWN.images[3:], far[3:])).latent_frame]
    assert frames[0] is frames[1]
    assert float(frames[0].apply(CAMERAS.centers[:3].double()).norm(dim=-1).max()) == pytest.approx(1)
    frame = two.add(KNOWN[:3]).latent_frame
    assert float(frame.apply(far.centers.double()).norm(dim=-1).max()) == pytest.approx(1)


def test_a_hub_comes_near_and_starts_exactly(one_way):
    hub = model("hub")
    first = grown(hub, [KNOWN])[0]
    torch.testing.assert_close(first.latents, hub.reconstruct(KNOWN).latents, atol=1e-5, rtol=1e-5)
    assert (first.latents - grown(one_way, [KNOWN])[0].latents).abs().max() > 1e-2


def test_the_memory_of_the_known_views_grows_along():
    remembering = model("one_way", memory=observed_memory())
    whole, scenes = remembering.reconstruct(KNOWN), grown(remembering, [KNOWN[:2], KNOWN[2:]])
    assert len(scenes[0].observed) == 2 and torch.equal(scenes[1].observed.images, whole.observed.images)
    found = remembering.render(scenes[1], CAMERAS)
    assert (found.images - whole.views.images).abs().max() <= 1e-4


def test_later_views_come_to_the_size_of_the_first(one_way):
    grows = GrowingScene(one_way, CAMERAS)
    grows.add(KNOWN[:2])
    scene = grows.add(Views(images(1, 64, 96), path(3, 64, 96)[2]), CAMERAS)
    assert grows.known == 3 and scene.views.images.shape == (5, 3, SIDE, SIDE)


def test_what_cannot_grow_is_refused_in_one_line(one_way):
    message = (
        r"^miniature: neck_attention 'full' encodes all views at once; accepted are .*--neck-attention hub or one_way$"
    )
    with pytest.raises(ValueError, match=message):
        GrowingScene(pipeline())
    with pytest.raises(ValueError, match=r"^views without cameras: [^\n]*$"):
        GrowingScene(one_way).add(replace(KNOWN, cameras=None))
