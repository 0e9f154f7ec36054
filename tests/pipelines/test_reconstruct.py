from dataclasses import replace

import pytest
import torch
from tests.miniature import SIDE, images, path

from diorama.geometry.rotations import matrix_from_quaternion
from diorama.geometry.similarity import Similarity
from diorama.scene import Views

CAMERAS = path(3)
KNOWN = Views(images(3), CAMERAS)


@torch.no_grad()
def test_known_views_are_decoded_from_their_own_latents(model):
    scene = model.reconstruct(KNOWN)
    local = CAMERAS.normalized()[0].plucker()[None]
    latents = model.autoencoder.encode(KNOWN.images[None], local, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(scene.latents, latents[0], atol=1e-5, rtol=1e-5)
    expected = model.autoencoder.decode(latents, local).images[0].clamp(0, 1)
    assert (scene.views.images - expected).abs().max() <= 1e-5
    assert scene.condition.at == (0, 1, 2) and torch.equal(scene.condition.views.images, KNOWN.images)
    assert scene.provenance.seed is None and scene.provenance.settings == {"known_views": 3}


def test_other_views_are_decoded_in_one_frame_with_the_known_ones(model):
    wanted = path(2, 16, 40, seed=5)
    wanted.camera_to_world[1, :3, 3] += 10  # farther away than any known camera
    scene = model.reconstruct(KNOWN, wanted)
    assert scene.views.images.shape == (2, 3, 16, 40) and scene.condition.views is None
    centers = scene.latent_frame.apply(torch.cat([CAMERAS.centers, wanted.centers])).float()
    torch.testing.assert_close(centers[0], torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(centers.norm(dim=-1).argmax(), torch.tensor(4))
    torch.testing.assert_close(centers.norm(dim=-1).max(), torch.tensor(1.0))
    again = model.render(scene, wanted)
    assert (again.images - scene.views.images).abs().max() <= 1e-5


def test_a_list_is_as_if_each_was_asked_for_alone(model):
    others = Views(images(3, seed=1), path(3, seed=1))
    wanted = [path(2, seed=2), path(2, seed=3)]
    together = model.reconstruct([KNOWN, others], wanted)
    for scene, views, cameras in zip(together, (KNOWN, others), wanted, strict=True):
        alone = model.reconstruct(views, cameras)
        assert (scene.views.images - alone.views.images).abs().max() <= 1e-4
        torch.testing.assert_close(scene.latent_frame.scale, alone.latent_frame.scale)
    shared = model.reconstruct([KNOWN, KNOWN], wanted[0])
    assert torch.equal(shared[0].views.images, shared[1].views.images)


def test_moving_turning_and_scaling_the_callers_world_moves_the_scene_with_it(model):
    turn = matrix_from_quaternion(torch.nn.functional.normalize(torch.tensor([0.1, 0.6, -0.3, 0.5]), dim=0))
    world = Similarity(turn, torch.tensor([-5.0, 1.0, 2.0]), torch.tensor(0.01))
    before, after = model.reconstruct(KNOWN), model.reconstruct(KNOWN.transformed(world))
    torch.testing.assert_close(after.views.images, before.views.images, atol=5e-3, rtol=0)
    expected = before.views.transformed(world)
    size = (expected.points - expected.cameras.centers[:, None, None]).norm(dim=-1)
    error = (after.views.points - expected.points).norm(dim=-1) / size
    assert error.median() < 1e-2


def test_large_views_come_to_the_models_size(model):
    large = Views(images(2, 256, 256), path(2, 256, 256))
    assert model.reconstruct(large).views.images.shape == (2, 3, SIDE, SIDE)


def test_views_that_cannot_be_used_are_refused_in_one_line(model):
    bare = replace(KNOWN, cameras=None)
    cases = {
        r"^0 of 1 sets of views have cameras": (bare,),
        r"^1 of 2 sets of views have cameras": ([KNOWN, bare],),
        r"^2 sets of views but 1 camera paths: accepted is one each$": ([KNOWN, KNOWN], [CAMERAS]),
        r"^paths of different shapes \(views, height, width\) \[\(2, 32, 32\), \(3, 32, 32\)\] ": ([KNOWN, KNOWN[:2]],),
        r"^camera 0 has a focal length": (
            KNOWN,
            replace(CAMERAS, intrinsics=CAMERAS.intrinsics * torch.tensor([-1, -1, 1])[:, None]),
        ),
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            model.reconstruct(*arguments)
    assert model.reconstruct([]) == []
