"""Accuracy, completeness and Chamfer distance against those of Gen3R's geometry metric."""

import torch

from diorama.evaluation.clouds import cloud_errors
from diorama.geometry.rotations import matrix_from_quaternion

from .golden import load


def test_the_metric_of_masked_points_is_the_published_one():
    golden = load("eval_alignment")
    rotation = matrix_from_quaternion(golden.inputs["quat"].roll(1, -1))[0]
    points = golden.inputs["P"]
    target = 1.7 * points @ rotation.T + golden.inputs["t"] + golden.inputs["noise"]
    found = cloud_errors(points, target, golden.inputs["mask"] > -0.6, voxel=None, samples=None)
    values = {name: torch.tensor([value]) for name, value in found._asdict().items()}
    values["relative_percent"] = values.pop("chamfer_percent")
    golden.check(**values)
