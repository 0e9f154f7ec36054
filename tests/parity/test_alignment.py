"""Similarity alignment against the one inside Gen3R's geometry metric."""

import pytest
import torch

from diorama.geometry.alignment import umeyama
from diorama.geometry.rotations import matrix_from_quaternion

from .golden import load


@pytest.fixture(scope="module")
def golden():
    return load("eval_alignment")


@pytest.fixture(scope="module")
def target(golden):
    rotation = matrix_from_quaternion(golden.inputs["quat"].roll(1, -1))[0]
    return 1.7 * golden.inputs["P"] @ rotation.T + golden.inputs["t"] + golden.inputs["noise"]


def fit(golden, target, scale="variance_ratio"):
    mask = golden.inputs["mask"] > -0.6
    return umeyama(golden.inputs["P"][mask], target[mask], scale=scale)


def test_variance_ratio(golden, target):
    found = fit(golden, target)
    golden.check(R=found.rotation, t=found.translation, s=found.scale, aligned=found.apply(golden.inputs["P"]))


def test_weights_stand_for_a_mask(golden, target):
    weights = (golden.inputs["mask"] > -0.6).float()
    points = golden.inputs["P"]
    found = umeyama(points.flatten(0, 2), target.flatten(0, 2), weights.flatten(), "variance_ratio")
    golden.check(R=found.rotation, t=found.translation, s=found.scale)


def test_a_mirrored_target_still_gives_a_rotation(golden, target):
    found = fit(golden, target * torch.tensor([-1.0, 1.0, 1.0]))
    golden.check(R_mirrored=found.rotation, t_mirrored=found.translation, s_mirrored=found.scale)
    assert float(torch.linalg.det(found.rotation)) == pytest.approx(1.0, abs=1e-5)


def test_without_scale(golden, target):
    found = fit(golden, target, "none")
    golden.check(R_noscale=found.rotation, t_noscale=found.translation)
    assert found.scale == 1
