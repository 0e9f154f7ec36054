"""Pictures of a report: strips as data URIs, and the numbers that inline SVG draws paths and scatters from."""

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diorama.data.images import read_image

MAX_PIXELS, QUALITY = 2_000_000, 88  # of one strip; a JPEG whose colours keep their resolution
BINS, FEWEST = 8, 3  # bins of distance, and the points that one needs for its mean to be drawn
WIDTH, HEIGHT, MARGIN = 320.0, 210.0, (10.0, 18.0, 34.0, 42.0)  # of a scatter; margins: top, right, bottom, left
SIDE, EDGE = 220.0, 16.0  # of a plan, and what it leaves free around the path
Number = float | int  # as JSON has them


class Strip(NamedTuple):
    """A picture as a data URI with its size in pixels, or the reason why there is none."""

    uri: str
    width: int
    height: int
    reason: str = ""


def strip(folder: Path, name: str | None) -> Strip:
    """The strip `name` of a run's folder, reduced where it is large; only files inside the folder are read."""
    if name is None:
        return Strip("", 0, 0, "The run wrote no strip of this scene.")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return Strip("", 0, 0, "The strip lies outside the run's folder, so it was not read.")
    try:
        pixels = read_image(path, max_pixels=MAX_PIXELS).movedim(0, -1)
    except (OSError, ValueError):
        return Strip("", 0, 0, "The strip is missing or cannot be read.")
    data = BytesIO()
    image = Image.fromarray((pixels * 255).round().byte().numpy())
    image.save(data, "JPEG", quality=QUALITY, subsampling=0)
    return Strip("data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode(), *image.size)


def plan(paths: Sequence[Sequence[Sequence[Number]]], known: Sequence[int]) -> dict[str, Any]:
    """Paths of camera centres seen from above, x to the right and z up, to one scale; the first one is the true one.

    Each has its line ("d" of an SVG path) and dots; `known` are the places of the known views along the true one.
    """
    flat = [[(p[0], p[2]) for p in path if len(p) == 3 and all(map(math.isfinite, p))] for path in paths]
    everything = np.array([place for path in flat for place in path] or [(0.0, 0.0)])
    low, extent = everything.min(0), float(np.ptp(everything, 0).max()) or 1.0
    offset = (SIDE - np.ptp(everything, 0) / extent * (SIDE - 2 * EDGE)) / 2

    def drawn(path: Sequence[tuple[Number, Number]]) -> list[tuple[float, float]]:
        across = (np.array(path).reshape(-1, 2) - low) / extent * (SIDE - 2 * EDGE) + offset
        return [(round(x, 1), round(SIDE - z, 1)) for x, z in across.tolist()]

    lines = [drawn(path) for path in flat]
    return {
        "side": SIDE,
        "lines": [{"d": "M" + " L".join(f"{x} {z}" for x, z in line) if line else "", "dots": line} for line in lines],
        "known": [lines[0][place] for place in known if lines and 0 <= place < len(lines[0])],
        "extent": extent,
    }


def scatter(series: Sequence[Sequence[tuple[Number, Number]]]) -> dict[str, Any]:
    """Points (distance, value) of each series as SVG, with the mean of each bin of distance that has enough points."""
    every = np.array([point for points in series for point in points])
    right, bottom = WIDTH - MARGIN[1], HEIGHT - MARGIN[2]
    marks_x = ticks(0.0, float(every[:, 0].max()))
    marks_y = ticks(float(every[:, 1].min()), float(every[:, 1].max()))

    def x(value: float) -> float:
        return round(MARGIN[3] + (value - marks_x[0]) / (marks_x[-1] - marks_x[0]) * (right - MARGIN[3]), 1)

    def y(value: float) -> float:
        return round(bottom - (value - marks_y[0]) / (marks_y[-1] - marks_y[0]) * (bottom - MARGIN[0]), 1)

    drawn = []
    for points in series:
        means = binned(points, marks_x[-1])
        drawn.append(
            {
                "dots": "".join(f"M{x(a)} {y(b)}h0" for a, b in points),
                "line": "M" + " L".join(f"{x(a)} {y(b)}" for a, b in means) if len(means) > 1 else "",
                "means": means,
                "count": len(points),
            }
        )
    return {
        "box": (WIDTH, HEIGHT, MARGIN[3], MARGIN[0], right, bottom),
        "x": [(x(value), f"{value:g}") for value in marks_x],
        "y": [(y(value), f"{value:g}") for value in marks_y],
        "series": drawn,
    }


def binned(points: Sequence[tuple[Number, Number]], end: float) -> list[tuple[float, float]]:
    """Centre and mean of each of 8 equal bins over [0, end] that holds at least 3 points."""
    if not points:
        return []
    distance, value = np.array(points).T
    counts, edges = np.histogram(distance, BINS, (0.0, end))
    sums, _ = np.histogram(distance, BINS, (0.0, end), weights=value)
    centres = (edges[1:] + edges[:-1]) / 2
    return [(float(c), float(s / n)) for c, s, n in zip(centres, sums, counts, strict=True) if n >= FEWEST]


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers evenly spaced, the first at most `low` and the last at least `high`."""
    largest = max(abs(low), abs(high))
    span = max(high - low if high - low > 1e-9 * largest else largest or 1.0, 1e-12)  # more than rounding can spoil
    size = 10.0 ** math.floor(math.log10(span / 4))
    step = size * next(factor for factor in (1, 2, 5, 10) if size * factor >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
