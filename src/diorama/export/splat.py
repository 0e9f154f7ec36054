"""Points as Gaussians in the PLY layout of 3D Gaussian Splatting (Kerbl et al. 2023), to start an optimisation from."""

from pathlib import Path

import numpy as np

from diorama.export.cleaning import neighbour_distance
from diorama.export.ply import coloured_points, write_vertices
from diorama.export.world import World, world_of
from diorama.scene import Views

OPACITY = 0.9  # shows the surface as it is; trainers that want less set their own
SH_0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
REST = 45  # coefficients of degrees 1 to 3; the reference loader refuses files without them
_FIELDS = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *(f"f_dc_{channel}" for channel in range(3)),
    *(f"f_rest_{number}" for number in range(REST)),
    "opacity",
    *(f"scale_{axis}" for axis in range(3)),
    *(f"rot_{number}" for number in range(4)),
)


def write_splats(
    views: Views,
    path: str | Path,
    *,
    voxel: float | None = None,
    world: World | None = None,
    overwrite: bool = False,
) -> None:
    """Write a round Gaussian for each valid point, as wide as its three nearest neighbours are far on average.

    Opacity is stored as a logit, scales as logarithms, colours as coefficients, as the format wants it.
    ValueError for views with fewer than two valid points.
    """
    points, colours = coloured_points(views, voxel=voxel)
    if len(points) < 2:
        raise ValueError(f"{path}: the scene has {len(points)} valid points; splats need 2 or more to know their size")
    distance = neighbour_distance(points, 3)
    # Points that coincide would have no size at all.
    size = np.log(np.maximum(distance, max(float(np.median(distance)) * 1e-2, 1e-7)))
    vertices = np.zeros(len(points), dtype=[(name, "<f4") for name in _FIELDS])
    for axis in range(3):
        vertices["xyz"[axis]] = points[:, axis]
        vertices[f"f_dc_{axis}"] = (colours[:, axis] / 255 - 0.5) / SH_0
        vertices[f"scale_{axis}"] = size
    vertices["opacity"] = np.log(OPACITY / (1 - OPACITY))
    vertices["rot_0"] = 1  # the quaternion's real part comes first
    write_vertices(path, vertices, (world or world_of(views)).lines(), overwrite=overwrite)
