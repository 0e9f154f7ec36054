"""--compile and --dtype: another way to compute the same."""

import jaxtyping
import pytest
import torch

import diorama
from diorama.pipelines import compiled

from .conftest import Command


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are captured whole, as for any compiler, and run as they are; nothing is kept on the disk."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setenv(compiled.ARTEFACTS, "artefacts")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which only tests switch on, and nothing compiles
    torch._dynamo.reset()


@pytest.mark.timeout(600)
def test_compiled_scenes_are_the_same_and_the_wait_is_said(command: Command, photo) -> None:
    name, model = photo(), ("--model", command.model)
    how = ("--views", 2, "--steps", 2, *model)
    said = command.done("generate", name, *how, "--compile", "--out", "fast")
    assert "of these compiling" in said and "of these" not in command.done("generate", name, *how, "--out", "plain")
    fast, plain = (diorama.open(folder) for folder in ("fast", "plain"))
    torch.testing.assert_close(fast.latents, plain.latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fast.views.images, plain.views.images, atol=2 / 255, rtol=0)
    assert "of these compiling" in command.done("render", "fast", "--views", 2, *model, "--compile")


def test_half_precision_for_models_of_tokens(command: Command, photo) -> None:
    how = (photo(), "--views", 2, "--steps", 2, "--model", command.model)
    command.done("generate", *how, "--out", "whole")
    command.done("generate", *how, "--dtype", "bf16", "--out", "half")
    whole, half = (diorama.open(folder).latents for folder in ("whole", "half"))
    assert 0 < (whole - half).abs().max() < 0.3 * whole.std()
