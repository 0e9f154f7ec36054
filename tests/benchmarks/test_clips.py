"""The benchmark of both embedded models, in miniature."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests import published_gen3r

from diorama.evaluation.protocols import WORLDS_CLIPS, Size

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def clips():
    """The script, found beside its own modules as when it is run."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("clips")
    finally:
        sys.path[:] = before


def test_each_way_is_scored_on_the_same_worlds(
    clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline_folder: Path
) -> None:
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "home"))
    small = replace(WORLDS_CLIPS, views=2, path=None, size=Size(32, 32))
    monkeypatch.setattr(clips, "WORLDS_CLIPS", small)
    model = published_gen3r.write(tmp_path / "gen3r")
    places = dict(out=tmp_path / "clips.json", runs=tmp_path / "runs", cache=tmp_path / "cache")
    options = clips.Options(str(model), str(tiny_pipeline_folder), scenes=2, steps=1, guidance=1.0, **places)
    clips.main(options)
    found = json.loads(places["out"].read_text())
    means = found["means"]
    assert set(means["first"]) == {"nearest", tiny_pipeline_folder.name, "gen3r", "gen3r-two-stage"}
    assert set(means["all, no cameras"]) == {"gen3r", "gen3r-vae", "gen3r-vggt"}
    assert not any(row["failures"] for rows in means.values() for row in rows.values())
    first, whole = means["first"], means["all, no cameras"]
    assert first["gen3r"]["psnr"] == first["gen3r-two-stage"]["psnr"]  # its pictures are the same
    assert first["gen3r"]["chamfer"] != first["gen3r-two-stage"]["chamfer"]
    assert whole["gen3r-vggt"]["psnr"]["mean"] > whole["gen3r-vae"]["psnr"]["mean"] + 5  # it shows the photos
    gaps = {(row["setting"], row["metric"], row["first"], row["second"]): row for row in found["differences"]}
    gap = gaps["first", "psnr", "gen3r", "nearest"]
    assert gap["mean"] == pytest.approx(first["gen3r"]["psnr"]["mean"] - first["nearest"]["psnr"]["mean"], abs=2e-4)
    assert gap["low"] <= gap["mean"] <= gap["high"] and gap["scenes"] == 2
    assert found["numbers"]["first: nearest, psnr"] == first["nearest"]["psnr"]["mean"]

    def never(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(clips.Generation, "generate", never)  # a second run finds everything
    clips.main(options)
    again = json.loads(places["out"].read_text())
    assert again["means"] == means
    with pytest.raises(ValueError, match=r"--scenes 1: accepted are 2 to"):
        replace(options, scenes=1)
