"""Batches: one failure stops no other, and a full disk stops all."""

import errno

import pytest

from diorama.runner.cluster import DEATHS, Task, after_death
from diorama.runner.spread import Here, spread, telling
from diorama.runner.work import Failed, attempted, batched


class Doubling:
    """Doubles numbers; refuses 3, and what holds a 5 together with others."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.opened, self.asked = error or ValueError("no\nthrees"), [], []

    def open(self, device: str):
        self.opened.append(device)
        return self.do

    def do(self, items):
        self.asked.append(list(items))
        if 3 in items or (5 in items and len(items) > 1):
            raise self.error
        return [2 * item for item in items]


def test_what_cannot_be_done_together_is_done_alone() -> None:
    work = Doubling()
    assert attempted(work.do, [1, 2]) == [2, 4]
    assert attempted(work.do, [1, 5, 3]) == [2, 10, Failed("no threes")]
    assert work.asked == [[1, 2], [1, 5, 3], [1], [5], [3]]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (KeyError(), "KeyError"),
        (FileNotFoundError(2, "gone", "a.png"), "[Errno 2] gone: 'a.png'"),
        (ValueError(), "ValueError"),
    ],
    ids=str,
)
def test_a_failure_is_told_in_one_line(error: Exception, said: str) -> None:
    assert attempted(Doubling(error).do, [3]) == [Failed(said)]


def test_a_full_disk_and_an_interruption_stop_everything() -> None:
    with pytest.raises(OSError, match="full"):
        attempted(Doubling(OSError(errno.ENOSPC, "full")).do, [3, 1])

    def interrupted(items):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempted(interrupted, [1])


def test_a_result_is_asked_of_each_item() -> None:
    assert attempted(lambda items: items[:1], [1, 2]) == [1, 2]
    assert attempted(lambda items: [], [1]) == [Failed("RuntimeError: 0 results of 1 items")]


def test_batches_are_of_one_shape_and_hold_everything_once() -> None:
    items = [1, 12, 3, 4, 15, 6, 7, 18]
    assert batched(items, 3, lambda item: item > 10) == [[1, 3, 4], [6, 7], [12, 15, 18]]
    assert batched([], 3, bool) == []


def test_one_process_loads_once_and_not_at_all_for_nothing() -> None:
    work, told = Doubling(), []
    with spread("cpu") as who:
        assert type(who) is Here and who.leads and not who.remote
        assert who.together("x") == ["x"]
        who.run(work, [], lambda *pair: told.append(pair))
        assert work.opened == []
        who.run(work, [[1, 3], [4]], lambda *pair: told.append(pair))
    assert work.opened == ["cpu"]
    assert told == [([1, 3], [2, Failed("no threes")]), ([4], [8])]


def test_progress_is_counted() -> None:
    told = []
    more = telling(lambda *pair: told.append(pair), 2, 9)
    more(3)
    more(4)
    assert told == [(5, 9), (9, 9)]
    telling(None, 0, 1)(1)


def test_what_workers_die_of_is_tried_again_then_alone_then_given_up() -> None:
    told, tasks, seen = [], [Task([1, 2])], []
    while tasks:  # every worker dies of everything
        task = tasks.pop(0)
        seen.append(list(task.items))
        tasks += after_death(task, lambda items, results: told.append((items[0], results)))
    assert seen == [[1, 2]] * DEATHS + [[1], [2]] * DEATHS
    assert told == [(item, [Failed("3 workers died of it")]) for item in (1, 2)]
