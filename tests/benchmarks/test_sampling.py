"""The benchmark of faster sampling in small: every row runs, and says what it says of itself."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diorama.pipelines.sampling import TOKEN_SPEEDS

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def sampling():
    """The script, found beside its own modules as when it is run."""
    before, threads = list(sys.path), torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("sampling")
    finally:
        sys.path[:] = before
        torch.set_num_threads(threads)


@pytest.mark.timeout(600)
def test_every_row_is_timed_counted_and_compared(sampling, tmp_path, capsys):
    options = sampling.smaller(
        sampling.Options(smoke=True, out=tmp_path / "out.json", schedules=tmp_path / "when.json", cache=tmp_path)
    )
    with pytest.raises(ValueError, match="'python benchmarks/sampling.py --schedule' writes it$"):
        sampling.main(options)
    sampling.main(replace(options, schedule=True))
    times = json.loads((tmp_path / "when.json").read_text())["times"]
    assert [len(times[str(count)]) for count in (2, 3, 4)] == [1, 2, 3]
    sampling.main(options)
    report = json.loads((tmp_path / "out.json").read_text())
    rows = report["rows"]
    assert {"quality", "balanced", "fast", "no guidance", "UniPC in 8 steps"} <= rows.keys()
    assert report["machine"]["cores"] and report["settings"]["smoke"]
    plain = rows["quality"]
    assert (plain["evaluations"], plain["backbone"]) == (8, 8)  # four guided steps
    assert plain["psnr_change"]["mean"] == 0 and plain["fd_worlds64_change"]["value"] == 0
    assert rows["no guidance"]["evaluations"] == 4
    assert rows["half of the steps"]["evaluations"] == 4
    shared = rows["backbone at half of the steps"]
    assert (shared["evaluations"], shared["backbone"]) == (8, 4) and shared["gigaflops"] < plain["gigaflops"]
    assert all(row["wall_times_faster"] > 0 and row["process_seconds"] > 0 for row in rows.values())
    assert "balanced" in capsys.readouterr().out


def test_the_preset_asks_the_backbone_when_the_measured_schedule_says():
    found = json.loads((FOLDER / "results" / "sharing.json").read_text())
    assert found["settings"]["model"] == "tiny" and found["settings"]["split"] == "validation"
    assert list(TOKEN_SPEEDS["fast"]["backbone"]) == found["times"]["4"]


def test_rows_that_are_none_are_refused(sampling, tmp_path):
    options = sampling.smaller(sampling.Options(smoke=True, only=("best",), out=tmp_path / "out.json"))
    with pytest.raises(ValueError, match="^--only best: accepted are quality, half of the steps"):
        sampling.main(options)
