"""Meshes read back by trimesh."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from diorama.export.mesh import sheets, write_mesh
from diorama.export.world import World
from diorama.geometry.cameras import Cameras
from diorama.scene import Scene, Views

from .conftest import colour_at, on_surface

FLIP = np.array([1, -1, -1])


def parts(path: Path) -> list[trimesh.Trimesh]:
    return list(trimesh.load(path, process=False).geometry.values())


def test_trimesh_reads_surfaces_and_pictures(stage: Scene, tmp_path: Path) -> None:
    write_mesh(stage.views, tmp_path / "a.glb", world=World("metre", 1.0, "-y"))
    found = parts(tmp_path / "a.glb")
    assert 1 <= len(found) <= 4
    for part in found:
        points = torch.from_numpy(np.asarray(part.vertices) * FLIP).float()
        assert on_surface(points).max() < 1e-4
        corners = points[torch.from_numpy(np.asarray(part.faces))]
        assert np.ptp(corners[..., 2].numpy(), 1).max() < 0.01, "a face hangs between card and wall"
        # trimesh counts v from below; a vertex's texture is the picture of its own pixel
        image = np.asarray(part.visual.material.baseColorTexture.convert("RGB"))
        x, y = (part.visual.uv * [64, 48]).T
        colours = image[47 - np.floor(y).astype(int), np.floor(x).astype(int)] / 255
        difference = np.abs(colours - colour_at(points).numpy())
        assert difference.mean() < 0.01
        assert difference.max() < 0.15  # JPEG rings around the card


def test_faces_look_at_their_camera(stage: Scene) -> None:
    assert stage.views.cameras is not None
    for centre, sheet in zip(stage.views.cameras.centers.numpy(), sheets(stage.views), strict=True):
        a, b, c = (sheet.vertices[sheet.faces[:, corner]] for corner in range(3))
        towards = (np.cross(b - a, c - a) * (centre - a)).sum(-1)
        assert (towards > 0).all()


def test_each_surface_is_there_once_and_whole(stage: Scene) -> None:
    """A card of 0.8 by 0.8 and the wall that is seen, up to a ring of quads (0.036 wide) missing, or there twice."""
    areas = np.zeros(2)
    for sheet in sheets(stage.views):
        a, b, c = (sheet.vertices[sheet.faces[:, corner]] for corner in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=-1) / 2
        areas += [area[a[:, 2] < 3].sum(), area[a[:, 2] > 3].sum()]
    assert 0.82 * 0.64 < areas[0] < 1.18 * 0.64
    (alone,) = sheets(stage.views[0])
    a, b, c = (alone.vertices[alone.faces[:, corner]] for corner in range(3))
    first = (np.linalg.norm(np.cross(b - a, c - a), axis=-1) / 2)[a[:, 2] > 3].sum()
    assert first < areas[1] < 1.6 * first


def test_a_steep_floor_is_whole_and_holes_stay_holes() -> None:
    cameras = Cameras.from_fov(60.0, 48, 64, torch.eye(4)[None])
    rays = cameras.directions()
    floor = cameras.unproject(1.0 / rays[..., 1].clamp(min=0.02))
    valid = (rays[..., 1] > 0.02).float()  # up to 50 units far, where neighbouring rows are many units apart
    (sheet,) = sheets(Views(torch.rand(1, 3, 48, 64), cameras, floor, valid))
    rows = int(valid[0, :, 0].sum())
    assert len(sheet.faces) == 2 * (rows - 1) * 63
    valid[0, 40, 30] = 0
    (holed,) = sheets(Views(torch.rand(1, 3, 48, 64), cameras, floor, valid))
    assert len(sheet.faces) - len(holed.faces) == 8


def test_nothing_to_mesh(stage: Scene, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no four neighbouring pixels"):
        write_mesh(replace(stage.views, confidence=torch.zeros(4, 48, 64)), tmp_path / "a.glb")
    with pytest.raises(ValueError, match="have no depth"):
        write_mesh(Views(stage.views.images), tmp_path / "a.glb")
    with pytest.raises(ValueError, match="edge 0.0"):
        write_mesh(stage.views, tmp_path / "a.glb", edge=0.0)
    assert list(tmp_path.iterdir()) == []
