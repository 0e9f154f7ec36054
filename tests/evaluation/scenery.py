"""True views that need no renderer: smooth colours painted on a slanted plane."""

import math

import torch

from diorama.evaluation.protocols import Protocol, Setting, Size
from diorama.geometry.cameras import Cameras
from diorama.scene import Views

SIDE = 32
SMALL = Protocol(
    "small",
    "for tests",
    "folders",
    (Setting("1 known", (0,)), Setting("2 known", (0, -1)), Setting("free", (0,), cameras=False)),
    views=4,
    size=Size(SIDE, SIDE),
    cloud_samples=None,
)


def plane(views: int = 4, height: int = SIDE, width: int = SIDE, seed: int = 0) -> Views:
    """The plane z = 3 + x / 5 from cameras that move and turn along a bent path, in colours drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(views, 1, 1)
    for number in range(views):
        share, angle = number / max(1, views - 1), 0.15 * number
        poses[number, :3, 3] = torch.tensor([share, 0.5 * share**2, 0.3 * math.sin(2 * share)])
        poses[number, 0, 0] = poses[number, 2, 2] = math.cos(angle)
        poses[number, 0, 2], poses[number, 2, 0] = -math.sin(angle), math.sin(angle)
    cameras = Cameras.from_fov(60.0, height, width, poses)
    origins, directions = cameras.rays()
    reach = (3 + origins[..., 0] / 5 - origins[..., 2]) / (directions[..., 2] - directions[..., 0] / 5)
    points = origins + directions * reach[..., None]
    waves = torch.sin(points @ (2 * torch.randn(3, 3, generator=generator)) + torch.rand(3, generator=generator))
    images = ((0.5 + 0.4 * waves).movedim(-1, 1) * 255).round() / 255
    return Views(images, cameras, points, (reach > 0).float())
