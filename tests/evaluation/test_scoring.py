"""One answer's numbers: of the truth, of things known to be wrong, and of what was not asked for."""

import json
import math
from dataclasses import replace

import pytest
import torch

from diorama.evaluation.metrics import METRICS, better, psnr
from diorama.evaluation.scoring import CAP, POSES, Instruments, failed, instruments, matched, measured, plain, strip
from diorama.evaluation.splits import Question, window
from diorama.geometry.similarity import Similarity
from diorama.scene import Condition, Scene, Views

from .scenery import SIDE, plane

ASKED = Question("2 known", "a", (0, 3), (1, 2))


class Means:
    """Features that are the mean colour."""

    name = "mean"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((-1, -2))


class Poses:
    """An estimator that finds given cameras, in a world of its own, and remembers what it was shown."""

    name = "given"

    def __init__(self, cameras) -> None:
        self.cameras = cameras

    def __call__(self, images: torch.Tensor):
        self.shown = images
        return self.cameras


def scored(question: Question, truth: Views, made: Views, **tools) -> dict:
    return measured(question, truth, Scene(made, Condition()), Instruments(**tools)).line


def test_the_truth_scores_as_the_truth() -> None:
    truth = plane()
    line = scored(ASKED, truth, truth)
    metrics = line["metrics"]
    assert metrics["psnr"] == CAP
    assert metrics["ssim"] == pytest.approx(1, abs=1e-5)
    assert metrics["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert metrics["delta_1_median"] == 1
    assert metrics["chamfer"] == pytest.approx(0, abs=1e-6)
    assert all(name.split("_")[0] in {m.split("_")[0] for m in METRICS} and better(name) for name in metrics)
    assert [view["known"] for view in line["views"]] == [True, False, False, True]
    assert [metrics[name] for name in POSES] == [None] * len(POSES)
    assert line["cameras"]["true"][0] == [0, 0, 0] and line["cameras"]["estimated"] is None
    json.dumps(line, allow_nan=False)


def test_only_the_asked_views_count_in_8_bits() -> None:
    truth = plane()
    noise = 0.1 * torch.randn(truth.images.shape, generator=torch.Generator().manual_seed(0))
    made = replace(truth, images=truth.images + noise)
    line = scored(ASKED, truth, made)
    rounded = (made.images.clamp(0, 1) * 255).round() / 255
    each = psnr(rounded, truth.images)
    assert line["metrics"]["psnr"] == pytest.approx(float(each[[1, 2]].mean()), abs=1e-4)
    assert [view["metrics"]["psnr"] for view in line["views"]] == pytest.approx(each.tolist(), abs=1e-4)


def test_the_distance_of_a_view_is_that_to_the_nearest_known_one_by_the_paths_extent() -> None:
    truth = plane()
    centers = truth.cameras.centers
    line = scored(Question("1 known", "a", (0,), (1, 2, 3)), truth, truth)
    extent = (centers - centers[0]).norm(dim=-1).max()
    expected = ((centers - centers[0]).norm(dim=-1) / extent).tolist()
    assert [view["distance"] for view in line["views"]] == pytest.approx(expected, abs=1e-5)
    assert line["views"][3]["distance"] == 1


def test_a_scene_of_another_scale_has_wrong_depth_but_the_right_shape() -> None:
    truth = plane()
    twice = truth.cameras.unproject(2 * truth.depth)
    metrics = scored(ASKED, truth, replace(truth, points=twice))["metrics"]
    assert metrics["abs_rel"] == pytest.approx(1, abs=1e-4)
    assert metrics["abs_rel_median"] == pytest.approx(0, abs=1e-4)
    assert "abs_rel" not in scored(ASKED, truth, Views(truth.images, truth.cameras))["metrics"]


def test_an_answer_of_another_resolution_or_a_crop_is_brought_to_the_truths() -> None:
    truth = plane()
    small = truth.resized(SIDE // 2, SIDE // 2)
    whole, made = matched(truth, small, told=True)
    assert whole is truth or torch.equal(whole.images, truth.images)
    assert made.images.shape == truth.images.shape
    part = window(truth, 4, 8, 24, 16)
    cut, same = matched(truth, part, told=True)
    torch.testing.assert_close(cut.images, same.images, atol=1e-6, rtol=0)
    torch.testing.assert_close(cut.cameras.intrinsics, same.cameras.intrinsics, atol=1e-4, rtol=0)
    assert cut.images.shape[-2:] == (24, 16)


def test_what_was_not_asked_for_is_a_failure_in_one_line() -> None:
    truth = plane()
    with pytest.raises(ValueError, match="3 views for 4"):
        matched(truth, truth[:3], told=True)
    with pytest.raises(ValueError, match="not finite"):
        matched(truth, replace(truth, images=truth.images * math.nan), told=True)
    wide = replace(truth.cameras, intrinsics=truth.cameras.intrinsics * torch.tensor([[0.5], [0.5], [1.0]]))
    with pytest.raises(ValueError, match="another lens"):
        matched(truth, replace(truth, cameras=wide, points=None), told=True)
    line = failed(ASKED, "first\nsecond")
    assert (line["failure"], line["known"], line["views"]) == ("first second", [0, 3], [])


def test_poses_are_estimated_with_the_known_pictures_in_their_places() -> None:
    truth = plane()
    moved = Similarity(torch.eye(3), torch.tensor([5.0, 1.0, -2.0]), torch.tensor(3.0))
    estimator = Poses(truth.cameras.transformed(moved))
    made = Views(torch.zeros_like(truth.images), truth.cameras)
    line = scored(ASKED, truth, made, estimator=estimator)
    torch.testing.assert_close(estimator.shown[[0, 3]], truth.images[[0, 3]])
    assert not estimator.shown[[1, 2]].any()
    assert line["metrics"]["ate_r_rot_avg"] == pytest.approx(0, abs=1e-3)
    assert line["metrics"]["auc_30"] == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(
        torch.tensor(line["cameras"]["estimated"]), torch.tensor(line["cameras"]["true"]), atol=1e-4, rtol=0
    )
    none = scored(ASKED, truth, made, estimator=Poses(None))
    assert none["metrics"]["ate_r"] is None and none["cameras"]["estimated"] is None


class Colourful:
    """An estimator that finds the true cameras where all pictures have colours, and others where one is black."""

    name = "colourful"

    def __init__(self, cameras) -> None:
        self.cameras, self.asked = cameras, 0

    def __call__(self, images: torch.Tensor):
        self.asked += 1
        seen = bool((images.amax((1, 2, 3)) > 0).all())
        return self.cameras if seen else self.cameras[[3, 2, 1, 0]]


def test_what_the_estimator_gets_wrong_on_the_true_pictures_stands_beside_what_is_scored() -> None:
    truth = plane()
    estimator = Colourful(truth.cameras)
    tools = Instruments(estimator=estimator)
    made = Scene(Views(torch.zeros_like(truth.images), truth.cameras), Condition())
    metrics = measured(ASKED, truth, made, tools).line["metrics"]
    assert metrics["auc_30"] < 0.5 < metrics["auc_30_true_frames"] == 1
    assert metrics["ate_r_rot_avg_true_frames"] < 1e-6 < metrics["ate_r_rot_avg"]
    assert all(better(name) for name in metrics)
    assert {f"{name}_true_frames" for name in POSES} <= metrics.keys()
    other = Question("1 known", "a", (0,), (1, 2, 3))
    again = measured(other, truth, made, tools).line["metrics"]
    assert estimator.asked == 3  # the true pictures once for both
    assert again["ate_t_true_frames"] == metrics["ate_t_true_frames"]
    free = Question("free", "a", (0,), (1, 2, 3), cameras=False)
    assert not any("true_frames" in name for name in measured(free, truth, made, tools).line["metrics"])
    lost = measured(ASKED, truth, made, Instruments(estimator=Poses(None))).line["metrics"]
    assert lost["ate_r_true_frames"] is None


def test_predicted_cameras_are_scored_as_poses_and_their_pictures_are_not() -> None:
    truth = plane()
    asked = Question("free", "a", (0,), (1, 2, 3), cameras=False)
    line = scored(asked, truth, truth)
    assert line["metrics"]["auc_30"] == 1
    assert "psnr" not in line["metrics"] and "abs_rel" not in line["metrics"]
    assert line["metrics"]["abs_rel_median"] == pytest.approx(0, abs=1e-5)
    every = Question("free", "a", (0, 1, 2, 3), (0, 1, 2, 3), cameras=False)
    assert scored(every, truth, truth)["metrics"]["psnr"] == CAP  # reconstruction: the same pictures again


def test_features_are_those_of_the_scored_pictures() -> None:
    truth = plane()
    made = replace(truth, images=1 - truth.images)
    found = measured(ASKED, truth, Scene(made, Condition()), Instruments(features=[Means()])).features
    torch.testing.assert_close(found["mean/true"], truth.images[[1, 2]].mean((-1, -2)))
    torch.testing.assert_close(found["mean/generated"], 1 - found["mean/true"], atol=1e-5, rtol=0)


def test_a_strip_shows_known_true_generated_and_error() -> None:
    truth = plane()
    made = replace(truth, images=truth.images.clone())
    made.images[2] = 0
    sheet = strip(ASKED, truth, made)
    assert sheet.shape == (4 * SIDE, 4 * SIDE, 3)
    rows = torch.from_numpy(sheet).float().unflatten(0, (4, SIDE)).unflatten(2, (4, SIDE))
    black = rows.amax((1, 3, 4)) == 0
    assert black.tolist() == [[0, 1, 1, 0], [0] * 4, [0, 0, 1, 0], [1, 1, 0, 1]]
    assert strip(Question("x", "a", (0,), (1,)), plane(20), plane(20)).shape == (4 * SIDE, 16 * SIDE, 3)


def test_instruments_that_are_absent_leave_blanks_and_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    from diorama.models.perceptual import Unavailable

    def absent(net: str):
        raise Unavailable("lpips_vgg: found no weights; looked in /somewhere/private")

    monkeypatch.setattr("diorama.evaluation.scoring.load_lpips", absent)
    tools = instruments(64)
    assert {"lpips_vgg", *POSES} == tools.blank
    assert tools.described() == {"perceptual": [], "features": ["worlds64"], "poses": None}
    assert "lpips_vgg: found no weights" in tools.notes
    truth = plane()
    assert measured(ASKED, truth, Scene(truth, Condition()), tools).line["metrics"]["lpips_vgg"] is None
    assert instruments(16).features == []
    with pytest.raises(ValueError, match="--poses slam: accepted are colmap, vggt, or vggt:FOLDER"):
        instruments(16, poses="slam")
    with pytest.raises(ValueError, match="--features nothing: accepted are worlds64"):
        instruments(64, features=("nothing",))


def test_numbers_are_json() -> None:
    assert plain(torch.tensor(1 / 3)) == 0.333333
    assert plain(math.nan) is None and plain(-math.inf) is None
