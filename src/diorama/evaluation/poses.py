"""How far estimated cameras are from true ones: trajectory errors after an alignment, and relative errors of pairs.

All of it is computed in double precision on the CPU, whatever comes in. Cameras must be finite: an estimate that failed
is to be replaced or counted by the caller, never dropped.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.alignment import align_centers, align_first_view, align_rotations
from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import geodesic_angle, product, rotate
from diorama.geometry.similarity import Similarity

Alignment = Literal["sim3_centres", "rot_avg", "first_frame"]
FITS: dict[str, Callable[[Cameras, Cameras], Similarity]] = {
    "sim3_centres": align_centers,
    "rot_avg": align_rotations,
    "first_frame": align_first_view,
}
AUC_THRESHOLDS = (5, 15, 30)  # degrees
TINY_BASELINE = 0.01  # share of the distance from the first to the farthest true camera
RANDOM_ROTATION_ERROR = math.pi / 2 + 2 / math.pi  # radians: the mean angle between two random rotations


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """Errors of each view after an alignment; lower is better."""

    rotation: Float[Tensor, "*batch view"]  # radians, from 0 to pi
    translation: Float[
        Tensor, "*batch view"
    ]  # share of the first to the farthest true camera; scene units if all coincide

    @property
    def ate_r(self) -> Float[Tensor, "*batch"]:
        """Mean rotation error in radians; poses that know nothing score `RANDOM_ROTATION_ERROR`, 2.207."""
        return self.rotation.mean(-1)

    @property
    def ate_t(self) -> Float[Tensor, "*batch"]:
        """Root mean square of the translation errors, without unit (scene units where all true cameras coincide)."""
        return self.translation.square().mean(-1).sqrt()


@dataclass(frozen=True, eq=False)
class PairErrors:
    """Errors of the relative poses of all pairs of views i < j, in degrees; lower is better, no alignment is needed."""

    rotation: Float[Tensor, "*batch pair"]  # RRA's angle, from 0 to 180
    translation: Float[Tensor, "*batch pair"]  # RTA's angle between directions of either sign, from 0 to 90
    baseline: Float[Tensor, "*batch pair"]  # true distance, as a share of that from the first to the farthest camera

    def worst(self, tiny_baseline: float = 0.0) -> Float[Tensor, "*batch pair"]:
        """The larger of the two angles, as VGGT scores it.

        A pair whose true baseline is below `tiny_baseline` (`TINY_BASELINE` is a sensible one) has a direction of mere
        noise: its rotation counts alone. At 0 it counts in full, as published; one of no baseline at all scores 90.
        """
        translation = torch.where(self.baseline < tiny_baseline, 0.0, self.translation)
        return torch.maximum(self.rotation, translation)


def pose_errors(predicted: Cameras, true: Cameras, align: Alignment = "sim3_centres") -> PoseErrors:
    """Rotation and translation error of each view, after the true path is normalised and the predicted one aligned.

    The true path is put into its first camera's frame with the farthest camera at distance 1 (3DRAE's rule).
    `sim3_centres` fits the camera centres alone, as evo and most papers do: on a straight path the roll is free, so a
    perfect estimate may score more than a radian. `rot_avg` averages the rotations and is the one to trust;
    `first_frame` makes the first cameras coincide. Raises ValueError for unequal shapes and non-finite poses.
    """
    predicted, true = _comparable(predicted, true)
    aligned = predicted.transformed(FITS[align](predicted, true))
    rotations = (cameras.camera_to_world[..., :3, :3] for cameras in (aligned, true))
    return PoseErrors(geodesic_angle(*rotations), (aligned.centers - true.centers).norm(dim=-1))


def pair_errors(predicted: Cameras, true: Cameras) -> PairErrors:
    """Relative pose errors of all unordered pairs of views (VGGT's protocol), whatever frame and scale either has.

    Raises ValueError for unequal shapes, non-finite poses and fewer than two views.
    """
    if true.views < 2:
        raise ValueError("cameras of 1 view: relative errors need at least 2")
    predicted, true = _comparable(predicted, true)
    (turn, shift), (true_turn, true_shift) = _relative(predicted), _relative(true)
    baseline = true_shift.norm(dim=-1)
    sine, cosine = torch.linalg.cross(shift, true_shift).norm(dim=-1), (shift * true_shift).sum(-1).abs()
    undefined = (baseline == 0) | (shift.norm(dim=-1) == 0)
    direction = torch.where(undefined, torch.pi / 2, torch.atan2(sine, cosine))
    return PairErrors(geodesic_angle(turn, true_turn).rad2deg(), direction.rad2deg(), baseline)


def recall(errors: Float[Tensor, "*batch pair"], threshold: int) -> Float[Tensor, "*batch"]:
    """Share of the pairs whose error is below `threshold` degrees: RRA or RTA at it; higher is better."""
    return (errors < threshold).double().mean(-1)


def auc(errors: Float[Tensor, "*batch pair"], threshold: int) -> Float[Tensor, "*batch"]:
    """Area in [0, 1] under the recall over 1, 2, .. `threshold` degrees (VGGT's 1-degree histogram); higher is better.

    NaN counts as a miss. VGGT pools the pairs of a category before this and averages over categories after it.
    """
    # A pair is within so many of the thresholds; numpy's last bin, which VGGT uses, is closed on both sides.
    within = (threshold - errors.floor()).clamp(min=1)
    return torch.where(errors <= threshold, within / threshold, 0.0).mean(-1)


def _comparable(predicted: Cameras, true: Cameras) -> tuple[Cameras, Cameras]:
    """Both on the CPU in double precision and in their first camera's frame, the true path with extent 1."""
    found, wanted = predicted.camera_to_world, true.camera_to_world
    if found.shape != wanted.shape:
        raise ValueError(f"predicted poses of shape {tuple(found.shape)}: accepted is {tuple(wanted.shape)}, the true")
    if not (found.isfinite().all() and wanted.isfinite().all()):
        raise ValueError("poses to compare hold NaN or infinity: accepted are finite ones only")
    return _local(predicted), _local(true).normalized()[0]


def _local(cameras: Cameras) -> Cameras:
    """In the first camera's frame and in doubles, so that a path of metres may lie kilometres from the origin."""
    rounding = 16 * torch.finfo(cameras.centers.dtype).eps * cameras.centers.cpu().double().abs().amax((-1, -2))
    exact = cameras.to("cpu").to(torch.float64)
    local = exact.relative_to(exact.camera_to_world[..., 0, :, :])
    # What rounding alone moved has not moved: an alignment would else take it for a path.
    moved = local.centers.norm(dim=-1).amax(-1) > rounding
    poses = local.camera_to_world.clone()
    poses[..., :3, 3] *= moved[..., None, None]
    return replace(local, camera_to_world=poses)


def _relative(cameras: Cameras) -> tuple[Float[Tensor, "*batch pair 3 3"], Float[Tensor, "*batch pair 3"]]:
    """Rotation and centre of the second camera of each pair in the first one's frame."""
    first, second = torch.triu_indices(cameras.views, cameras.views, 1)
    rotation, centers = cameras.camera_to_world[..., :3, :3], cameras.centers
    inverse, apart = rotation[..., first, :, :].mT, centers[..., second, :] - centers[..., first, :]
    return product(inverse, rotation[..., second, :, :]), rotate(inverse, apart)
