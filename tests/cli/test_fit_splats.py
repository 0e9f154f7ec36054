"""`diorama fit-splats`, with a rasteriser that stands in for gsplat's and a CPU for the GPU."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh
from tests.gaussians import gsplat  # noqa: F401 - a fixture

import diorama
from diorama.cli import fit_splats

from .conftest import Command


@pytest.fixture
def ready(gsplat, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A machine with gsplat, whose GPU is the CPU."""
    monkeypatch.setattr(fit_splats, "_device", lambda: "cpu")


def test_without_gsplat_or_a_gpu_it_says_what_is_missing(command: Command, scene: Path, monkeypatch) -> None:
    monkeypatch.setattr(fit_splats, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = command.refused("fit-splats", scene, "a.ply")
    assert said.startswith("fit-splats lacks the package gsplat (the extra 'splats') and a CUDA GPU here; 'diorama exp")
    monkeypatch.setattr(fit_splats, "find_spec", lambda name: object())
    assert command.refused("fit-splats", scene, "a.ply").startswith("fit-splats lacks a CUDA GPU here;")


@pytest.mark.usefixtures("ready")
def test_views_that_the_model_decodes(command: Command, scene: Path) -> None:
    out = command.done("fit-splats", scene, "fitted.ply", "--views", 5, "--steps", 3, "--voxel", 0.3, "--hold", 4)
    count = len(trimesh.load("fitted.ply").vertices)
    lines = out.splitlines()
    assert re.fullmatch(
        rf"fitted.ply: {count} Gaussians fitted to views of 32x32 pixels decoded by .*miniature", lines[0]
    )
    assert re.fullmatch(r"  PSNR of 1 views held out: [\d.]+ dB before, [\d.]+ dB after", lines[1])
    assert b"comment unit scene unit" in Path("fitted.ply").read_bytes()[:500]
    assert not list(Path().glob(".*part"))


@pytest.mark.usefixtures("ready")
def test_the_scenes_own_views(command: Command, scene: Path) -> None:
    result = command("fit-splats", scene, "--views", 0, "--steps", 2, "--voxel", 0.3, "--hold", 0)
    assert result.code == 0, result.err
    assert "of 32x32 pixels of the scene\n  PSNR of 3 views fitted to:" in result.out
    assert "splats.ply: exists already" in command.refused("fit-splats", scene)
    assert command("fit-splats", scene, "--overwrite", "--steps", 1, "--voxel", 0.3).code == 0


@pytest.mark.usefixtures("ready")
def test_what_it_refuses(command: Command, photo, scene: Path) -> None:
    assert "--steps 0" in command.refused("fit-splats", scene, "a.ply", "--steps", 0)
    assert "--hold 1" in command.refused("fit-splats", scene, "a.ply", "--hold", 1)
    assert "--drop 100" in command.refused("fit-splats", scene, "a.ply", "--drop", 100)
    assert "OUT a.spz: accepted is a file that ends in .ply" in command.refused("fit-splats", scene, "a.spz")
    assert "made: degree 7" in command.refused("fit-splats", scene, "a.ply", "--degree", 7)
    wrong = command.refused("fit-splats", scene, "a.ply", "--views", 2, "--model", command.model)
    assert wrong == "--views 2: accepted is 0, or 3 (the scene's own) or more"
    assert "photo.png: no saved scene" in command.refused("fit-splats", photo())
    made = diorama.open(scene)
    diorama.save(replace(made, views=replace(made.views, points=None, confidence=None)), "flat")
    assert "flat: the scene has no points" in command.refused("fit-splats", "flat", "a.ply")
    diorama.save(replace(made, latents=None), "still")
    assert "still: a scene without latents" in command.refused("fit-splats", "still", "a.ply", "--model", command.model)
