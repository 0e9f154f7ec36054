"""An arm's budget: a few steps are timed, which fixes how many it takes; what is trained stays."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from diorama.training.trainer import Run, Stage, Trainer

Build = Callable[[int], tuple[Stage, Run]]  # of so many steps


class Budget(NamedTuple):
    """Of every arm."""

    minutes: float
    device: str
    warm: int = 3  # steps that are not timed, before a number of steps is chosen
    timed: int = 12  # that are, and the least number of steps


def trained(folder: Path, what: str, build: Build, budget: Budget, *, steps: float | None = None) -> tuple[int, float]:
    """Train what `build` makes unless its model is there: in the budget, or for so many `steps`; steps and seconds."""
    plan, threads = folder / "plan.json", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if not (folder / "model").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            if not plan.exists():
                seconds = seconds_of_a_step(build, budget)
                whole = 60 * budget.minutes / seconds if steps is None else steps
                told = {"steps": max(budget.timed, round(whole)), "seconds": round(seconds, 4), "what": what}
                plan.write_text(json.dumps(told))
            with Trainer(*build(json.loads(plan.read_text())["steps"])) as trainer:
                trainer.train()
    finally:
        torch.set_num_threads(threads)
    found = json.loads(plan.read_text())
    return found["steps"], found["seconds"]


def seconds_of_a_step(build: Build, budget: Budget) -> float:
    """Of the process's own time on a CPU, of the clock elsewhere."""
    clock = time.process_time if budget.device == "cpu" else time.perf_counter
    with Trainer(*build(10**6)) as trainer:
        for _ in range(budget.warm):
            trainer.train_step()
        begun = clock()
        for _ in range(budget.timed):
            trainer.train_step()
        return (clock() - begun) / budget.timed
