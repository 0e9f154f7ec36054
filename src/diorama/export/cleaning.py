"""Which points are worth exporting: those that the model trusts, near enough, and not alone in the air."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree  # type: ignore[attr-defined]
from torch import Tensor

from diorama.scene import Views

NEIGHBOURS = 16  # of a point, whose mean distance tells whether it is alone


@dataclass(frozen=True)
class Cleaning:
    """What is left out, in this order; the default leaves out nothing but invalid points."""

    drop: float = 0.0  # share in [0, 1) of the least confident points
    far: float | None = None  # times the views' median depth; farther is sky or a guess
    outliers: float | None = None  # standard deviations above the mean distance to a point's neighbours

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"share {self.drop} of points to drop; accepted is 0 up to, not including, 1")
        for name, value in (("far", self.far), ("outliers", self.outliers)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} {value}: accepted is a number above 0")


def cleaned(views: Views, cleaning: Cleaning) -> Views:
    """The same views on the CPU, their confidence 0 wherever a point is left out; without points, as they are.

    ValueError where depth is asked about and the views have no cameras.
    """
    if views.points is None:
        return views
    views = views.to("cpu")
    points = views.points
    assert points is not None
    confidence = torch.ones_like(points[..., 0]) if views.confidence is None else views.confidence.detach().clone()
    confidence[~points.isfinite().all(-1)] = 0
    if cleaning.drop and (confidence > 0).any():
        # numpy, because torch.quantile refuses more than 16 million values
        confidence[confidence < float(np.quantile(confidence[confidence > 0].float().numpy(), cleaning.drop))] = 0
    if cleaning.far is not None:
        confidence[_too_far(views, confidence, cleaning.far)] = 0
    if cleaning.outliers is not None:
        valid = confidence > 0
        confidence[valid] = torch.where(_alone(points[valid], cleaning.outliers), 0, confidence[valid])
    return replace(views, confidence=confidence)


def _too_far(views: Views, confidence: Tensor, far: float) -> Tensor:
    depth = views.depth
    if depth is None:
        raise ValueError("far points are known by their depth, which these views do not have; leave `far` out")
    depth = depth.detach()
    valid = (confidence > 0) & (depth > 0)
    return depth > far * float(np.median(depth[valid].float().numpy())) if valid.any() else ~valid


def _alone(points: Float[Tensor, "point 3"], ratio: float) -> Tensor:
    """Points whose mean distance to their neighbours exceeds the mean by `ratio` standard deviations, as PCL has it."""
    distance = neighbour_distance(points.detach().float().numpy(), NEIGHBOURS)
    if not len(distance):
        return torch.zeros(len(points), dtype=torch.bool)
    return torch.from_numpy(distance > distance.mean() + ratio * distance.std())


def neighbour_distance(points: np.ndarray, neighbours: int) -> np.ndarray:
    """Mean distance of every point to its nearest others; empty where there are no others."""
    count = min(neighbours, len(points) - 1)
    if count < 1:
        return np.empty(0, np.float32)
    # The first one found is the point itself; balancing the tree costs more than it saves on surfaces.
    found, _ = cKDTree(points, balanced_tree=False, compact_nodes=False).query(points, count + 1, workers=-1)
    return found[:, 1:].mean(1)
