"""Cameras against Gen3R's official code, wherever the two conventions say the same thing."""

import pytest
import torch

from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_quaternion, quaternion_from_matrix
from diorama.geometry.trajectories import trajectory

from .golden import load

HEIGHT, WIDTH = 28, 42


@pytest.fixture(scope="module")
def golden():
    return load("geometry")


def poses(rotation, center):
    matrix = torch.eye(4).repeat(*rotation.shape[:-2], 1, 1)
    matrix[..., :3, :3], matrix[..., :3, 3] = rotation, center
    return matrix


def wxyz(quaternion):
    return quaternion.roll(1, -1)


def test_world_to_camera_and_its_inverse(golden):
    code = golden.inputs["pose_enc"]
    inverse = poses(matrix_from_quaternion(wxyz(code[..., 3:7])), code[..., :3])
    golden.check(extrinsics=inverse[..., :3, :])
    cameras = Cameras(inverse, torch.eye(3).expand(2, 4, 3, 3), HEIGHT, WIDTH)
    golden.check(w2c_inverse=cameras.world_to_camera.flatten(0, 1))


def test_quaternions_of_the_pose_code(golden):
    expected = golden.outputs["pose_enc_roundtrip"][..., 3:7]
    found = quaternion_from_matrix(golden.outputs["extrinsics"][..., :3])
    torch.testing.assert_close(found, wxyz(expected), atol=1e-5, rtol=0)


def test_intrinsics_from_a_field_of_view(golden):
    vertical, horizontal = golden.inputs["fov"].unbind(-1)
    for index in range(4):
        degrees = float(horizontal[0, index].rad2deg())
        focal = Cameras.from_fov(degrees, HEIGHT, WIDTH).intrinsics[0]
        expected = golden.outputs["intrinsics"][0, index].clone()
        # Their second focal length follows a second angle; ours are equal.
        assert expected[1, 1] == pytest.approx(float(HEIGHT / 2 / torch.tan(vertical[0, index] / 2)), rel=1e-5)
        expected[1, 1] = expected[0, 0]
        torch.testing.assert_close(focal, expected, atol=2e-6, rtol=1e-5)


def test_unprojected_depth(golden):
    depth = golden.inputs["depth"]
    depth = torch.where(depth > 5.2, 12 * depth, depth)[..., 0]
    inverse = torch.eye(4).repeat(4, 1, 1)
    inverse[:, :3] = golden.outputs["extrinsics"][0]
    intrinsics = golden.outputs["intrinsics"][0].clone()
    intrinsics[:, :2, 2] += 0.5  # they take the first pixel's centre to be (0, 0)
    poses = Cameras(inverse, intrinsics, HEIGHT, WIDTH).world_to_camera
    golden.check(world_points=Cameras(poses, intrinsics, HEIGHT, WIDTH).unproject(depth))


def test_first_view_frame_and_plucker(golden):
    rotation = matrix_from_quaternion(wxyz(golden.inputs["ray_quat"]))
    intrinsics = torch.tensor(golden.config["ray_K"]).expand(3, 3, 3)
    cameras = Cameras(poses(rotation, golden.inputs["ray_centre"]), intrinsics, HEIGHT, WIDTH)
    relative = cameras.relative_to(cameras.camera_to_world[0])
    golden.check(relative_c2w=relative.camera_to_world, plucker=relative.plucker())


def test_intrinsics_after_resize_and_crop(golden):
    width, height, fx, fy, cx, cy, new_width, new_height = golden.config["get_K_args_w_h_fx_fy_cx_cy_width_height"]
    matrix = torch.tensor([[[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]])
    cameras = Cameras(torch.eye(4)[None], matrix, height, width)
    factor = max(new_width / width, new_height / height)
    resized = cameras.resized(round(height * factor), round(width * factor))
    top, left = (resized.height - new_height) // 2, (resized.width - new_width) // 2
    found = resized.cropped(top, left, new_height, new_width).intrinsics[0]
    expected = golden.outputs["K_resize_crop"].clone()
    # They scale by the ideal 746.67 pixels, we by the 747 that the image has.
    expected[0] *= resized.width / (width * factor)
    expected[0, 2] += left * (resized.width / (width * factor) - 1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("preset", "ours", "amplitude"),
    [
        ("zoom_in", "dolly", 1.7),
        ("zoom_out", "move_backward", 1.7),
        ("arc_right", "arc_right", None),
        ("arc_left", "arc_left", None),
        ("translate_up", "translate_up", None),
        ("translate_down", "translate_down", None),
        ("free", "static", None),
    ],
)
def test_camera_presets(golden, preset, ours, amplitude):
    start = Cameras.from_fov(60.0, HEIGHT, WIDTH)
    path = trajectory(ours, start, golden.config["preset_frames"], amplitude)
    golden.check(**{f"preset_{preset}": path.camera_to_world})
