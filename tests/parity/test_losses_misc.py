"""Confidence loss with and without outliers, and the adversarial losses with their weight."""

import math

import pytest
import torch

from diorama.training.losses import gradient_ratio, hinge_loss, point_loss

from .golden import load


@pytest.fixture(scope="module")
def golden():
    return load("losses_misc")


@pytest.mark.parametrize(("quantile", "ending"), [(1.0, ""), (0.98, "_q98")])
def test_the_confidence_loss(golden, quantile, ending):
    given = golden.inputs
    confidence, mask = 1 + given["conf_logit"].exp(), given["conf_mask"] > -0.7
    terms = point_loss(given["conf_pred"], confidence, given["conf_gt"], mask, quantile=quantile)
    golden.check(**{f"conf_loss{ending}": terms["confident"], f"conf_reg{ending}": terms["distance"]})


def test_the_hinge_and_the_makers_loss(golden):
    real, made = golden.inputs["logits_real"], golden.inputs["logits_fake"]
    golden.check(hinge_d=hinge_loss(real, made), gen_loss=-made.mean())


@pytest.mark.parametrize(
    ("name", "factors", "options"),
    [
        ("weight", (1.0, 1.0), {}),
        ("weight_capped", (1e6, 1e-3), {}),
        ("weight_zero_gan", (1.0, 0.0), dict(limit=math.inf)),
    ],
)
def test_the_weight_of_the_adversarial_loss(golden, name, factors, options):
    given = golden.inputs
    matrix = given["gan_W"].clone().requires_grad_()
    made = given["gan_h"] @ matrix.T
    losses = (made - given["gan_target"]).abs().mean(), -(made.tanh() @ given["gan_d"]).mean()
    gradients = [
        torch.autograd.grad(factor * loss, matrix, retain_graph=True)[0]
        for loss, factor in zip(losses, factors, strict=True)
    ]
    golden.check(**{f"gan_adaptive_{name}": gradient_ratio(*gradients, **options)})
