"""The losses of Gen3R's two training stages: one published step of the adapter on given tensors, and the denoiser's."""

import pytest
import torch

from diorama.models.geometry_adapter import pack_tokens
from diorama.models.vggt import VGGTOutput, cameras_from_codes
from diorama.training.gen3r_losses import (
    ALIGNMENT,
    RECONSTRUCTION,
    adapter_losses,
    clipped_velocity_loss,
    decade_weight,
    geometry_terms,
    pointwise_kl,
    token_terms,
)

from .golden import load


@pytest.fixture(scope="module")
def golden():
    return load("losses_stage1")


@pytest.fixture(scope="module")
def tokens(golden):
    layers = [golden.inputs[f"target_tokens_{i}"] for i in range(4)]
    true = pack_tokens(layers, 4, 4)
    return true + golden.inputs["recon_delta"], true


@pytest.fixture(scope="module")
def geometry(golden):
    given = {name: value.clone() for name, value in golden.inputs.items()}
    given["pose_recon_0"][0, 0, 0], given["points_recon"][0, 0, 0, 0, 0] = 400, 900

    def told(codes, which):
        codes, depth = torch.stack([given[f"pose_{codes}_{i}"] for i in range(4)]), given[f"depth_{which}"][..., 0]
        points, sure = given[f"points_{which}"], torch.ones_like(depth)
        return VGGTOutput(cameras_from_codes(codes[-1], 6, 7), depth, sure, points, sure, codes)

    return told("recon", "recon"), told("gt", "gt")


def moments(golden, nearness=1.0):
    given = golden.inputs
    own, wan = ((given[f"{name}_mean"], given[f"{name}_logvar"]) for name in ("post", "wan"))
    return own, tuple(a + nearness * (b - a) for a, b in zip(own, wan, strict=True)) if nearness < 1 else wan


def test_terms_of_tokens_and_of_geometry(golden, tokens, geometry):
    found, dense = token_terms(*tokens), geometry_terms(*geometry)
    golden.check(
        image_token_loss=found["tokens"], camera_token_loss=found["camera_token"], camera_loss=dense["camera"],
        depth_loss=dense["depth"], point_loss=dense["points"], image_similarity_loss=found["tokens_direction"],
        camera_similarity_loss=found["camera_token_direction"],
    )  # fmt: skip


def test_the_whole_step(golden, tokens, geometry):
    divergence = pointwise_kl(*moments(golden))
    losses = adapter_losses(tokens, geometry, divergence)
    golden.check(
        kl_map=divergence, kl_mean=divergence.mean(), align_term=losses["alignment"],
        recon_loss=sum(losses[name] for name in RECONSTRUCTION), total=sum(losses.values()),
    )  # fmt: skip
    assert "alignment" not in adapter_losses(tokens, geometry, None)


@pytest.mark.parametrize(("name", "nearness"), [("midkl", 0.3), ("smallkl", 0.001)])
def test_the_divergence_weighs_by_decades(golden, tokens, geometry, name, nearness):
    divergence = pointwise_kl(*moments(golden, nearness))
    losses = adapter_losses(tokens, geometry, divergence)
    found = {"kl_mean": divergence.mean(), "align_term": losses["alignment"], "total": sum(losses.values())}
    golden.check(**{f"{name}_{key}": value for key, value in found.items()})
    weight = decade_weight(divergence.mean(), sum(losses[name] for name in RECONSTRUCTION))
    assert float(weight) == pytest.approx(golden.config[f"{name}_adaptive_weight"], rel=1e-5)
    assert float(losses["alignment"]) == pytest.approx(float(ALIGNMENT * weight * divergence.mean()))


def test_the_papers_forms_are_squares_but_for_cameras(tokens, geometry):
    found, dense = token_terms(*tokens, "paper"), geometry_terms(*geometry, "paper")
    (made, true), (rebuilt, given) = tokens, geometry
    assert float(found["tokens"]) == pytest.approx(float((made - true)[:, :24].square().mean()))
    assert float(dense["depth"]) == pytest.approx(float((rebuilt.depth - given.depth).square().mean()))
    assert torch.equal(dense["camera"], geometry_terms(*geometry)["camera"])


def test_the_velocity_loss_leaves_outliers_out():
    golden = load("losses_misc")
    predicted, target = golden.inputs["vel_pred"], golden.inputs["vel_target"]
    golden.check(velocity_loss=clipped_velocity_loss(predicted, torch.zeros_like(target), target))
