"""Right cameras pass, wrong ones do not, and the convention that they are in is named."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from diorama.data.check import CONVENTIONS, Verdict, check_cameras
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

Room = Callable[[Cameras], tuple[Tensor, Tensor]]
# Each row: our x right, y down, z forward in the words of another convention's axes.
AXES = {
    "opencv": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "opengl": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "pytorch3d": [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
    "ned": [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    "flu": [[0, -1, 0], [0, 0, -1], [1, 0, 0]],
}


def read_as(pose: Tensor, true: tuple[str, str], declared: tuple[str, str]) -> Tensor:
    """What a reader makes of a pose that its file holds in one convention and declares in another."""
    columns = {name: torch.tensor(axes, dtype=torch.float64) for name, axes in AXES.items()}
    matrix = pose.clone()
    # A camera's x axis in the world is the sum of our axes' directions, weighed by its words for them.
    matrix[:3, :3] = pose[:3, :3] @ columns[true[1]]
    matrix = matrix if true[0] == "camera_to_world" else matrix.inverse()
    matrix = matrix if declared[0] == "camera_to_world" else matrix.inverse()
    matrix[:3, :3] = matrix[:3, :3] @ columns[declared[1]].mT
    return matrix


def scene(
    room: Room,
    cameras: Cameras,
    depth: bool,
    true: tuple[str, str] = ("camera_to_world", "opencv"),
    declared: tuple[str, str] = ("camera_to_world", "opencv"),
) -> CapturedScene:
    images, depths = room(cameras)
    frames = []
    for number, (image, z) in enumerate(zip(images, depths, strict=True)):
        pose = read_as(cameras.camera_to_world[number], true, declared)
        camera = Cameras(pose[None], cameras.intrinsics[:1], cameras.height, cameras.width)
        frames.append(Frame(str(number), partial(_given, image), camera, (lambda z=z: z.float()) if depth else None))
    return CapturedScene("room", tuple(frames), convention=declared)


def _given(image: Tensor, most: int) -> Tensor:
    return image


@pytest.mark.parametrize("depth", [True, False])
def test_right_cameras_fit(room: Room, walk: Cameras, depth: bool) -> None:
    for declared in (("camera_to_world", "opencv"), ("world_to_camera", "flu")):
        verdict = check_cameras(scene(room, walk, depth, declared, declared))
        assert verdict.fits
        assert verdict.kind == ("depth" if depth else "epipolar")
        assert verdict.other is None
        assert verdict.best == declared
        assert verdict.pairs == 3
        assert verdict.error < (0.005 if depth else 0.5)


@pytest.mark.parametrize("true", CONVENTIONS[1:], ids=lambda name: "-".join(name))
@pytest.mark.parametrize("depth", [True, False])
def test_the_true_convention_is_named(room: Room, walk: Cameras, true: tuple[str, str], depth: bool) -> None:
    for declared in (CONVENTIONS[0], ("camera_to_world", "opengl")):
        if declared != true:
            verdict = check_cameras(scene(room, walk, depth, true, declared), pairs=3)
            assert verdict.fits is False
            assert verdict.other == true
            assert verdict.best_error < 0.3 * verdict.error


def test_cameras_that_are_wrong_in_every_convention(room: Room, walk: Cameras) -> None:
    other = Cameras(walk.camera_to_world, walk.intrinsics * torch.tensor([[3.0], [3.0], [1.0]]), 200, 240)
    for depth in (True, False):
        right = scene(room, walk, depth)
        frames = [Frame(f.name, f.image, other[n], f.depth) for n, f in enumerate(right.frames)]
        verdict = check_cameras(CapturedScene("room", tuple(frames)))
        assert verdict.fits is False
        assert verdict.other is None


def test_a_camera_that_only_turns_is_tested_too(room: Room, walk: Cameras) -> None:
    poses = walk.camera_to_world.clone()
    poses[:, :3, 3] = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
    turning = Cameras(poses, walk.intrinsics, 200, 240)
    assert check_cameras(scene(room, turning, False)).fits
    verdict = check_cameras(scene(room, turning, False, ("camera_to_world", "opengl")))
    assert verdict.fits is False


def test_nothing_to_test(room: Room, walk: Cameras) -> None:
    whole = scene(room, walk, False)
    alone = CapturedScene("room", whole.frames[:1])
    without = CapturedScene("room", tuple(Frame(frame.name, frame.image) for frame in whole.frames))
    blank = tuple(Frame(f.name, partial(_given, torch.zeros(3, 200, 240)), f.camera) for f in whole.frames)
    for nothing in (alone, without, CapturedScene("room", blank)):
        verdict = check_cameras(nothing)
        assert (verdict.kind, verdict.fits, verdict.other) == ("none", None, None)
        assert np.isnan(verdict.error)


@pytest.mark.parametrize(
    ("error", "best_error", "fits"),
    [(0.3, 0.3, True), (0.9, 0.9, True), (0.9, 0.6, True), (0.9, 0.3, False), (0.3, 0.1, True), (1.1, 1.1, False)],
)
def test_a_clearly_better_convention_counts_against_one_that_barely_fits(error, best_error, fits) -> None:
    verdict = Verdict("epipolar", 1, 100, error, CONVENTIONS[0], CONVENTIONS[1], best_error)
    assert verdict.fits is fits
    assert verdict.other == (CONVENTIONS[1] if error == 0.9 and not fits else None)
