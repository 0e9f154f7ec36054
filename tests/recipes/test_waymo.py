"""A Waymo segment, encoded here field by field, becomes captures that the reader opens."""

import contextlib
import importlib.util
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.profiles import encodings as e

from diorama.data.open import open_scene

spec = importlib.util.spec_from_file_location("waymo", Path(__file__).parents[2] / "recipes/data/waymo.py")
waymo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(waymo)

FLU = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]])  # x forward, y left, z up: rows are our right, down, forward


def number(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def field(place: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return number(place << 3) + number(value)
    return number(place << 3 | 2) + number(len(value)) + value


def doubles(place: int, values: np.ndarray, packed: bool) -> bytes:
    raw = np.asarray(values, "<f8").reshape(-1)
    if packed:
        return field(place, raw.tobytes())
    return b"".join(number(place << 3 | 1) + struct.pack("<d", value) for value in raw)


def frame(pose: np.ndarray, stamp: int, shade: int, packed: bool) -> bytes:
    """Cameras 1 and 4 of one moment; the vehicle's pose turns the camera into the one that is wanted."""
    to_vehicle = np.eye(4)
    to_vehicle[:3, 3] = [1.5, 0, 2]
    camera_to_world = pose.copy()
    camera_to_world[:3, :3] = pose[:3, :3] @ FLU
    vehicle = camera_to_world @ np.linalg.inv(to_vehicle)
    jpeg = io.BytesIO()
    Image.new("RGB", (e.WIDTH, e.HEIGHT), (shade, 100, 200)).save(jpeg, "JPEG")
    context, images = field(1, b"segment"), b""
    for name in (1, 4):
        lens = np.array([14.0, 14.5, 8.25, 6.5, 0, 0, 0, 0, 0])
        calibration = field(1, name) + doubles(2, lens, packed) + field(3, doubles(1, to_vehicle, packed))
        context += field(2, calibration + field(4, e.WIDTH) + field(5, e.HEIGHT))
        image = field(1, name) + field(2, jpeg.getvalue())
        images += field(4, image + (field(3, doubles(1, vehicle, packed)) if name == 1 else b""))
    return field(1, context) + field(2, stamp) + field(3, doubles(1, vehicle, packed)) + images


def segment(path: Path, packed: bool = False) -> Path:
    data = b""
    for n, pose in enumerate(e.poses()):
        message = frame(pose, 10**15 + n, 40 * n + 20, packed)
        data += struct.pack("<QI", len(message), 0) + message + bytes(4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_captures_have_the_cameras_of_the_segment(tmp_path, packed):
    folders = waymo.write(segment(tmp_path / "segment-1.tfrecord", packed), tmp_path / "out", (1, 4))
    assert [folder.name for folder in folders] == ["segment-1_1", "segment-1_4"]
    for folder in folders:
        scene = open_scene(folder)
        assert scene.ordered and len(scene) == e.FRAMES
        for n, (frame, pose) in enumerate(zip(scene.frames, e.poses(), strict=True)):
            np.testing.assert_allclose(frame.camera.camera_to_world[0], pose, atol=1e-12)
            np.testing.assert_allclose(frame.camera.intrinsics[0], e.INTRINSICS)
            assert abs(float(frame.image(10**6)[0].mean()) - (40 * n + 20) / 255) < 0.02


def test_a_segment_that_is_none_is_refused_in_one_line(tmp_path):
    path = segment(tmp_path / "a.tfrecord")
    whole = path.read_bytes()
    contents = {
        "cut short": whole[:-9],
        "a record of": b"no TFRecord at all",
        "frame 0": struct.pack("<QI", 3, 0) + bytes(7),
    }
    for words, data in contents.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"a.tfrecord: .*{words}|{words}.*accepted") as caught:
            waymo.write(path, tmp_path / "out", (1,))
        assert "\n" not in str(caught.value)


HONEST = frame(e.poses()[0], 10**15, 20, False)


@settings(max_examples=int(os.environ.get("DIORAMA_FUZZ", "500")), deadline=None, database=None)
@given(st.integers(0, len(HONEST)), st.integers(0, 8), st.binary(max_size=12))
def test_frames_of_any_bytes_are_read_or_refused(place, cut, data):
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):  # of which `write` makes one line
        assert all(camera >= 0 for camera, *_ in waymo.frames(HONEST[:place] + data + HONEST[place + cut :]))
