"""What a TokenPipeline may be told beside photos and cameras."""

from dataclasses import replace

import pytest
import torch
from tests.miniature import SIDE, dit3d, images, path, pipeline

from diorama.scene import Condition, Views

CAMERAS = path()
PHOTO = Views(images())


@pytest.fixture(scope="module")
def of_classes():
    """A pipeline whose denoiser learnt three classes."""
    model = pipeline()
    model.register_modules(denoiser=dit3d(1, classes=3))
    return model


def latents(model, condition, **options):
    return model.generate(condition, CAMERAS, **options).latents


def test_the_class_decides_what_is_made_and_guidance_compares_with_none(of_classes):
    for views in ({}, {"views": PHOTO, "at": (0,)}):
        conditions = [Condition(**views, label=label) for label in (0, 1, None)]
        one, other, none = (latents(of_classes, condition, guidance=1.0) for condition in conditions)
        assert (one - other).abs().max() > 1e-2 and (one - none).abs().max() > 1e-2
        assert not torch.equal(latents(of_classes, conditions[0], guidance=2.0), one)
        together = of_classes.generate(conditions, CAMERAS, guidance=1.5)
        for scene, condition in zip(together, conditions, strict=True):
            torch.testing.assert_close(
                scene.latents, latents(of_classes, condition, guidance=1.5), atol=1e-4, rtol=1e-4
            )


@torch.no_grad()
def test_sampling_with_a_class_is_euler_with_the_class_guided(of_classes):
    """The whole loop once more, from the models alone."""
    rays = CAMERAS.normalized()[0].plucker()[None]
    hidden = torch.zeros(1, 3, dtype=torch.bool)
    tokens = of_classes.autoencoder.normalize(
        of_classes.autoencoder.encode(torch.zeros(1, 3, 3, SIDE, SIDE), rays, hidden)
    )
    x = torch.randn(tokens.shape[1:], generator=torch.Generator().manual_seed(4))[None]
    times = [1.5 * t / (1 + 0.5 * t) for t in (1.0, 0.5, 0.0)]
    for t, following in ((times[0], times[1]), (times[1], times[2])):
        of_class, of_none = (
            of_classes.denoiser(x, torch.tensor([t]), tokens, torch.tensor([label])).velocity for label in (2, 3)
        )
        x = x + (following - t) * (of_none + 2.5 * (of_class - of_none))
    made = latents(of_classes, Condition(label=2), seed=4, steps=2, guidance=2.5)
    torch.testing.assert_close(made, of_classes.autoencoder.denormalize(x)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_that_the_model_does_not_have_is_refused(of_classes, label):
    with pytest.raises(ValueError, match=rf"^label {label}: accepted by miniature are 0 to 2$"):
        latents(of_classes, Condition(label=label))


def test_a_model_without_classes_takes_no_label(model):
    with pytest.raises(ValueError, match="^miniature was trained without classes: leave the label out$"):
        latents(model, Condition(label=0))


@pytest.fixture(scope="module")
def of_scale():
    """A pipeline whose denoiser may be told the scale."""
    model = pipeline()
    model.register_modules(denoiser=dit3d(1, scale=True))
    return model


def test_the_scale_is_the_paths_extent_in_the_units_that_are_told(of_scale, monkeypatch):
    told, denoise = [], of_scale.denoise

    def listen(latents, t, known):
        told.append(known)
        return denoise(latents, t, known)

    monkeypatch.setattr(of_scale, "denoise", listen)
    photo = Condition(PHOTO, (0,))
    one = latents(of_scale, photo, scale=0.25, steps=1)
    extent = (CAMERAS.centers - CAMERAS.centers[0]).norm(dim=-1).max()
    assert told[-1].log_scale.shape == (2,)  # both branches of guidance
    torch.testing.assert_close(told[-1].log_scale, (0.25 * extent).log().expand(2), atol=1e-5, rtol=1e-5)
    none = latents(of_scale, photo, steps=1)
    assert told[-1].log_scale.isnan().all() and (one - none).abs().max() > 1e-3
    larger = CAMERAS.camera_to_world.clone()
    larger[:, :3, 3] *= 4
    again = of_scale.generate(photo, replace(CAMERAS, camera_to_world=larger), scale=0.0625, steps=1)
    torch.testing.assert_close(again.latents, one, atol=1e-3, rtol=1e-3)  # the unit of the path is the caller's
    assert again.provenance.settings["scale"] == 0.0625 and "scale" not in of_scale.options()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf")])
def test_a_scale_that_means_nothing_is_refused(of_scale, scale):
    with pytest.raises(ValueError, match=rf"^scale {scale}: accepted is more than 0$"):
        latents(of_scale, Condition(), scale=scale)


def test_a_model_without_a_scale_takes_none(model):
    with pytest.raises(ValueError, match="^scale 2.0: miniature was trained without; leave it out$"):
        latents(model, Condition(), scale=2.0)
