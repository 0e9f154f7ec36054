"""Camera paths in the forms that other programs write, and in broken ones."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from diorama.data.cameras import read_cameras, widened
from diorama.geometry.cameras import Cameras


def poses(count: int = 3, seed: int = 0) -> np.ndarray:
    """OpenCV camera-to-world matrices."""
    random = np.random.default_rng(seed)
    matrices = np.tile(np.eye(4), (count, 1, 1))
    matrices[:, :3, :3] = Rotation.random(count, rng=random).as_matrix()
    matrices[:, :3, 3] = random.normal(size=(count, 3))
    return matrices


def nerfstudio(matrices: np.ndarray) -> dict[str, Any]:
    """A transforms.json as nerfstudio describes it: the camera looks along its own -z, with y up."""
    opengl = matrices @ np.diag([1, -1, -1, 1])
    frames = [{"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()} for i, pose in enumerate(opengl)]
    return {
        "camera_model": "OPENCV",
        "fl_x": 50.0,
        "fl_y": 60.0,
        "cx": 31.0,
        "cy": 25.0,
        "w": 64,
        "h": 48,
        "frames": frames,
    }


def gen3r(matrices: np.ndarray) -> dict[str, Any]:
    intrinsics = np.tile([[480.0, 0, 281.0], [0, 470.0, 279.0], [0, 0, 1]], (len(matrices), 1, 1))
    return {"extrinsics": np.linalg.inv(matrices).tolist(), "intrinsics": intrinsics.tolist()}


def written(folder: Path, document: object, name: str = "transforms.json") -> Path:
    (folder / name).write_text(json.dumps(document))
    return folder / name


def close(found: torch.Tensor, expected: np.ndarray) -> bool:
    return found.dtype == torch.float64 and np.allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_nerfstudio_with_intrinsics_for_all(tmp_path: Path) -> None:
    cameras = read_cameras(written(tmp_path, nerfstudio(poses())))
    assert close(cameras.camera_to_world, poses())
    assert close(cameras.intrinsics, np.tile([[50, 0, 31], [0, 60, 25], [0, 0, 1]], (3, 1, 1)))
    assert (cameras.height, cameras.width) == (48, 64)


def test_nerfstudio_with_intrinsics_for_each_frame(tmp_path: Path) -> None:
    document = nerfstudio(poses())
    for number, frame in enumerate(document["frames"]):
        frame |= {key: document[key] for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
        frame["fl_x"] = 40.0 + number
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        del document[key]
    cameras = read_cameras(written(tmp_path, document))
    assert cameras.intrinsics[:, 0, 0].tolist() == [40, 41, 42]
    document["frames"][1] |= {"w": 128, "h": 96}
    with pytest.raises(ValueError, match="transforms.json: frames of different sizes"):
        read_cameras(written(tmp_path, document))
    assert read_cameras(tmp_path, 48, 64).intrinsics[:, 0, 0].tolist() == [40, 20.5, 42]


def test_nerfstudio_angle_and_size_from_elsewhere(tmp_path: Path) -> None:
    document = {"camera_angle_x": math.radians(90), "frames": nerfstudio(poses())["frames"]}
    path = written(tmp_path, document)
    cameras = read_cameras(path, 48, 64)
    assert torch.allclose(cameras.fov, torch.tensor(90.0, dtype=torch.float64))
    assert cameras.intrinsics[0, :2, 2].tolist() == [32, 24]
    with pytest.raises(ValueError, match="no image size"):
        read_cameras(path)
    with pytest.raises(ValueError, match="both or neither"):
        read_cameras(path, 48)


def test_nerfstudio_in_opencv_axes_and_with_an_applied_transform(tmp_path: Path) -> None:
    document = nerfstudio(poses())
    for frame, pose in zip(document["frames"], poses(), strict=True):
        frame["transform_matrix"] = pose.tolist()
    for key in ("axes", "camera_convention"):
        assert close(read_cameras(written(tmp_path, document | {key: "OpenCV"})).camera_to_world, poses())
    with pytest.raises(ValueError, match="axes 'left-handed'; accepted are opengl and opencv"):
        read_cameras(written(tmp_path, document | {"axes": "left-handed"}))
    turn = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])  # what ns-process-data applies and notes down
    moved = nerfstudio(np.concatenate([turn, [[0, 0, 0, 1]]]) @ poses()) | {"applied_transform": turn.tolist()}
    assert close(read_cameras(written(tmp_path, moved)).camera_to_world, poses())


def test_nerfstudio_camera_path(tmp_path: Path) -> None:
    opengl = poses() @ np.diag([1, -1, -1, 1])
    items = [{"camera_to_world": pose.reshape(-1).tolist(), "fov": 90, "aspect": 2} for pose in opengl]
    document = {"camera_path": items, "render_height": 100, "render_width": 200, "camera_type": "perspective"}
    cameras = read_cameras(written(tmp_path, document, "camera_path.json"))
    assert close(cameras.camera_to_world, poses())
    assert cameras.intrinsics[0].tolist() == pytest.approx(np.array([[50, 0, 100], [0, 50, 50], [0, 0, 1]]))
    for change in ({"camera_type": "fisheye"}, {"render_height": None}, {"camera_path": [items[0] | {"fov": 180}]}):
        with pytest.raises(ValueError, match="accepted is"):
            read_cameras(written(tmp_path, document | change, "camera_path.json"))


def test_gen3r(tmp_path: Path) -> None:
    cameras = read_cameras(written(tmp_path, gen3r(poses()), "cameras.json"))
    assert close(cameras.camera_to_world, poses())
    assert (cameras.height, cameras.width) == (560, 560)
    half = read_cameras(tmp_path, 280, 280)
    assert half.intrinsics[0].tolist() == [[240, 0, 140.5], [0, 235, 139.5], [0, 0, 1]]


def test_numbers_survive_as_they_are(tmp_path: Path) -> None:
    matrices = poses().astype(np.float32)
    cameras = read_cameras(written(tmp_path, nerfstudio(matrices.astype(np.float64))))
    assert np.array_equal(cameras.camera_to_world.numpy(), matrices)


def broken(change: Callable[[dict[str, Any]], object], source: Callable = nerfstudio) -> dict[str, Any]:
    document = source(poses())
    change(document)
    return document


BROKEN = {
    "not an object": ([1, 2], "a JSON list"),
    "unknown": ({"poses": []}, r"the keys \['poses'\]"),
    "empty": (broken(lambda d: d.update(frames=[])), "`frames` is empty"),
    "no list": (broken(lambda d: d.update(frames=3)), "`frames` is no list"),
    "no frame": (broken(lambda d: d["frames"].append(3)), "`frames` 3 is a int"),
    "no matrix": (broken(lambda d: d["frames"][1].pop("transform_matrix")), "frame 1: transform_matrix is no matrix"),
    "ragged": (broken(lambda d: d["frames"][1]["transform_matrix"][0].pop()), "frame 1: transform_matrix is no matrix"),
    "words": (
        broken(lambda d: d["frames"][2].update(transform_matrix="eye")),
        "frame 2: transform_matrix is no matrix",
    ),
    "nan": (broken(lambda d: d["frames"][1]["transform_matrix"][0].__setitem__(3, math.nan)), "frame 1: .* finite"),
    "float32's infinity": (
        broken(lambda d: d["frames"][1]["transform_matrix"][0].__setitem__(3, 1e300)),
        "camera 1 has a non",
    ),
    "scaled": (broken(lambda d: d["frames"][1]["transform_matrix"][0].__setitem__(0, 3.0)), "camera 1 is not a rigid"),
    "mirrored": (broken(lambda d: d.update(nerfstudio(poses() @ np.diag([-1, 1, 1, 1])))), "camera 0 is not a rigid"),
    "negative focal": (broken(lambda d: d.update(fl_x=-50)), "camera 0 has a focal length that is not positive"),
    "no focal": (broken(lambda d: d.pop("fl_x")), "frame 0: found no focal length"),
    "focal in words": (broken(lambda d: d.update(fl_x="wide")), "frame 0: `fl_x` is 'wide'"),
    "no angle": (broken(lambda d: d.update(camera_angle_x=0) or d.pop("fl_x")), "frame 0: field of view 0.0 degrees"),
    "distorted": (broken(lambda d: d.update(k1=0.1)), r"frame 0: found the lens OPENCV \{'k1': 0.1\}"),
    "fisheye": (broken(lambda d: d.update(camera_model="OPENCV_FISHEYE")), "OPENCV_FISHEYE"),
    "gen3r counts": (broken(lambda d: d["intrinsics"].pop(), gen3r), "3 extrinsics but 2 intrinsics"),
    "gen3r shapes": (broken(lambda d: d["intrinsics"][1].pop(), gen3r), "intrinsics 1 is no matrix of 3x3"),
    "gen3r words": (broken(lambda d: d.update(extrinsics="x"), gen3r), "`extrinsics` is no list"),
    "gen3r scaled": (broken(lambda d: d["extrinsics"][2][0].__setitem__(0, 3.0), gen3r), "camera 2 is not a rigid"),
    "singular": (broken(lambda d: d.update(applied_transform=[[0, 0, 0, 0]] * 3)), "Singular"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    document, message = BROKEN[kind]
    with pytest.raises(ValueError, match=f"file.json: .*{message}") as error:
        read_cameras(written(tmp_path, document, "file.json"))
    assert len(str(error.value).splitlines()) == 1


def test_no_json_and_no_file(tmp_path: Path) -> None:
    for text in ("", "{", "[" * 100_000, "\xff"):
        (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match="a.json: not a JSON file"):
            read_cameras(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="no such camera file"):
        read_cameras(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="no camera file in this folder"):
        read_cameras(tmp_path)


@pytest.mark.parametrize("size", [(47, 64), (64, 47), (48, 48), (33, 100)])
def test_a_whole_image_has_the_cameras_of_its_middle(size):
    cameras = Cameras.from_fov(50.0, 20, 20)
    whole = widened(cameras, *size)
    assert (whole.height, whole.width) == size
    torch.testing.assert_close(whole.intrinsics[0, :2, 2], torch.tensor([size[1] / 2, size[0] / 2]))
    torch.testing.assert_close(whole.intrinsics[0, 0, 0], cameras.intrinsics[0, 0, 0] * min(size) / 20)
    torch.testing.assert_close(whole.fitted(20, 20).intrinsics, cameras.intrinsics)
