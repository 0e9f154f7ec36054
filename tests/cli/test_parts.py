"""The scale, which a model other than Gen3R takes where it was trained with it."""

from pathlib import Path

import pytest
from tests.miniature import dit3d, pipeline

import diorama

from .conftest import Command


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline whose denoiser may be told the scale."""
    model = pipeline()
    model.register_modules(denoiser=dit3d(1, scale=True))
    folder = tmp_path_factory.mktemp("scaled") / "model"
    model.save_pretrained(folder)
    return folder


def test_generate_tells_the_scale_to_a_model_that_knows_it(command: Command, scaled: Path) -> None:
    for out, flags in (("told", ("--scale", 0.5)), ("untold", ())):
        code, _, error = command("generate", "--views", 2, "--steps", 2, *flags, "--model", scaled, "--out", out)
        assert code == 0, error
    told, untold = (diorama.open(out) for out in ("told", "untold"))
    assert isinstance(told, diorama.Scene) and isinstance(untold, diorama.Scene)
    assert told.provenance.settings["scale"] == 0.5 and "scale" not in untold.provenance.settings
    assert (told.latents - untold.latents).abs().max() > 1e-3  # type: ignore[operator]


def test_reconstruct_and_models_without_a_scale_refuse_it(command: Command, scaled: Path, photo) -> None:
    said = command.refused("reconstruct", photo(), "--scale", 2.0, "--model", scaled)
    assert said.startswith("--scale 2.0: only Gen3R takes this here")
    assert command.refused("generate", "--scale", 2.0, "--model", command.model).endswith("leave --scale out")
    assert "--scale 0.0: accepted is more than 0" in command.refused("generate", "--scale", 0.0, "--model", scaled)
