"""The points that a browser is sent: those that the visitor's sliders leave, as many as it can draw."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from diorama.scene import Views

POOL = 4_000_000  # points kept to choose from: what a million-point budget needs after three quarters were hidden


@dataclass(frozen=True, eq=False)
class Cloud:
    """Valid points of a scene in a fixed random order: the first ones of any choice are an even choice of it."""

    points: Float[Tensor, "point 3"]  # scene units
    colours: UInt8[Tensor, "point 3"]
    confidence: Float[Tensor, "point"]
    depth: Float[Tensor, "point"]  # scene units, in the camera that saw the point
    spacing: float  # between neighbouring points of one view, scene units

    def chosen(self, drop: float, far: float | None, most: int) -> Int64[Tensor, "chosen"]:
        """Which points are left without the least confident share `drop`, and without those farther than `far`.

        `far` counts in median depths of what `drop` leaves, as `diorama export` does; at most `most` are given.
        """
        keep = torch.ones(len(self.points), dtype=torch.bool)
        if drop > 0 and len(keep):
            rank = math.ceil(drop * (len(keep) - 1))
            keep = self.confidence >= self.confidence.kthvalue(rank + 1).values
        if far is not None and keep.any():
            keep &= self.depth <= far * self.depth[keep].median()
        return keep.nonzero()[:, 0][:most]


def cloud_of(views: Views, pool: int = POOL) -> Cloud | None:
    """The points of views with cameras; None where they have no points."""
    if views.points is None or views.cameras is None:
        return None
    views = views.to("cpu")
    depth, points = views.depth, views.points
    assert depth is not None and points is not None and views.cameras is not None
    valid = depth.isfinite() & (depth > 0) & points.isfinite().all(-1)
    if views.mask is not None:
        valid &= views.mask
    confidence = torch.ones_like(depth) if views.confidence is None else views.confidence
    places = valid.flatten().nonzero()[:, 0]
    places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:pool]]
    colours = views.images.movedim(-3, -1).flatten(0, 2)[places]
    near = depth.flatten()[places]
    focal = float(views.cameras.intrinsics[:, 0, 0].mean())
    return Cloud(
        points.flatten(0, 2)[places].detach().float(),
        colours.detach().clamp(0, 1).mul(255).round().to(torch.uint8),
        confidence.flatten()[places].detach().float(),
        near.detach().float(),
        float(near.median()) / focal if len(near) else 1.0,
    )
