"""The weights that come with the package: what a first user meets. These tests fail where `tiny` is missing."""

from pathlib import Path

import pytest
import torch

import diorama
from diorama.cli.main import main
from diorama.evaluation.metrics import psnr
from diorama.pipelines.base import embedded_models


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_tiny_is_embedded_and_says_what_it_is() -> None:
    assert "tiny" in embedded_models()
    config = diorama.load("tiny", "cpu").config
    assert (config.title, config.licence) == ("tiny", "Apache-2.0")  # `diorama render` finds the model by its title


def test_the_demo_shows_the_photo_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    made = diorama.open("demo")
    assert isinstance(made, diorama.Scene)
    assert made.condition.views is not None
    height, width = made.views.images.shape[-2:]
    photo = made.condition.views.resized(height, width)
    plain = photo.images.mean((-1, -2), keepdim=True).expand_as(photo.images)
    assert psnr(made.views.images[:1], photo.images).item() > psnr(plain, photo.images).item() + 2
    assert made.views.depth is not None
    assert 0.05 < made.views.depth.median() < 20
    # Without --model, the scene's own.
    assert main(["render", "demo", "--trajectory", "static", "--views", "1"]) == 0
    again = diorama.open("rendering")
    assert isinstance(again, diorama.Scene)
    assert torch.allclose(again.views.images[0], made.views.images[0], atol=1.5 / 255)


def test_verbs_use_it_unasked() -> None:
    assert main(["generate", "--views", "2", "--steps", "2", "--out", "free"]) == 0
    assert main(["reconstruct", "free/images/00000.png", "--views", "2"]) == 0
    assert {path.name for path in Path().iterdir()} == {"free", "reconstruction"}
