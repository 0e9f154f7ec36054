"""The worker: progress, cancelling, one job at a time, errors that are said."""

import threading
from collections.abc import Callable

import pytest
import torch

from diorama.viewer.job import Busy, Job, Outcome, Worker

LONG = 60.0  # seconds; what is waited for takes far less


class Ward:
    """A worker and what it said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.outcomes: list[Outcome] = []
        self.ended = threading.Event()
        self.worker = Worker(lambda job: self.said.append("none" if job is None else job.words))

    def start(self, work: Callable[[Job], object], owner: object = None) -> Job:
        return self.worker.start(work, self.end, owner)

    def end(self, outcome: Outcome) -> None:
        self.free = self.worker.job is None
        self.outcomes.append(outcome)
        self.ended.set()

    def outcome(self) -> Outcome:
        assert self.ended.wait(LONG)
        self.worker.stop(LONG)
        return self.outcomes[-1]


def test_a_job_tells_every_step_and_gives_its_result() -> None:
    ward = Ward()

    def work(job: Job) -> str:
        for done in range(1, 4):
            job.tell("sampling", done, 3)
            assert job.share == done / 3
        job.tell("decoding")
        assert job.share is None
        return "a scene"

    ward.start(work)
    assert ward.outcome() == Outcome("a scene")
    assert ward.said == ["beginning", *(f"sampling, {done} of 3" for done in (1, 2, 3)), "decoding", "none"]


def test_a_second_job_is_refused_in_words_and_leaves_the_first_alone() -> None:
    ward, begun, go = Ward(), threading.Event(), threading.Event()

    def work(job: Job) -> str:
        job.tell("sampling", 12, 50)
        begun.set()
        assert go.wait(LONG)
        return "first"

    ward.start(work)
    assert begun.wait(LONG)
    with pytest.raises(Busy, match="a job is running.*sampling, 12 of 50") as refused:
        ward.start(lambda job: "second")
    assert "\n" not in str(refused.value)
    go.set()
    assert ward.outcome().result == "first"
    assert ward.free, "whoever hears of the end may begin another"
    ward.ended.clear()
    ward.start(lambda job: "third")
    assert ward.outcome().result == "third"
    assert len(ward.outcomes) == 2


def test_cancel_acts_at_the_next_step() -> None:
    ward, begun, go, steps = Ward(), threading.Event(), threading.Event(), []

    def work(job: Job) -> None:
        for done in range(1, 1000):
            job.tell("sampling", done, 1000)
            steps.append(done)
            if done == 3:
                begun.set()
                assert go.wait(LONG)

    job = ward.start(work)
    assert begun.wait(LONG)
    job.cancel()
    assert job.words == "cancelling (sampling, 3 of 1000)"
    go.set()
    assert ward.outcome() == Outcome(cancelled=True)
    assert steps == [1, 2, 3]


def test_cancel_acts_between_the_layers_of_a_network_that_reports_nothing() -> None:
    ward, seen, begun, go = Ward(), [], threading.Event(), threading.Event()

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(seen))
            if len(seen) == 2:
                begun.set()
                assert go.wait(LONG)
            return x

    network = torch.nn.Sequential(*(Layer() for _ in range(5)))
    job = ward.start(lambda job: network(torch.zeros(1)))
    assert begun.wait(LONG)
    job.cancel()
    elsewhere = torch.nn.Linear(1, 1)(torch.zeros(1))  # another thread's networks are not concerned
    assert elsewhere.shape == (1,)
    go.set()
    assert ward.outcome().cancelled
    assert len(seen) == 2
    network(torch.zeros(1))  # and afterwards nobody's
    assert len(seen) == 7


def test_a_cancel_that_comes_after_the_last_step_counts() -> None:
    ward = Ward()

    def work(job: Job) -> str:
        job.cancel()
        return "too late"

    ward.start(work)
    assert ward.outcome() == Outcome(cancelled=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("photo.jpg:\n no photo"), "photo.jpg: no photo"), (RuntimeError("odd"), "RuntimeError: odd")],
    ids=["of the user", "of ours"],
)
def test_errors_are_said_in_one_line_and_end_the_job_only(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ward = Ward()

    def work(job: Job) -> None:
        raise error

    ward.start(work)
    assert ward.outcome() == Outcome(error=said)
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, RuntimeError)
    ward.ended.clear()
    ward.start(lambda job: 1)
    assert ward.outcome().result == 1


def test_stop_cancels_what_runs() -> None:
    ward, begun = Ward(), threading.Event()

    def work(job: Job) -> None:
        while True:
            job.tell("sampling")
            begun.set()

    ward.start(work)
    assert begun.wait(LONG)
    ward.worker.stop(LONG)
    assert ward.outcomes == [Outcome(cancelled=True)]
