"""The ablations' own arithmetic, and all of their arms for two steps each."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diorama.data.cache import write_cache
from diorama.data.worlds import SPLITS

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ablations():
    """The script, found beside its own modules as when it is run."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("ablations")
    finally:
        sys.path[:] = before


@pytest.mark.parametrize(
    ("expected", "interval", "finding"),
    [
        ("higher", (0.1, 0.3), "holds"),
        ("higher", (-0.1, 0.3), "undecided"),
        ("higher", (-0.3, -0.1), "does not hold"),
        ("lower", (-0.3, -0.1), "holds"),
        ("lower", (0.1, 0.3), "does not hold"),
        ("not lower", (-0.3, 0.1), "holds"),
        ("not lower", (-0.3, -0.1), "does not hold"),
        ("within 1", (0.5, 0.9), "holds"),
        ("within 1", (1.1, 1.5), "does not hold"),
    ],
)
def test_a_finding_is_what_its_interval_says(ablations, expected, interval, finding):
    middle = sum(interval) / 2
    assert ablations.Verdict("claim", "number", 1.0, 2.0, middle, *interval, expected).finding == finding


def test_shapes_keep_to_their_ranges_and_to_their_step(ablations):
    arms = importlib.import_module("ablation.arms")
    shapes = [arms.shape_of(step, 0) for step in range(300)]
    assert shapes == [arms.shape_of(step, 0) for step in range(300)] and len(set(shapes)) > 20
    for height, width in shapes:
        assert height % 8 == width % 8 == 0 and 1600 * 0.8 <= height * width <= 4096 * 1.25
        assert 0.7 * 0.8 <= width / height <= 1.43 * 1.25
    wide = sum(width > height for height, width in shapes)
    assert 75 < wide < 225  # neither side is preferred


def test_arms_come_after_what_they_need(ablations):
    chosen = ablations.needed({"pretrained"})
    assert list(chosen) == ["base", "dit3d", "images", "pretrained"]
    running: dict = {}
    order = []
    for name in ablations.ordered(chosen, running.clear, running):
        assert not set(chosen[name].needs) & set(running.values())
        running[name] = name
        order.append(name)
    assert order == list(chosen)
    with pytest.raises(ValueError, match="--only nothing: accepted are tokens"):
        ablations.Options(only=("nothing",))


@pytest.mark.timeout(300)  # twelve short runs
def test_every_arm_trains_and_every_claim_is_compared(ablations, monkeypatch, tmp_path):
    arms, claims = (importlib.import_module(f"ablation.{name}") for name in ("arms", "claims"))
    small = {
        "rae3d": dict(dim=32, neck_layers=1, decoder_layers=1),
        "dit3d": dict(dim=32, layers=1, heads=2, head_dim=32, head_layers=1, head_heads=2),
    }
    for name, arm in list(arms.ARMS.items()):
        monkeypatch.setitem(arms.ARMS, name, replace(arm, size=arm.size | small[arm.stage]))
    monkeypatch.setitem(arms.RAE3D_RUN, "batch", 2)
    monkeypatch.setitem(arms.DIT3D_RUN, "batch", 2)
    monkeypatch.setattr(claims, "STEPS", 2)
    caches = {
        name: write_cache(tmp_path / name, SPLITS[split][:2], views=views, height=64, width=64, samples=1)
        for name, split, views in (
            ("train", "train", 12), ("validation", "validation", 12), ("test", "test", 12), ("long", "test", 144),
        )
    }  # fmt: skip
    budget = arms.Budget(1e-9, "cpu", warm=0, timed=1)
    for name in ablations.needed({arm for claim in claims.CLAIMS.values() for arm in claim.arms}):
        steps, seconds = arms.trained(name, tmp_path, caches["train"], caches["validation"], budget)
        assert steps == 1 and seconds > 0
    assert arms.trained("base", tmp_path, caches["train"], caches["validation"], budget)[0] == 1  # trained already
    assert json.loads((tmp_path / "mutual" / "plan.json").read_text())["steps"] == 1
    torch.manual_seed(0)
    evaluated = claims.Evaluated(tmp_path, caches["test"], caches["long"], "cpu")
    verdicts = [verdict for claim in claims.CLAIMS.values() for verdict in claim.compared(evaluated)]
    assert len(verdicts) == 14
    for verdict in verdicts:
        assert verdict.low <= verdict.difference <= verdict.high
        assert verdict.difference == pytest.approx(verdict.first - verdict.second, rel=1e-3, abs=1e-4)
    assert sum(name.startswith("one_way over mutual") and x > 0 for name, x in evaluated.numbers.items()) == 2
