"""What do many views cost, and what do they bring, by what the neck lets them read? Writes results/neck.json.

    python benchmarks/neck.py                          # cost: operations, time, memory; one thread
    python benchmarks/neck.py --budget-minutes 10      # then quality: trains what is missing, writes neck_quality.json

Cost: encoding of 16 to 128 views by "full" attention (the paper's), "hub" and "one_way" in turns, with the same random
weights. Operations are counted at the paper's size without computing them; times are of the process on a CPU, the best
of some rounds, at a size that one can wait for. An exponent is the slope of log cost over log views. Memory is what
encoding adds to the process at its peak, in a neck of two blocks: further ones add weights alone.

Quality: small arms that differ in the neck alone take equally many steps and are compared in pairs on test worlds, as
the arms of `ablations.py` are, whose `base` is the one of full attention. Views are then added a few at a time.
"""

import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablations
import torch
import tyro
from ablation.arms import ARMS, AUTOENCODER, Arm, Budget, trained
from ablation.claims import BATCH, Evaluated, Verdict, compared, quality, views_of
from jaxtyping import Float
from machine import write_numbers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diorama.models.rae3d import RAE3D, SIZES
from diorama.nn.neck import ATTENTIONS
from diorama.scene import Views

NECKS = {"full": "base", "hub": "neck-hub", "one_way": "neck-one-way"}  # names of arms
ARMS |= {
    "neck-hub": Arm(
        "known views meet in the latents alone", "rae3d", AUTOENCODER, {"neck_attention": "hub"}, steps_of="base"
    ),
    "neck-one-way": Arm(
        "known views do not meet", "rae3d", AUTOENCODER, {"neck_attention": "one_way"}, steps_of="base"
    ),
}
MORE, ASKED = 4, 4  # views that are added, and decoded


@dataclass(frozen=True)
class Options:
    """What is measured, and how long."""

    views: tuple[int, ...] = (16, 32, 64, 128)
    size: str = "tiny"
    """Row of RAE3D's sizes that is timed, and whose memory is measured."""
    side: int = 64
    """Pixels along the side of its images."""
    counted: str = "base-1024"
    """Row whose operations are counted."""
    counted_side: int = 252
    rounds: int = 3
    budget_minutes: float = 0.0
    """Of training for the arm of full attention, whose steps the others take; 0: cost alone."""
    runs: Path = Path("runs/ablations")
    """Runs and rendered scenes, shared with `ablations.py`."""
    train: Path | None = None
    """Rendered Worlds of the train split, 12 views at 64x64, instead of rendering them."""
    test_scenes: int = 64
    device: str = "cpu"
    out: Path = Path(__file__).parent / "results" / "neck.json"
    smoke: bool = False
    """Small sizes, to see that it runs."""


SMOKE: dict[str, Any] = dict(views=(5, 8, 12), side=16, counted="tiny", counted_side=16, rounds=1)


def autoencoder(attention: str, size: str, **changes: Any) -> RAE3D:
    """Random weights, the same for every attention."""
    torch.manual_seed(0)
    model = RAE3D(**SIZES[size] | {"point_layers": 0, "neck_attention": attention} | changes)
    return model.eval().requires_grad_(False)  # or the counter of operations looks for gradients


def given(views: int, side: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images, rays and which are visible: all."""
    with torch.device(device):
        visible = torch.ones(1, views, dtype=torch.bool)
        return torch.rand(1, views, 3, side, side), torch.randn(1, views, 6, side, side), visible


def exponent(cost: dict[int, float]) -> float:
    """Slope of log cost over log views."""
    return statistics.linear_regression(*([math.log(x) for x in part] for part in (cost, cost.values()))).slope


@torch.no_grad()
def operations(options: Options) -> dict[str, float]:
    """Teraflops of encoding, of adding views to the others, and of decoding; by a model that holds no numbers."""
    numbers: dict[str, float] = {}
    for kind in ATTENTIONS:
        cost: dict[int, float] = {}
        with torch.device("meta"):
            model = autoencoder(kind, options.counted)
        for views in options.views:
            inputs = given(views, options.counted_side, "meta")
            with FlopCounterMode(display=False) as counter:
                latents = model.encode(*inputs)
            cost[views] = numbers[f"{kind}_{views}_teraflops"] = counter.get_total_flops() / 1e12
            with FlopCounterMode(display=False) as counter:
                model.decode_images(model.cache(latents), inputs[1][:, :ASKED])
            numbers[f"{kind}_{views}_decode_teraflops"] = counter.get_total_flops() / 1e12
            if kind != "full":
                read = model.extend(None, *(x[:, MORE:] for x in inputs)).read
                with FlopCounterMode(display=False) as counter:
                    model.extend(read, *(x[:, :MORE] for x in inputs))
                numbers[f"{kind}_{views}_add_teraflops"] = counter.get_total_flops() / 1e12
        numbers[f"{kind}_exponent_of_operations"] = exponent(cost)
    return numbers


def seconds(work: Callable[[], object], device: str) -> float:
    """Of this process's CPU, or by the wall once a GPU has finished."""
    clock, wait = (time.process_time, lambda: None) if device == "cpu" else (time.perf_counter, torch.cuda.synchronize)
    wait()
    begun = clock()
    work()
    wait()
    return clock() - begun


@torch.no_grad()
def times(options: Options) -> dict[str, float]:
    """Seconds of the same acts, in turns, and what they come to."""
    models = {kind: autoencoder(kind, options.size).to(options.device) for kind in ATTENTIONS}
    numbers: dict[str, float] = {}

    def best(name: str, work: Callable[[], object]) -> None:
        numbers[name] = min(numbers.get(name, math.inf), seconds(work, options.device))

    given_views = {views: given(views, options.side, options.device) for views in options.views}
    for model in models.values():  # warms up
        model.decode_images(model.cache(model.encode(*given_views[options.views[0]])), given_views[options.views[0]][1])
    for _ in range(options.rounds):
        for views, inputs in given_views.items():
            for kind, model in models.items():
                best(f"{kind}_{views}_seconds", lambda m=model, x=inputs: m.encode(*x))
                latents = model.encode(*(x[:, :MORE] for x in inputs)) if kind == "full" else None
                if latents is None:
                    latents, read = model.extend(None, *(x[:, MORE:] for x in inputs))
                    some = [x[:, :MORE] for x in inputs]
                    best(f"{kind}_{views}_add_seconds", lambda m=model, r=read, x=some: m.extend(r, *x))
                rays = inputs[1][:, :ASKED]
                best(
                    f"{kind}_{views}_decode_seconds",
                    lambda m=model, z=latents, r=rays: m.decode_images(m.cache(z), r),
                )
    for kind in ATTENTIONS:
        numbers[f"{kind}_exponent_of_seconds"] = exponent({v: numbers[f"{kind}_{v}_seconds"] for v in options.views})
        decoding = [numbers[f"{kind}_{views}_decode_seconds"] for views in options.views]
        numbers[f"{kind}_decode_seconds_most_over_least"] = max(decoding) / min(decoding)
    return numbers


@torch.no_grad()
def memory(options: Options) -> dict[str, float]:
    """MiB that encoding adds at its peak to model and images."""
    numbers = {}
    for kind in ATTENTIONS:
        model = autoencoder(kind, options.size, neck_layers=2).to(options.device)
        for views in options.views:
            inputs = given(views, options.side, options.device)
            numbers[f"{kind}_{views}_peak_mib"] = peak(lambda m=model, x=inputs: m.encode(*x), options.device)
    return numbers


def peak(work: Callable[[], object], device: str) -> float:
    """Of the resident set, as Linux counts it, or of the tensors on a GPU."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    work()  # libraries are loaded at the first call
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


@torch.no_grad()
def grown(model: RAE3D, views: Views, known: int, at_once: int) -> Float[Tensor, "scene view 3 height width"]:
    """Unseen views from the latents of the first `known`, which were read so many at a time."""
    made = []
    for start in range(0, len(views.images), BATCH):
        part = views_of(views, slice(start, start + BATCH)).to(model.device)
        rays = part.cameras.normalized()[0].plucker()  # type: ignore[union-attr]
        visible, read, latents = torch.ones(part.images.shape[:2], dtype=torch.bool, device=model.device), None, None
        if at_once >= known:
            latents = model.encode(part.images[:, :known], rays[:, :known], visible[:, :known])
        else:
            for first in range(0, known, at_once):
                some = slice(first, min(known, first + at_once))
                latents, read = model.extend(read, *(x[:, some] for x in (part.images, rays, visible)))
        assert latents is not None
        made.append(model.decode_images(model.cache(latents), rays[:, known:]).float().cpu())
    return torch.cat(made)


def scores(of: Evaluated, name: str, known: int, at_once: int = 10**9) -> Float[Tensor, " scene"]:
    """PSNR of an arm's unseen views: of the path of 12 views, or of 16 of the path of 144 where more are known."""
    if known < of.test.views:
        views = of.views(known)
        return quality(grown(of.autoencoder(name), views, known, at_once), views.images[:, known:])
    rest = list(range(4, of.long.views, 9))
    places = [view for view in range(of.long.views) if view not in rest]
    order, parts, model = torch.tensor(places[:: len(places) // known] + rest), [], of.autoencoder(name)
    for row in range(0, len(of.long), BATCH):
        rows = torch.arange(row, min(row + BATCH, len(of.long)))
        views = of.long.batch(rows, order.expand(len(rows), -1))
        parts.append(quality(grown(model, views, known, at_once), views.images[:, known:]))
    return torch.cat(parts)


def qualities(of: Evaluated, counts: tuple[int, ...] = (4, 16, 128)) -> list[Verdict]:
    """Each neck beside full attention, and views that are added beside views at once."""
    verdicts, found = [], {}
    for known in counts:
        found |= {(kind, known): scores(of, name, known) for kind, name in NECKS.items()}
        for kind in ("hub", "one_way"):
            claim = f"{kind} is no worse than full"
            verdicts.append(
                compared(claim, f"PSNR, {known} known", found[kind, known], found["full", known], "not lower")
            )
    for kind in ("hub", "one_way"):
        for known in counts:
            added = scores(of, NECKS[kind], known, max(1, known // 4))
            claim = f"{kind}: views added in four parts are no worse than all at once"
            verdicts.append(compared(claim, f"PSNR, {known} known", added, found[kind, known], "not lower"))
    return verdicts


def trained_and_compared(options: Options) -> None:
    """Train the arms that are missing, compare them, print and write."""
    shared = ablations.Options(
        budget_minutes=options.budget_minutes, out=options.runs, train=options.train, test_scenes=options.test_scenes
    )
    caches, plans = ablations.rendered(shared), {}
    for name in NECKS.values():
        steps, taken = trained(
            name, options.runs, caches["train"], caches["validation"], Budget(options.budget_minutes, options.device)
        )
        plans[name] = {"steps": steps, "seconds": taken}
        print(f"{name}: {steps} steps of {taken:.3f} s, {ARMS[name].what}", flush=True)
    evaluated = Evaluated(options.runs, caches["test"], caches["long"], options.device)
    verdicts = qualities(evaluated)
    ablations.show(verdicts)
    settings = {"budget_minutes": options.budget_minutes, "test_scenes": options.test_scenes, "arms": plans}
    rows = [verdict._asdict() | {"finding": verdict.finding} for verdict in verdicts]
    out = options.out.with_name(f"{options.out.stem}_quality.json")
    write_numbers(
        out,
        {f"{name}_step_seconds": plan["seconds"] for name, plan in plans.items()},
        settings,
        options.device,
        verdicts=rows,
    )


def show(numbers: dict[str, float], options: Options) -> None:
    """Print the table that docs/training.md quotes."""
    print("| views | " + " | ".join(f"{kind}, TFLOP | s" for kind in ATTENTIONS) + " | hub: 4 more, TFLOP | s |")
    print("|---" * 9 + "|")
    for views in options.views:
        cells = [f"{numbers[f'{kind}_{views}_{what}']:.3g}" for kind in ATTENTIONS for what in ("teraflops", "seconds")]
        cells += [f"{numbers[f'hub_{views}_add_{what}']:.3g}" for what in ("teraflops", "seconds")]
        print(f"| {views} | {' | '.join(cells)} |")
    for name, value in numbers.items():
        if "exponent" in name or "peak" in name or "most" in name:
            print(f"{name}: {value:.4g}")


def main(options: Options) -> None:
    """Measure cost, and quality where there are minutes for it."""
    if options.smoke:
        options = Options(**vars(options) | SMOKE)
    if min(options.views) <= MORE or len(options.views) < 2:
        raise ValueError(f"--views {options.views}: accepted are two numbers or more, all above {MORE}")
    torch.set_num_threads(1)
    numbers = operations(options) | times(options) | memory(options)
    show(numbers, options)
    skipped = ("out", "runs", "train", "budget_minutes", "test_scenes")
    settings = {name: value for name, value in vars(options).items() if name not in skipped}
    write_numbers(options.out, numbers, settings, options.device)
    if options.budget_minutes:
        trained_and_compared(options)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description="Measure what many views cost and bring, by what the neck lets them read."))
    except (ValueError, OSError) as error:
        sys.exit(f"neck: {error}")
