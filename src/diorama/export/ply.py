"""Coloured points as a binary PLY file, and the one choice of which points are worth exporting."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from diorama.export.atomic import replacement
from diorama.scene import Views


def coloured_points(
    views: Views, *, drop: float = 0.0
) -> tuple[Float32[np.ndarray, "point 3"], UInt8[np.ndarray, "point 3"]]:
    """Valid points in the world and their colours, without the least confident share `drop` in [0, 1) of them.

    ValueError for views without points.
    """
    if views.points is None:
        raise ValueError("the scene has no points to export; accepted are scenes with points")
    if not 0 <= drop < 1:
        raise ValueError(f"share {drop} of points to drop; accepted is 0 up to, not including, 1")
    points = views.points.detach().float().cpu()
    valid = points.isfinite().all(-1)
    if views.confidence is not None:
        confidence = views.confidence.detach().float().cpu()
        valid &= confidence > 0
        if drop and valid.any():
            # numpy, because torch.quantile refuses more than 16 million values
            valid &= confidence >= float(np.quantile(confidence[valid].numpy(), drop))
    colours = bytes_of(views.images).movedim(-3, -1)
    return points[valid].numpy(), colours[valid].numpy()


def bytes_of(images: torch.Tensor) -> torch.Tensor:
    """Images of [0, 1] as 8-bit numbers, rounded."""
    return (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def write_ply(views: Views, path: str | Path, *, drop: float = 0.0, overwrite: bool = False) -> None:
    """Write the valid points with their colours as binary little-endian PLY, in the scene's own world and units."""
    points, colours = coloured_points(views, drop=drop)
    vertices = np.empty(
        len(points), dtype=[(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
    )
    for index, axis in enumerate("xyz"):
        vertices[axis] = points[:, index]
    for index, channel in enumerate(("red", "green", "blue")):
        vertices[channel] = colours[:, index]
    properties = [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {c}" for c in ("red", "green", "blue")
    ]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header", ""]
    with replacement(path, overwrite=overwrite) as temporary:
        temporary.write_bytes("\n".join(header).encode("ascii") + vertices.tobytes())
