"""Coloured points as a binary PLY file, and 8-bit colours for every writer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from diorama.export.atomic import replacement
from diorama.export.cleaning import Cleaning, cleaned
from diorama.export.world import World, world_of
from diorama.geometry.points import voxel_downsample
from diorama.scene import Views


def coloured_points(
    views: Views, *, drop: float = 0.0, voxel: float | None = None
) -> tuple[Float32[np.ndarray, "point 3"], UInt8[np.ndarray, "point 3"]]:
    """Valid points in the world and their colours, without the least confident share `drop` in [0, 1) of them.

    With `voxel`, one mean point for each cube of that side. ValueError for views without points.
    """
    if views.points is None:
        raise ValueError("the scene has no points to export; accepted are scenes with points")
    views = cleaned(views, Cleaning(drop))
    assert views.points is not None and views.confidence is not None
    valid = views.confidence > 0
    points, colours = views.points.detach().float()[valid], bytes_of(views.images).movedim(-3, -1)[valid]
    if voxel is not None:
        points, mean = voxel_downsample(points, colours.float(), voxel)
        colours = mean.round().to(torch.uint8)
    return points.numpy(), colours.numpy()


def bytes_of(images: torch.Tensor) -> torch.Tensor:
    """Images of [0, 1] as 8-bit numbers, rounded."""
    return (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def write_ply(
    views: Views,
    path: str | Path,
    *,
    drop: float = 0.0,
    voxel: float | None = None,
    world: World | None = None,
    overwrite: bool = False,
) -> None:
    """Write the valid points with their colours as binary little-endian PLY, in the views' own world and units."""
    points, colours = coloured_points(views, drop=drop, voxel=voxel)
    vertices = np.empty(
        len(points), dtype=[(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
    )
    for index, axis in enumerate("xyz"):
        vertices[axis] = points[:, index]
    for index, channel in enumerate(("red", "green", "blue")):
        vertices[channel] = colours[:, index]
    write_vertices(path, vertices, (world or world_of(views)).lines(), overwrite=overwrite)


def write_vertices(path: str | Path, vertices: np.ndarray, comments: Sequence[str], *, overwrite: bool = False) -> None:
    """Write a structured array of little-endian floats and bytes as the vertices of a PLY file."""
    assert vertices.dtype.names is not None
    kinds = {"f": "float", "u": "uchar"}
    properties = [f"property {kinds[vertices.dtype[name].kind]} {name}" for name in vertices.dtype.names]
    # PLY is ASCII up to its numbers; a word of another alphabet is escaped rather than lost.
    notes = [f"comment {comment}".encode("ascii", "backslashreplace").decode() for comment in comments]
    start = ["ply", "format binary_little_endian 1.0", *notes, f"element vertex {len(vertices)}"]
    header = "\n".join([*start, *properties, "end_header", ""])
    with replacement(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(header.encode("ascii"))
        file.write(vertices.tobytes())
