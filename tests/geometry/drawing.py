"""Random cameras, maps and points, one for every number that hypothesis draws."""

from copy import copy

import torch
from hypothesis import settings
from hypothesis import strategies as st

from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_quaternion
from diorama.geometry.similarity import Similarity

quick = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 9)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def uniform(seed, low, high, *shape):
    return low + (high - low) * torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def rebuilt(record, **fields):
    """A record with wrong fields, built the way an untyped program builds it: the types of the tests come too early."""
    wrong = copy(record)
    for name, value in fields.items():
        object.__setattr__(wrong, name, value)
    wrong.__post_init__()
    return wrong


def random_rotation(seed, *batch):
    return matrix_from_quaternion(normal(seed, *batch, 4))


def random_poses(seed, *batch):
    poses = torch.eye(4, dtype=torch.float64).repeat(*batch, 1, 1)
    poses[..., :3, :3] = random_rotation(seed, *batch)
    poses[..., :3, 3] = normal(seed + 1, *batch, 3)
    return poses


def random_cameras(seed, *batch, height=5, width=7):
    """Cameras with a skew, two focal lengths and an off-centre principal point."""
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(*batch, 1, 1)
    intrinsics[..., 0, 0] = uniform(seed + 2, 0.5, 2, *batch) * width
    intrinsics[..., 1, 1] = uniform(seed + 3, 0.5, 2, *batch) * height
    intrinsics[..., 0, 2] = uniform(seed + 4, 0.3, 0.7, *batch) * width
    intrinsics[..., 1, 2] = uniform(seed + 5, 0.3, 0.7, *batch) * height
    intrinsics[..., 0, 1] = uniform(seed + 6, -0.2, 0.2, *batch)
    return Cameras(random_poses(seed, *batch), intrinsics, height, width)


def random_similarity(seed, *batch):
    return Similarity(random_rotation(seed, *batch), normal(seed + 1, *batch, 3), uniform(seed + 2, 0.3, 3, *batch))


def close(first, second, tolerance=1e-9):
    torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)


def close_cameras(first, second, tolerance=1e-9):
    close(first.camera_to_world, second.camera_to_world, tolerance)
    close(first.intrinsics, second.intrinsics, tolerance)
    assert (first.height, first.width) == (second.height, second.width)
