"""Cloud distances against closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from diorama.evaluation.clouds import (
    accuracy,
    chamfer,
    cloud_errors,
    completeness,
    farthest_points,
    nearest_distance,
)
from diorama.geometry.alignment import umeyama
from diorama.geometry.rotations import matrix_from_quaternion
from diorama.geometry.similarity import Similarity

quick = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarity(seed: int) -> Similarity:
    return Similarity(matrix_from_quaternion(normal(seed, 4)), normal(seed + 1, 3), normal(seed + 2).exp())


def everywhere(points: torch.Tensor) -> torch.Tensor:
    return torch.ones(points.shape[:-1], dtype=torch.bool)


def grid(spacing: float, count: int = 12) -> torch.Tensor:
    """A flat square grid in the plane z = 0."""
    axis = spacing * torch.arange(count, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)


@quick
@given(seed=seeds)
def test_distances_are_those_of_brute_force(seed: int) -> None:
    a, b = normal(seed, 60, 3), normal(seed + 1, 40, 3)
    every = cdist(a.numpy(), b.numpy())
    np.testing.assert_allclose(nearest_distance(a, b), every.min(1))
    assert accuracy(a, b) == pytest.approx(every.min(1).mean())
    assert completeness(a, b) == pytest.approx(every.min(0).mean())
    assert chamfer(a, b) == pytest.approx((every.min(1).mean() + every.min(0).mean()) / 2)
    assert chamfer(a, b) == pytest.approx(chamfer(b, a)) and chamfer(a, a) == 0


def test_a_shift_is_measured_unsquared_and_missing_points_cost_only_completeness() -> None:
    true = grid(1.0)
    shifted = true + torch.tensor([0.0, 0.0, 0.3])
    assert accuracy(shifted, true) == completeness(shifted, true) == chamfer(shifted, true) == pytest.approx(0.3)
    half = true[: len(true) // 2]
    assert accuracy(half, true) == 0
    assert completeness(half, true) == pytest.approx(sum(range(1, 7)) / 12)
    with pytest.raises(ValueError, match=r"0 and 144 points.*at least 1"):
        accuracy(true[:0], true)


@quick
@given(seed=seeds, scale=st.sampled_from(["variance_ratio", "least_squares"]))
def test_a_cloud_in_another_frame_and_scale_has_no_error(seed: int, scale: str) -> None:
    true = normal(seed, 2, 5, 6, 3)
    found = cloud_errors(similarity(seed + 3).apply(true), true, everywhere(true), scale=scale, voxel=1e-4)
    assert max(found) < 1e-7


def test_both_scale_rules_are_at_hand_and_the_official_one_is_larger_under_noise() -> None:
    """The sheet: relative noise 0.3 and 0.6 in the prediction, scale 0.959 and 0.919, 0.856 and 0.735."""
    true = normal(0, 40_000, 3)
    for noise, official, least in ((0.3, 0.959, 0.919), (0.6, 0.856, 0.735)):
        predicted = true + noise * normal(1, 40_000, 3)
        for rule, expected in (("variance_ratio", official), ("least_squares", least)):
            assert umeyama(predicted, true, scale=rule).scale.item() == pytest.approx(expected, abs=0.005)
            errors = cloud_errors(predicted[:3000], true[:3000], everywhere(true[:3000]), scale=rule)
            aligned = umeyama(predicted[:3000], true[:3000], scale=rule).apply(predicted[:3000])
            assert errors.chamfer == pytest.approx(chamfer(aligned, true[:3000]), rel=1e-3)


def test_the_percentage_is_of_the_diagonal_of_the_truth_and_ignores_the_unit() -> None:
    true = normal(0, 500, 3)
    predicted = true + 0.2 * normal(1, 500, 3)
    one, ten = (cloud_errors(predicted, unit * true, everywhere(true), voxel=None) for unit in (1.0, 10.0))
    assert ten.chamfer == pytest.approx(10 * one.chamfer) and ten.chamfer_percent == pytest.approx(one.chamfer_percent)
    assert one.chamfer == (one.accuracy + one.completeness) / 2
    diagonal = math.dist(true.amin(0).tolist(), true.amax(0).tolist())
    assert one.chamfer_percent == pytest.approx(100 * one.chamfer / diagonal)


def test_only_valid_pixels_count_and_completeness_asks_for_views_that_were_not_given() -> None:
    true = normal(0, 4, 8, 8, 3)
    mask = normal(1, 4, 8, 8) > -0.5
    spoilt = torch.where(mask[..., None], true, torch.nan)
    assert max(cloud_errors(spoilt, spoilt, mask, voxel=None)) < 1e-7
    given = everywhere(true)
    given[2:] = False
    predicted = similarity(5).apply(true)
    predicted[2:] = torch.nan
    errors = cloud_errors(predicted, spoilt, mask, given=given, voxel=None)
    assert errors.accuracy < 1e-7
    expected = cdist(true[mask].numpy(), true[:2][mask[:2]].numpy()).min(1).mean()
    assert errors.completeness == pytest.approx(expected)


def test_voxels_thin_dense_regions_so_that_every_part_of_a_surface_counts_alike() -> None:
    sparse, dense = grid(0.1), 5 + 0.002 * torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)).double()
    true = torch.cat([sparse, dense])
    sign = 1 - 2 * (torch.arange(144) // 12 + torch.arange(144)).remainder(2)  # a checkerboard that no alignment undoes
    wrong = torch.cat([sparse + 0.02 * sign[:, None] * torch.tensor([0, 0, 1]), dense])
    mask = everywhere(true)
    plain = cloud_errors(wrong, true, mask, scale="none", voxel=None, samples=None)
    even = cloud_errors(wrong, true, mask, scale="none")
    assert plain.accuracy == pytest.approx(0.02 * 144 / 20_144, rel=0.1)
    assert 0.02 * 144 / (144 + 8) - 1e-3 < even.accuracy < 0.02


def test_farthest_points_are_those_of_a_plain_loop() -> None:
    points = normal(0, 80, 3)
    chosen = farthest_points(points, 20, seed=3)
    distances = cdist(points.numpy(), points.numpy())
    order = [int((points == chosen[0]).all(1).nonzero())]
    while len(order) < 20:
        order.append(int(distances[:, order].min(1).argmax()))
    torch.testing.assert_close(chosen, points[order], atol=0, rtol=0)


def test_farthest_points_are_seeded_spread_out_and_limited() -> None:
    points = normal(0, 3000, 3)
    assert torch.equal(farthest_points(points, 50, seed=1), farthest_points(points, 50, seed=1))
    assert not torch.equal(farthest_points(points, 50, seed=1)[0], farthest_points(points, 50, seed=2)[0])
    spread, drawn = farthest_points(points, 50), points[:50]
    least = [np.partition(cdist(p.numpy(), p.numpy()), 1, axis=1)[:, 1].min() for p in (spread, drawn)]
    assert least[0] > 3 * least[1]
    assert len(farthest_points(points, 50, crowd=60)) == 50
    assert len(farthest_points(points, 50, crowd=10)) == 50
    assert farthest_points(points, 3000) is points
    # Far from the origin single precision would see a few points only.
    torch.testing.assert_close(farthest_points(points + 1e7, 50), spread + 1e7, atol=1e-6, rtol=0)


def test_clouds_that_cannot_be_compared_are_refused() -> None:
    true = normal(0, 10, 3)
    with pytest.raises(ValueError, match="no pixel has both"):
        cloud_errors(true, true, ~everywhere(true))
    spoilt = true.clone()
    spoilt[3] = torch.nan
    with pytest.raises(ValueError, match="true points hold NaN"):
        cloud_errors(true, spoilt, everywhere(true))
    with pytest.raises(ValueError, match="NaN or infinity"):
        cloud_errors(spoilt, true, everywhere(true))
