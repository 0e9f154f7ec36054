"""What visitors share: models, a scene at a time, the last one."""

import threading
from pathlib import Path

import pytest

from diorama.viewer.job import Busy, Job, Outcome
from diorama.viewer.wish import Wish
from diorama.viewer.workshop import Result, Workshop, offer_of


class Waiting:
    def __init__(self) -> None:
        self.ended, self.outcome = threading.Event(), Outcome()

    def __call__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.ended.set()

    def result(self) -> Outcome:
        assert self.ended.wait(100)
        return self.outcome


def test_a_scene_is_made_with_every_step_told(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    shop = Workshop([str(tiny_pipeline_folder)], tmp_path, "cpu", lambda job: told.append(job.words if job else ""))
    waiting = Waiting()
    shop.begin("miniature", Wish(views=2, steps=3, seed=5), waiting, None)
    outcome = waiting.result()
    assert isinstance(outcome.result, Result), outcome.error
    shop.worker.stop(100.0)
    assert [words for words in told if words.startswith("sampling")] == [f"sampling, {i} of 3" for i in (1, 2, 3)]
    phases = ["loading the model", "reading", "encoding", "sampling", "decoding", "preparing"]
    places = [next(i for i, words in enumerate(told) if words.startswith(phase)) for phase in phases]
    assert places == sorted(places) and told[-1] == ""
    made = outcome.result.scene.provenance
    assert (made.seed, made.settings["trajectory"], made.settings["steps"]) == (5, "orbit", 3)
    assert outcome.result.stage.decoder is not None
    assert shop.last is outcome.result


def test_cancel_while_it_samples_leaves_the_last_scene_and_the_model_usable(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    seen, name = threading.Event(), "miniature"

    def changed(job: Job | None) -> None:
        if job is not None and job.total == 1000 and not seen.is_set():
            seen.set()
            with pytest.raises(Busy, match="a job is running"):
                shop.begin(name, Wish(), Waiting(), None)
            job.cancel()

    shop = Workshop([str(tiny_pipeline_folder)], tmp_path, "cpu", changed)
    first = Waiting()
    shop.begin(name, Wish(views=2, steps=1000), first, None)
    assert first.result().cancelled and seen.is_set()
    assert shop.last is None
    second = Waiting()
    shop.begin(name, Wish(views=2, steps=1), second, None)
    assert isinstance(second.result().result, Result)


def test_what_cannot_be_made_is_said(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    shop = Workshop([str(tiny_pipeline_folder)], tmp_path, "cpu", lambda job: None)
    with pytest.raises(ValueError, match="model 'other': accepted are"):
        shop.begin("other", Wish(), Waiting(), None)
    with pytest.raises(ValueError, match="views 500"):
        shop.begin("tiny", Wish(views=500), Waiting(), None)
    waiting = Waiting()
    shop.begin("miniature", Wish(prompt="a room"), waiting, None)
    assert "without text" in waiting.result().error


def test_offers_come_from_the_folders_alone(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    offer = offer_of(str(tiny_pipeline_folder))
    assert (offer.steps, offer.prompted) == (3, False)
    shop = Workshop([str(tiny_pipeline_folder)], tmp_path, "cpu", lambda job: None)
    assert next(iter(shop.offers)) == "miniature" and "tiny" in shop.offers
    other = tiny_pipeline_folder.parent / "." / "miniature"
    twice = Workshop([str(tiny_pipeline_folder), f"{other}/"], tmp_path, "cpu", lambda job: None)
    assert list(twice.offers)[:2] == ["miniature", f"{other}/"], "two folders of one name"
    (tmp_path / "vggt").mkdir()
    (tmp_path / "vggt/model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="VGGT makes no views"):
        offer_of(str(tmp_path / "vggt"))
    with pytest.raises(ValueError, match="neither an embedded model"):
        Workshop(["nothing"], tmp_path, "cpu", lambda job: None)
