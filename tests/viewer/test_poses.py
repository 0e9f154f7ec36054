"""Cameras of a browser and ours, against projections by either."""

import math

import numpy as np
import pytest
import torch
import viser.transforms as tf
from hypothesis import given
from hypothesis import strategies as st
from tests import miniature

from diorama.geometry.cameras import Cameras
from diorama.viewer.poses import Pose, cameras_of, pose_of, showing, up_of


@given(seed=st.integers(0, 1000), height=st.integers(8, 64), width=st.integers(8, 64))
def test_a_camera_there_and_back_is_the_same(seed, height, width):
    camera = miniature.path(1, height, width, seed)
    back = cameras_of(pose_of(camera), height, width)
    assert torch.allclose(back.camera_to_world.float(), camera.camera_to_world, atol=1e-5)
    assert torch.allclose(back.intrinsics.float(), camera.intrinsics, rtol=1e-6)


def test_viser_reads_the_same_axes():
    camera = miniature.path(1)
    pose = pose_of(camera)
    matrix = tf.SE3.from_rotation_and_translation(tf.SO3(np.array(pose.wxyz)), np.array(pose.position)).as_matrix()
    assert np.allclose(matrix, camera.camera_to_world[0].numpy(), atol=1e-6)


def test_the_picture_ends_where_the_window_does():
    pose = Pose((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), math.radians(50), 1.7)
    camera = cameras_of(pose, 40, 72)
    top, side = math.tan(math.radians(25)), 1.7 * math.tan(math.radians(25))
    pixels, _ = camera.project(torch.tensor([[[-side, -top, 1.0], [side, top, 1.0]]], dtype=torch.float64))
    assert pixels.flatten().tolist() == pytest.approx([0, 0, 72, 40], abs=1e-9)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.5])
def test_a_window_shows_the_whole_picture_and_no_more_than_it_must(aspect):
    pose = pose_of(miniature.path(1, 32, 48))
    seen = showing(pose, aspect)
    height, width = math.tan(seen.fov / 2), aspect * math.tan(seen.fov / 2)
    wanted = math.tan(pose.fov / 2)
    assert min(height / wanted, width / (wanted * pose.aspect)) == pytest.approx(1)
    assert (seen.wxyz, seen.position) == (pose.wxyz, pose.position)


def test_up_is_where_the_pictures_have_their_upper_side():
    camera = Cameras.from_fov(60.0, 8, 8)
    assert up_of(camera).tolist() == [0, -1, 0]
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, :2, :2] *= -1  # upside down: no mean to speak of
    assert up_of(Cameras.from_fov(60.0, 8, 8, poses)).tolist() == [0, -1, 0]
