"""The recipe of tiny Gen3R: in small every line of it runs, in one process, and a pipeline comes out."""

import importlib.util
import os
import shlex
import subprocess
from pathlib import Path

import torch

from diorama.cli import main as cli
from diorama.pipelines.base import load
from diorama.scene import Condition, Shot, Views

FOLDER = Path(__file__).parents[2] / "recipes"


def lines(*words: str) -> list[list[str]]:
    made = subprocess.run(
        [str(FOLDER / "tiny_gen3r.sh"), *words, "--show"], capture_output=True, text=True, check=True, timeout=100
    )
    return [shlex.split(line) for line in made.stdout.splitlines()]


def test_in_small_all_lines_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(FOLDER))  # as where a script is run, its neighbours are found
    place = importlib.util.spec_from_file_location("tiny_gen3r_recipe", FOLDER / "tiny_gen3r.py")
    assert place and place.loader
    recipe = importlib.util.module_from_spec(place)
    place.loader.exec_module(recipe)
    whole, small = lines(str(tmp_path / "runs")), lines(str(tmp_path / "runs"), "--smoke")
    assert [line[:3] for line in whole] == [line[:3] for line in small]  # the same commands, with other flags
    for program, *words in small:
        if program == "diorama":
            assert cli.main(words) == 0, words
        else:
            assert program == "python" and words[0] == "recipes/tiny_gen3r.py"
            getattr(recipe, words[1])(*map(Path, words[2:]))
    folder = tmp_path / "runs/tiny-gen3r"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size < 25e6 and os.stat(folder / "transformer/diffusion_pytorch_model.safetensors").st_mode & 0o044
    pipeline = load(folder, "cpu", dtype=torch.float32)
    assert pipeline.config.title == "tiny-gen3r" and pipeline.config.negative_prompt == ""
    photo = Condition(Views(torch.rand(1, 3, 112, 112)), (0,), "a room")
    scene = pipeline.generate(photo, Shot(5, 112, 112), steps=1)
    assert scene.views.images.shape == (5, 3, 112, 112) and scene.views.points.isfinite().all()
