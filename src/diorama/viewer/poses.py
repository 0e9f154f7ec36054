"""A browser's camera and ours: where a visitor stands, and which camera takes the picture that fills the window."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_quaternion, quaternion_from_matrix


class Pose(NamedTuple):
    """A camera as viser has it: OpenCV axes, camera to world, no principal point."""

    wxyz: tuple[float, ...]  # unit quaternion
    position: tuple[float, ...]  # scene units
    fov: float  # radians, vertical
    aspect: float  # width over height


def pose_of(cameras: Cameras) -> Pose:
    """The first camera of a path; a principal point beside the centre is lost."""
    pose = cameras.camera_to_world[0].detach().double()
    focal_x, focal_y = (float(cameras.intrinsics[0, axis, axis]) for axis in (0, 1))
    return Pose(
        tuple(quaternion_from_matrix(pose[:3, :3]).tolist()),
        tuple(pose[:3, 3].tolist()),
        2 * math.atan(0.5 * cameras.height / focal_y),
        (cameras.width / focal_x) / (cameras.height / focal_y),
    )


def cameras_of(pose: Pose, height: int, width: int) -> Cameras:
    """The camera that takes all of a window in so many pixels, which may be a little longer than wide."""
    tangent = math.tan(0.5 * pose.fov)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = matrix_from_quaternion(torch.tensor(pose.wxyz, dtype=torch.float64))
    matrix[:3, 3] = torch.tensor(pose.position, dtype=torch.float64)
    focal_x, focal_y = 0.5 * width / (tangent * pose.aspect), 0.5 * height / tangent
    lens = [[focal_x, 0, width / 2], [0, focal_y, height / 2], [0, 0, 1]]
    return Cameras(matrix[None], torch.tensor([lens], dtype=torch.float64), height, width)


def showing(pose: Pose, aspect: float) -> Pose:
    """The pose with the field of view that shows all of its picture in a window of another aspect."""
    tangent = math.tan(0.5 * pose.fov) * max(1.0, pose.aspect / aspect)
    return pose._replace(fov=2 * math.atan(tangent), aspect=aspect)


def up_of(cameras: Cameras) -> Float[Tensor, "3"]:
    """Where the pictures have their upper side, on average, as a unit vector; the first one's where they disagree."""
    up = -cameras.camera_to_world[:, :3, 1].detach().float()
    mean = up.mean(0)
    return (mean if mean.norm() > 0.1 else up[0]) / (mean if mean.norm() > 0.1 else up[0]).norm()
