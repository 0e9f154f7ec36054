"""Some accelerators have no doubles: geometry makes none, and `checked` makes its own on the CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diorama.geometry import alignment, rotations
from diorama.geometry.cameras import Cameras
from diorama.geometry.points import voxel_downsample
from diorama.geometry.trajectories import TRAJECTORIES, interpolate, orbit, trajectory
from diorama.scene import Views

from .drawing import random_cameras, random_similarity


class NoDoubles(TorchDispatchMode):
    """Raises at the operation that makes a double, anywhere or only off the CPU."""

    def __init__(self, anywhere):
        super().__init__()
        self.anywhere = anywhere

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                assert not self.anywhere and leaf.device.type == "cpu", f"{func} made a double on {leaf.device}"
        return made


def exercise(cameras, similarity):
    """Everything in geometry that a program does on a device."""
    cameras.plucker()
    cameras.project(cameras.unproject(cameras.rays()[0][..., 0]))
    moved, frame = cameras.normalized()
    moved.transformed(frame.inverse().then(similarity)).resized(3, 4).cropped(0, 1, 2, 2)
    for name in TRAJECTORIES:
        trajectory(name, cameras[0], 4)
    interpolate(cameras, 9)
    for fit in (alignment.align_centers, alignment.align_rotations, alignment.align_first_view):
        fit(cameras, moved)
    for rule in ("variance_ratio", "none"):
        alignment.umeyama(cameras.centers, moved.centers, cameras.fov, rule)
    alignment.scale_and_shift(cameras.fov, cameras.fov)
    rotation = cameras.camera_to_world[:, :3, :3]
    rotations.slerp(rotation, rotation, cameras.fov)
    rotations.geodesic_angle(rotation, rotation)
    voxel_downsample(cameras.centers, cameras.centers, 0.1)
    views = Views(cameras.rays()[1].abs().movedim(-1, -3), cameras, cameras.unproject(cameras.rays()[1][..., 2].abs()))
    views.resized(3, 5).transformed(similarity)
    assert views.depth is not None


def test_single_precision_stays_single():
    cameras, similarity = random_cameras(0, 3).to(torch.float32), random_similarity(1).to(torch.float32)
    with NoDoubles(anywhere=True):
        exercise(cameras, similarity)
        Cameras.from_fov(50.0, 4, 6)


def test_reduced_precision_of_matrix_products_does_not_reach_cameras():
    cameras, similarity = random_cameras(0, 3).to(torch.float32), random_similarity(1).to(torch.float32)

    def results():
        yield cameras.plucker()
        yield cameras.normalized()[0].camera_to_world
        yield cameras.project(cameras.unproject(cameras.rays()[1][..., 0]))[0]
        yield cameras.transformed(similarity.then(similarity.inverse())).camera_to_world
        yield alignment.align_rotations(cameras[1:], cameras[:2]).rotation
        yield alignment.align_centers(cameras, cameras.normalized()[0]).rotation
        yield interpolate(cameras, 9).camera_to_world
        yield rotations.geodesic_angle(cameras.camera_to_world[:1, :3, :3], cameras.camera_to_world[1:2, :3, :3])
        for name in TRAJECTORIES:
            yield trajectory(name, cameras[1], 4).camera_to_world

    exact = list(results())
    with torch.autocast("cpu", torch.bfloat16):
        for expected, found in zip(exact, results(), strict=True):
            assert torch.equal(expected, found)


def test_checked_goes_to_the_cpu_before_it_doubles(monkeypatch):
    cameras, home = random_cameras(0, 3).to(torch.float32), []
    double = torch.Tensor.double

    def arrive(tensor):
        home.append(tensor)
        return tensor

    def guarded(tensor):
        assert any(tensor is known for known in home), "doubled before it came to the CPU"
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", arrive)
    monkeypatch.setattr(torch.Tensor, "double", guarded)
    cameras.checked()
    assert len(home) == 2


def test_paths_are_made_on_their_own_device():
    # The meta device computes shapes only; mixing it with the CPU fails as any two devices do.
    start = Cameras.from_fov(50.0, 4, 6).to("meta")
    for name in TRAJECTORIES:
        assert trajectory(name, start, 4).plucker().device.type == "meta"
    assert interpolate(orbit(start, 3), 7).normalized()[0].camera_to_world.device.type == "meta"


@pytest.mark.gpu
def test_on_a_gpu_doubles_exist_on_the_cpu_only():
    cameras, similarity = random_cameras(0, 3).to("cuda", torch.float32), random_similarity(1).to("cuda", torch.float32)
    with NoDoubles(anywhere=False):
        exercise(cameras, similarity)
        cameras.checked()
