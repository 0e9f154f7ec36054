"""`diorama export`: a saved scene for other programs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh

import diorama

from .conftest import Command


@pytest.fixture
def saved(command: Command) -> Path:
    """A scene of four views of a wall, which no model made."""
    cameras = diorama.Cameras.from_fov(60.0, 24, 32, torch.eye(4).repeat(4, 1, 1))
    poses = cameras.camera_to_world.clone()
    poses[:, 0, 3] = torch.arange(4) * 0.1
    cameras = replace(cameras, camera_to_world=poses)
    images = torch.rand(4, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    views = diorama.Views(images, cameras, cameras.unproject(torch.full((4, 24, 32), 3.0)))
    diorama.save(diorama.Scene(views, diorama.Condition()), "wall")
    return Path("wall")


def test_everything_in_one_folder(command: Command, saved: Path) -> None:
    result = command("export", saved, "--to", "ply,glb,colmap,nerfstudio,video,depth,splat,html", "--unit", "metre")
    assert result.code == 0, result.err
    out = Path("wall-export")
    assert sorted(path.name for path in out.iterdir()) == [
        *("colmap", "depth", "diorama.json", "nerfstudio", "page.html", "points.glb", "points.ply", "splats.ply"),
        "video.mp4",
    ]
    assert json.loads((out / "diorama.json").read_text())["world"]["unit"] == "metre"
    assert len(trimesh.load(out / "points.ply").vertices) == 4 * 24 * 32
    assert "colmap" in result.out.splitlines()[0]
    again = command("export", saved, "--to", "glb", "--mesh", "--drop", 10, "--out", out, "--overwrite")
    assert again.code == 0, again.err
    assert sorted(path.name for path in out.iterdir()) == ["diorama.json", "mesh.glb"]


def test_what_it_refuses(command: Command, photo, saved: Path) -> None:
    assert "format 'obj': accepted are ply,glb,colmap" in command.refused("export", saved, "--to", "ply,obj")
    assert "photo.png: no saved scene" in command.refused("export", photo())
    assert "gone: no such file" in command.refused("export", "gone")
    assert "--drop 100" in command.refused("export", saved, "--drop", 100)
    assert "far 0.0" in command.refused("export", saved, "--far", 0)
    assert "up axis 'w'" in command.refused("export", saved, "--up", "w")
    assert "scale -1.0" in command.refused("export", saved, "--scale", -1)
    assert "codec 'vp9'" in command.refused("export", saved, "--to", "video", "--codec", "vp9")
    assert "out.ply: accepted is a folder" in command.refused("export", saved, "--out", "out.ply")
    assert "wall: exists already" in command.refused("export", saved, "--out", saved)
    made = diorama.open(saved)
    diorama.save(replace(made, views=diorama.Views(made.views.images)), "flat")
    said = command.refused("export", "flat")
    assert said == "flat: format 'ply' needs points, which this scene does not have"
