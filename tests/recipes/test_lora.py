"""The recipe of fine-tuning: its lines are commands, and in small all of them run."""

import shlex
import subprocess
from pathlib import Path

import pytest
import torch

import diorama
from diorama.cli import main as cli
from diorama.data.cache import WorldsCache, write_cache
from diorama.export.nerfstudio import write_nerfstudio

FILE = Path(__file__).parents[2] / "recipes" / "lora.sh"


def recipe(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(FILE), *words], capture_output=True, text=True, timeout=100)


def lines(*words: str) -> list[list[str]]:
    return [shlex.split(line) for line in recipe(*words, "--show").stdout.splitlines()]


@pytest.mark.timeout(1000)
def test_in_small_all_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = WorldsCache(write_cache(tmp_path / "worlds", [3], views=6, height=64, width=64, samples=1))
    (views,) = seen.batch(torch.tensor([0]), torch.arange(6)[None]).apart()
    write_nerfstudio(views, "mine")
    whole, small = lines("mine"), lines("mine", "--smoke")
    for line, short in zip(whole, small, strict=True):  # the same commands, with more flags
        assert short[: len(line)] == line
    for program, *words in small:
        assert program == "diorama" and cli.main(words) == 0, words
    pipeline = diorama.load("runs/lora/run/model", "cpu")
    assert pipeline.config.title == "tiny + LoRA" and pipeline.memory is not None
    assert (tmp_path / "runs/lora/run/adapter/adapter_model.safetensors").is_file()
    scene = diorama.open("runs/lora/scene")
    assert isinstance(scene, diorama.Scene) and scene.views.images.isfinite().all()


def test_words_are_the_capture_the_model_and_the_folder() -> None:
    check, train, generate = lines("mine", "other", "out")
    assert check == ["diorama", "data", "check", "mine"]
    assert " ".join(train) == "diorama train lora --model other --data mine --out out/run"
    assert " ".join(generate) == "diorama generate mine --model out/run/model --out out/scene"
    refused = recipe()
    assert refused.returncode == 2 and "CAPTURE is missing" in refused.stderr
