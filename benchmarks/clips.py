"""Both embedded models on the same clips, and each way of Gen3R beside the others; writes results/clips.json.

    python benchmarks/clips.py                  # 64 test worlds, clips of 9 views at 112x112; a stopped run continues
    python benchmarks/clips.py --scenes 4 --steps 5 --out /tmp/clips.json --runs /tmp/clips    # does it work?

From one view, and from both ends, with cameras: the nearest known photo repeated (of one: the first frame), 3DRAE +
3DDiT, Gen3R, and Gen3R's pictures with the geometry that VGGT sees in them (two-stage). From all views without cameras,
as the paper's table 3: VGGT alone, Gen3R's autoencoders alone, Gen3R's diffusion. It is the benchmark `worlds-clips` of
`diorama evaluate`, whose runs and pictures lie under --runs. Known views are not scored where others are. Intervals are
95 % of a bootstrap that draws scenes, paired between methods.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from machine import write_numbers
from rich import box
from rich.console import Console
from rich.table import Table

from diorama.cli.progress import Progress
from diorama.data.worlds import SPLITS, WORLDS_VERSION
from diorama.evaluation.benchmark import LINES, Benchmark, run
from diorama.evaluation.methods import Failure, Generation, Method, find
from diorama.evaluation.parts import Reconstruction, TwoStage
from diorama.evaluation.protocols import WORLDS_CLIPS, Protocol
from diorama.evaluation.quality import difference
from diorama.evaluation.scoring import instruments
from diorama.evaluation.splits import Worlds
from diorama.geometry.cameras import Cameras
from diorama.pipelines.base import load, pick_device
from diorama.scene import Condition, Scene, Shot, Views

FIRST, ENDS, ALL = (setting.name for setting in WORLDS_CLIPS.settings)
STILL, TOKENS, GEN3R, TWO_STAGE, VAE, VGGT = ("nearest", "tokens", "gen3r", "two-stage", "vae", "vggt")  # of the claims
SETTINGS = {STILL: (FIRST, ENDS), TOKENS: (FIRST, ENDS), GEN3R: (FIRST, ENDS, ALL), TWO_STAGE: (FIRST, ENDS)}
SETTINGS |= {VAE: (ALL,), VGGT: (ALL,)}
METRICS = ("psnr", "ssim", "chamfer", "chamfer_percent", "abs_rel_median", "auc_30")
CLAIMS = (  # setting, metric, first minus second
    (FIRST, "psnr", GEN3R, STILL), (FIRST, "psnr", GEN3R, TOKENS), (FIRST, "chamfer", GEN3R, TWO_STAGE),
    (FIRST, "chamfer", GEN3R, TOKENS), (ENDS, "psnr", GEN3R, STILL), (ENDS, "psnr", GEN3R, TOKENS),
    (ENDS, "chamfer", GEN3R, TWO_STAGE), (ALL, "psnr", GEN3R, VAE), (ALL, "chamfer", VAE, VGGT),
    (ALL, "chamfer", GEN3R, VGGT), (ALL, "auc_30", VAE, VGGT), (ALL, "auc_30", GEN3R, VGGT),
)  # fmt: skip
Lines = dict[tuple[str, str], dict[str, Any]]  # by setting and scene


@dataclass(frozen=True)
class Options:
    """What is compared, and where it goes."""

    model: str = "tiny-gen3r"
    """A Gen3R: an embedded model's name or a saved pipeline's folder."""
    tokens: str = "tiny"
    """A model of 3DRAE + 3DDiT, which makes pictures of the size it was trained at; these are enlarged."""
    out: Path = Path(__file__).parent / "results" / "clips.json"
    """The file that gets the numbers."""
    runs: Path = Path("runs/clips")
    """A folder for each method, with report.html; what is there is not made again."""
    scenes: int = 64
    """Test worlds."""
    steps: int | None = None
    """Gen3R's sampling steps; the model's own unless given."""
    guidance: float | None = None
    """Gen3R's guidance; the model's own unless given."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diorama" / "benchmarks"
    """Rendered scenes are kept here."""

    def __post_init__(self) -> None:
        if not 2 <= self.scenes <= len(SPLITS["test"]):
            raise ValueError(f"--scenes {self.scenes}: accepted are 2 to {len(SPLITS['test'])}")


@dataclass
class Kept:
    """A method that remembers what it made, for another one that starts from the same."""

    method: Method

    def __post_init__(self) -> None:
        self.name, self.licence, self.batch = self.method.name, self.method.licence, self.method.batch
        self.settings = self.method.settings
        self.made: dict[tuple[int, tuple[int, ...]], Scene] = {}

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """What it made of the same requests before, else what the method makes."""
        keys = [(seed, request.at) for seed, request in zip(seeds, requests, strict=True)]
        if all(key in self.made for key in keys):
            return [self.made[key] for key in keys]
        found = self.method.generate(requests, cameras, seeds)
        for key, scene in zip(keys, found, strict=True):
            if isinstance(scene, Scene) and isinstance(scene.views.cameras, Cameras):  # without what takes most memory
                self.made[key] = replace(scene, views=Views(scene.views.images, scene.views.cameras), latents=None)
        return found


@dataclass
class AsTrained:
    """A method that is asked for pictures of the size its model was trained at."""

    method: Generation

    def __post_init__(self) -> None:
        self.name, self.licence, self.batch = self.method.name, self.method.licence, self.method.batch
        self.settings = self.method.settings | {"size": "as trained"}

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """Sampled scenes."""
        pipeline, paths = self.method.pipeline, []
        for path in cameras:
            assert isinstance(path, Cameras)
            scale = math.sqrt(pipeline.config.pixels / (path.height * path.width))
            paths.append(path.fitted(*pipeline.size_near(path.height * scale, path.width * scale)))
        return self.method.generate(requests, paths, seeds)


def methods(options: Options) -> dict[str, Method]:
    """Every method by its part in the claims."""
    pipeline: Any = load(options.model, options.device)
    short, sampler = Path(options.model).name, dict(steps=options.steps, guidance=options.guidance)
    made = Kept(Generation(pipeline, short, **sampler))  # type: ignore[arg-type]
    tokens = Generation(load(options.tokens, options.device), Path(options.tokens).name)
    found: dict[str, Any] = {STILL: find(STILL), TOKENS: AsTrained(tokens), GEN3R: made}
    found[TWO_STAGE] = TwoStage(made, pipeline, f"{short}-two-stage")
    return found | {way: Reconstruction(pipeline, f"{short}-{way}", way) for way in (VAE, VGGT)}


def measured(method: Method, settings: tuple[str, ...], options: Options) -> Lines:
    """The lines of one method's run, which continues where it was stopped."""
    chosen = tuple(setting for setting in WORLDS_CLIPS.settings if setting.name in settings)
    protocol: Protocol = replace(WORLDS_CLIPS, settings=chosen)
    with Progress("rendering worlds") as progress:
        scenes = Worlds(protocol, options.scenes, options.cache, progress)
    device, out = str(pick_device(options.device)), options.runs / method.name
    tools = instruments(112, device=device, features=(), cloud_samples=protocol.cloud_samples)
    with Progress(f"{method.name}, {scenes.count} scenes") as progress:
        run(Benchmark(method, protocol, scenes, tools, device), out, progress)
    lines = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    return {(line["setting"], line["scene"]): line for line in lines}


def values(lines: Lines, setting: str, metric: str) -> torch.Tensor:
    """A metric of each scene, in the scenes' order; NaN where there is none."""
    rows = sorted((scene, line) for (name, scene), line in lines.items() if name == setting)
    found = [line["metrics"].get(metric) for _, line in rows]
    return torch.tensor([math.nan if value is None else value for value in found], dtype=torch.float64)


def main(options: Options) -> None:
    """Measure what is missing, compare, print and write."""
    found, console = methods(options), Console()
    names = {part: method.name for part, method in found.items()}
    lines = {part: measured(method, SETTINGS[part], options) for part, method in found.items()}
    means: dict[str, dict[str, dict[str, Any]]] = {}
    for part, settings in SETTINGS.items():
        for setting in settings:
            each = {metric: values(lines[part], setting, metric) for metric in METRICS}
            row = {metric: difference(x, torch.zeros_like(x)) for metric, x in each.items() if x.isfinite().any()}
            row["failures"] = sum(line["failure"] is not None for key, line in lines[part].items() if key[0] == setting)
            seconds = [line["timing"]["seconds_per_16_views"] for key, line in lines[part].items() if key[0] == setting]
            row["seconds_per_16_views"] = round(sum(seconds) / len(seconds), 3)
            means.setdefault(setting, {})[names[part]] = row
    claims = [
        {"setting": setting, "metric": metric, "first": names[one], "second": names[other]}
        | difference(values(lines[one], setting, metric), values(lines[other], setting, metric))
        for setting, metric, one, other in CLAIMS
    ]
    show(means, claims, console)
    gen3r = found[GEN3R].settings
    shape = {"views": WORLDS_CLIPS.views, "size": [112, 112]}
    settings = {"scenes": options.scenes, "worlds_version": WORLDS_VERSION, **shape}
    settings |= {"model": names[GEN3R], "tokens": names[TOKENS], "steps": gen3r["steps"], "guidance": gen3r["guidance"]}
    numbers = {
        f"{setting}: {name}, {metric}": row[metric]["mean"]
        for setting, rows in means.items()
        for name, row in rows.items()
        for metric in METRICS
        if metric in row and row[metric]["mean"] is not None
    }
    write_numbers(options.out, numbers, settings, str(pick_device(options.device)), means=means, differences=claims)
    console.print(f"written to {options.out}")


def show(means: dict[str, Any], claims: list[dict[str, Any]], console: Console) -> None:
    """Print a table for each setting, then the differences."""
    for setting, rows in means.items():
        table = Table("", *METRICS, "s per 16 views", box=box.SIMPLE_HEAD, title=f"known: {setting}")
        for name, row in rows.items():
            cells = [row[metric]["mean"] if metric in row else None for metric in METRICS]
            table.add_row(name, *("-" if x is None else f"{x:.4g}" for x in (*cells, row["seconds_per_16_views"])))
        console.print(table)
    for claim in claims:
        interval = " ".join("-" if claim[x] is None else f"{claim[x]:+.3g}" for x in ("mean", "low", "high"))
        what = f"{claim['setting']}: {claim['metric']} of {claim['first']} minus {claim['second']}"
        console.print(f"  {what}: {interval} (mean, low, high; {claim['scenes']} scenes)", highlight=False)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description="Score both embedded models, and Gen3R's ways, on test worlds."))
    except (ValueError, OSError) as error:
        sys.exit(f"clips: {error}")
