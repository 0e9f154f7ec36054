"""The surfaces that a scene's views see: where one goes on from pixel to pixel, and which of them two views share."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.export.depth import valid_depth
from diorama.geometry.cameras import Cameras
from diorama.scene import Views

DEPTH = 0.05  # share of depth that two views may differ by: what little parallax cannot tell apart in pixels
EDGE = 0.05  # share by which the inverse depth may leave the slope on either side of a step between two pixels


class Match(NamedTuple):
    """Surface points of one view in another."""

    good: Bool[Tensor, " point"]  # the other view sees the same surface there
    pixels: Float[Tensor, "point 2"]  # where; the first pixel's centre is (0.5, 0.5)
    points: Float[Tensor, "point 3"]  # the other view's own surface at that place


@dataclass(frozen=True, eq=False)
class Surface:
    """The depth of some views, to ask one view about another's points."""

    cameras: Cameras
    points: Float[Tensor, "view height width 3"]
    inverse: Float[Tensor, "view height width"]  # 1 / depth, NaN where there is none
    whole: Bool[Tensor, "view rows columns"]  # the four pixels around each inner corner lie on one surface

    @classmethod
    def of(cls, views: Views, edge: float = EDGE) -> "Surface":
        """Those of one scene, on the CPU, cut at bends of more than `edge`; ValueError for views without depth."""
        depth, valid = valid_depth(views)
        assert views.cameras is not None and views.points is not None
        inverse = torch.where(valid, 1 / depth, torch.nan).detach()
        return cls(views.cameras, views.points.detach(), inverse, _whole(inverse, edge))

    def match(self, source: int, rows: Tensor, columns: Tensor, target: int, *, tolerance: float) -> Match:
        """Pixels of `source` in `target`: good where both views' depths say the same.

        There the target's surface lies within 5 % of the point's depth and projects back to within `tolerance` pixels.
        """
        height, width = self.inverse.shape[1:]
        points = self.points[source, rows, columns]
        pixels, depth = (value[0] for value in self.cameras[target].project(points[None]))
        inside = (depth > 0) & (pixels >= 0.5).all(-1) & (pixels <= pixels.new_tensor([width, height]) - 0.5).all(-1)
        pixels = torch.where(inside[:, None], pixels, 0.5)
        inverse = self._between(target, pixels)
        x, y = pixels.unbind(-1)
        theirs = self.cameras[target]
        local = torch.linalg.solve_triangular(theirs.intrinsics[0], torch.stack([x, y, torch.ones_like(x)]), upper=True)
        pose = theirs.camera_to_world[0]
        surface = pose[:3, 3] + (pose[:3, :3] @ local).T / inverse[:, None]
        back, _ = self.cameras[source].project(surface[None])
        error = (back[0] - torch.stack([columns, rows], -1) - 0.5).norm(dim=-1)
        # A comparison with NaN is false: no depth, no match.
        good = inside & ((inverse * depth - 1).abs() <= DEPTH) & (error <= tolerance)
        return Match(good, pixels, surface)

    def _between(self, view: int, pixels: Float[Tensor, "point 2"]) -> Float[Tensor, " point"]:
        """Inverse depth between pixel centres, linear on a plane; NaN unless all four around are one surface."""
        height, width = self.inverse.shape[1:]
        place = pixels - 0.5
        x, y = (place[:, axis].long().clamp(0, max(size - 2, 0)) for axis, size in ((0, width), (1, height)))
        right, below = (x + 1).clamp(max=width - 1), (y + 1).clamp(max=height - 1)
        across, down = place[:, 0] - x, place[:, 1] - y
        values = self.inverse[view]
        upper = values[y, x] * (1 - across) + values[y, right] * across
        lower = values[below, x] * (1 - across) + values[below, right] * across
        return torch.where(self.whole[view, y, x], upper * (1 - down) + lower * down, torch.nan)


def _whole(inverse: Float[Tensor, "view height width"], edge: float) -> Bool[Tensor, "view rows columns"]:
    """Whether the four pixels around each inner corner lie on one surface: no edge between any neighbours."""
    valid, inverse = inverse.isfinite(), inverse.nan_to_num()
    across, down = _joined(inverse, valid, edge), _joined(inverse.mT, valid.mT, edge).mT
    return across[:, :-1] & across[:, 1:] & down[:, :, :-1] & down[:, :, 1:]


def _joined(
    inverse: Float[Tensor, "view height width"], valid: Bool[Tensor, "view height width"], edge: float
) -> Bool[Tensor, "view height columns"]:
    """Whether a pixel and the one right of it are both valid and their step is as on either side of it.

    Inverse depth is linear on a plane, so a steep floor stays whole while a step between two surfaces is cut.
    """
    step = inverse.diff(dim=-1)
    both = valid[..., :-1] & valid[..., 1:]
    # Beyond the image and next to a hole there is no slope to go on; a flat one is assumed.
    slope = torch.nn.functional.pad(torch.where(both, step, 0.0), (1, 1))
    bend = torch.minimum((step - slope[..., :-2]).abs(), (step - slope[..., 2:]).abs())
    return both & (bend <= edge * torch.minimum(inverse[..., :-1], inverse[..., 1:]))
