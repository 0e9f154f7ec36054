from dataclasses import replace

import pytest
import torch
from tests.miniature import SIDE, images, path

from diorama.data.open import open as open_scene
from diorama.export.save import save
from diorama.geometry.similarity import Similarity
from diorama.pipelines import decoding
from diorama.scene import Condition, Scene, Views

CAMERAS = path(4)


@pytest.fixture(scope="module")
def scene(model):
    return model.generate(Condition(Views(images()), (0,)), CAMERAS, seed=2)


def assert_same_views(found, expected):
    assert (found.images - expected.images).abs().max() <= 1e-5
    torch.testing.assert_close(found.points, expected.points, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.confidence, expected.confidence, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.cameras.camera_to_world, expected.cameras.camera_to_world)


def test_the_wanted_views_are_rendered_again(model, scene):
    assert_same_views(model.render(scene, CAMERAS), scene.views)


@pytest.mark.parametrize("part", [slice(1, None), slice(2, 4), [3, 0], 2], ids=str)
def test_a_part_of_a_path_is_that_part_of_its_views(model, scene, part):
    assert_same_views(model.render(scene, CAMERAS[part]), scene.views[part])


def test_views_from_new_places_stay_in_the_frame_of_the_generation(model, scene):
    new = path(2, 16, 48, seed=6)
    views = model.render(scene, new)
    assert views.images.shape == (2, 3, 16, 48)
    local = new.transformed(scene.latent_frame)
    with torch.no_grad():
        decoded = model.autoencoder.decode(scene.latents[None], local.plucker()[None])
    assert (views.images - decoded.images[0].clamp(0, 1)).abs().max() <= 1e-5
    torch.testing.assert_close(views.confidence, decoded.confidence[0])
    # Points keep the depth that was decoded, in the caller's units; what lies behind the camera comes just before it.
    depth = Views(views.images, local, decoded.points[0]).depth
    assert depth.min() < 0 < depth.max()
    torch.testing.assert_close(views.depth, depth.clamp(min=1e-4) / scene.latent_frame.scale, atol=1e-5, rtol=1e-3)


def test_a_saved_scene_renders_the_same(model, scene, tmp_path):
    opened = open_scene(save(scene, tmp_path / "room"))
    assert isinstance(opened, Scene)
    assert torch.equal(opened.latents, scene.latents)
    assert_same_views(model.render(opened, CAMERAS[1:]), scene.views[1:])


def test_a_long_path_is_decoded_in_parts(model, scene, monkeypatch):
    sizes, decode = [], model.autoencoder.decode
    monkeypatch.setattr(decoding, "VIEWS_AT_ONCE", 3)
    monkeypatch.setattr(model.autoencoder, "decode", lambda s, rays: sizes.append(rays.shape[1]) or decode(s, rays))
    assert_same_views(model.render(scene, CAMERAS), scene.views)
    assert sizes == [3, 1]


def test_large_cameras_come_to_the_models_size(model, scene):
    assert model.render(scene, path(1, 256, 256)).images.shape == (1, 3, SIDE, SIDE)


@pytest.mark.parametrize("change", [dict(latents=None), dict(latent_frame=None)], ids=["latents", "frame"])
def test_a_scene_without_latents_is_refused(model, scene, change):
    with pytest.raises(ValueError, match=r"^this scene holds no latents of 3DRAE; [^\n]+$"):
        model.render(replace(scene, **change), CAMERAS)


@pytest.mark.parametrize("shape", [(7, 32), (6, 16), (6, 4, 8, 8)])
def test_latents_of_another_model_are_refused(model, scene, shape):
    with pytest.raises(ValueError, match=r"^scene latents of shape \([^\n]+\); miniature reads \(6, 32\)$"):
        model.render(replace(scene, latents=torch.zeros(shape)), CAMERAS)


def test_broken_cameras_are_refused(model, scene):
    with pytest.raises(ValueError, match="not a rigid"):
        model.render(scene, CAMERAS.transformed(Similarity(2 * torch.eye(3), torch.zeros(3), torch.ones(()))))
    with pytest.raises(ValueError, match=r"^cameras of shape \(1, 4, 4, 4\): accepted is one path"):
        model.render(scene, path(4, batch=(1,)))


def test_raw_points_are_where_they_were_regressed(model, scene):
    raw = model.render(scene, CAMERAS, points="raw")
    assert torch.equal(raw.images, scene.views.images)
    local = CAMERAS.transformed(scene.latent_frame)
    with torch.no_grad():
        decoded = model.autoencoder.decode(scene.latents[None], local.plucker()[None]).points[0]
    torch.testing.assert_close(scene.latent_frame.apply(raw.points).float(), decoded, atol=1e-4, rtol=1e-3)
    ahead = raw.depth > 1e-3
    torch.testing.assert_close(raw.depth[ahead], scene.views.depth[ahead], atol=1e-4, rtol=1e-3)
    assert (raw.points - scene.views.points)[ahead].norm(dim=-1).max() > 0.1  # off their rays
    with pytest.raises(ValueError, match=r"^points 'loose': accepted are 'rays' and 'raw'$"):
        model.render(scene, CAMERAS, points="loose")
