"""Several formats at once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from diorama.export.cleaning import Cleaning
from diorama.export.formats import FORMATS, Choices, export
from diorama.scene import Scene, Views


def test_every_format_and_what_they_share(stage: Scene, tmp_path: Path) -> None:
    choices = Choices(scale=2.0, unit="metre", up="z", tracks=500)
    seen: list[str] = []
    files = export(stage, tmp_path / "out", list(FORMATS), choices, on_format=seen.append)
    assert seen == list(FORMATS)
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    assert {file.name for file in files} == {format.file for format in FORMATS.values()} | {"diorama.json"}
    about = json.loads((tmp_path / "out/diorama.json").read_text())
    assert about["world"] == {"unit": "metre", "scale": 2.0, "up": "z"}
    assert (about["model"], about["licence"], about["seed"]) == ("analytic", "CC0-1.0", 1)
    ply = np.asarray(trimesh.load(tmp_path / "out/points.ply").vertices)
    (cloud,) = trimesh.load(tmp_path / "out/points.glb").geometry.values()
    # z up to y up: (x, y, z) -> (x, z, -y)
    assert np.allclose(np.asarray(cloud.vertices), ply[:, [0, 2, 1]] * [1, 1, -1], atol=1e-6)
    assert np.allclose(ply, stage.views.points.reshape(-1, 3).numpy()[:, [0, 2, 1]] * [2, 2, -2], atol=1e-5)
    assert b"comment up z\n" in (tmp_path / "out/points.ply").read_bytes()[:300]


def test_cleaning_and_choices_reach_the_files(stage: Scene, tmp_path: Path) -> None:
    depth = stage.views.depth.clone()
    depth[:, :8] = 500
    sky = replace(stage, views=replace(stage.views, points=stage.views.cameras.unproject(depth)))
    choices = Choices(Cleaning(far=10.0), voxel=0.1, mesh=True, text=True, fps=5)
    export(sky, tmp_path / "out", ["ply", "glb", "colmap", "depth", "video"], choices)
    points = np.asarray(trimesh.load(tmp_path / "out/points.ply").vertices)
    assert points[:, 2].max() < 4.1
    assert len({*map(tuple, np.floor(points / 0.1 + 1e-6).astype(int).tolist())}) == len(points)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("colmap", "depth", "diorama.json", "mesh.glb", "points.ply", "video.mp4")
    ]
    assert (tmp_path / "out/colmap/sparse/0/points3D.txt").is_file()
    assert np.isnan(np.load(tmp_path / "out/depth/00000.npy")[:8]).all()


def test_an_export_replaces_an_export_and_nothing_else(stage: Scene, tmp_path: Path) -> None:
    export(stage, tmp_path / "out", ["ply"])
    with pytest.raises(FileExistsError, match="exists already"):
        export(stage, tmp_path / "out", ["glb"])
    export(stage, tmp_path / "out", ["glb"], overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["diorama.json", "points.glb"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileExistsError, match="no saved scene"):
        export(stage, tmp_path / "photos", ["ply"], overwrite=True)


def test_what_cannot_be_written_leaves_nothing(stage: Scene, tmp_path: Path) -> None:
    bare = replace(stage, views=Views(stage.views.images))
    cases = [
        (stage, ["ply", "obj"], Choices(), "format 'obj': accepted are ply,glb"),
        (stage, [], Choices(), "format 'none'"),
        (bare, ["video", "colmap"], Choices(), "format 'colmap' needs points"),
        (stage, ["video"], Choices(codec="vp9"), "codec 'vp9': accepted are h264, h265, av1"),
        (stage, ["video"], Choices(fps=0), "0 frames per second"),
        (stage, ["ply"], Choices(voxel=-1.0), "voxel -1.0"),
        (replace(stage, views=stage.views[0]), ["ply", "colmap"], Choices(), "none of 1 views"),
    ]
    for scene, formats, choices, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            export(scene, tmp_path / "out", formats, choices)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
