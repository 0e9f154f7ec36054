"""One answer against the truth: every number of a scene, the features of its pictures, and a strip to look at."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diorama.evaluation.clouds import cloud_errors
from diorama.evaluation.consistency import warp_consistency
from diorama.evaluation.estimators import PoseEstimator, find_estimator
from diorama.evaluation.frechet import dinov2, inception, worlds64
from diorama.evaluation.metrics import depth_abs_rel, depth_delta, gradient_correlation, psnr, ssim
from diorama.evaluation.poses import FITS, Alignment, auc, pair_errors, pose_errors
from diorama.evaluation.splits import Question, window
from diorama.export.ply import bytes_of
from diorama.geometry.cameras import Cameras
from diorama.models.perceptual import SMALLEST, Unavailable, load_lpips
from diorama.scene import Scene, Views

CAP = 100.0  # dB that equal pictures score: an infinite mean would hide all others
SAME_LENS = 0.02  # share by which the focal length of an answer may differ from that of the question, once resized
COLUMNS = 16  # views of a strip
ERROR_GAIN = 3.0  # of a strip's error map
CLOUD = ("accuracy", "completeness", "chamfer", "chamfer_percent")
POSES = ("ate_r", "ate_t", "ate_r_rot_avg", "ate_t_rot_avg", "auc_30")
TRUE_FRAMES = "_true_frames"  # ends the names of what the estimator itself gets wrong
FEATURES = {"worlds64": worlds64, "inception": inception, "dinov2": dinov2}


@dataclass
class Instruments:
    """What measures beyond formulas; what is absent leaves blanks and a note."""

    perceptual: dict[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)  # key -> distance
    features: list[Any] = field(default_factory=list)  # each a frechet.Features
    estimator: PoseEstimator | None = None
    blank: set[str] = field(default_factory=set)  # keys that cannot be measured here
    notes: list[str] = field(default_factory=list)
    cloud_samples: int | None = None
    device: str = "cpu"
    floors: dict[str, Cameras | None] = field(default_factory=dict)  # estimated from true pictures, by their SHA-256

    def described(self) -> dict[str, Any]:
        """What decides which numbers there are, as JSON."""
        return {
            "perceptual": sorted(self.perceptual),
            "features": [features.name for features in self.features],
            "poses": None if self.estimator is None else self.estimator.name,
        }


def instruments(
    side: int,
    *,
    device: str = "cpu",
    features: Sequence[str] = ("worlds64",),
    poses: str = "none",
    cloud_samples: int | None = None,
) -> Instruments:
    """What there is to measure pictures of `side` pixels at least; `poses` is none or what `find_estimator` takes."""
    tools = Instruments(cloud_samples=cloud_samples, device=device)
    if side < SMALLEST:
        tools.notes.append(f"pictures of {side} pixels are too small for perceptual nets ({SMALLEST})")
        tools.blank.add("lpips_vgg")
    else:
        try:
            tools.perceptual["lpips_vgg"] = load_lpips("vgg").to(device)
        except Unavailable as error:
            tools.notes.append(_said(error))
            tools.blank.add("lpips_vgg")
        for name in features:
            try:
                tools.features.append(FEATURES[name](device))
            except KeyError:
                raise ValueError(f"--features {name}: accepted are {', '.join(FEATURES)}") from None
            except Unavailable as error:
                tools.notes.append(_said(error))
    if poses != "none":
        tools.estimator = find_estimator(poses, device)
    else:
        tools.notes.append("poses of generated pictures are not estimated (--poses none): their rows are blank")
        tools.blank |= set(POSES)
    return tools


def _said(error: Unavailable) -> str:
    """What is missing, without the folders of this machine: notes travel with the results."""
    return str(error).split(";")[0]


@dataclass(frozen=True)
class Measured:
    """What one answer scored."""

    line: dict[str, Any]  # of scenes.jsonl, but for its timing
    features: dict[str, Float[Tensor, "image dim"]]  # "NAME/generated", "NAME/true" of the scored pictures
    strip: UInt8[np.ndarray, "height width 3"]


def measured(question: Question, truth: Views, scene: Scene, tools: Instruments) -> Measured:
    """Every number of one scene; ValueError where the answer is not what was asked for."""
    truth, made = matched(truth, scene.views, told=question.cameras)
    # As an 8-bit file holds it: other people's methods are scored by their files.
    made = replace(made, images=(made.images.clamp(0, 1) * 255).round() / 255)
    views, metrics = _pictures(question, truth, made, tools)
    metrics |= _geometry(question, truth, made, views, tools)
    metrics |= _floor(question, truth, tools)
    estimated = _cameras(question, truth, made, tools)
    metrics |= _poses(estimated, truth)
    assert truth.cameras is not None
    line = {
        "setting": question.setting,
        "scene": question.scene,
        "known": list(question.known),
        "metrics": {key: plain(value) for key, value in metrics.items()},
        "views": views,
        "cameras": {
            "true": _centers(truth.cameras, truth.cameras),
            "estimated": None if estimated is None else _centers(_onto(estimated, truth.cameras), truth.cameras),
        },
        "failure": None,
    }
    scored = list(question.scored)
    found = {}
    for features in tools.features if _comparable(question, truth) else []:
        found[f"{features.name}/generated"] = features(made.images[scored])
        found[f"{features.name}/true"] = features(truth.images[scored])
    return Measured(line, found, strip(question, truth, made))


def failed(question: Question, reason: str) -> dict[str, Any]:
    """The line of a question without an answer."""
    return {
        "setting": question.setting,
        "scene": question.scene,
        "known": list(question.known),
        "metrics": {},
        "views": [],
        "cameras": None,
        "failure": " ".join(reason.split()),
    }


def matched(truth: Views, made: Views, *, told: bool) -> tuple[Views, Views]:
    """Both at the truth's resolution and of the same field of view: a model that crops is scored on what it shows.

    ValueError for another number of views, and where the answer shows more than was asked for or another lens.
    """
    if len(made) != len(truth):
        raise ValueError(f"{len(made)} views for {len(truth)} wanted ones")
    if not made.images.isfinite().all():
        raise ValueError("pictures with values that are not finite")
    height, width = truth.images.shape[-2:]
    made = made.to("cpu")
    if not told or made.cameras is None:
        return truth, made.resized(height, width)
    assert truth.cameras is not None
    wanted, found = truth.cameras.intrinsics[0], made.cameras.intrinsics[0]
    tall, wide = (
        round(side * float(wanted[i, i] / found[i, i]))
        for i, side in ((1, made.cameras.height), (0, made.cameras.width))
    )
    resized = made.resized(tall, wide)
    assert resized.cameras is not None
    left, top = (wanted[:2, 2] - resized.cameras.intrinsics[0, :2, 2]).round().int().tolist()
    inside = 0 <= top <= height - tall and 0 <= left <= width - wide
    expected = truth.cameras.cropped(top, left, tall, wide).intrinsics
    if not inside or (expected - resized.cameras.intrinsics).abs().max() > SAME_LENS * width:
        raise ValueError(f"pictures of {made.cameras.height}x{made.cameras.width} with another lens than was asked for")
    return window(truth, top, left, tall, wide), resized


def plain(value: float | Tensor) -> float | None:
    """A number as JSON holds it, in six digits after the point; None where it is not finite."""
    return round(float(value), 6) if math.isfinite(float(value)) else None


def strip(question: Question, truth: Views, made: Views) -> UInt8[np.ndarray, "height width 3"]:
    """Rows: known (black where none), true, generated, error; columns: up to 16 views evenly spaced."""
    chosen = torch.linspace(0, len(truth) - 1, min(COLUMNS, len(truth))).round().long().tolist()
    true, found = truth.images[chosen], made.images[chosen]
    known = torch.stack([image * (place in question.known) for place, image in zip(chosen, true, strict=True)])
    error = (ERROR_GAIN * (found - true).abs().mean(1, keepdim=True)).clamp(max=1).expand_as(true)
    rows = [torch.cat([*row], -1) for row in (known, true, found, error)]
    return bytes_of(torch.cat(rows, -2)).movedim(0, -1).contiguous().numpy()


def _comparable(question: Question, truth: Views) -> bool:
    """Whether pictures are of the same cameras: where these are predicted, only those of known views are."""
    return question.cameras or len(question.known) == len(truth)


@torch.no_grad()
def _pictures(
    question: Question, truth: Views, made: Views, tools: Instruments
) -> tuple[list[dict[str, Any]], dict[str, Tensor | float]]:
    """The numbers of each view, and their means over the scored ones."""
    values: dict[str, Tensor] = {}
    if _comparable(question, truth):
        pair = made.images, truth.images
        values = {"psnr": psnr(*pair).clamp(max=CAP), "gradient_correlation": gradient_correlation(*pair)}
        if min(truth.images.shape[-2:]) >= 11:
            values["ssim"] = ssim(*pair)
        for key, distance in tools.perceptual.items():  # one by one: trunks hold many times what a picture does
            each = [
                distance(a[None].to(tools.device), b[None].to(tools.device)).cpu() for a, b in zip(*pair, strict=True)
            ]
            values[key] = torch.cat(each)
    assert truth.cameras is not None
    centers = truth.cameras.centers
    extent = (centers - centers[:1]).norm(dim=-1).max().clamp(min=1e-9)
    distance = (centers[:, None] - centers[None, list(question.known)]).norm(dim=-1).amin(1) / extent
    views = [
        {
            "view": place,
            "known": place in question.known,
            "distance": plain(distance[place]),
            "metrics": {key: plain(value[place]) for key, value in values.items()},
        }
        for place in range(len(truth))
    ]
    means: dict[str, Tensor | float] = {key: value[list(question.scored)].mean() for key, value in values.items()}
    if values:
        means |= {key: math.nan for key in tools.blank if key.startswith("lpips")}
    return views, means


def _geometry(
    question: Question, truth: Views, made: Views, views: list[dict[str, Any]], tools: Instruments
) -> dict[str, Tensor | float]:
    """Depth of the scored views and the cloud of all, where both truth and answer have points; adds to `views`."""
    depth, true, mask = made.depth, truth.depth, truth.mask
    if depth is None or true is None or mask is None:
        return {}
    assert made.points is not None and truth.points is not None
    values = {}
    if question.cameras:
        values["abs_rel"] = depth_abs_rel(depth, true, mask)
    values["abs_rel_median"] = depth_abs_rel(depth, true, mask, alignment="median")
    values["delta_1_median"] = depth_delta(depth, true, mask, alignment="median")
    for row, place in zip(views, range(len(truth)), strict=True):
        row["metrics"] |= {key: plain(value[place]) for key, value in values.items()}
    means: dict[str, Tensor | float] = {key: value[list(question.scored)].nanmean() for key, value in values.items()}
    if made.cameras is not None and len(made) > 1:
        consistency = warp_consistency(made)
        means |= {"consistency_psnr": consistency.mean_psnr, "consistency_share": consistency.mean_share}
    try:
        errors = cloud_errors(made.points, truth.points, mask, given=made.mask, samples=tools.cloud_samples)
    except ValueError:  # nothing to compare, as where all is sky
        return means | dict.fromkeys(CLOUD, math.nan)
    return means | dict(zip(CLOUD, errors, strict=True))


def _cameras(question: Question, truth: Views, made: Views, tools: Instruments) -> Cameras | None:
    """The cameras of the generated pictures: as predicted, or as estimated from them with the known ones in place."""
    if not question.cameras:
        return made.cameras
    if tools.estimator is None:
        return None
    images = made.images.clone()
    images[list(question.known)] = truth.images[list(question.known)]
    return tools.estimator(images)


def _poses(estimated: Cameras | None, truth: Views) -> dict[str, Tensor | float]:
    if estimated is None:
        return dict.fromkeys(POSES, math.nan)
    assert truth.cameras is not None
    found: dict[str, Tensor | float] = {}
    ways: tuple[tuple[str, Alignment], ...] = (("", "sim3_centres"), ("_rot_avg", "rot_avg"))
    for suffix, align in ways:
        errors = pose_errors(estimated, truth.cameras, align)
        found |= {f"ate_r{suffix}": errors.ate_r, f"ate_t{suffix}": errors.ate_t}
    if len(truth) > 1:
        found["auc_30"] = auc(pair_errors(estimated, truth.cameras).worst(), 30)
    return found


def _floor(question: Question, truth: Views, tools: Instruments) -> dict[str, Tensor | float]:
    """What the estimator gets wrong on the true pictures, asked once for all settings that show the same."""
    if not question.cameras or tools.estimator is None:
        return {}
    shown = hashlib.sha256(truth.images.contiguous().numpy().tobytes()).hexdigest()
    if shown not in tools.floors:
        tools.floors[shown] = tools.estimator(truth.images)
    return {f"{key}{TRUE_FRAMES}": value for key, value in _poses(tools.floors[shown], truth).items()}


def _onto(estimated: Cameras, true: Cameras) -> Cameras:
    return estimated.transformed(FITS["first_frame"](estimated, true))


def _centers(cameras: Cameras, true: Cameras) -> list[list[float]]:
    """Camera centres in the frame of the first true camera."""
    centers = cameras.relative_to(true.camera_to_world[0]).centers
    return [[round(value, 6) for value in center] for center in centers.tolist()]
