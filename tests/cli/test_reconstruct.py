"""`diorama reconstruct`: posed photos to a scene, without diffusion."""

import shutil
from pathlib import Path

import torch

import diorama

from .conftest import Command


def test_one_photo_and_a_capture(command: Command, photo, scene: Path) -> None:
    said = command.done("reconstruct", photo(), "--trajectory", "truck:0.2", "--views", 3)
    made = diorama.open("reconstruction")
    assert "encoding and decoding" in said
    assert (len(made.views), made.condition.at, made.provenance.seed) == (3, (0,), None)
    assert made.condition.views.images.shape == (1, 3, 48, 64)
    # A saved scene's images and transforms.json are a capture like any other.
    Path("capture").mkdir()
    shutil.copytree(scene / "images", "capture/images")
    shutil.copy(scene / "transforms.json", "capture")
    command.done("reconstruct", "capture", "--views", 5, "--out", "again")
    made, known = diorama.open("again"), diorama.open(scene)
    assert made.condition.at == (0, 2, 4)
    assert torch.allclose(made.views.cameras[[0, 2, 4]].camera_to_world, known.views.cameras.camera_to_world, atol=1e-6)
    command.done("render", "again", "--views", 2, "--trajectory", "static")
    assert len(diorama.open("rendering").views) == 2


def test_what_it_refuses(command: Command, photo) -> None:
    photo()
    assert "reconstruct needs photos" in command.refused("reconstruct", "--model", "never-reached")
    assert "2 photos without cameras" in command.refused("reconstruct", "photo.png", "photo.png")
    assert "--views 0" in command.refused("reconstruct", "photo.png", "--views", 0)
    assert "neither an embedded model" in command.refused("reconstruct", "photo.png", "--model", "gone")
    Path("taken").touch()
    assert "taken: exists already" in command.refused("reconstruct", "photo.png", "--out", "taken")
