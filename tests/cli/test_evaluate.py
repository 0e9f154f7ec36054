"""`diorama evaluate`: from a command line to tables, and each thing it refuses in one line."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import published_vggt

import diorama
from diorama.evaluation import protocols
from diorama.evaluation.protocols import Setting, Size
from diorama.geometry.cameras import Cameras
from diorama.scene import Condition, Scene, Views

from .conftest import Command

EXAMPLE = Path(__file__).parents[2] / "examples/evaluate_outside_method.py"


@pytest.fixture
def captures(command: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two saved scenes of three views, and a benchmark that asks about them."""
    small = replace(
        protocols.PROTOCOLS["3drae"],
        settings=(Setting("1 known", (0,)), Setting("2 known", (0, 2))),
        views=3,
        size=Size(32, 32),
        steps=2,
    )
    monkeypatch.setitem(protocols.PROTOCOLS, "3drae", small)
    for seed in range(2):
        poses = torch.eye(4).repeat(3, 1, 1)
        poses[:, 0, 3] = torch.arange(3) / 2
        images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        diorama.save(Scene(Views(images, Cameras.from_fov(60.0, 32, 32, poses)), Condition()), f"data/{seed}")
    return Path("data")


def test_a_model_is_scored_and_a_second_time_nothing_is_left_to_do(command: Command, captures: Path) -> None:
    flags = ("evaluate", command.model, "3drae", "--data", captures, "--out", "scores", "--device", "cpu")
    first = command(*flags)
    assert first.code == 0, first.err
    assert "psnr" in first.out and "2 known" in first.out and "failures" not in first.out
    about = json.loads(Path("scores/run.json").read_text())
    assert about["method"]["settings"]["steps"] == 2  # the benchmark's, not the model's
    assert about["benchmark"]["scenes"] == 2
    lines = Path("scores/scenes.jsonl").read_text()
    assert len(lines.splitlines()) == 4
    assert command(*flags).code == 0
    assert Path("scores/scenes.jsonl").read_text() == lines


def test_another_program_is_scored(command: Command, captures: Path) -> None:
    method = f"{sys.executable} {EXAMPLE} {{folder}}"
    flags = ("--data", captures, "--out", "theirs", "--name", "theirs", "--licence", "MIT", "--scenes", 1)
    result = command("evaluate", method, "3drae", *flags)
    assert result.code == 0, result.err
    assert "theirs on 3drae, 1 scenes" in result.out
    assert json.loads(Path("theirs/run.json").read_text())["method"]["licence"] == "MIT"


def test_what_it_refuses(command: Command, captures: Path) -> None:
    def refused(*words: str | Path | int) -> str:
        return command.refused("evaluate", *words)

    out = ("--out", "scores")
    assert "accepted are tiny" in refused("nerf", "worlds", *out)
    assert "accepted are worlds, worlds-clips, 3drae" in refused("nearest", "imagenet", *out)
    assert "needs --data FOLDER" in refused("nearest", "3drae", *out)
    assert "no such folder" in refused("nearest", "3drae", "--data", "nowhere", *out)
    assert "renders its own scenes" in refused("nearest", "worlds", "--data", captures, *out)
    assert "takes no such file" in refused("nearest", "3drae", "--data", captures, "--split", "index.json", *out)
    assert "something else" in refused("nearest", "3drae", "--data", captures, "--out", captures)
    assert "--scenes 0: accepted is 1 or more" in refused("nearest", "worlds", "--scenes", 0, *out)
    assert "--guidance -1.0: accepted is 0" in refused(
        command.model, "3drae", "--data", captures, "--guidance", -1, *out
    )
    assert "no such program" in refused("no-such-program {folder}", "3drae", "--data", captures, *out)
    assert "needs the true depth" in refused("depth-warp", "3drae", "--data", captures, *out)
    assert "samples nothing" in refused("mean", "3drae", "--data", captures, "--steps", 3, *out)
    assert "only another program" in refused("mean", "3drae", "--data", captures, "--name", "x", *out)
    assert "--features fid: accepted are worlds64" in refused(
        "mean", "3drae", "--data", captures, "--features", "fid", *out
    )
    assert command("evaluate", "nearest", "3drae", "--data", captures, *out).code == 0
    assert "another method name" in refused("mean", "3drae", "--data", captures, *out)


def test_poses_are_estimated_by_a_vggt_in_a_folder(command: Command, captures: Path) -> None:
    folder = published_vggt.write(Path("VGGT-1B"))
    flags = ("evaluate", "mean", "3drae", "--data", captures, "--out", "posed", "--scenes", 1)
    result = command(*flags, "--poses", f"vggt:{folder}")
    assert result.code == 0, result.err
    assert "auc_30" in result.out and "auc_30_true_frames" in result.out
    about = json.loads(Path("posed/run.json").read_text())
    assert about["benchmark"]["protocol"]["measures"]["poses"].startswith("vggt ")
    rows = {row["metric"]: row for row in json.loads(Path("posed/summary.json").read_text())["rows"]}
    assert rows["ate_r"]["mean"] is not None and rows["ate_r_true_frames"]["failures"] == 0
    out = ("--data", captures, "--out", "none")
    assert "nowhere: holds no VGGT" in command.refused("evaluate", "mean", "3drae", *out, "--poses", "vggt:nowhere")
    assert "--poses slam: accepted are colmap" in command.refused("evaluate", "mean", "3drae", *out, "--poses", "slam")


def test_vggt_itself_is_scored_where_cameras_are_predicted(
    command: Command, captures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (Setting("all, no cameras", None, cameras=False),)
    small = replace(protocols.PROTOCOLS["gen3r"], settings=settings, views=3, size=Size(32, 32))
    monkeypatch.setitem(protocols.PROTOCOLS, "gen3r", small)
    folder = published_vggt.write(Path("VGGT-1B"))
    result = command("evaluate", folder, "gen3r", "--data", captures, "--out", "scores", "--device", "cpu")
    assert result.code == 0, result.err
    rows = {row["metric"]: row for row in json.loads(Path("scores/summary.json").read_text())["rows"]}
    assert rows["auc_30"]["scenes"] == 2 and rows["auc_30"]["failures"] == 0 and rows["psnr"]["mean"] > 10


def test_colmap_needs_its_package(command: Command, captures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    said = command.refused("evaluate", "mean", "3drae", "--data", captures, "--out", "x", "--poses", "colmap")
    assert "'pycolmap' is not installed" in said
