"""`diorama render`: a saved scene from other cameras."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import diorama

from .conftest import Command


def test_a_rendering_is_a_scene_that_can_be_rendered_again(command: Command, scene: Path) -> None:
    said = command.done("render", scene, "--trajectory", "dolly:0.3", "--views", 4)
    first, made = diorama.open(scene), diorama.open("rendering")
    assert "decoding" in said
    assert torch.equal(made.latents, first.latents)
    assert made.views.cameras.centers[:, 2].tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert made.provenance.settings["trajectory"] == "dolly:0.3"
    # The first camera of both is the same, and so is what is seen from it.
    assert torch.allclose(made.views.points[0], first.views.points[0], atol=1e-3)
    command.done("render", "rendering", "--trajectory", scene / "transforms.json", "--out", "back.mp4")
    assert Path("back.mp4").stat().st_size
    command.done("render", scene, "--views", 2, "--size", "30x60", "--out", "wide")
    assert diorama.open("wide").views.images.shape[-2:] == (24, 48)
    assert diorama.open("wide").views.cameras.fov[0].item() == pytest.approx(60, abs=1e-2)


def test_the_default_model_is_the_one_that_made_the_scene(command: Command, scene: Path) -> None:
    message = command.refused("render", scene, "--out", "other")
    assert message == "made: made by 'miniature', which is not embedded; give its folder by --model"


def test_what_it_refuses(command: Command, photo, scene: Path) -> None:
    model = ("--model", command.model)
    assert "photo.png: no saved scene" in command.refused("render", photo(), *model)
    assert "gone: no such file" in command.refused("render", "gone", *model)
    assert "--views 0" in command.refused("render", scene, "--views", 0, *model)
    assert "no trajectory is called 'fly'" in command.refused("render", scene, "--trajectory", "fly", *model)
    assert "--size 0" in command.refused("render", scene, "--size", "0", *model)
    assert "device 'abacus'" in command.refused("render", scene, "--device", "abacus", *model)
    assert "made: exists already" in command.refused("render", scene, "--out", "made", *model)
    made = diorama.open(scene)
    diorama.save(replace(made, latents=None, latent_frame=None), "plain")
    assert "without latents" in command.refused("render", "plain", *model)
    diorama.save(replace(made, latents=made.latents[:2]), "smaller")
    assert "scene latents of shape (2, 32)" in command.refused("render", "smaller", *model)
    document = json.loads((scene / "scene.json").read_text())
    document["cameras"]["camera_to_world"][0][0][3] = float("nan")
    (scene / "scene.json").write_text(json.dumps(document))
    assert "made/scene.json: camera_to_world 0 is no matrix" in command.refused("render", scene, *model)
