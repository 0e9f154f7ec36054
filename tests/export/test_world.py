"""Scale, up and unit."""

import itertools
from dataclasses import replace

import pytest
import torch

from diorama.export.world import AXES, World, placed, turn, up_axis, world_of
from diorama.geometry.cameras import Cameras
from diorama.scene import Scene, Views


def axis(name: str) -> torch.Tensor:
    return torch.eye(3)["xyz".index(name[-1])] * (-1 if name[0] == "-" else 1)


@pytest.mark.parametrize(("before", "after"), [*itertools.product(AXES, AXES)])
def test_turns_are_rotations_by_right_angles(before: str, after: str) -> None:
    rotation = turn(before, after)
    assert torch.equal(rotation @ axis(before), axis(after))
    assert torch.equal(rotation @ rotation.T, torch.eye(3))
    assert torch.linalg.det(rotation) == 1
    assert set(rotation.flatten().tolist()) <= {0.0, 1.0, -1.0}


@pytest.mark.parametrize("name", AXES)
def test_up_is_where_the_cameras_have_it(name: str) -> None:
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, :3, :3] = turn("-y", name) + 0.05 * torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert up_axis(Cameras.from_fov(60.0, 16, 16, poses)) == name


def test_a_placed_scene_is_the_same_seen_from_its_cameras(scene: Scene) -> None:
    views, world = placed(scene.views, scale=2.5, up="z", unit="metre")
    assert world == World("metre", 2.5, "z")
    assert world_of(views).up == "z"
    assert torch.allclose(views.depth, 2.5 * scene.views.depth, atol=1e-5)
    assert torch.allclose(views.points[..., 2], -2.5 * scene.views.points[..., 1])
    pixels = [v.cameras.project(v.points)[0] for v in (views, scene.views)]
    assert torch.allclose(*pixels, atol=1e-3)


def test_nothing_moves_unless_asked(scene: Scene) -> None:
    views, world = placed(scene.views)
    assert views is scene.views
    assert world == World("scene unit", 1.0, "-y")
    assert placed(scene.views, up="-y")[0] is scene.views
    assert world_of(Views(scene.views.images)).up == "-y"
    assert placed(replace(scene.views, cameras=None), up="y")[1].up == "y"


@pytest.mark.parametrize("bad", [{"scale": 0.0}, {"scale": float("inf")}, {"up": "w"}, {"unit": "a\nb"}, {"unit": ""}])
def test_bad_values(scene: Scene, bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="accepted"):
        placed(scene.views, **bad)
