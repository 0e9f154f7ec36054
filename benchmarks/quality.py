"""How close do the pictures come? RAE3D and DiT3D against baselines on held-out Worlds; writes results/quality.json.

    python benchmarks/quality.py --quick                # 64 scenes
    python benchmarks/quality.py --validation           # 256 scenes, blur of the baselines tuned anew

Every number is the mean over the unseen views of a scene, then over scenes. Intervals are 95 % of a bootstrap that
draws scenes, paired between methods. The plane warps are told the known view's true median depth, the depth warp the
true depth of what it predicts. `diorama.evaluation.quality` says what is scored.
"""

import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from diorama.data.cache import WorldsCache, write_cache
from diorama.data.worlds import SPLITS, WORLDS_VERSION
from diorama.evaluation.benchmark import device_name
from diorama.evaluation.protocols import known_places
from diorama.evaluation.quality import (
    BOUND,
    COUNTS,
    MODEL,
    Scores,
    generation,
    generation_summary,
    reconstruction,
    summary,
    tuned_blur,
)
from diorama.pipelines.base import load
from diorama.pipelines.tokens import TokenPipeline

VIEWS = 12
Report = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to measure, and where it goes."""

    model: str = "tiny"
    """An embedded model's name or a saved pipeline's folder."""
    out: Path = Path(__file__).parent / "results" / "quality.json"
    """The file that gets the numbers."""
    quick: bool = False
    """64 test scenes instead of 256, 16 of them generated instead of 64."""
    validation: bool = False
    """Tune the baselines' blur on validation scenes even if the output file holds it already."""
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diorama" / "benchmarks"
    """Rendered scenes are kept here."""
    seeds: int = 4
    """Scenes generated from each condition."""
    steps: int | None = None
    """Sampling steps; the model's own unless given."""
    batch: int = 16
    """Scenes in one forward pass."""
    workers: int = 1
    """Processes that render scenes the first time."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(f"--seeds {self.seeds}: the spread over seeds needs at least 2")


def main(options: Options) -> None:
    """Render, measure, print and write."""
    console, begun = Console(), time.time()
    pipeline: TokenPipeline = load(options.model, options.device)  # type: ignore[assignment]
    side = training_side(pipeline)
    test, generated = (64, 16) if options.quick else (256, 64)
    console.print(f"{pipeline.config.title}: {test} test scenes of {VIEWS} views at {side}x{side}")
    blur = None if options.validation else stored_blur(options.out, side)
    if blur is None:
        console.print("tuning the baselines' blur on 64 validation scenes")
        blur = tuned_blur(worlds(options, "validation", 64, side), options.batch)
    data = worlds(options, "test", test, side)
    console.print(f"reconstructing {test} scenes, generating {generated} with {options.seeds} seeds: takes minutes")
    report = measure(pipeline, data, blur, generated, options)
    report = {**described(pipeline, options, side), **report, "seconds": round(time.time() - begun)}
    show(report, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {options.out}")


def measure(
    pipeline: TokenPipeline, data: WorldsCache, blur: dict[str, dict[str, float]], generated: int, options: Options
) -> Report:
    """Every number of the report: all scenes reconstructed, the first `generated` of them generated."""
    regressed = {
        str(count): {"places": known_places(count, data.views)}
        | summary(reconstruction(pipeline, data, count, blur[str(count)], options.batch))
        for count in COUNTS
    }
    scores: Scores = generation(
        pipeline, data, generated, seeds=options.seeds, steps=options.steps, batch=options.batch
    )
    return {
        "scenes": {
            "reconstructed": len(data),
            "generated": generated,
            "first_seed": data.seeds[0],
            "last_seed": data.seeds[-1],
        },
        "blur": blur,
        "reconstruction": regressed,
        "generation": generation_summary(scores),
    }


def training_side(pipeline: TokenPipeline) -> int:
    """Side in pixels of the square images that the model was trained on."""
    patch = pipeline.autoencoder.config.patch
    return max(1, round(pipeline.config.pixels**0.5 / patch)) * patch


def worlds(options: Options, split: str, scenes: int, side: int) -> WorldsCache:
    """The first scenes of a split, rendered unless an earlier run did."""
    folder = options.cache / f"worlds-{WORLDS_VERSION}-{split}-{scenes}x{VIEWS}-{side}x{side}"
    write_cache(folder, SPLITS[split][:scenes], views=VIEWS, height=side, width=side, workers=options.workers)
    return WorldsCache(folder, allow_test=True)


def stored_blur(file: Path, side: int) -> dict[str, dict[str, float]] | None:
    """The blur that an earlier run tuned on pictures of this size; None if there is none."""
    if not file.exists():
        return None
    earlier = json.loads(file.read_text())
    same = earlier["settings"]["side"] == side and earlier["settings"]["worlds_version"] == WORLDS_VERSION
    return earlier["blur"] if same else None


def described(pipeline: TokenPipeline, options: Options, side: int) -> Report:
    """With what the numbers were made: settings, machine, versions."""
    settings = {
        "model": Path(options.model).name,
        "title": pipeline.config.title,
        "quick": options.quick,
        "side": side,
        "views": VIEWS,
        "seeds": options.seeds,
        "steps": options.steps or pipeline.config.steps,
        "guidance": pipeline.config.guidance,
        "worlds_version": WORLDS_VERSION,
    }
    names = ("diorama", "torch", "diffusers", "numpy")
    return {
        "settings": settings,
        "hardware": {"device": device_name(str(pipeline.device)), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in names},
    }


def show(report: Report, console: Console) -> None:
    """Print the tables."""
    for count, part in report["reconstruction"].items():
        show_reconstruction(count, part, console)
    table = Table("one known view", "value", "difference (95 %)", box=box.SIMPLE_HEAD, title="DiT3D beside RAE3D")
    for name, values in report["generation"].items():
        table.add_section()
        table.add_row(f"[bold]{name.replace('_', ' ')}", "", interval(values["difference"]))
        for what, value in values.items():
            if what != "difference":
                table.add_row(f"  {what}", number(value, 3))
    console.print(table)


def show_reconstruction(count: str, part: Report, console: Console) -> None:
    """Print the table of one number of known views."""
    title = f"{count} known view{'s' * (count != '1')} {list(part['places'])}"
    columns = ("method", "PSNR", "SSIM", "gradient correlation", "share of gradient energy")
    table = Table(*columns, box=box.SIMPLE_HEAD, title=title)
    for name, values in part["pictures"].items():
        digits = (2, 3, 3, 2)
        cells = [number(value, digit) for value, digit in zip(values.values(), digits, strict=True)]
        table.add_row(name, *cells, style={MODEL: "bold", BOUND: "dim"}.get(name))
    console.print(table)
    for rivals in ("rae3d_minus_best_baseline", "rae3d_minus_best_copy"):
        for metric, values in part[rivals].items():
            console.print(f"  {MODEL} minus {values['baseline']}, {metric.replace('_', ' ')}: {interval(values)}")
    if "depth" in part:
        depth = part["depth"]
        own, aligned, constant = (
            number(depth[key], 3) for key in ("abs_rel", "abs_rel_median_aligned", "best_constant")
        )
        console.print(f"  depth AbsRel {own} ({aligned} with medians aligned), best constant {constant}")
        console.print(f"  {MODEL} minus the best constant: {interval(depth['rae3d_minus_constant'])}")


def number(value: float | None, digits: int) -> str:
    """A number of a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(values: Report) -> str:
    """A mean difference with its interval."""
    return f"{number(values['mean'], 3)} [{number(values['low'], 3)}, {number(values['high'], 3)}]".replace("[", r"\[")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description="Score reconstruction and generation on held-out Worlds."))
    except (ValueError, OSError) as error:
        sys.exit(f"quality: {error}")
