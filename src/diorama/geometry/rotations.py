"""Rotations as matrices, unit quaternions (w, x, y, z) and rotation vectors (unit axis times radians)."""

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(rotation: Float[Tensor, "*#batch 3 3"], vectors: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Rotated vectors, by sums: in a matrix product autocast or TF32 would keep only three digits of a camera."""
    x, y, z = vectors[..., None].unbind(-2)
    return rotation[..., 0] * x + rotation[..., 1] * y + rotation[..., 2] * z


def product(second: Float[Tensor, "*#batch 3 3"], first: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation `first` and then `second`, as precise as `rotate`."""
    return rotate(second[..., None, :, :], first.mT).mT


def matrix_from_quaternion(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a quaternion (w, x, y, z) of any length but zero."""
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def quaternion_from_matrix(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion (w, x, y, z) of a rotation matrix, with w >= 0."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in rotation.unbind(-2))
    a, b, c, d = zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz
    # Row i is 4 * q * q[i]: every row is the quaternion up to length, the one of the largest q[i] loses no digits.
    rows = [
        torch.stack([d, a, b, c], -1),
        torch.stack([a, 1 + xx - yy - zz, xy + yx, xz + zx], -1),
        torch.stack([b, xy + yx, 1 - xx + yy - zz, yz + zy], -1),
        torch.stack([c, xz + zx, yz + zy, 1 - xx - yy + zz], -1),
    ]
    largest = torch.stack([row[..., i] for i, row in enumerate(rows)], -1).argmax(-1)
    chosen = torch.stack(rows, -2).gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4))[..., 0, :]
    unit = chosen / chosen.norm(dim=-1, keepdim=True)
    return torch.where(unit[..., :1] < 0, -unit, unit)


def matrix_from_vector(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a rotation vector (Rodrigues); exact and differentiable at zero."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    angle = vector.norm(dim=-1)[..., None, None] / torch.pi
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye + torch.sinc(angle) * cross + 0.5 * torch.sinc(angle / 2).square() * product(cross, cross)


def vector_from_matrix(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Rotation vector of at most pi radians of a rotation matrix."""
    quaternion = quaternion_from_matrix(rotation)
    w, axis = quaternion[..., :1], quaternion[..., 1:]
    sine = axis.norm(dim=-1, keepdim=True)
    safe = sine.clamp(min=torch.finfo(sine.dtype).tiny)
    return axis * torch.where(sine > 0, 2 * torch.atan2(sine, w) / safe, 2.0)


def slerp(
    start: Float[Tensor, "*batch 3 3"], end: Float[Tensor, "*batch 3 3"], share: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch 3 3"]:
    """The rotation at `share` (0 start, 1 end) of the shortest turn between two, at uniform speed."""
    return product(start, matrix_from_vector(share[..., None] * vector_from_matrix(product(start.mT, end))))


def geodesic_angle(first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Radians in [0, pi] between two rotations, with finite gradients and no loss of digits near 0 and pi."""
    between = product(first.mT, second)
    # arccos of the trace alone keeps half of the digits at both ends; the antisymmetric part has the other half.
    twist = between - between.mT
    sine = torch.stack([twist[..., 2, 1], twist[..., 0, 2], twist[..., 1, 0]], -1).norm(dim=-1) / 2
    return torch.atan2(sine, (between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2)


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """A rotation (determinant 1) that is closest to a matrix in Frobenius norm."""
    left, _, right = torch.linalg.svd(matrix)
    sign = torch.ones_like(matrix[..., 0])
    sign[..., 2] = torch.linalg.det(product(left, right)).sign()
    return product(left * sign[..., None, :], right)


def mean_rotation(rotations: Float[Tensor, "*batch view 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Chordal mean over the view axis: the rotation with the least sum of squared Frobenius distances."""
    return nearest_rotation(rotations.mean(-3))
