"""What a TokenPipeline may be told beside photos and cameras."""

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
