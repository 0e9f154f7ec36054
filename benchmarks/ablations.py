"""Do the paper's orderings hold here? Small arms trained on Worlds, compared in pairs; writes results/ablations.json.

    python benchmarks/ablations.py --budget-minutes 10                 # trains what is missing, then compares
    python benchmarks/ablations.py --budget-minutes 10 --jobs 2        # two arms at a time, one thread each

Every arm gets the same minutes of its process's own time (on a GPU, of the clock): a few steps are timed first, which
fixes the number of steps in the arm's `plan.json`. Denoisers and the mutual decoder take the number of steps of the arm
that they are compared with instead (`steps_of`). A run that was stopped continues. Scores are over 64 test worlds of 12
views at 64x64 that no arm was trained on; intervals are 95 % of a bootstrap that draws scenes, paired between arms.
`arms.py` says what is trained, `claims.py` what is compared.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import tyro
from ablation.arms import ARMS, Arm, trained
from ablation.budget import Budget
from ablation.claims import CLAIMS, Evaluated, Verdict
from machine import write_numbers
from rich.console import Console

from diorama.data.cache import WorldsCache, write_cache
from diorama.data.worlds import SPLITS, WORLDS_VERSION

SIDE, VIEWS, LONG = 64, 12, 144  # pixels, views of a scene, views of the scenes that are known from up to 128
Caches = dict[str, Path]


@dataclass(frozen=True)
class Options:
    """How long, and where it goes."""

    budget_minutes: float = 10.0
    """Of training, for each arm."""
    out: Path = Path("runs/ablations")
    """The arms' runs and the rendered scenes are kept here."""
    results: Path = Path(__file__).parent / "results" / "ablations.json"
    """The file that gets the numbers."""
    train: Path | None = None
    """Rendered Worlds of the train split, 12 views at 64x64, instead of rendering them (`diorama data worlds`)."""
    train_scenes: int = 4000
    """Scenes to render where --train is not given."""
    test_scenes: int = 64
    """Scenes that the arms are compared on."""
    jobs: int = 1
    """Arms trained at a time, each in a process of one thread."""
    device: str = "cpu"
    """cpu or cuda."""
    only: tuple[str, ...] = ()
    """Names of claims, to train and compare no more than these need."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.only) - set(CLAIMS))
        if unknown:
            raise ValueError(f"--only {unknown[0]}: accepted are {', '.join(CLAIMS)}")
        if self.budget_minutes <= 0 or self.jobs < 1 or self.test_scenes < 2:
            raise ValueError("accepted are a budget above 0, at least one job and two test scenes")


def main(options: Options) -> None:
    """Render, train what is missing, compare, print and write."""
    console = Console()
    chosen = {name: claim for name, claim in CLAIMS.items() if not options.only or name in options.only}
    caches = rendered(options)
    arms = needed({arm for claim in chosen.values() for arm in claim.arms})
    console.print(f"{len(arms)} arms of {options.budget_minutes:g} minutes, {options.jobs} at a time")
    train_all(arms, caches, options, console)
    torch.set_num_threads(1)
    evaluated = Evaluated(options.out, caches["test"], caches["long"], options.device)
    verdicts = []
    for name, claim in chosen.items():
        console.print(f"comparing: {name}")
        verdicts += claim.compared(evaluated)
    show(verdicts)
    plans = {arm: json.loads((options.out / arm / "plan.json").read_text()) for arm in arms}
    settings = {"budget_minutes": options.budget_minutes, "test_scenes": options.test_scenes, "jobs": options.jobs}
    settings |= {"worlds_version": WORLDS_VERSION, "arms": plans}
    rows = [verdict._asdict() | {"finding": verdict.finding} for verdict in verdicts]
    write_numbers(options.results, evaluated.numbers, settings, options.device, verdicts=rows)
    console.print(f"written to {options.results}")


def rendered(options: Options) -> Caches:
    """The scenes: to train on, to look at while training, to compare on; whatever an earlier run rendered is kept."""

    def cache(split: str, scenes: int, views: int) -> Path:
        folder = options.out / "worlds" / f"{split}-{scenes}x{views}"
        if not (folder / "meta.json").exists():
            Console().print(f"rendering {scenes} scenes of {views} views ({split})")
        return write_cache(
            folder, SPLITS[split][:scenes], views=views, height=SIDE, width=SIDE, workers=os.cpu_count() or 1
        )

    train = options.train or cache("train", options.train_scenes, VIEWS)
    found = WorldsCache(train)
    if (found.views, found.height, found.width) != (VIEWS, SIDE, SIDE):
        what = f"{found.views} views at {found.height}x{found.width}"
        raise ValueError(f"{train}: worlds of {what}; accepted are {VIEWS} at {SIDE}x{SIDE}")
    return {
        "train": train,
        "validation": cache("validation", 16, VIEWS),
        "test": cache("test", options.test_scenes, VIEWS),
        "long": cache("test", options.test_scenes, LONG),
    }


def needed(names: set[str]) -> dict[str, Arm]:
    """These arms and all that they start from, in the order of ARMS."""
    while more := {need for name in names for need in ARMS[name].needs} - names:
        names |= more
    return {name: arm for name, arm in ARMS.items() if name in names}


def train_all(arms: dict[str, Arm], caches: Caches, options: Options, console: Console) -> None:
    """Every arm once those that it needs are there; one that fails stops all."""
    budget = Budget(options.budget_minutes, options.device)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        running: dict[Future, str] = {}
        for name in ordered(arms, lambda: _finished(running, console), running):
            running[pool.submit(trained, name, options.out, caches["train"], caches["validation"], budget)] = name
        while running:
            _finished(running, console)


def ordered(arms: dict[str, Arm], wait_for_one: Callable[[], None], running: dict[Future, str]) -> Iterator[str]:
    """The arms' names, each when all that it needs is trained."""
    for name, arm in arms.items():
        while any(need in running.values() for need in arm.needs):
            wait_for_one()
        yield name


def _finished(running: dict[Future, str], console: Console) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        name, begun = running.pop(future), time.strftime("%H:%M:%S")
        steps, seconds = future.result()
        console.print(f"{begun}  {name}: {steps} steps of {seconds:.3f} s, {ARMS[name].what}")


def show(verdicts: list[Verdict]) -> None:
    """Print the table that docs/training.md quotes."""
    print("| the paper says | number | first | second | difference (95 %) | here |\n|---|---|---|---|---|---|")
    for v in verdicts:
        interval = f"{v.difference:+.3g} [{v.low:+.3g}, {v.high:+.3g}]"
        print(f"| {v.claim} | {v.number} | {v.first:.4g} | {v.second:.4g} | {interval} | {v.finding} |")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description="Train small arms on Worlds and compare them in pairs."))
    except (ValueError, OSError) as error:
        sys.exit(f"ablations: {error}")
