"""A whole run: what it writes, that a killed one continues to the same files, that nothing is dropped."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from diorama.evaluation.benchmark import Benchmark, run
from diorama.evaluation.frechet import frechet_distance
from diorama.evaluation.methods import SIMPLE, Baseline, Failure
from diorama.evaluation.outside import Outside
from diorama.evaluation.protocols import Protocol, Setting
from diorama.evaluation.scoring import Instruments
from diorama.evaluation.splits import Question, _questions
from diorama.scene import Scene, Views

from .scenery import SMALL, plane

TWO = replace(SMALL, settings=SMALL.settings[:2])
EXAMPLE = Path(__file__).parents[2] / "examples/evaluate_outside_method.py"


class Planes:
    """Five scenes, of which those named in `broken` cannot be read."""

    digest, count = "0" * 64, 5

    def __init__(self, protocol: Protocol = TWO, broken: tuple[str, ...] = (), bare: bool = False) -> None:
        self.protocol, self.broken, self.bare, self.notes = protocol, broken, bare, []

    def questions(self) -> list[Question]:
        return _questions(self.protocol, [str(number) for number in range(self.count)])

    def load(self, question: Question) -> Views:
        if question.scene in self.broken:
            raise ValueError(f"{question.scene}: not readable")
        views = plane(seed=int(question.scene))
        return Views(views.images, views.cameras) if self.bare else views


class Colours:
    """Nine features of a picture: mean colours of three thirds."""

    name = "colours"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([third.mean((-1, -2)) for third in images.chunk(3, -1)], -1)


@dataclass
class Noisy:
    """The known views' mean with noise of the scene's seed; fails as told, interrupted after `patience` calls."""

    name: str = "noisy"
    licence: str = "none"
    batch: int | None = 2
    patience: int = 100
    fails: tuple[int, ...] = ()
    alone: bool = False  # whether it answers only one request at a time

    def __post_init__(self) -> None:
        self.settings, self.asked = {"level": 0.1}, []

    def generate(self, requests, cameras, seeds):
        self.asked.append(list(seeds))
        if len(self.asked) > self.patience:
            raise KeyboardInterrupt
        if self.alone and len(requests) > 1:
            raise ValueError("one at a time")
        answers = []
        for request, path, seed in zip(requests, cameras, seeds, strict=True):
            assert request.views.points is None, "the truth must not leak"
            if seed in self.fails:
                answers.append(Failure("could not"))
                continue
            noise = 0.1 * torch.randn(path.views, 3, path.height, path.width, generator=_seeded(seed))
            answers.append(Scene(Views(request.views.images.mean(0) + noise, path), request))
        return answers


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bench(method=None, scenes: Planes | None = None, **tools) -> Benchmark:
    scenes = scenes or Planes()
    return Benchmark(method or Noisy(), scenes.protocol, scenes, Instruments(features=[Colours()], **tools))


def lines(out: Path, timing: bool = False) -> list[dict]:
    found = [json.loads(line) for line in (out / "scenes.jsonl").read_text().splitlines()]
    return found if timing else [{key: value for key, value in line.items() if key != "timing"} for line in found]


def test_a_run_writes_every_question_in_order(tmp_path: Path) -> None:
    done = []
    summary = run(bench(), tmp_path / "out", lambda *step: done.append(step))
    found = lines(tmp_path / "out", timing=True)
    assert [(line["setting"], line["scene"]) for line in found] == [
        (s, n) for s in ("1 known", "2 known") for n in "01234"
    ]
    assert list(found[0]) == ["setting", "scene", "known", "metrics", "views", "cameras", "strip", "failure", "timing"]
    assert found[0]["timing"].keys() == {"seconds_per_16_views", "peak_memory_mib", "device"}
    assert (tmp_path / "out" / found[0]["strip"]).is_file()
    assert found[0]["strip"] == "strips/1-known/0.png"
    assert done == [(2, 10), (4, 10), (5, 10), (7, 10), (9, 10), (10, 10)]
    about = json.loads((tmp_path / "out/run.json").read_text())
    assert about["benchmark"]["hash"] == Planes.digest and about["benchmark"]["scenes"] == 5
    assert about["method"] == {"name": "noisy", "licence": "none", "settings": {"level": 0.1}}
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    rows = {(row["setting"], row["metric"]): row for row in summary["rows"]}
    values = [line["metrics"]["psnr"] for line in found[:5]]
    assert rows["1 known", "psnr"]["mean"] == pytest.approx(sum(values) / 5, abs=1e-5)
    assert rows["1 known", "psnr"]["low"] < rows["1 known", "psnr"]["mean"] < rows["1 known", "psnr"]["high"]
    assert (rows["1 known", "psnr"]["scenes"], rows["1 known", "psnr"]["failures"]) == (5, 0)
    pooled = {(row["setting"], row["metric"]): row for row in summary["pooled"]}
    assert pooled["1 known", "fd_colours"]["images"] == 15  # too few for a value
    assert pooled["1 known", "fd_colours"]["value"] is None


def test_a_killed_run_continues_to_the_same_files(tmp_path: Path) -> None:
    run(bench(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(bench(Noisy(patience=2)), tmp_path / "killed")
    with (tmp_path / "killed/scenes.jsonl").open("a") as file:
        file.write('{"setting": "1 known", "scene": "4", "metr')
    again = Noisy()
    run(bench(again), tmp_path / "killed")
    assert again.asked == [[4], [0, 1], [2, 3], [4]]  # the batches that were missing, and whole
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("killed", "whole")]
    assert [s.pop("timing") is None for s in summaries] == [False, False]
    assert summaries[0] == summaries[1]
    assert (tmp_path / "killed/run.json").read_text() == (tmp_path / "whole/run.json").read_text()
    finished = Noisy(patience=0)
    before = (tmp_path / "whole/scenes.jsonl").read_text()
    run(bench(finished), tmp_path / "whole")  # nothing left to ask
    assert (tmp_path / "whole/scenes.jsonl").read_text() == before


def test_failures_are_counted_and_never_dropped(tmp_path: Path) -> None:
    summary = run(bench(Noisy(fails=(1,)), Planes(broken=("3",))), tmp_path / "out")
    found = lines(tmp_path / "out")
    assert [line["failure"] for line in found[:5]] == [None, "could not", None, "3: not readable", None]
    assert all(row["failures"] == 2 and row["scenes"] == 3 for row in summary["rows"] if row["metric"] == "psnr")
    assert {row["images"] for row in summary["pooled"]} == {9, 6}
    nothing = run(bench(Noisy(fails=(0, 1, 2, 3, 4))), tmp_path / "nothing")
    assert [(row["mean"], row["failures"]) for row in nothing["rows"]] == [(None, 5), (None, 5)]


def test_requests_that_cannot_be_answered_together_are_asked_alone(tmp_path: Path) -> None:
    method = Noisy(alone=True)
    run(bench(method), tmp_path / "alone")
    assert method.asked[:4] == [[0, 1], [0], [1], [2, 3]]
    run(bench(), tmp_path / "together")
    assert lines(tmp_path / "alone") == lines(tmp_path / "together")


def test_poses_that_could_not_be_found_are_failures_of_their_rows_alone(tmp_path: Path) -> None:
    class Lost:
        name = "lost"

        def __call__(self, images):
            return None

    summary = run(bench(estimator=Lost()), tmp_path / "out")
    failures = {row["metric"]: row["failures"] for row in summary["rows"] if row["setting"] == "1 known"}
    assert failures["ate_r"] == 5 and failures["psnr"] == 0
    blank = run(bench(blank={"ate_r"}), tmp_path / "blank")
    assert [row["failures"] for row in blank["rows"] if row["metric"] == "ate_r"] == [0, 0]


def test_distances_between_sets_are_over_all_scored_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diorama.evaluation.summaries.MINIMUM_IMAGES", 10)
    rows = run(bench(SIMPLE["nearest"]), tmp_path / "out")["pooled"]
    found = {(row["setting"], row["metric"]): row for row in rows}
    truth = torch.cat([Colours()(plane(seed=seed).images[1:]) for seed in range(5)])
    made = torch.cat([Colours()(plane(seed=seed).images[[0, 0, 0]]) for seed in range(5)])
    row = found["1 known", "fd_colours"]
    assert row["value"] == pytest.approx(frechet_distance(made, truth, minimum=10), abs=1e-6)
    assert row["low"] < row["value"] < row["high"]
    assert found["1 known", "kd_colours"]["images"] == 15
    assert found["2 known", "fd_colours"]["value"] < row["value"]


def test_other_settings_and_other_folders_are_refused(tmp_path: Path) -> None:
    run(bench(), tmp_path / "out")
    other = Noisy()
    other.settings = {"level": 0.2}
    with pytest.raises(ValueError, match=r"another method settings .*0\.1.*accepted is a new folder"):
        run(bench(other), tmp_path / "out")
    with pytest.raises(ValueError, match="another benchmark protocol"):
        run(bench(scenes=Planes(replace(TWO, settings=(Setting("1 known", (1,)),)))), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="something else"):
        run(bench(), tmp_path / "mine")
    with pytest.raises(ValueError, match="needs the true depth"):
        run(bench(SIMPLE["depth-warp"], Planes(bare=True)), tmp_path / "bare")
    assert not (tmp_path / "bare").exists()


def test_bounds_see_the_truth_and_cameras_may_be_withheld(tmp_path: Path) -> None:
    summary = run(bench(SIMPLE["truth"], Planes(SMALL)), tmp_path / "truth")
    means = {(row["setting"], row["metric"]): row["mean"] for row in summary["rows"]}
    assert means["1 known", "psnr"] == 100
    assert means["free", "auc_30"] == 1
    told = run(bench(SIMPLE["nearest"], Planes(SMALL)), tmp_path / "nearest")
    assert {row["failures"] for row in told["rows"] if row["setting"] == "free"} == {5}
    assert all(line["failure"] for line in lines(tmp_path / "nearest")[10:])


def test_an_outside_method_scores_as_the_same_method_inside(tmp_path: Path) -> None:
    command = Outside(f"{sys.executable} {EXAMPLE} {{folder}}", tmp_path / "out/outside", name="theirs")
    summary = run(bench(command, Planes(broken=("2",))), tmp_path / "out")
    assert len(list((tmp_path / "out/outside").glob("*/request.json"))) == 8

    def closest(known: Views, path) -> torch.Tensor:
        centers = known.cameras.centers[0]
        chosen = (path.centers[0][:, None] - centers[None]).norm(dim=-1).argmin(-1)
        return known.images[:, chosen]

    inside = run(bench(Baseline("closest", closest), Planes(broken=("2",))), tmp_path / "inside")
    for theirs, ours in zip(summary["rows"], inside["rows"], strict=True):
        assert theirs == ours
    assert json.loads((tmp_path / "out/run.json").read_text())["method"]["name"] == "theirs"


def test_vbench_scores_join_the_lines_and_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def scores(program: Path, videos: Path, out: Path) -> dict:
        calls.append(videos.name)
        return {video.stem: {"vbench_imaging_quality": 0.5} for video in videos.glob("*.mp4")}

    monkeypatch.setattr("diorama.evaluation.benchmark.vbench_scores", scores)
    monkeypatch.setattr(
        "diorama.evaluation.asking.write_video",
        lambda images, path, overwrite: (path.parent.mkdir(parents=True, exist_ok=True), path.write_bytes(b"")),
    )
    benchmark = replace(bench(), vbench=Path("vbench"))
    for _ in range(2):
        summary = run(benchmark, tmp_path / "out")
        row = next(row for row in summary["rows"] if row["metric"] == "vbench_imaging_quality")
        assert (row["mean"], row["better"], row["scenes"]) == (0.5, "higher", 5)
    assert calls == ["1-known", "2-known"]
