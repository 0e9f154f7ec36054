"""Point clouds: fewer points of the same surface."""

import torch
from jaxtyping import Float
from torch import Tensor


def voxel_downsample(
    points: Float[Tensor, "point 3"], colours: Float[Tensor, "point channel"], size: float
) -> tuple[Float[Tensor, "voxel 3"], Float[Tensor, "voxel channel"]]:
    """Mean point and colour of every occupied cube of side `size` scene units; cubes start at the origin.

    Raises ValueError for a size that is not positive or too small to number the cubes, and for non-finite points.
    """
    if not size > 0:
        raise ValueError(f"voxel size {size}: accepted is more than 0")
    if not points.isfinite().all():
        raise ValueError("points hold NaN or infinity: give finite ones only")
    if len(points) == 0:
        return points, colours
    cell = (points / size).floor()
    corner = cell.amin(0)
    extent = [int(value) + 1 for value in (cell.amax(0) - corner).tolist()]
    if extent[0] * extent[1] * extent[2] >= 2**63:
        raise ValueError(f"voxel size {size}: too small for a cloud of {extent[0]}x{extent[1]}x{extent[2]} voxels")
    # One number per cube: unique over rows would sort whole rows, ten times slower.
    x, y, z = (cell - corner).long().unbind(-1)
    _, voxel, count = torch.unique((x * extent[1] + y) * extent[2] + z, return_inverse=True, return_counts=True)
    # Offsets inside the cube are summed, since large coordinates would lose their last digits in a sum.
    inside = torch.cat([points - cell * size, colours], -1)
    mean = inside.new_zeros(len(count), inside.shape[-1]).index_add_(0, voxel, inside) / count[:, None]
    origin = cell.new_empty(len(count), 3).index_copy_(0, voxel, cell) * size
    return origin + mean[:, :3], mean[:, 3:]
