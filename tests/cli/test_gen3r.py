"""Gen3R's published layout, in miniature, on the command line."""

import shutil
from pathlib import Path

import pytest
import torch
from tests import published_gen3r

import diorama

from .conftest import Command


@pytest.fixture(scope="module")
def gen3r_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_gen3r.write(tmp_path_factory.mktemp("published") / "gen3r")


@pytest.fixture
def gen3r(command: Command, gen3r_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "cache"))
    command.model = gen3r_folder
    return command


def test_a_photo_becomes_a_scene_that_is_saved_and_reconstructed(gen3r: Command, photo) -> None:
    flags = ("--size", 112, "--views", 5, "--steps", 2)
    said = gen3r.done("generate", photo(), "--trajectory", "truck:0.2", "--prompt", "a red room", *flags)
    made = diorama.open("scene")
    assert "non-commercial" in said and made.views.images.shape == (5, 3, 112, 112)
    assert (made.condition.prompt, made.provenance.settings["steps"]) == ("a red room", 2)
    assert made.provenance.settings["negative_prompt"] == "bad detailed" and made.latents.shape == (16, 2, 14, 28)
    assert (made.views.confidence > 0).any() and Path("scene/points.ply").stat().st_size > 10_000
    # A saved scene's images and transforms.json are a capture like any other.
    Path("capture").mkdir()
    shutil.copytree("scene/images", "capture/images")
    shutil.copy("scene/transforms.json", "capture")
    gen3r.done("generate", "capture", *flags[:2], "--views", 5, "--steps", 1, "--out", "all")
    again = diorama.open("all")
    assert again.condition.at == (0, 1, 2, 3, 4)
    assert torch.allclose(again.views.cameras.camera_to_world, made.views.cameras.camera_to_world, atol=1e-5)


def test_what_it_refuses(gen3r: Command, photo, gen3r_folder: Path) -> None:
    model = ("--model", gen3r_folder)
    assert "give at least one known view" in gen3r.refused("generate", *model)
    broken = shutil.copytree(gen3r_folder, Path("broken"))
    (broken / "geo_adapter/diffusion_pytorch_model.safetensors").unlink()
    assert "geo_adapter" in gen3r.refused("generate", photo(), "--model", broken)
