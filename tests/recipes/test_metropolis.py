"""Tables of Mapillary Metropolis, as its description of the format has them, become captures that the reader opens."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tests.data.profiles import encodings as e

from diorama.data.open import open_scene

spec = importlib.util.spec_from_file_location("metropolis", Path(__file__).parents[2] / "recipes/data/metropolis.py")
metropolis = importlib.util.module_from_spec(spec)
spec.loader.exec_module(metropolis)


def transform(matrix: np.ndarray) -> dict:
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat().tolist()
    return {"rotation": [w, x, y, z], "translation": matrix[:3, 3].tolist()}


def write(root: Path) -> Path:
    """One scene of the train split: a perspective camera, a panorama, and samples that are not in time's order."""
    to_vehicle = np.eye(4)
    to_vehicle[:3, :3] = Rotation.from_euler("xyz", [-90, 0, 3], degrees=True).as_matrix()
    to_vehicle[:3, 3] = [0.1, 0.2, 2.5]
    front = {"token": "front", "sensor_token": "CAM_FRONT", "camera_intrinsic": e.INTRINSICS.tolist()}
    tables = {
        "sensor": [{"token": c, "modality": "camera", "channel": c} for c in ("CAM_FRONT", "CAM_EQUIRECTANGULAR")],
        "scene": [{"token": "s", "name": "scene-1"}],
        "sample": [{"token": f"sample{n}", "scene_token": "s", "timestamp": n} for n in range(e.FRAMES)],
        "calibrated_sensor": [
            front | transform(to_vehicle),
            {"token": "round", "sensor_token": "CAM_EQUIRECTANGULAR", "camera_intrinsic": []} | transform(np.eye(4)),
        ],
        "ego_pose": [],
        "sample_data": [],
    }
    for n in (2, 0, 1):
        vehicle = transform(e.poses()[n] @ np.linalg.inv(to_vehicle))
        tables["ego_pose"].append({"token": f"ego{n}", "timestamp": n} | vehicle)
        for sensor in ("front", "round"):
            e.photo(root / f"sweeps/{sensor}_{n}.jpg", n)
            row = {"token": f"{sensor}{n}", "filename": f"sweeps/{sensor}_{n}.jpg", "timestamp": n}
            row |= {"width": e.WIDTH, "height": e.HEIGHT, "sample_token": f"sample{n}"}
            tables["sample_data"].append(row | {"ego_pose_token": f"ego{n}", "calibrated_sensor_token": sensor})
    (root / "train").mkdir()
    for name, rows in tables.items():
        (root / "train" / f"{name}.json").write_text(json.dumps(rows))
    return root


def test_captures_have_the_cameras_of_the_tables(tmp_path):
    metropolis.main([str(write(tmp_path / "data")), str(tmp_path / "out")])
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["scene-1_CAM_FRONT"]
    scene = open_scene(tmp_path / "out/scene-1_CAM_FRONT")
    assert len(scene) == e.FRAMES
    for n, (frame, pose) in enumerate(zip(scene.frames, e.poses(), strict=True)):
        np.testing.assert_allclose(frame.camera.camera_to_world[0], pose, atol=1e-12)
        np.testing.assert_allclose(frame.camera.intrinsics[0], e.INTRINSICS)
        assert abs(float(frame.image(10**6)[0].mean()) - (40 * n + 20) / 255) < 0.02


def test_photos_lie_inside(tmp_path):
    root = write(tmp_path / "data")
    file = root / "train/sample_data.json"
    file.write_text(file.read_text().replace("sweeps/front_1.jpg", "../../outside.jpg"))
    with pytest.raises(ValueError, match="accepted are files inside"):
        metropolis.write(root, tmp_path / "out", "train", ("CAM_FRONT",))
