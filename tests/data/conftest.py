"""A room whose pictures and depth are exact: the inside of a box with noise on its walls."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor

from diorama.geometry.cameras import Cameras

SIDE = 2.0  # from the middle to each wall


@pytest.fixture(scope="session")
def room() -> Callable[[Cameras], tuple[Tensor, Tensor]]:
    """Images and depth of cameras inside."""
    random = np.random.default_rng(0)
    walls = [
        sum(gaussian_filter(random.normal(size=(400, 400)), s, mode="wrap") * s for s in (2, 5, 12)) for _ in "123456"
    ]
    walls = [(wall - wall.min()) / (wall.max() - wall.min()) for wall in walls]

    def seen(cameras: Cameras) -> tuple[Tensor, Tensor]:
        rays = cameras.directions().numpy()
        start = cameras.centers.numpy()[:, None, None]
        with np.errstate(divide="ignore"):
            depths = (np.sign(rays) * SIDE - start) / rays  # rays advance depth by 1
        axis = depths.argmin(-1)
        depth = depths.min(-1)
        hits = start + rays * depth[..., None]
        shade = np.zeros(depth.shape)
        for number, wall in enumerate(walls):
            on = (axis == number % 3) & ((np.take_along_axis(hits, axis[..., None], -1)[..., 0] > 0) == (number > 2))
            across = hits[on][:, [i for i in range(3) if i != number % 3]]
            shade[on] = map_coordinates(wall, (across.T + SIDE) / (2 * SIDE) * 399, order=1, mode="nearest")
        return torch.from_numpy(shade).float()[:, None].repeat(1, 3, 1, 1), torch.from_numpy(depth)

    return seen


@pytest.fixture(scope="session")
def walk() -> Cameras:
    """Four cameras that move and turn about all axes."""
    poses = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    for number in range(4):
        turn = Rotation.from_euler("xyz", [4.0 * number - 5, 7.0 * number, 3.0 * number], degrees=True)
        poses[number, :3, :3] = torch.from_numpy(turn.as_matrix())
        poses[number, :3, 3] = torch.tensor([0.15 * number, 0.08 * number - 0.2, 0.1 * number - 0.6])
    matrix = torch.tensor([[200.0, 0, 125], [0, 200, 98], [0, 0, 1]], dtype=torch.float64)
    return Cameras(poses, matrix.repeat(4, 1, 1), 200, 240)
