"""Pose errors against closed forms, scipy's rotations and numpy's histogram."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from diorama.evaluation.poses import (
    FITS,
    RANDOM_ROTATION_ERROR,
    TINY_BASELINE,
    PairErrors,
    auc,
    pair_errors,
    pose_errors,
    recall,
)
from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_quaternion, matrix_from_vector
from diorama.geometry.similarity import Similarity

VIEWS, PATHS = 16, 300
ROTATION_NOISE, CENTRE_NOISE = math.radians(1), 0.005
quick = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
every_fit = pytest.mark.parametrize("align", list(FITS))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotations(seed: int, *batch: int) -> torch.Tensor:
    return matrix_from_quaternion(normal(seed, *batch, 4))


def small_rotations(seed: int, angle: float, *batch: int) -> torch.Tensor:
    """Turns by `angle` radians about random axes."""
    return matrix_from_vector(angle * torch.nn.functional.normalize(normal(seed, *batch, 3), dim=-1))


def cameras(rotation: torch.Tensor, centers: torch.Tensor) -> Cameras:
    poses = torch.eye(4).to(centers).repeat(*centers.shape[:-1], 1, 1)
    poses[..., :3, :3], poses[..., :3, 3] = rotation, centers
    return Cameras(poses, torch.eye(3).to(centers).expand(*centers.shape[:-1], 3, 3), 4, 4)


def random_cameras(seed: int, *batch: int) -> Cameras:
    return cameras(rotations(seed, *batch), normal(seed + 1, *batch, 3))


def random_similarity(seed: int, *batch: int) -> Similarity:
    return Similarity(rotations(seed, *batch), 5 * normal(seed + 1, *batch, 3), normal(seed + 2, *batch).exp())


def noisy(true: Cameras, seed: int, turn: float = ROTATION_NOISE, shift: float = CENTRE_NOISE) -> Cameras:
    turned = true.camera_to_world[..., :3, :3] @ small_rotations(seed, turn, *true.centers.shape[:-1])
    return cameras(turned, true.centers + shift * normal(seed + 1, *true.centers.shape))


def straight_paths(lateral: float, seed: int = 0) -> Cameras:
    """Level dollies of length 1 whose centres stray sideways by `lateral` (standard deviation, both axes)."""
    centers = torch.zeros(PATHS, VIEWS, 3, dtype=torch.float64)
    centers[..., 2] = torch.linspace(0, 1, VIEWS)
    stray = normal(seed, PATHS, VIEWS, 2)
    stray = (stray - stray.mean(1, keepdim=True)) / stray.std(1, correction=0, keepdim=True)
    centers[..., :2] = lateral * stray
    return cameras(torch.eye(3, dtype=torch.float64).expand(PATHS, VIEWS, 3, 3), centers)


@every_fit
@quick
@given(seed=seeds)
def test_a_path_in_another_frame_and_scale_has_no_error(align: str, seed: int) -> None:
    true = random_cameras(seed, 3, 6)
    errors = pose_errors(true.transformed(random_similarity(seed + 7, 3)), true, align)
    assert errors.rotation.shape == errors.translation.shape == (3, 6)
    assert errors.ate_r.shape == errors.ate_t.shape == (3,)
    assert errors.rotation.max() < 1e-6 and errors.translation.max() < 1e-7


@every_fit
@quick
@given(seed=seeds)
def test_errors_do_not_depend_on_either_world(align: str, seed: int) -> None:
    true = random_cameras(seed, 6)
    predicted = noisy(true, seed + 3, 0.2, 0.1)
    errors = pose_errors(predicted, true, align)
    moved = pose_errors(
        predicted.transformed(random_similarity(seed + 5)), true.transformed(random_similarity(seed + 9)), align
    )
    torch.testing.assert_close(moved.rotation, errors.rotation, atol=1e-7, rtol=0)
    torch.testing.assert_close(moved.translation, errors.translation, atol=1e-7, rtol=0)


def test_known_noise_has_its_closed_form_errors() -> None:
    true = cameras(rotations(0, PATHS, VIEWS), normal(1, PATHS, VIEWS, 3))
    extent = (true.centers - true.centers[:, :1]).norm(dim=-1).amax(1)
    predicted = cameras(
        true.camera_to_world[..., :3, :3] @ small_rotations(2, ROTATION_NOISE, PATHS, VIEWS),
        true.centers + CENTRE_NOISE * extent[:, None, None] * normal(3, PATHS, VIEWS, 3),
    )
    exact = pose_errors(cameras(predicted.camera_to_world[..., :3, :3], true.centers), true)
    torch.testing.assert_close(exact.rotation, torch.full_like(exact.rotation, ROTATION_NOISE), atol=1e-7, rtol=0)
    # An alignment takes its degrees of freedom out of the 3 a view that the noise has.
    shifted = cameras(true.camera_to_world[..., :3, :3], predicted.centers)
    for align, freedom in (("sim3_centres", 7), ("rot_avg", 4)):
        squared = pose_errors(shifted, true, align).ate_t.square().mean().item()
        assert squared == pytest.approx(CENTRE_NOISE**2 * (3 - freedom / VIEWS), rel=0.03)
    # The mean rotation takes one share of VIEWS of the squared noise out, the first view's own adds one more.
    squared = {align: pose_errors(predicted, true, align).rotation.square().mean().item() for align in FITS}
    assert squared["rot_avg"] == pytest.approx(ROTATION_NOISE**2 * (1 - 1 / VIEWS), rel=0.02)
    assert squared["first_frame"] == pytest.approx(ROTATION_NOISE**2 * 2 * (1 - 1 / VIEWS), rel=0.05)


def test_a_straight_path_leaves_the_roll_free_when_only_centres_are_aligned() -> None:
    """The sheet's simulation: rotation noise of 1 degree and centre noise of 0.5 %, over the path's lateral spread."""
    found = {}
    for lateral in (1e-6, 1.33e-3, 4e-3, 1.33e-2, 4e-2):
        true = straight_paths(lateral)
        predicted = noisy(true, 11)
        found[lateral] = pose_errors(predicted, true).ate_r.mean().item()
        assert pose_errors(predicted, true).ate_t.mean().item() == pytest.approx(0.008, rel=0.03)
        assert pose_errors(predicted, true, "rot_avg").ate_r.mean().item() == pytest.approx(0.0168, abs=5e-4)
        assert pose_errors(predicted, true, "first_frame").ate_r.mean().item() == pytest.approx(0.0219, abs=5e-4)
    roll, *others = found.values()
    assert others == sorted(others, reverse=True)
    assert roll == pytest.approx(math.pi / 2, abs=0.15)  # uniform between -pi and pi
    # Once small, roll is the noise across the path over what there is to hold on to: two axes of VIEWS centres.
    for lateral in (1.33e-2, 4e-2):
        free = CENTRE_NOISE / (lateral * math.sqrt(2 * VIEWS)) * math.sqrt(2 / math.pi)
        assert free < found[lateral] < free + 2 * ROTATION_NOISE
    exact = straight_paths(0.0)
    assert pose_errors(noisy(exact, 11), exact).ate_r.mean() > 1


@every_fit
def test_poses_that_know_nothing_score_the_random_angle(align: str) -> None:
    true = random_cameras(0, 1000, VIEWS)
    errors = pose_errors(cameras(rotations(5, 1000, VIEWS), normal(6, 1000, VIEWS, 3)), true, align)
    assert pytest.approx(2.2074, abs=1e-4) == RANDOM_ROTATION_ERROR
    # The mean rotation and the first view are fitted, which takes a little off.
    fitted = {"sim3_centres": 0.0, "rot_avg": 0.35, "first_frame": RANDOM_ROTATION_ERROR / VIEWS}[align]
    assert RANDOM_ROTATION_ERROR - fitted - 0.02 < errors.ate_r.mean() < RANDOM_ROTATION_ERROR + 0.02


@quick
@given(seed=seeds)
def test_first_frame_errors_are_those_of_scipy(seed: int) -> None:
    true = random_cameras(seed, 5)
    predicted = noisy(true, seed + 3, 2.0, 0.5)
    errors = pose_errors(predicted, true, "first_frame")
    local = []
    for path in (predicted, true):
        turn = Rotation.from_matrix(path.camera_to_world[:, :3, :3].numpy())
        local.append((turn[0].inv() * turn, turn[0].inv().apply((path.centers - path.centers[0]).numpy())))
    (turn, place), (true_turn, true_place) = local
    true_place = true_place / np.linalg.norm(true_place, axis=1).max()
    scale = max((place * true_place).sum() / (place**2).sum(), 0)
    np.testing.assert_allclose(errors.rotation, (turn.inv() * true_turn).magnitude(), atol=1e-7)
    np.testing.assert_allclose(errors.translation, np.linalg.norm(scale * place - true_place, axis=1), atol=1e-5)


def test_a_path_far_from_the_origin_keeps_its_errors_and_one_of_rounding_counts_as_still() -> None:
    true = random_cameras(0, 8)
    predicted = noisy(true, 3)
    far = cameras(predicted.camera_to_world[:, :3, :3], predicted.centers + 5e6)
    torch.testing.assert_close(pose_errors(far, true).ate_t, pose_errors(predicted, true).ate_t, atol=1e-7, rtol=0)
    turning = rotations(4, 8)
    still = cameras(turning.float(), 7 + 5e-7 * normal(5, 8, 3).float())
    wanted = cameras(turning.float(), 7 + 5e-7 * normal(6, 8, 3).float())
    assert min(path.centers.std(0).min() for path in (still, wanted)) > 0
    for align in FITS:
        errors = pose_errors(still, wanted, align)
        assert errors.rotation.max() < 1e-6 and errors.translation.max() == 0


def test_single_precision_and_one_view_are_accepted() -> None:
    true = random_cameras(0, 2, 5)
    single = Cameras(true.camera_to_world.float(), true.intrinsics.float(), 4, 4)
    errors = pose_errors(single, true)
    assert errors.rotation.dtype == torch.float64 and errors.rotation.max() < 1e-6
    for align in FITS:
        assert pose_errors(true[:1], random_cameras(9, 2, 1), align).rotation.max() < 1e-7


def test_what_cannot_be_compared_is_refused() -> None:
    true = random_cameras(0, 5)
    broken = cameras(true.camera_to_world[:, :3, :3], true.centers * torch.nan)
    with pytest.raises(ValueError, match=r"\(4, 4, 4\).*\(5, 4, 4\)"):
        pose_errors(true[:4], true)
    with pytest.raises(ValueError, match="NaN or infinity"):
        pose_errors(broken, true)
    with pytest.raises(ValueError, match="NaN or infinity"):
        pair_errors(true, broken)
    with pytest.raises(ValueError, match="1 view.*at least 2"):
        pair_errors(true[:1], true[:1])


@quick
@given(seed=seeds)
def test_pair_errors_are_those_of_a_loop_over_pairs(seed: int) -> None:
    true = random_cameras(seed, 5)
    predicted = noisy(true, seed + 3, 1.0, 0.5)
    errors = pair_errors(predicted, true)
    extent = (true.centers - true.centers[0]).norm(dim=-1).max().item()
    for place, (i, j) in enumerate(itertools.combinations(range(5), 2)):
        turns, shifts = [], []
        for path in (predicted, true):
            between = np.linalg.inv(path.camera_to_world[i].numpy()) @ path.camera_to_world[j].numpy()
            turns.append(Rotation.from_matrix(between[:3, :3]))
            shifts.append(between[:3, 3])
        angle = np.degrees((turns[0].inv() * turns[1]).magnitude())
        cosine = shifts[0] @ shifts[1] / np.linalg.norm(shifts[0]) / np.linalg.norm(shifts[1])
        direction = np.degrees(np.arccos(cosine))
        assert errors.rotation[place].item() == pytest.approx(angle, abs=1e-5)
        assert errors.translation[place].item() == pytest.approx(min(direction, 180 - direction), abs=1e-5)
        assert errors.baseline[place].item() == pytest.approx(np.linalg.norm(shifts[1]) / extent)
        assert errors.worst()[place].item() == pytest.approx(max(angle, min(direction, 180 - direction)), abs=1e-5)


@quick
@given(seed=seeds)
def test_pair_errors_ignore_both_worlds_and_the_sign_of_the_path(seed: int) -> None:
    true = random_cameras(seed, 2, 6)
    predicted = noisy(true, seed + 3, 0.3, 0.3)
    errors = pair_errors(predicted, true)
    moved = pair_errors(
        predicted.transformed(random_similarity(seed + 5, 2)), true.transformed(random_similarity(seed + 9, 2))
    )
    backwards = pair_errors(cameras(predicted.camera_to_world[..., :3, :3], -predicted.centers), true)
    for other in (moved, backwards):
        torch.testing.assert_close(other.worst(), errors.worst(), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.baseline, errors.baseline)


def test_perfect_poses_have_area_one_and_a_tiny_baseline_is_masked() -> None:
    true = random_cameras(0, 3, 6)
    errors = pair_errors(true.transformed(random_similarity(1, 3)), true)
    for threshold in (5, 15, 30):
        assert auc(errors.worst(), threshold).tolist() == [1, 1, 1]
    assert recall(errors.rotation, 1).tolist() == recall(errors.translation, 1).tolist() == [1, 1, 1]

    centers = true.centers.clone()
    centers[:, 1] = centers[:, 0] + 1e-4 * normal(2, 3, 3)
    near = cameras(true.camera_to_world[..., :3, :3], centers)
    shaken = cameras(near.camera_to_world[..., :3, :3], centers + 1e-3 * normal(3, 3, 6, 3))
    errors = pair_errors(shaken, near)
    assert (errors.baseline < TINY_BASELINE).sum(1).tolist() == [1, 1, 1]
    assert errors.worst()[:, 0].min() > 5
    assert errors.worst(TINY_BASELINE)[:, 0].max() < 1e-4
    torch.testing.assert_close(errors.worst(TINY_BASELINE)[:, 1:], errors.worst()[:, 1:])

    turning = cameras(rotations(0, 4), torch.zeros(4, 3, dtype=torch.float64))
    errors = pair_errors(turning, turning)
    assert (errors.translation == 90).all() and auc(errors.worst(), 30) == 0
    assert auc(errors.worst(TINY_BASELINE), 30) == 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(0, 60) | st.integers(0, 35).map(float), min_size=1, max_size=40), st.sampled_from([5, 15, 30])
)
def test_the_area_is_that_of_the_histogram(values: list[float], threshold: int) -> None:
    histogram, _ = np.histogram(values, bins=np.arange(threshold + 1))
    expected = (np.cumsum(histogram) / len(values)).mean()
    errors = torch.tensor([values, values[::-1]], dtype=torch.float64)
    assert auc(errors, threshold).tolist() == pytest.approx([expected, expected])
    assert recall(errors, threshold)[0].item() == pytest.approx(np.mean(np.array(values) < threshold))


def test_a_missing_pair_is_a_miss() -> None:
    errors = torch.tensor([0.5, torch.nan], dtype=torch.float64)
    assert auc(errors, 30) == 0.5 and recall(errors, 30) == 0.5
    nothing = PairErrors(errors, errors, torch.ones_like(errors)).worst()
    assert auc(nothing, 30) == 0.5
