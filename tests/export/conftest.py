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


FRONT, BACK, HALF = 2.0, 4.0, 0.4  # a square card before a wall, both facing the cameras


def colour_at(points: torch.Tensor) -> torch.Tensor:
    """The colour of each place of the stage, the same from everywhere."""
    waves = torch.stack([points[..., 0] * 1.1, points[..., 1] * 1.3, points[..., 2] * 0.7 + points[..., 0] * 0.5], -1)
    return 0.5 + 0.4 * waves.sin()


def on_surface(points: torch.Tensor) -> torch.Tensor:
    """How far points are from the card or the wall, whichever they belong to."""
    card = (points[..., 2] - FRONT).abs() + (points[..., :2].abs() - HALF).clamp(min=0).amax(-1)
    return torch.minimum(card, (points[..., 2] - BACK).abs())


@pytest.fixture
def stage() -> Scene:
    """Four views of a card before a wall, with exact depth, from cameras beside each other."""
    poses = torch.eye(4).repeat(4, 1, 1)
    for view in range(4):
        angle = 0.03 * (view - 1.5)
        poses[view, :3, :3] = torch.tensor(
            [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
        )
        poses[view, :3, 3] = torch.tensor([0.12 * (view - 1.5), 0.04 * view, 0.02 * view])
    cameras = Cameras.from_fov(60.0, 48, 64, poses)
    rays, origins = cameras.directions(), cameras.centers[:, None, None]
    card = origins + rays * ((FRONT - origins[..., 2:]) / rays[..., 2:])
    wall = origins + rays * ((BACK - origins[..., 2:]) / rays[..., 2:])
    points = torch.where((card[..., :2].abs() <= HALF).all(-1, keepdim=True), card, wall)
    views = Views(colour_at(points).movedim(-1, 1), cameras, points, torch.ones(4, 48, 64))
    return Scene(views, Condition(prompt="a card </script><b>"), provenance=Provenance("analytic", "CC0-1.0", 1))
