"""Points as Gaussians in the PLY layout of 3D Gaussian Splatting (Kerbl et al. 2023), to show or to optimise."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diorama.export.cleaning import neighbour_distance
from diorama.export.ply import coloured_points, write_vertices
from diorama.export.world import World, world_of
from diorama.scene import Views

OPACITY = 0.9  # shows the surface as it is; trainers that want less set their own
SH_0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
REST = 15  # harmonics of degrees 1 to 3; the reference loader refuses files without them
_FIELDS = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *(f"f_dc_{channel}" for channel in range(3)),
    *(f"f_rest_{number}" for number in range(3 * REST)),
    "opacity",
    *(f"scale_{axis}" for axis in range(3)),
    *(f"rot_{number}" for number in range(4)),
)


@dataclass(frozen=True, eq=False)
class Gaussians:
    """What the format stores of each Gaussian, and what an optimiser may move freely: no number has a bound."""

    means: Float[Tensor, "gaussian 3"]  # scene units
    scales: Float[Tensor, "gaussian 3"]  # logarithms of standard deviations, scene units
    quaternions: Float[Tensor, "gaussian 4"]  # real part first, of any length but 0
    opacities: Float[Tensor, " gaussian"]  # logits
    base: Float[Tensor, "gaussian 3"]  # coefficients of the constant harmonic; colour = 0.5 + SH_0 * base
    rest: Float[Tensor, "gaussian harmonic 3"]  # those of degrees 1 to 3 as far as they are used: 0, 3, 8 or 15

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        """Of the harmonics: 0 where colours do not depend on where they are seen from."""
        return math.isqrt(self.rest.shape[1] + 1) - 1

    def to(self, device: torch.device | str) -> "Gaussians":
        """On another device."""
        return Gaussians(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def gaussians_of(views: Views, *, voxel: float | None = None, degree: int = 0) -> Gaussians:
    """A round Gaussian for each valid point, as wide as its three nearest neighbours are far on average.

    ValueError for views with fewer than two valid points, and for a degree that is not 0 to 3.
    """
    if degree not in range(4):
        raise ValueError(f"degree {degree} of the harmonics: accepted is 0 to 3")
    points, colours = coloured_points(views, voxel=voxel)
    count = len(points)
    if count < 2:
        raise ValueError(f"the scene has {count} valid points; splats need 2 or more to know their size")
    distance = neighbour_distance(points, 3)
    # Points that coincide would have no size at all.
    size = np.log(np.maximum(distance, max(float(np.median(distance)) * 1e-2, 1e-7)))
    return Gaussians(
        means=torch.from_numpy(points),
        scales=torch.from_numpy(size).float()[:, None].repeat(1, 3),
        quaternions=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        opacities=torch.full((count,), OPACITY).logit(),
        base=(torch.from_numpy(colours) / 255 - 0.5) / SH_0,
        rest=torch.zeros(count, (degree + 1) ** 2 - 1, 3),
    )


def write_splats(
    views: Views,
    path: str | Path,
    *,
    voxel: float | None = None,
    world: World | None = None,
    overwrite: bool = False,
) -> None:
    """Write what `gaussians_of` makes of the views; ValueError as there."""
    try:
        gaussians = gaussians_of(views, voxel=voxel)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    write_gaussians(gaussians, path, world or world_of(views), overwrite=overwrite)


def write_gaussians(gaussians: Gaussians, path: str | Path, world: World, *, overwrite: bool = False) -> None:
    """Write Gaussians in the reference's 62 fields: quaternions as units, harmonics one channel after the other."""
    vertices = np.zeros(len(gaussians), dtype=[(name, "<f4") for name in _FIELDS])
    unit = torch.nn.functional.normalize(gaussians.quaternions, dim=-1)
    columns = {"opacity": gaussians.opacities}
    columns |= {axis: gaussians.means[:, place] for place, axis in enumerate("xyz")}
    for prefix, values in (("f_dc_", gaussians.base), ("scale_", gaussians.scales), ("rot_", unit)):
        columns |= {f"{prefix}{place}": values[:, place] for place in range(values.shape[1])}
    for place in range(gaussians.rest.shape[1]):
        columns |= {f"f_rest_{REST * channel + place}": gaussians.rest[:, place, channel] for channel in range(3)}
    for name, column in columns.items():
        vertices[name] = column.detach().cpu().numpy()
    write_vertices(path, vertices, world.lines(), overwrite=overwrite)
