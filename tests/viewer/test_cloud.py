"""Which points a browser is sent, against the plain definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diorama.scene import Views
from diorama.viewer.cloud import cloud_of


@pytest.fixture
def views(scene):
    """With confidences from 0 (invalid) on, all different."""
    generator = torch.Generator().manual_seed(3)
    confidence = torch.randperm(scene.views.images[:, 0].numel(), generator=generator).float()
    return replace(scene.views, confidence=confidence.reshape(scene.views.images[:, 0].shape))


def test_every_valid_point_is_there_once_with_its_colour(views):
    cloud = cloud_of(views)
    valid = views.mask.flatten()
    found, wanted = (
        torch.cat([points, colours.float()], 1).tolist()
        for points, colours in (
            (cloud.points, cloud.colours),
            (
                views.points.flatten(0, 2)[valid],
                views.images.movedim(1, -1).flatten(0, 2)[valid].mul(255).round(),
            ),
        )
    )
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("drop", [0.0, 0.01, 0.3, 0.99])
@pytest.mark.parametrize("far", [None, 0.8, 1.1])
def test_sliders_leave_what_they_say(views, drop, far):
    cloud = cloud_of(views)
    confidence, depth = cloud.confidence.numpy(), cloud.depth.numpy()
    keep = confidence >= np.quantile(confidence, drop)
    if far is not None:
        keep &= depth <= far * np.sort(depth[keep])[(keep.sum() - 1) // 2]
    assert cloud.chosen(drop, far, 10**9).tolist() == keep.nonzero()[0].tolist()


def test_a_budget_takes_an_even_share_of_all_views(views):
    cloud = cloud_of(views)
    few = cloud.chosen(0.0, None, 1000)
    assert len(few) == 1000
    assert torch.equal(few, cloud.chosen(0.0, None, 2000)[:1000]), "points would jump as the budget grows"
    # Every fifth point is of each view, give or take four standard deviations.
    first = {tuple(point) for point in views.points[0].flatten(0, 1).tolist()}
    share = sum(tuple(point) in first for point in cloud.points[few].tolist()) / 1000
    assert share == pytest.approx(1 / 5, abs=4 * (0.2 * 0.8 / 1000) ** 0.5)
    assert len(cloud_of(views, pool=10).points) == 10


def test_what_has_no_points_has_no_cloud(views):
    assert cloud_of(Views(views.images, views.cameras)) is None
    assert cloud_of(replace(views, cameras=None)) is None


def test_a_scene_whose_points_are_all_invalid_is_an_empty_cloud(views):
    cloud = cloud_of(replace(views, confidence=torch.zeros_like(views.confidence)))
    assert cloud.chosen(0.5, 1.0, 100).tolist() == []
