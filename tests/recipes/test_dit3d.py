"""The recipe of the paper's denoisers: every line of it is a command, and in small all of them run."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import diorama
from diorama.cli.requests import CONFIG
from diorama.data.sampling import MIXTURE, shares
from diorama.models.dit3d import SIZES
from diorama.training.dit3d import Config

FILE = Path(__file__).parents[2] / "recipes" / "dit3d.sh"
ROWS = {  # encoder and tokens of the autoencoder, size of the denoiser (paper, tables 2 to 4)
    "table2-imgonly": ("patches-1024", "XL"),
    "table2-da3": ("da3-1024", "XL"),
    "table2-siglip2": ("siglip2-1024", "XL"),
    "table2-dinov2": ("dinov2-1024", "XL"),
    "table3-xl-256": ("dinov2-256", "XL"),
    "table3-xl-512": ("dinov2-512", "XL"),
    "table3-s-1024": ("dinov2-1024", "S"),
    "table3-b-1024": ("dinov2-1024", "B"),
    "table3-xl-1024": ("dinov2-1024", "XL"),
    "table4-without": ("dinov2-1024", "XL"),
    "table4-with": ("dinov2-1024", "XL"),
}


def recipe(*words: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "OMP_NUM_THREADS": "1", "RUNS": "runs", "DATA": "data", "DEVICES": "8"}
    return subprocess.run(
        [str(FILE), *words],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=check,
        timeout=900,
    )


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_papers_tables_is_lines_that_the_command_takes(row: str, tmp_path: Path) -> None:
    autoencoder, size = ROWS[row]
    lines = [shlex.split(line) for line in recipe(row, "--show", cwd=tmp_path).stdout.splitlines()]
    assert all(line[:3] == ["diorama", "train", "dit3d"] for line in lines)
    *first, last = (tyro.cli(Config, args=line[3:], config=CONFIG) for line in lines)
    assert len(first) == (row != "table4-without")
    for config in (*first, last):
        assert config.autoencoder == Path(f"runs/rae3d-{autoencoder}/model") and config.size == size in SIZES
        assert config.online and config.dynamic and (config.steps, config.learning_rate) == (80_000, 2e-4)
        assert (config.ema, config.warmup, config.blind_probability, config.hidden) == (0.9995, 8000, 0.1, (0.6, 0.9))
    assert last.window == 192 and not last.single_images and shares(last.weights, len(last.data))
    assert set(last.weights) == {part.name for part in MIXTURE} - {"ImageNet"}
    for config in first:
        assert config.single_images and config.label_dropout == 0.1 and config.data == Path("data/imagenet")
        assert last.start == config.out / "model" and last.statistics == "start"
    if not first:
        assert last.start is None and last.statistics == "own"


def test_another_row_is_refused_with_those_there_are(tmp_path: Path) -> None:
    made = recipe("table5", cwd=tmp_path, check=False)
    assert made.returncode == 2 and all(row in made.stderr for row in ROWS)


@pytest.mark.timeout(1000)
def test_the_same_lines_run_in_small(tmp_path: Path) -> None:
    made = recipe("table2-dinov2", "--smoke", cwd=tmp_path, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    pipeline = diorama.load(tmp_path / "runs/smoke/dit3d-dinov2-1024-XL-first-yes/model", "cpu")
    assert pipeline.config.title == "3DDiT-XL-1024 (dinov2)"
    assert pipeline.denoiser.config.classes == 0
    assert (tmp_path / "runs/smoke/images-dinov2-1024-XL/model/classes.json").is_file()
