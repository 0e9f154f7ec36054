"""Point files read back by trimesh."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from diorama.export.glb import write_glb
from diorama.export.ply import coloured_points, write_ply
from diorama.export.world import World
from diorama.scene import Scene, Views


def cloud(path: Path) -> trimesh.PointCloud:
    found = trimesh.load(path)
    if isinstance(found, trimesh.Scene):
        (found,) = found.geometry.values()
    assert isinstance(found, trimesh.PointCloud)
    return found


def expected(views: Views) -> tuple[np.ndarray, np.ndarray]:
    assert views.points is not None
    assert views.confidence is not None
    valid = views.confidence > 0
    colours = (views.images.movedim(1, -1)[valid] * 255).round()
    return views.points[valid].numpy(), colours.numpy().astype(np.uint8)


def test_ply_is_exact(scene: Scene, tmp_path: Path) -> None:
    write_ply(scene.views, tmp_path / "a.ply")
    points, colours = expected(scene.views)
    found = cloud(tmp_path / "a.ply")
    assert len(points) == 3 * (16 * 24 - 16)
    assert np.array_equal(found.vertices.astype(np.float32), points)
    assert np.array_equal(found.colors[:, :3], colours)


def test_glb_is_exact_with_y_up_and_linear_colours(scene: Scene, tmp_path: Path) -> None:
    write_glb(scene.views, tmp_path / "a.glb")
    points, colours = expected(scene.views)
    found = cloud(tmp_path / "a.glb")
    assert np.array_equal(found.vertices.astype(np.float32), points * np.float32([1, -1, -1]))
    srgb = colours / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    assert np.abs(found.colors[:, :3] / 255 - linear).max() <= 0.5 / 255 + 1e-6  # trimesh keeps 8 of the file's bits
    (size,) = struct.unpack("<I", (tmp_path / "a.glb").read_bytes()[8:12])
    assert size == (tmp_path / "a.glb").stat().st_size


def test_one_point_for_each_cube(scene: Scene, tmp_path: Path) -> None:
    points, colours = expected(scene.views)
    write_ply(scene.views, tmp_path / "a.ply", voxel=0.4)
    write_glb(scene.views, tmp_path / "a.glb", voxel=0.4)
    cubes, which, counts = np.unique(np.floor(points / 0.4), axis=0, return_inverse=True, return_counts=True)
    means = [np.bincount(which.ravel(), values) / counts for values in (*points.T, *colours.T)]
    found = cloud(tmp_path / "a.ply")
    assert len(found.vertices) == len(cubes) < len(points)
    order = np.lexsort(np.floor(found.vertices / 0.4).T[::-1])
    assert np.allclose(found.vertices[order], np.stack(means[:3], 1), atol=1e-5)
    assert np.abs(found.colors[order, :3] - np.stack(means[3:], 1)).max() <= 0.5 + 1e-3
    assert len(cloud(tmp_path / "a.glb").vertices) == len(cubes)


def test_files_say_what_their_numbers_mean(scene: Scene, tmp_path: Path) -> None:
    world = World("metre", 2.0, "z")
    write_ply(scene.views, tmp_path / "a.ply", world=world)
    header = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode("ascii").split("\n")
    assert header[2:5] == ["comment unit metre", "comment scale 2.0", "comment up z"]
    write_glb(scene.views, tmp_path / "a.glb", world=world)
    (length,) = struct.unpack("<I", (tmp_path / "a.glb").read_bytes()[12:16])
    document = json.loads((tmp_path / "a.glb").read_bytes()[20 : 20 + length])
    assert document["scenes"][0]["extras"] == {"unit": "metre", "scale": 2.0, "up": "y"}
    points = expected(scene.views)[0]
    # z up to y up turns about x, the other way than OpenCV's y down
    assert np.allclose(cloud(tmp_path / "a.glb").vertices, points[:, [0, 2, 1]] * [1, 1, -1], atol=1e-6)
    write_ply(scene.views, tmp_path / "b.ply", world=World("пядь", 1.0, "-y"))
    assert len(cloud(tmp_path / "b.ply").vertices) == len(points)


def test_points_without_value_are_left_out(scene: Scene) -> None:
    assert scene.views.points is not None
    assert scene.views.confidence is not None
    points, confidence = scene.views.points.clone(), scene.views.confidence
    points[0, 8, 8, 1] = torch.nan
    count = int((confidence > 0).sum())
    assert len(coloured_points(replace(scene.views, points=points))[0]) == count - 1
    assert len(coloured_points(replace(scene.views, points=points, confidence=None))[0]) == confidence.numel() - 1
    assert len(coloured_points(scene.views, drop=0.25)[0]) == pytest.approx(0.75 * count, abs=2)
    kept = coloured_points(scene.views, drop=0.25)[0]
    surest = confidence.flatten().topk(len(kept)).indices
    assert {tuple(point) for point in kept.tolist()} == {
        tuple(p) for p in scene.views.points.reshape(-1, 3)[surest].tolist()
    }


def test_nothing_to_export(scene: Scene, tmp_path: Path) -> None:
    for write in (write_ply, write_glb):
        with pytest.raises(ValueError, match="no points to export"):
            write(Views(scene.views.images), tmp_path / "a")
    with pytest.raises(ValueError, match="share 1.0 of points"):
        write_ply(scene.views, tmp_path / "a.ply", drop=1.0)
    none = replace(scene.views, confidence=torch.zeros(3, 16, 24))
    with pytest.raises(ValueError, match="cannot hold an empty cloud"):
        write_glb(none, tmp_path / "a.glb")
    write_ply(none, tmp_path / "a.ply")
    assert b"element vertex 0\n" in (tmp_path / "a.ply").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
