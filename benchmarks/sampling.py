"""What do faster ways of sampling save, and what do they cost? Every knob alone and every preset beside `quality`.

    python benchmarks/sampling.py                        # the embedded model, 64 test worlds: results/sampling.json
    python benchmarks/sampling.py --schedule             # when DiT3D's backbone is best asked: results/sharing.json
    python benchmarks/sampling.py --only balanced fast   # some rows; `quality` always runs

Time is that of a whole `generate`: photo to latents to views, in one process after a run that is not counted. In every
round each row runs right after `quality`, and a ratio is the median over rounds of quality's time divided by the row's:
by this process's CPU clock, which a busy machine disturbs less, and by the wall. Operations and evaluations of the
denoiser (one row of a batch is one) are counted once. Pictures: unseen views of test worlds from the first view, with
the same seeds in all rows; intervals are 95 % of a bootstrap over scenes, paired with `quality`. A loss of PSNR is
negative; a change of the Fréchet distance is relative and a loss where it is positive.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from machine import operations, write_numbers
from torch import Tensor, nn

from diorama.data.cache import WorldsCache, write_cache
from diorama.data.worlds import SPLITS, WORLDS_VERSION
from diorama.evaluation.frechet import MINIMUM_IMAGES, Features, bootstrap, frechet_distance, worlds64
from diorama.evaluation.metrics import psnr
from diorama.evaluation.quality import difference, images_of, mean
from diorama.evaluation.sharing import backbone_states, best_steps, between, similarities
from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import orbit
from diorama.pipelines.base import ScenePipeline, load
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition, Views

RESULTS = Path(__file__).parent / "results"
KNOBS: dict[str, dict[str, Any]] = {  # each alone, for every family
    "half of the steps": {"steps": 0.5},  # a share of the model's own
    "a quarter of the steps": {"steps": 0.25},
    "a quarter of the steps, UniPC": {"steps": 0.25, "solver": "unipc"},
    "UniPC in 8 steps": {"steps": 8, "solver": "unipc"},
    "guidance below 0.8 only": {"interval": (0.0, 0.8)},
    "no guidance": {"guidance": 1.0},
}
TOKEN_KNOBS: dict[str, dict[str, Any]] = {
    "backbone at half of the steps": {"backbone": 0.5},  # a share of them, by the schedule in results/sharing.json
    "backbone at a quarter of the steps": {"backbone": 0.25},
    "known views not looked at again": {"memory": False},
}
GEN3R_KNOBS: dict[str, dict[str, Any]] = {
    "step cache 0.05": {"step_cache": 0.05},
    "step cache 0.1": {"step_cache": 0.1},
}
COUNTS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 25)  # how often the backbone may be asked


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str = "tiny"
    scenes: int = 64
    """Test worlds whose pictures are compared; 0 measures times only."""
    views: int = 16
    """Views of the scene that is timed."""
    rounds: int = 5
    threads: int = 2
    batch: int = 16
    workers: int = 1
    """Processes that render scenes the first time."""
    device: str = "cpu"
    only: tuple[str, ...] = ()
    """Rows, in place of all."""
    steps: int | None = None
    """Of `quality`; the model's own unless given."""
    schedule: bool = False
    """Measure on validation worlds when the backbone is best asked, and nothing else."""
    smoke: bool = False
    """Few scenes, steps and rounds: whether it runs, not what comes out."""
    out: Path = RESULTS / "sampling.json"
    schedules: Path = RESULTS / "sharing.json"
    cache: Path = Path.home() / ".cache" / "diorama" / "benchmarks"


def rows_of(pipeline: ScenePipeline, options: Options, steps: int) -> dict[str, dict[str, Any]]:
    """What `generate` is asked for, by the name of the row; `quality` first."""
    tokens = isinstance(pipeline, TokenPipeline)
    knobs = KNOBS | (TOKEN_KNOBS if tokens else GEN3R_KNOBS)
    rows = {name: {"steps": steps} | how for name, how in ({"quality": {}} | knobs).items()}
    rows |= {name: {"speed": name} for name in pipeline.speeds if name != "quality"}
    if "memory" in pipeline.speeds["fast"]:
        rows["fast, known views looked at again"] = {"speed": "fast", "memory": True}
    chosen = options.only or tuple(rows)
    if unknown := set(chosen) - set(rows):
        raise ValueError(f"--only {', '.join(sorted(unknown))}: accepted are {', '.join(rows)}")
    asked = {name: rows[name] for name in dict.fromkeys(("quality", *chosen))}
    for how in asked.values():
        if isinstance(how.get("steps"), float):
            how["steps"] = max(1, round(how["steps"] * steps))
        if isinstance(how.get("backbone"), float):
            how["backbone"] = known_schedule(options.schedules, max(2, round(how["backbone"] * steps)))
    return asked


def known_schedule(file: Path, count: int) -> list[float]:
    """Times that an earlier `--schedule` chose for so many answers of the backbone."""
    if not file.is_file():
        raise ValueError(f"{file}: missing; 'python benchmarks/sampling.py --schedule' writes it")
    times = json.loads(file.read_text())["times"]
    if str(count) not in times:
        raise ValueError(f"{file}: no schedule for {count} answers of the backbone; accepted are {', '.join(times)}")
    return times[str(count)]


def request(pipeline: ScenePipeline, views: int) -> tuple[Condition, Cameras]:
    """One photo and an orbit, at the size that the model was trained at."""
    side = pipeline.size_near(*[pipeline.config.pixels**0.5] * 2)[0]
    camera = Cameras.from_fov(60.0, side, side)
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Condition(Views(picture, camera), (0,)), orbit(camera, views)


def timed(pipeline: ScenePipeline, rows: dict[str, dict[str, Any]], options: Options) -> dict[str, dict[str, float]]:
    """Seconds of each row and how many times faster than `quality` right before it, by both clocks."""
    asked = request(pipeline, options.views)

    def spent(how: dict[str, Any]) -> tuple[float, float]:
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize()
        wall, process = time.perf_counter(), time.process_time()
        pipeline.generate(*asked, **how)
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - wall, time.process_time() - process

    found: dict[str, dict[str, float]] = {}
    for name, how in rows.items():
        spent(how)
        pairs = [(spent(rows["quality"]), spent(how)) for _ in range(options.rounds)]
        found[name] = {}
        for index, clock in enumerate(("wall", "process")):
            found[name][f"{clock}_seconds"] = statistics.median(own[index] for _, own in pairs)
            found[name][f"{clock}_times_faster"] = statistics.median(base[index] / own[index] for base, own in pairs)
        print(f"{name:>36} {found[name]['process_times_faster']:6.2f} times by CPU", flush=True)
    return found


def counted(pipeline: ScenePipeline, how: dict[str, Any], views: int) -> dict[str, float]:
    """Operations of one scene, and how many rows the denoiser and its first block were asked for."""
    denoiser = pipeline.denoiser if isinstance(pipeline, TokenPipeline) else pipeline.transformer  # type: ignore[attr-defined]
    rows = {"evaluations": 0, "backbone": 0}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: rows.update({name: rows[name] + len(inputs[0])}))
        for name, module in (("evaluations", denoiser), ("backbone", denoiser.blocks[-1]))
    ]
    try:
        flops = operations(lambda: pipeline.generate(*request(pipeline, views), **how))
    finally:
        for hook in hooks:
            hook.remove()
    return {"gigaflops": flops / 1e9, **rows}


def worlds(options: Options, pipeline: ScenePipeline, split: str, scenes: int) -> WorldsCache:
    """The first scenes of a split, rendered unless an earlier run of this or of `quality.py` did."""
    side, views = pipeline.size_near(*[pipeline.config.pixels**0.5] * 2)[0], 5 if options.smoke else 12
    folder = options.cache / f"worlds-{WORLDS_VERSION}-{split}-{scenes}x{views}-{side}x{side}"
    write_cache(folder, SPLITS[split][:scenes], views=views, height=side, width=side, workers=options.workers)
    return WorldsCache(folder, allow_test=True)


def requests(data: WorldsCache, rows: Sequence[int]) -> tuple[list[Condition], list[Cameras], Tensor]:
    """The first view of each scene, the cameras of all, and the true pictures of the others."""
    views = data.batch(torch.tensor(rows), torch.arange(data.views).expand(len(rows), -1))
    single = views.apart()
    return [Condition(s[0], (0,)) for s in single], [s.cameras for s in single], views.images[:, 1:]  # type: ignore[misc]


def pictures(
    pipeline: ScenePipeline, data: WorldsCache, how: dict[str, Any], features: Features, batch: int
) -> tuple[Tensor, Tensor]:
    """PSNR of each scene's unseen views, and features of these pictures."""
    scores, seen = [], []
    for start in range(0, len(data), batch):
        rows = range(start, min(start + batch, len(data)))
        conditions, paths, true = requests(data, rows)
        made = images_of(pipeline.generate(conditions, paths, seed=list(rows), **how))[:, 1:]
        scores.append(psnr(made, true).mean(1))
        seen.append(features(made.flatten(0, 1)))
    return torch.cat(scores), torch.cat(seen)


def compared(
    pipeline: ScenePipeline, data: WorldsCache, rows: dict[str, dict[str, Any]], options: Options
) -> dict[str, dict[str, Any]]:
    """PSNR and Fréchet distance of each row, and how they differ from those of `quality`."""
    features, size = worlds64(options.device), options.batch
    starts = range(0, len(data), size)
    batches = (requests(data, range(start, min(start + size, len(data))))[2] for start in starts)
    true = torch.cat([features(images.flatten(0, 1)) for images in batches])
    scenes = torch.arange(len(data)).repeat_interleave(data.views - 1)
    made = {}
    for name, how in rows.items():
        made[name] = pictures(pipeline, data, how, features, size)
        print(f"{name:>36} {float(made[name][0].mean()):6.2f} dB", flush=True)
    minimum, draws = min(MINIMUM_IMAGES, len(true)), dict(samples=3 if options.smoke else 200)
    base_psnr, base, width = *made["quality"], true.shape[1]

    def change(both: Tensor, other: Tensor, *, minimum: int) -> float:
        pairs = zip(both.split(width, 1), other.split(width, 1), strict=True)
        own, quality = (frechet_distance(*pair, minimum=minimum) for pair in pairs)
        return own / quality - 1

    found = {}
    for name, (scores, own) in made.items():
        distance = bootstrap(frechet_distance, own, true, (scenes, scenes), minimum=minimum, **draws)
        both = torch.cat([own, base], 1)  # drawn together: the change is of the same scenes
        moved = bootstrap(change, both, torch.cat([true, true], 1), (scenes, scenes), minimum=minimum, **draws)
        found[name] = {
            "psnr": mean(scores),
            "psnr_change": difference(scores, base_psnr),
            f"fd_{features.name}": distance._asdict(),
            f"fd_{features.name}_change": {"value": moved.value, "low": moved.low, "high": moved.high},
        }
    return found


def schedule(pipeline: TokenPipeline, options: Options) -> None:
    """Choose, for some numbers of answers, when the backbone is asked, on 8 validation worlds; write and print it."""
    data = worlds(options, pipeline, "validation", 2 if options.smoke else 64)
    conditions, paths, _ = requests(data, range(min(8, len(data))))
    steps = options.steps or pipeline.config.steps
    times, states = backbone_states(pipeline, conditions, paths, steps)
    table = similarities(states)
    chosen = {count: between(times, best_steps(table, count)) for count in COUNTS if count <= steps}
    for count, found in chosen.items():
        print(f"{count:>3} answers: {found}")
    settings = {"model": Path(options.model).name, "steps": steps, "scenes": len(conditions), "split": "validation"}
    numbers = {f"cosine {gap} steps apart": float(table.diagonal(gap).mean()) for gap in (1, 5, 10) if gap < steps}
    write_numbers(options.schedules, numbers, settings, options.device, times=chosen)


def main(options: Options) -> None:
    """Measure, print a table and write the numbers."""
    torch.set_num_threads(options.threads)
    pipeline = load(options.model, options.device)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)  # or the counter of operations looks for gradients
    if options.schedule:
        if not isinstance(pipeline, TokenPipeline):
            raise ValueError(f"--schedule: {pipeline.config.title} has no backbone that steps could share")
        return schedule(pipeline, options)
    rows = rows_of(pipeline, options, options.steps or pipeline.config.steps)
    found = {name: {"asked": how, **counted(pipeline, how, options.views)} for name, how in rows.items()}
    for name, times in timed(pipeline, rows, options).items():
        found[name] |= times
    if options.scenes:
        for name, scores in compared(
            pipeline, worlds(options, pipeline, "test", options.scenes), rows, options
        ).items():
            found[name] |= scores
    columns = ("process_times_faster", "wall_times_faster", "evaluations", "backbone", "gigaflops")
    for name, row in found.items():
        print(f"{name:>36}", *(f"{row[column]:8.2f}" for column in columns), end="")
        if options.scenes:
            moved, distance = row["psnr_change"], row["fd_worlds64_change"]
            print(f"  PSNR {moved['mean']:+.3f} [{moved['low']:+.3f}, {moved['high']:+.3f}] dB", end="")
            print(f"  FD {distance['value']:+.1%} [{distance['low']:+.1%}, {distance['high']:+.1%}]", end="")
        print()
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "schedules", "cache", "only")}
    numbers = {f"{name}: {key}": row[key] for name, row in found.items() for key in columns}
    write_numbers(options.out, numbers, settings | {"model": Path(options.model).name}, options.device, rows=found)


def smaller(options: Options) -> Options:
    """The same for a test: what takes long is little."""
    few = dict(scenes=min(options.scenes, 2), views=2, rounds=1, steps=options.steps or 4, threads=1)
    return Options(**vars(options) | few) if options.smoke else options


if __name__ == "__main__":
    try:
        main(smaller(tyro.cli(Options, description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"sampling: {error}")
