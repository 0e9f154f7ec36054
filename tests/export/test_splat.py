"""Gaussians, read back by trimesh as points and field by field as the format's own code reads them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from diorama.export.splat import write_splats
from diorama.export.world import World
from diorama.scene import Scene


def fields(path: Path) -> tuple[np.ndarray, list[str]]:
    """Every property is a float32, in the header's order."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    lines = header.decode("ascii").split("\n")
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    (count,) = (int(line.split()[2]) for line in lines if line.startswith("element vertex "))
    values = np.frombuffer(body, "<f4").reshape(count, len(names))
    return np.rec.fromarrays(values.T, names=names), lines


def test_the_reference_layout(scene: Scene, tmp_path: Path) -> None:
    write_splats(scene.views, tmp_path / "a.ply", world=World("metre", 2.0, "z"))
    found, lines = fields(tmp_path / "a.ply")
    names = list(found.dtype.names)
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)]
    assert names[54:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert {"comment unit metre", "comment scale 2.0", "comment up z"} <= set(lines)
    valid = scene.views.confidence > 0
    points = scene.views.points[valid].numpy()
    assert np.array_equal(trimesh.load(tmp_path / "a.ply").vertices.astype(np.float32), points)
    shown = np.stack([found[f"f_dc_{i}"] for i in range(3)], 1) / (2 * np.sqrt(np.pi)) + 0.5
    assert np.abs(shown - scene.views.images.movedim(1, -1)[valid].numpy()).max() <= 0.5 / 255 + 1e-6
    assert np.allclose(1 / (1 + np.exp(-found["opacity"])), 0.9)
    assert (found["rot_0"] == 1).all()
    nearest = np.sort(np.linalg.norm(points[:, None] - points, axis=-1), 1)[:, 1:4].mean(1)
    assert np.allclose(np.exp(found["scale_0"]), nearest, rtol=1e-3)
    assert np.array_equal(found["scale_0"], found["scale_2"])


def test_points_on_top_of_each_other_have_a_size(scene: Scene, tmp_path: Path) -> None:
    points = scene.views.points.clone()
    points[0] = 1.0
    write_splats(replace(scene.views, points=points), tmp_path / "a.ply")
    assert np.isfinite(fields(tmp_path / "a.ply")[0]["scale_1"]).all()
    with pytest.raises(ValueError, match="splats need 2 or more"):
        write_splats(replace(scene.views, confidence=torch.zeros(3, 16, 24)), tmp_path / "b.ply")
    assert not (tmp_path / "b.ply").exists()
