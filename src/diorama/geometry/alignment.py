"""Fits between two scenes that differ by a similarity, and between two depth maps; every fit maps source to target.

Where the data leave a fit free it stays at rest: points that coincide give rotation identity and scale 1. Points on one
line leave the turn about that line free: prefer `align_rotations` for cameras that moved straight ahead.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.geometry.cameras import COINCIDENT, Cameras
from diorama.geometry.rotations import mean_rotation, nearest_rotation, product, rotate
from diorama.geometry.similarity import Similarity

Scale = Literal["least_squares", "variance_ratio", "none"]


def umeyama(
    source: Float[Tensor, "*batch point 3"],
    target: Float[Tensor, "*batch point 3"],
    weights: Float[Tensor, "*batch point"] | None = None,
    scale: Scale = "least_squares",
) -> Similarity:
    """The similarity of least weighted squared distance between paired points (Umeyama 1991), never a reflection.

    `variance_ratio` is the scale of Gen3R's metric, sqrt(var target / var source), above least squares under noise;
    `none` keeps scale 1. Raises ValueError for non-finite points, and for weights that are negative or all 0.
    """
    if not (source.isfinite().all() and target.isfinite().all()):
        raise ValueError("points to align hold NaN or infinity: give finite ones only")
    weights = torch.ones_like(source[..., 0]) if weights is None else weights
    total = weights.sum(-1, keepdim=True)
    if not ((weights >= 0).all() and (total > 0).all() and total.isfinite().all()):
        raise ValueError("weights to align by: accepted are numbers from 0 on, not all 0")
    share = (weights / total)[..., None]
    anchors = (share * source).sum(-2), (share * target).sum(-2)
    offsets = source - anchors[0][..., None, :], target - anchors[1][..., None, :]
    # Sums, not a matrix product, which TF32 would round; row by row to hold three numbers a point instead of nine.
    rows = [(share * offsets[1][..., axis : axis + 1] * offsets[0]).sum(-2) for axis in range(3)]
    covariance = torch.stack(rows, -2)
    still = _spread(source, offsets[0], share)[1] | _spread(target, offsets[1], share)[1]
    eye = torch.eye(3).to(source)
    rotation = torch.where(still[..., None, None], eye, nearest_rotation(covariance))
    return _fit(rotation, anchors, (source, target), share, scale)


def align_centers(source: Cameras, target: Cameras) -> Similarity:
    """Umeyama's fit of the camera centres alone, as in evo and most papers; a straight path leaves roll free."""
    return umeyama(source.centers, target.centers)


def align_rotations(source: Cameras, target: Cameras) -> Similarity:
    """The mean rotation between orientations of paired cameras, then scale and translation by their centres."""
    before, after = (cameras.camera_to_world[..., :3, :3] for cameras in (source, target))
    rotation = mean_rotation(product(after, before.mT))
    share = torch.full_like(source.centers[..., :1], 1 / source.views)
    anchors = source.centers.mean(-2), target.centers.mean(-2)
    return _fit(rotation, anchors, (source.centers, target.centers), share, "least_squares")


def align_first_view(source: Cameras, target: Cameras) -> Similarity:
    """The map that takes the first camera onto its partner exactly, with the scale of least squares of the centres."""
    before, after = (cameras.camera_to_world[..., 0, :3, :3] for cameras in (source, target))
    rotation = product(after, before.mT)
    share = torch.full_like(source.centers[..., :1], 1 / source.views)
    anchors = source.centers[..., 0, :], target.centers[..., 0, :]
    return _fit(rotation, anchors, (source.centers, target.centers), share, "least_squares")


def scale_and_shift(
    source: Float[Tensor, "*pixels"],
    target: Float[Tensor, "*pixels"],
    mask: Bool[Tensor, "*pixels"] | None = None,
    robust: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Scale and shift with scale * source + shift nearest to target over all masked values, by least squares.

    `robust` matches medians and median absolute deviations instead, which wrong depths do not move while they are few.
    A constant source gives scale 1. Raises ValueError if no value is left or one of them is not finite.
    """
    x, y = (source.flatten(), target.flatten()) if mask is None else (source[mask], target[mask])
    if x.numel() == 0 or not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"{x.numel()} depths to align: accepted are 1 or more, all finite")
    middle = (x.median(), y.median()) if robust else (x.mean(), y.mean())
    dx, dy = x - middle[0], y - middle[1]
    above, below = (dy.abs().median(), dx.abs().median()) if robust else ((dx * dy).mean(), dx.square().mean())
    still = (below if robust else below.sqrt()) <= COINCIDENT * x.abs().amax()
    scale = torch.where(still, torch.ones_like(below), above / below.clamp(min=torch.finfo(x.dtype).tiny))
    return scale, middle[1] - scale * middle[0]


def _fit(
    rotation: Float[Tensor, "*batch 3 3"],
    anchors: tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]],
    points: tuple[Float[Tensor, "*batch point 3"], Float[Tensor, "*batch point 3"]],
    share: Float[Tensor, "*batch point 1"],
    scale: Scale,
) -> Similarity:
    """The best scale under a known rotation that takes one anchor to the other."""
    source, target = (values - anchor[..., None, :] for values, anchor in zip(points, anchors, strict=True))
    (before, fixed), (after, reached) = _spread(points[0], source, share), _spread(points[1], target, share)
    ratio = (after / before.clamp(min=torch.finfo(before.dtype).tiny)).sqrt()
    if scale == "least_squares":
        overlap = (share * rotate(rotation[..., None, :, :], source) * target).sum((-1, -2))
        # Paths that run in opposite directions would ask for a negative scale, which is a reflection.
        value = torch.maximum(overlap / before.clamp(min=torch.finfo(before.dtype).tiny), COINCIDENT * ratio)
    else:
        value = ratio
    value = torch.where(fixed | reached, torch.ones_like(value), value) if scale != "none" else torch.ones_like(value)
    return Similarity(rotation, anchors[1] - value[..., None] * rotate(rotation, anchors[0]), value)


def _spread(
    points: Float[Tensor, "*batch point 3"],
    offsets: Float[Tensor, "*batch point 3"],
    share: Float[Tensor, "*batch point 1"],
) -> tuple[Float[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Mean squared offset, and whether it is no more than what rounding makes of coinciding points."""
    squared = (share * offsets.square()).sum((-1, -2))
    return squared, squared.sqrt() <= COINCIDENT * (points.abs() * (share > 0)).amax((-1, -2))
