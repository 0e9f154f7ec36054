"""Points that several views see alike, with the pixel where each sees them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from diorama.export.ply import bytes_of
from diorama.export.surface import Surface
from diorama.scene import Views

TOLERANCE = 1.0  # pixels between a pixel and where the other view's surface comes back to
RESIDUAL = 0.5  # pixels; a track whose mean point is farther from one of its observations is left out
MOST = 200_000  # tracks by default: enough for splats, and quick to adjust


@dataclass(frozen=True, eq=False)
class Tracks:
    """Points with two or more observations each; observations are sorted by track."""

    points: Float64[np.ndarray, "track 3"]
    colours: UInt8[np.ndarray, "track 3"]
    errors: Float64[np.ndarray, " track"]  # mean distance in pixels between observations and the projected point
    track: Int64[np.ndarray, " observation"]
    view: Int64[np.ndarray, " observation"]
    pixels: Float64[np.ndarray, "observation 2"]


def find_tracks(views: Views, *, tolerance: float = TOLERANCE, most: int = MOST) -> Tracks:
    """Tracks that start at pixels not yet in an earlier one; a track's point is the mean of what its views say.

    At most about `most`, drawn evenly over all pixels. ValueError for views without depth, or a bad number.
    """
    if not tolerance > 0 or most < 1:
        raise ValueError(f"tolerance {tolerance} pixels, {most} points: accepted are a number above 0, and 1 or more")
    views = views.to("cpu", torch.float32)
    surface = Surface.of(views)
    valid = surface.inverse.isfinite()
    share = min(1.0, most / max(int(valid.sum()), 1))
    drawn = valid & (torch.rand(valid.shape, generator=torch.Generator().manual_seed(0)) < share)
    colours = bytes_of(views.images).movedim(1, -1)
    taken = torch.zeros_like(valid)
    parts, count = [], 0
    for view in range(len(views)):
        rows, columns = (drawn[view] & ~taken[view]).nonzero().unbind(-1)
        part = _from_view(surface, view, rows, columns, tolerance, taken)
        for seen, pixels in zip(part.view, part.pixels, strict=True):
            x, y = pixels.long().unbind(-1)
            taken[seen, y, x] = True
        parts.append((part, colours[view, rows[part.kept], columns[part.kept]], count))
        count += len(part.points)
    return _joined(parts)


class _Part(NamedTuple):
    """Tracks that start in one view; the lists have one entry for each view that sees some of them."""

    kept: Tensor  # which of the pixels asked about
    points: Tensor
    errors: Tensor
    view: list[int]
    track: list[Tensor]
    pixels: list[Tensor]


def _from_view(surface: Surface, view: int, rows: Tensor, columns: Tensor, tolerance: float, taken: Tensor) -> _Part:
    everything = torch.arange(len(rows))
    seen = [(view, everything, torch.stack([columns, rows], -1) + 0.5)]
    total, count = surface.points[view, rows, columns].double(), torch.ones(len(rows), dtype=torch.float64)
    for other in range(len(surface.points)):
        if other == view or not len(rows):
            continue
        match = surface.match(view, rows, columns, other, tolerance=tolerance)
        x, y = match.pixels.long().unbind(-1)
        which = everything[match.good & ~taken[other, y, x]]
        total[which] += match.points[which]
        count[which] += 1
        seen.append((other, which, match.pixels[which]))
    points = (total / count[:, None]).float()
    worst, summed = torch.zeros(len(rows)), torch.zeros(len(rows))
    for other, which, pixels in seen:
        error = (surface.cameras[other].project(points[which][None])[0][0] - pixels).norm(dim=-1)
        worst[which] = torch.maximum(worst[which], error)
        summed[which] += error
    kept = (count >= 2) & (worst <= RESIDUAL)
    number = torch.cumsum(kept, 0) - 1
    left = [(other, which[kept[which]], pixels[kept[which]]) for other, which, pixels in seen]
    errors = (summed / count)[kept]
    return _Part(
        kept,
        points[kept],
        errors,
        [other for other, _, _ in left],
        [number[which] for _, which, _ in left],
        [pixels for _, _, pixels in left],
    )


def _joined(parts: list[tuple[_Part, Tensor, int]]) -> Tracks:
    track = torch.cat([number + start for part, _, start in parts for number in part.track])
    view = torch.cat(
        [torch.full_like(n, seen) for part, _, _ in parts for seen, n in zip(part.view, part.track, strict=True)]
    )
    pixels = torch.cat([pixels for part, _, _ in parts for pixels in part.pixels])
    order = torch.argsort(track, stable=True)
    return Tracks(
        torch.cat([part.points for part, _, _ in parts]).double().numpy(),
        torch.cat([colours for _, colours, _ in parts]).numpy(),
        torch.cat([part.errors for part, _, _ in parts]).double().numpy(),
        track[order].numpy(),
        view[order].numpy(),
        pixels[order].double().numpy(),
    )
