"""Alignments find the map that made the data, and no other map does better on noisy data."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from diorama.geometry import trajectories
from diorama.geometry.alignment import align_centers, align_first_view, align_rotations, scale_and_shift, umeyama
from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import geodesic_angle, matrix_from_vector
from diorama.geometry.similarity import Similarity

from .drawing import (
    close,
    close_cameras,
    normal,
    quick,
    random_cameras,
    random_poses,
    random_similarity,
    seeds,
    uniform,
)

batches = st.sampled_from([(), (2,), (2, 3)])
camera_fits = pytest.mark.parametrize("fit", [align_centers, align_rotations, align_first_view])


def residual(map_, source, target, weights=None):
    squared = (map_.apply(source) - target).square().sum(-1)
    return (squared if weights is None else weights * squared).sum(-1)


@quick
@given(seeds, batches, st.sampled_from(["least_squares", "variance_ratio"]))
def test_umeyama_recovers_the_map(seed, batch, scale):
    truth, source = random_similarity(seed, *batch), normal(seed + 5, *batch, 8, 3)
    found = umeyama(source, truth.apply(source), uniform(seed, 0.1, 1, *batch, 8), scale)
    close(found.rotation, truth.rotation, 1e-7)
    close(found.translation, truth.translation, 1e-7)
    close(found.scale, truth.scale, 1e-7)


@quick
@given(seeds, st.floats(0.01, 2), st.booleans())
def test_no_map_fits_noisy_points_better(seed, noise, weighted):
    truth, source = random_similarity(seed), normal(seed + 5, 12, 3)
    target = truth.apply(source) + noise * normal(seed + 6, 12, 3)
    weights = uniform(seed, 0, 1, 12) if weighted else None
    best = umeyama(source, target, weights)
    least = residual(best, source, target, weights)
    assert least <= residual(truth, source, target, weights) + 1e-9
    for i in range(10):
        nudge = Similarity(
            matrix_from_vector(0.02 * normal(seed + i, 3)),
            0.02 * normal(seed + i + 1, 3),
            1 + 0.02 * normal(seed + i, 1)[0],
        )
        assert least <= residual(best.then(nudge), source, target, weights) + 1e-9
    assert float(torch.linalg.det(best.rotation)) == pytest.approx(1)
    share = (torch.ones(12).double() if weights is None else weights)[:, None]
    middle = [(share * values).sum(0) / share.sum() for values in (source, target)]
    reference, _ = Rotation.align_vectors(target - middle[1], source - middle[0], share[:, 0].numpy())
    close(best.rotation, torch.from_numpy(reference.as_matrix()), 1e-6)


@quick
@given(seeds)
def test_variance_ratio_is_above_least_squares(seed):
    source = normal(seed, 12, 3)
    target = random_similarity(seed).apply(source) + 0.5 * normal(seed + 6, 12, 3)
    least, ratio, none = (umeyama(source, target, scale=rule) for rule in ("least_squares", "variance_ratio", "none"))
    assert ratio.scale > least.scale
    assert none.scale == 1
    spread = [(values - values.mean(0)).square().sum() for values in (source, target)]
    close(ratio.scale, (spread[1] / spread[0]).sqrt())
    for found in (least, ratio, none):
        close(found.apply(source).mean(0), target.mean(0))


@quick
@given(seeds)
def test_points_without_weight_do_not_matter(seed):
    source, target = normal(seed, 9, 3), normal(seed + 1, 9, 3)
    weights = torch.cat([torch.ones(6), torch.zeros(3)]).double()
    far = source.clone()
    far[6:] = 1e9
    close(umeyama(far, target, weights).rotation, umeyama(source[:6], target[:6]).rotation)


@pytest.mark.parametrize("scale", ["least_squares", "variance_ratio", "none"])
def test_what_the_points_leave_free_stays_at_rest(scale):
    still = torch.tensor([[1.0, 2.0, 3.0]]).repeat(4, 1)
    spread = normal(0, 4, 3).float()
    for source, target in ((still, still + 5), (still, spread), (spread, still), (still[:1], still[:1] - 1)):
        found = umeyama(source, target, scale=scale)
        assert torch.equal(found.rotation, torch.eye(3))
        assert found.scale == 1
        close(found.apply(source.mean(0)), target.mean(0), 1e-5)
    line = torch.linspace(0, 1, 5)[:, None] * torch.tensor([[1.0, 2.0, -1.0]])
    truth = random_similarity(0).to(torch.float32)
    found = umeyama(line, truth.apply(line), scale="least_squares")
    close(found.apply(line), truth.apply(line), 1e-4)
    assert float(torch.linalg.det(found.rotation)) == pytest.approx(1, abs=1e-5)


def test_a_shrunken_target_does_not_flip():
    source = normal(3, 10, 3)
    found = umeyama(source, -source)  # point reflection: no rotation does it
    assert found.scale > 0
    assert float(torch.linalg.det(found.rotation)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.zeros(4), "not all 0"),
        (torch.tensor([1.0, -1, 1, 1]), "from 0 on"),
        (torch.full((4,), math.nan), "from 0 on"),
    ],
)
def test_weights_must_make_sense(weights, message):
    with pytest.raises(ValueError, match=message):
        umeyama(torch.rand(4, 3), torch.rand(4, 3), weights)


def test_points_must_be_finite():
    with pytest.raises(ValueError, match="NaN or infinity"):
        umeyama(torch.full((4, 3), math.nan), torch.rand(4, 3))


@camera_fits
@quick
@given(seed=seeds, batch=st.sampled_from([(4,), (2, 5)]))
def test_camera_fits_recover_the_map(fit, seed, batch):
    source, truth = random_cameras(seed, *batch), random_similarity(seed + 9, *batch[:-1])
    target = source.transformed(truth)
    found = fit(source, target)
    close_cameras(source.transformed(found), target, 1e-6)
    close(found.scale, truth.scale, 1e-6)


@camera_fits
def test_one_camera_is_enough(fit):
    source = random_cameras(0, 1)
    target = random_cameras(1, 1)
    found = fit(source, target)
    assert found.scale == 1
    close(found.apply(source.centers), target.centers)


def test_first_view_is_met_exactly():
    source, target = random_cameras(0, 5), random_cameras(1, 5)
    moved = source.transformed(align_first_view(source, target))
    close(moved.camera_to_world[0], target.camera_to_world[0])


@quick
@given(seeds)
def test_scale_is_never_negative(seed):
    source = random_cameras(seed, 6)
    poses = source.camera_to_world.clone()
    poses[:, :3, 3] *= -1
    opposite = Cameras(poses, source.intrinsics, source.height, source.width)
    for fit in (align_centers, align_rotations, align_first_view):
        assert fit(source, opposite).scale > 0


def test_a_straight_path_needs_the_rotations():
    # Roll about a straight path is invisible to the centres; noise decides it.
    start = Cameras.from_fov(60.0, 8, 8, random_poses(0, 1))
    truth = trajectories.dolly(start, 16, 1.0)
    poses = truth.camera_to_world.clone()
    poses[:, :3, 3] += 0.005 * normal(1, 16, 3)
    poses[:, :3, :3] = poses[:, :3, :3] @ matrix_from_vector(math.radians(1) * normal(2, 16, 3) / math.sqrt(3))
    noisy = Cameras(poses, truth.intrinsics, 8, 8).transformed(random_similarity(5))

    def error(fit):
        moved = noisy.transformed(fit(noisy, truth))
        return geodesic_angle(moved.camera_to_world[:, :3, :3], truth.camera_to_world[:, :3, :3]).mean()

    assert error(align_rotations) < math.radians(1.2)
    assert error(align_centers) > 10 * error(align_rotations)


@quick
@given(seeds, st.floats(0.1, 10), st.floats(-5, 5), st.booleans())
def test_scale_and_shift(seed, scale, shift, robust):
    source = uniform(seed, 0.5, 20, 6, 7)
    mask = uniform(seed + 1, 0, 1, 6, 7) > 0.4
    target = torch.where(mask, scale * source + shift, math.nan)
    found = scale_and_shift(source, target, mask, robust)
    close(found[0], torch.tensor(scale).double(), 1e-6)
    close(found[1], torch.tensor(shift).double(), 1e-5)


@quick
@given(seeds)
def test_scale_and_shift_is_least_squares(seed):
    source, target = normal(seed, 30), normal(seed + 1, 30)
    found = torch.stack(scale_and_shift(source, target))
    design = torch.stack([source, torch.ones_like(source)], -1)
    close(found, torch.linalg.lstsq(design, target[:, None]).solution[:, 0])
    assert found[0] != scale_and_shift(source, target, robust=True)[0]


def test_medians_bear_wrong_depths():
    source = uniform(0, 1, 5, 101)
    target = 2 * source + 1
    target[:5] += 40
    plain, robust = (scale_and_shift(source, target, robust=rule) for rule in (False, True))
    wrong = [(scale * source + shift - (2 * source + 1))[5:].abs().median() for scale, shift in (plain, robust)]
    assert wrong[0] > 1
    assert wrong[1] < 0.5


def test_scale_and_shift_without_much_to_go_by():
    scale, shift = scale_and_shift(torch.full((4,), 2.0), torch.full((4,), 5.0))
    assert (float(scale), float(shift)) == (1, 3)
    with pytest.raises(ValueError, match="0 depths to align"):
        scale_and_shift(torch.rand(4), torch.rand(4), torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="all finite"):
        scale_and_shift(torch.rand(4), torch.full((4,), math.inf))
