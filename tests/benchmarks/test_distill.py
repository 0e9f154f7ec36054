"""The comparison of a student with its teacher, on models for which the answers are known."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from tests import miniature

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """The script, found beside its own modules as when it is run."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("distill")
    finally:
        sys.path[:] = before


def test_a_student_that_is_its_teacher_in_few_steps_scores_as_that_does(benchmark, tmp_path: Path, capsys) -> None:
    miniature.pipeline(steps=6, guidance=1.0).save_pretrained(tmp_path / "teacher")
    miniature.pipeline(steps=2, guidance=1.0).save_pretrained(tmp_path / "student")
    options = benchmark.Options(
        str(tmp_path / "student"), teacher=str(tmp_path / "teacher"), scenes=3, batch=2, draws=4, minimum=2,
        cache=tmp_path / "cache", device="cpu", out=tmp_path / "distill.json",
    )  # fmt: skip
    numbers = benchmark.main(options)
    for what in ("fd_worlds64", "psnr", "psnr to the teacher", "distance of latents", "above the teacher"):
        assert numbers[f"student: {what}"] == pytest.approx(numbers[f"teacher in few steps: {what}"], abs=1e-4)
    assert numbers["student: distance of latents"] > 1e-3 and numbers["teacher: distance of latents"] == 0
    assert numbers["teacher: psnr to the teacher"] > 50 > numbers["student: psnr to the teacher"]
    base = numbers["teacher: fd_worlds64"]
    assert numbers["student: above the teacher"] == pytest.approx(numbers["student: fd_worlds64"] / base - 1, abs=1e-4)
    low, high = (numbers[f"student: above the teacher, {end}"] for end in ("low", "high"))
    assert low <= high and numbers["student: times faster to latents"] > 0
    written = json.loads((tmp_path / "distill.json").read_text())
    assert written["numbers"] == numbers and written["arms"]["student"] == "2 steps, guidance 1"
    assert str(tmp_path) not in json.dumps(written["settings"]["student"])
    printed = capsys.readouterr().out
    assert "within 5%" in " ".join(printed.split())


def test_the_interval_is_that_of_paired_draws(benchmark) -> None:
    one = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    assert benchmark.interval(one, one, one + 1, 8) == (0, 0)  # the same scenes are drawn for both
    low, high = benchmark.interval(one, 2 * one, one + 1, 8)
    assert low < 0 < high
