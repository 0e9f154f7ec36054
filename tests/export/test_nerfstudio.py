"""A nerfstudio dataset, read as nerfstudio's pages describe it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from diorama.data.open import open
from diorama.export.nerfstudio import write_nerfstudio
from diorama.export.world import World
from diorama.scene import Scene, Views


def test_points_project_to_their_own_depth(stage: Scene, tmp_path: Path) -> None:
    write_nerfstudio(stage.views, tmp_path / "data", world=World("metre", 1.0, "-y"))
    document = json.loads((tmp_path / "data/transforms.json").read_text())
    assert document["world"] == {"unit": "metre", "scale": 1.0, "up": "-y"}
    points = np.asarray(trimesh.load(tmp_path / "data" / document["ply_file_path"]).vertices)
    assert len(points) == 4 * 48 * 64
    for number, frame in enumerate(document["frames"]):
        local = (points - np.array(frame["transform_matrix"])[:3, 3]) @ np.array(frame["transform_matrix"])[:3, :3]
        mine = local[number * 48 * 64 : (number + 1) * 48 * 64]
        depth = -mine[:, 2]  # OpenGL looks along -z
        x = frame["fl_x"] * mine[:, 0] / depth + frame["cx"]
        y = -frame["fl_y"] * mine[:, 1] / depth + frame["cy"]
        rows, columns = np.mgrid[:48, :64]
        assert np.abs(x - columns.ravel() - 0.5).max() < 0.01
        assert np.abs(y - rows.ravel() - 0.5).max() < 0.01
        with Image.open(tmp_path / "data" / frame["depth_file_path"]) as image:
            codes = np.asarray(image).astype(float) * document["depth_unit_scale_factor"]
        assert np.abs(codes.ravel() - depth).max() < 0.001
    assert isinstance(open(tmp_path / "data"), Views)


def test_cameras_are_enough(stage: Scene, tmp_path: Path) -> None:
    write_nerfstudio(replace(stage.views, points=None, confidence=None), tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["images", "transforms.json"]
    with pytest.raises(ValueError, match="no cameras"):
        write_nerfstudio(Views(stage.views.images), tmp_path / "other")
