"""`diorama train`: stages, their flags, resuming, and what is refused before anything is trained."""

import subprocess
import sys
from pathlib import Path

import pytest

import diorama
from diorama.cli.train import STAGES
from diorama.data.cache import write_cache
from diorama.training.trainer import Trainer

from .conftest import Command, interrupted

RAE = ("--size", "tiny", "--known-views", 1, "--target-views", 1, "--precision", "32-true")
OFTEN = ("--batch", 1, "--steps", 2, "--save-every", 1, "--validate-every", 2, "--log-every", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    folder = write_cache(tmp_path_factory.mktemp("worlds") / "cache", [0, 1], views=6, height=16, width=16, samples=1)
    return ("--data", folder, "--validation", folder)


def test_both_stages_and_what_they_leave(command: Command, worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = Trainer.train_step

    def once(self: Trainer) -> dict[str, float]:
        if self.step:
            raise KeyboardInterrupt
        return train_step(self)

    words = ("train", "rae3d", "--out", "run", *worlds, *RAE, *OFTEN)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", once)
        result = command(*words)
    assert (result.code, result.err) == (130, "diorama: interrupted\n")
    assert "stopped after step 1; the same command continues" in result.out
    message = command.refused(*words, "--learning-rate", 1)
    assert "learning_rate was 0.0002, is 1.0" in message
    result = command(*words)
    assert result.code == 0, result.err
    assert "run: continues after step 1 of 2" in result.out
    assert "run: 2 steps done, the model is in run/model" in result.out
    words = ("--autoencoder", "run/model", "--size", "tiny", "--encoder-views", 2, "--visible", 1, "--title", "mine")
    result = command("train", "dit3d", "--out", "run2", *worlds, *words, *OFTEN, "--precision", "32-true")
    assert result.code == 0, result.err
    assert diorama.load("run2/model", "cpu").config.title == "mine"
    assert command("generate", "--model", "run2/model", "--steps", 1, "--views", 2, "--device", "cpu").code == 0


PROGRAM = "import sys; from diorama.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.timeout(400)  # two processes, each of which imports everything
def test_an_interruption_ends_both_processes_in_one_line(worlds, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    words = ("train", "rae3d", "--out", tmp_path / "run", *worlds, *RAE, *OFTEN, "--steps", 10**6, "--log-every", 10**6)
    words = (sys.executable, script, *words, "--batch", 2, "--devices", 2, "--validate-every", 10**6)
    result = interrupted(words, tmp_path, "run/checkpoint.pt", patience=300)
    assert (result.code, result.err) == (130, "diorama: interrupted\n")
    assert result.out.count("stopped after step") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "huge"), "--size huge: accepted are tiny,"),
        (("--steps", 0), "--steps 0: accepted is 1 or more"),
        (("--batch", 0), "--batch 0: accepted is 1 or more"),
        (("--accumulate", 0), "--accumulate 0: accepted is 1 or more"),
        (("--batch", 3, "--devices", 2), "a batch of 3 over 2 devices: accepted is a multiple of 2"),
        (("--batch", 2, "--nodes", 2), "--nodes 2: nothing joins them; accepted is this command under torchrun"),
        (("--strategy", "fsdp", "--muon-rate", 1), "--strategy fsdp with Muon, which needs whole matrices"),
        (("--device", "abacus"), "device 'abacus': accepted here are"),
        (("--data", "gone"), "gone: no such file or folder"),
        (("--out", "mine"), "mine: a folder of something else"),
        (("--out", "mine/notes.txt"), "mine/notes.txt: a file"),
    ],
)
def test_what_it_refuses(command: Command, worlds, arguments, message) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    assert message in command.refused("train", "rae3d", "--out", "run", *worlds, *RAE, *OFTEN, *arguments)


def test_a_denoiser_needs_an_autoencoder(command: Command, worlds) -> None:
    words = ("train", "dit3d", "--out", "run", *worlds, *OFTEN, "--autoencoder")
    assert "config.json: missing" in command.refused(*words, "gone")
    other = command.model / "denoiser"
    assert "RAE3D" in command.refused(*words, other)


def test_stages(command: Command) -> None:
    for words in (("train",), ("train", "--help")):
        result = command(*words)
        assert result.code == 0
        assert all(f"  {name} " in result.out for name in STAGES)
    assert command.refused("train", "dit") == "unknown stage 'dit': did you mean 'dit3d'?"


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_of_the_config_is_a_flag(stage: str) -> None:
    from dataclasses import fields
    from importlib import import_module

    words = [sys.executable, "-c", PROGRAM, "train", stage, "--help"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    for field in fields(import_module(f"diorama.training.{stage}").Config):
        assert f"--{field.name.replace('_', '-')} " in result.stdout
