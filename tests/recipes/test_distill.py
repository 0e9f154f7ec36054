"""The recipe of models of few steps: every line of it is a command, and in small they run."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import tyro

from diorama.cli import main as cli
from diorama.cli.requests import CONFIG
from diorama.data.sampling import shares
from diorama.pipelines.base import load
from diorama.training.distill import Config

FILE = Path(__file__).parents[2] / "recipes" / "distill.sh"
ROWS = ("s-1024", "b-1024", "xl-256", "xl-512", "xl-1024")


def lines(*words: str, check: bool = True) -> subprocess.CompletedProcess:
    variables = {"RUNS": "runs", "DATA": "data", "DEVICES": "8"}
    return subprocess.run(
        [str(FILE), *words, "--show"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=check,
        timeout=100,
    )


@pytest.mark.parametrize("row", ROWS)
def test_the_papers_sizes_are_lines_that_the_command_takes(row: str) -> None:
    (line,) = (shlex.split(line) for line in lines(row).stdout.splitlines())
    assert line[:6] == ["torchrun", "--standalone", "--nproc-per-node", "8", "--no-python", "diorama"]
    assert line[6:8] == ["train", "distill"]
    config = tyro.cli(Config, args=line[8:], config=CONFIG)
    size, tokens = row.upper().split("-")
    assert config.model == f"runs/dit3d-dinov2-{tokens}-{size}-first-yes/model"  # what recipes/dit3d.sh leaves
    assert (config.sampling_steps, config.teacher_steps % 4, config.dynamic, config.guidance) == (4, 0, True, None)
    assert shares(config.weights, len(config.data)) and config.batch % 8 == 0


def test_another_row_is_refused_with_those_there_are() -> None:
    made = lines("m-1024", check=False)
    assert made.returncode == 2 and all(row in made.stderr for row in ("tiny", *ROWS))


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("row", ["tiny", "xl-1024"])
def test_the_same_lines_run_in_small(row: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in lines(row, "--smoke").stdout.splitlines():
        program, *words = shlex.split(line)
        assert program == "diorama" and cli.main(words) == 0, words
    pipeline = load(tmp_path / f"runs/smoke/distill-{row}/model", "cpu")
    assert (pipeline.config.steps, pipeline.config.guidance) == (4, 1.0)
    assert pipeline.config.title == {"tiny": "tiny-4step", "xl-1024": "3DDiT-XL-1024, 4 steps"}[row]
