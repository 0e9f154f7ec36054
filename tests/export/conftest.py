"""A scene with every kind of content, small enough to write dozens of times."""

import math

import pytest
import torch

from diorama.geometry.cameras import Cameras
from diorama.scene import Condition, Provenance, Scene, Views


@pytest.fixture
def scene() -> Scene:
    """Three views of a slanted wall from turned cameras, points invalid in one corner, made from two photos."""
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(3, 1, 1)
    for view, angle in enumerate((0.0, 0.1, 0.2)):
        poses[view, :3, :3] = torch.tensor(
            [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
        )
        poses[view, :3, 3] = torch.tensor([0.3 * view, -0.1 * view, 0.05])
    cameras = Cameras.from_fov(60.0, 16, 24, poses)
    depth = 2 + torch.linspace(0, 1, 24).expand(3, 16, 24) + 0.1 * torch.rand(3, 16, 24, generator=generator)
    confidence = torch.rand(3, 16, 24, generator=generator) + 0.1
    confidence[:, :4, :4] = 0
    images = torch.rand(3, 3, 16, 24, generator=generator)
    views = Views(images, cameras, cameras.unproject(depth), confidence)
    photos = Views(torch.rand(2, 3, 32, 48, generator=generator), cameras[[0, 2]].resized(32, 48))
    return Scene(
        views,
        Condition(photos, (0, 2), "a wall, “slanted”", 3),
        torch.randn(4, 8, generator=generator),
        cameras.normalized()[1],
        Provenance("tiny", "Apache-2.0", 7, {"steps": 4, "guidance": 1.5}, {"diorama": "0.1.0"}),
    )
