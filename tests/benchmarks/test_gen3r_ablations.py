"""Gen3R's ablations: cameras from point maps, scores of a known answer, and every arm for a step."""

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_vector
from diorama.geometry.similarity import Similarity
from diorama.geometry.trajectories import orbit
from diorama.scene import Views

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def found():
    """The script's own modules, found as when it is run."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path[:] = before


def module(name: str) -> Any:
    return importlib.import_module(name)


def room(views: int = 9, degrees: float = 70.0, side: int = 112) -> Any:
    """Views of an uneven bowl around a path that turns far, in the first camera's frame."""
    angle = torch.linspace(0, math.radians(degrees), views)
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, :3, :3] = matrix_from_vector(torch.stack([0.2 * angle, angle, 0 * angle], -1))
    poses[:, :3, 3] = torch.stack([angle.sin(), 0.1 * angle, 1 - angle.cos()], -1)
    cameras = Cameras.from_fov(65.0, side, side, poses)
    _, directions = cameras.rays()
    depth = 2 + 0.4 * torch.sin(5 * directions[..., 0]) + 0.3 * torch.cos(7 * directions[..., 1])
    return Views(torch.rand(views, 3, side, side), cameras, cameras.unproject(depth), torch.ones(views, side, side))


def test_cameras_are_found_from_points_alone():
    poses, pointmaps = module("diorama.evaluation.poses"), module("ablation.pointmaps")
    views = room()
    made = pointmaps.cameras_of(views.points)
    torch.testing.assert_close(made.intrinsics, views.cameras.intrinsics, rtol=1e-3, atol=1e-2)
    errors = poses.pair_errors(made, views.cameras)
    assert errors.rotation.max() < 0.5 and errors.translation.mean() < 0.5  # degrees
    points = torch.randn(5, 4, 3) * torch.logspace(-2, 1, 5)[:, None, None]
    torch.testing.assert_close(pointmaps.unsquashed(pointmaps.squashed(points)), points, rtol=1e-4, atol=1e-5)
    assert pointmaps.squashed(1e6 * points).norm(dim=-1).max() < 1
    assert pointmaps.unsquashed(torch.ones(1, 3)).isfinite().all()


def test_a_right_answer_in_another_frame_and_unit_scores_as_right():
    claims, views = module("ablation.gen3r_claims"), room(views=4, side=32)
    turned = matrix_from_vector(torch.tensor([0.3, -1.0, 0.5]))
    moved = views.transformed(Similarity(turned, torch.tensor([3.0, -2.0, 1.0]), torch.tensor(0.3)))
    scores = claims.geometry_scores(moved, views)
    assert scores["chamfer_percent"] < 0.01 and scores["auc_30"] > 0.99
    bent = replace(moved, points=moved.points * torch.linspace(1, 2, 32)[:, None])
    assert claims.geometry_scores(bent, views)["chamfer_percent"] > 1
    still = replace(moved, cameras=orbit(moved.cameras[0], views=4))
    assert claims.geometry_scores(still, views)["auc_30"] < 0.9


def test_what_is_given_is_not_trained_and_neither_is_what_only_it_needs():
    script = module("gen3r_ablations")
    assert script.needed({"joint"}, set()) == ["vggt", "video-vae", "adapter", "joint"]
    assert script.needed({"joint", "two-stage"}, {"vggt", "video-vae", "adapter"}) == ["two-stage", "joint"]
    assert script.needed({"joint"}, {"adapter"}) == ["joint"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"only": ("all",)}, "--only all: accepted are alignment"),
        ({"arms": ("gen3r",)}, "--arms gen3r: accepted are vggt"),
        ({"frames": 8}, r"--frames 8: accepted are 4k \+ 1"),
        ({"budget_minutes": 0.0}, "accepted are budgets above 0"),
    ],
)
def test_what_cannot_be_is_refused(flags, said):
    with pytest.raises(ValueError, match=said):
        module("gen3r_ablations").Options(**flags)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The whole comparison in small: its options and what it wrote."""
    script, folder = module("gen3r_ablations"), tmp_path_factory.mktemp("gen3r_ablations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIORAMA_CACHE", str(folder / "home"))
        patch.setattr(module("ablation.gen3r_claims"), "STEPS", 1)
        options = script.Options(
            smoke=True, out=folder / "runs", results=folder / "numbers.json", test_scenes=2, worlds=2
        )
        script.main(options)
        yield script, options, json.loads(options.results.read_text())


@pytest.mark.timeout(900)  # eight short runs
def test_every_arm_trains_and_every_claim_is_compared(run):
    script, _, told = run
    assert set(told["settings"]["arms"]) == set(script.ARMS) and not told["settings"]["given"]
    assert {arm["steps"] for arm in told["settings"]["arms"].values()} == {1}
    assert len(told["verdicts"]) == 4 + 3 + 3 + 1 + 2 + 5
    for verdict in told["verdicts"]:
        assert verdict["low"] <= verdict["difference"] <= verdict["high"]
        assert verdict["finding"] in ("holds", "undecided", "does not hold")
    measured = {row["what"] for row in told["scores"]}
    generated = {f"generated-{name}" for name in ("joint", "joint-none", "two-stage", "wvd")}
    assert measured == generated | {f"vae-only-{name}" for name in ("vggt", "adapter", "wvd")} | {
        "first frame repeated"
    }
    assert all(math.isfinite(row["mean"]) and row["low"] <= row["mean"] <= row["high"] for row in told["scores"])


@pytest.mark.timeout(900)
def test_a_second_run_trains_and_measures_nothing_and_given_models_stay(run, monkeypatch, capsys):
    script, options, told = run
    monkeypatch.setattr(script, "prepared", None)
    monkeypatch.setattr(module("ablation.budget"), "Trainer", None)
    monkeypatch.setattr(script.Evaluated, "_generated", None)
    monkeypatch.setattr(script.Evaluated, "_autoencoded", None)
    again = replace(options, vggt=options.out / "vggt/model", only=("joint", "vae-only"))
    script.main(again)
    found = json.loads(options.results.read_text())
    assert found["settings"]["given"] == {"vggt": "given, 1 steps"} and "vggt" not in found["settings"]["arms"]
    wanted = [v for v in told["verdicts"] if "two-stage" in v["claim"] or "keeps VGGT" in v["claim"]]
    assert found["verdicts"] == wanted and len(wanted) == 5
    assert "| joint better than two-stage | AUC@30 |" in capsys.readouterr().out


def test_other_parts_than_those_that_were_joined_are_refused(run, tmp_path):
    script, options, _ = run
    other = replace(script.planned(options), given={"adapter": tmp_path})
    with pytest.raises(ValueError, match=r"joined/adapter: joined of another adapter before; accepted is the same"):
        module("ablation.gen3r_arms").joined(other, "adapter")


@pytest.mark.timeout(900)
@torch.no_grad()
def test_two_stages_learn_the_left_half_and_points_survive_their_latents(run):
    script, options, _ = run
    arms = module("ablation.gen3r_arms")
    plan = script.planned(options)
    joint, alone, points = (
        arms.ARMS[name].build(plan, plan.out / name, 1)[0] for name in ("joint", "two-stage", "wvd")
    )
    batch = joint.batch(0)
    whole = joint.latents(batch.images)
    left = whole.chunk(2, -1)[0]
    assert all(condition.at == (0,) for condition in batch.conditions) and not any(batch.free)
    torch.testing.assert_close(alone.latents(batch.images), left)
    torch.testing.assert_close(points.latents(batch.images).chunk(2, -1)[0], left)
    assert not torch.allclose(points.latents(batch.images), whole)
    known = alone.known(batch)
    latents = known.latents.clone()
    latents[..., left.shape[-1] :] = 1
    other = known._replace(latents=latents)
    torch.testing.assert_close(alone.pipeline.denoise(left, 0.5, known), alone.pipeline.denoise(left, 0.5, other))
    assert not alone.pipeline.transformer.config.tiled_rope and joint.pipeline.transformer.config.tiled_rope
