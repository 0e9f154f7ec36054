"""Scenes whose decoding looks at the known views again."""

from dataclasses import replace

import pytest
import torch
from tests.miniature import SIDE, images, observed_memory, path, pipeline

from diorama.data.open import open as open_scene
from diorama.export.save import save
from diorama.pipelines.base import load
from diorama.scene import Condition, Views

CAMERAS = path(4)


@pytest.fixture(scope="module")
def remembering():
    return pipeline(memory=observed_memory())


def condition(*at, seed=0):
    return Condition(Views(images(len(at), seed=seed)), at) if at else Condition()


def same(found, expected, tolerance=1e-4):
    assert (found.images - expected.images).abs().max() <= tolerance
    torch.testing.assert_close(found.points, expected.points, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def scene(remembering):
    return remembering.generate(condition(0, 2), CAMERAS, seed=2)


def test_the_memory_changes_pictures_and_depth_but_not_the_latents(model, remembering, scene):
    plain = model.generate(condition(0, 2), CAMERAS, seed=2)
    torch.testing.assert_close(scene.latents, plain.latents)
    assert (scene.views.images - plain.views.images).abs().mean() > 1e-2
    assert not torch.allclose(scene.views.depth, plain.views.depth, rtol=0.01)
    assert plain.observed is None and len(scene.observed) == 2
    assert torch.equal(scene.observed.cameras.camera_to_world, CAMERAS[[0, 2]].camera_to_world)
    assert (scene.observed.images - images(2)).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("part", [slice(None), slice(1, None), [3, 0]], ids=str)
def test_views_are_rendered_again_from_what_was_observed(remembering, scene, part):
    same(remembering.render(scene, CAMERAS[part]), scene.views[part])


def test_a_saved_scene_remembers(remembering, scene, tmp_path):
    opened = open_scene(save(scene, tmp_path / "room"))
    assert torch.equal(opened.observed.images, scene.observed.images)
    assert torch.equal(opened.observed.cameras.camera_to_world, scene.observed.cameras.camera_to_world)
    new = path(2, seed=8)
    assert torch.equal(remembering.render(opened, new).images, remembering.render(scene, new).images)


def test_an_observed_view_that_is_missing_is_named(scene, tmp_path):
    folder = save(scene, tmp_path / "room")
    (folder / "observed/00001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"observed/00001\.png"):
        open_scene(folder)


def test_a_pipeline_without_memory_renders_such_a_scene_from_its_latents(model, remembering, scene):
    forgetful = replace(scene, observed=None)
    same(model.render(scene, CAMERAS), remembering.render(forgetful, CAMERAS))
    assert (model.render(scene, CAMERAS).images - scene.views.images).abs().mean() > 1e-2


def test_forgetting_leaves_the_latents_alone(model, remembering):
    forgetful = remembering.forgetful()
    one, other = (pipe.generate(condition(0, 2), CAMERAS, seed=2) for pipe in (forgetful, model))
    assert torch.equal(one.views.images, other.views.images) and one.observed is None
    assert remembering.memory is not None and forgetful.config.title == "miniature"


def test_batches_of_different_knowledge_give_what_each_gives_alone(remembering):
    conditions = [condition(0), condition(0, 1, 3, seed=1), condition(), condition(0, 2, seed=2)]
    together = remembering.generate(conditions, CAMERAS, seed=[1, 2, 3, 4])
    for seed, (known, one) in enumerate(zip(conditions, together, strict=True), 1):
        same(one.views, remembering.generate(known, CAMERAS, seed=seed).views)
    assert together[2].observed is None


def test_reconstruction_looks_at_all_that_it_was_given(remembering, model):
    views = [Views(images(2, seed=seed), CAMERAS[:2]) for seed in range(2)]
    scenes = remembering.reconstruct(views, CAMERAS[2:])
    for item, scene in zip(views, scenes, strict=True):
        alone = remembering.reconstruct(item, CAMERAS[2:])
        same(scene.views, alone.views)
        same(remembering.render(scene, CAMERAS[2:]), scene.views)
    assert (scenes[0].views.images - model.reconstruct(views[0], CAMERAS[2:]).views.images).abs().mean() > 1e-2


def test_raw_points_stay_where_they_were_regressed(model, remembering, scene):
    raw = remembering.render(scene, CAMERAS, points="raw")
    torch.testing.assert_close(raw.points, model.render(scene, CAMERAS, points="raw").points)
    assert torch.equal(raw.images, scene.views.images)


def test_it_is_saved_with_its_pipeline_and_may_be_absent(remembering, model, scene, tmp_path):
    remembering.save_pretrained(tmp_path / "with")
    model.save_pretrained(tmp_path / "without")
    assert load(tmp_path / "without", "cpu").memory is None
    again = load(tmp_path / "with", "cpu")
    same(again.generate(condition(0, 2), CAMERAS, seed=2).views, scene.views)


def test_a_broken_memory_is_named(remembering, tmp_path):
    remembering.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model/memory/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"^[^\n]*memory/diffusion_pytorch_model.safetensors: [^\n]+$"):
        load(tmp_path / "model", "cpu")


def test_sizes_other_than_the_models_own(remembering):
    scene = remembering.generate(condition(0), path(2, SIDE, 2 * SIDE), seed=1)
    assert scene.views.images.shape[-1] != scene.views.images.shape[-2]
    assert scene.observed.images.shape[-2:] == scene.views.images.shape[-2:]
