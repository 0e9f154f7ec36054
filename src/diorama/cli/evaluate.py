"""`diorama evaluate METHOD BENCHMARK`: scores a method, ours or another's, and writes tables, pictures and a report."""

import math
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, arg

from diorama.cli.progress import Progress
from diorama.cli.requests import CONFIG, check
from diorama.cli.workers import WorkerFlags

if TYPE_CHECKING:
    from diorama.evaluation.asking import Benchmark
    from diorama.evaluation.methods import Method
    from diorama.evaluation.protocols import Protocol
    from diorama.evaluation.splits import Scenes
    from diorama.runner.spread import Here


@dataclass(frozen=True)
class Arguments:
    """Who is asked what."""

    method: Annotated[Positional[str], arg(metavar="METHOD", help_behavior_hint="")]
    """tiny, tiny-regression, a saved model's folder; gen3r, gen3r-vae, gen3r-vggt or gen3r-two-stage; nearest,
    nearest-blurred, mean, plane-warp; the bounds depth-warp and truth; or another program as "COMMAND {folder}"
    (docs/evaluation.md)."""
    benchmark: Annotated[Positional[str], arg(metavar="BENCHMARK", help_behavior_hint="")]
    """worlds, worlds-clips (nothing to download); 3drae, gen3r, re10k, seva, tanks-and-temples, mip-nerf-360, dtu (with
    --data)."""
    out: Path
    """Folder of the results; a run that was stopped continues where it was."""
    quick: Annotated[bool, arg(help_behavior_hint="")] = False
    """Fewer scenes."""
    scenes: Annotated[int | None, arg(help_behavior_hint="(default: the benchmark's)")] = None
    """Number of scenes."""
    data: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """One folder for each scene, for all benchmarks but worlds."""
    split: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Index file {scene: {context, target}} of re10k."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    steps: Annotated[int | None, arg(help_behavior_hint="(default: the benchmark's, else the model's)")] = None
    """Sampling steps."""
    guidance: Annotated[float | None, arg(help_behavior_hint="(default: the benchmark's, else the model's)")] = None
    """How much the known views count."""
    features: tuple[str, ...] = ("worlds64",)
    """Nets for distances between sets of pictures: worlds64, inception, dinov2."""
    poses: Annotated[str, arg(metavar="none|colmap|vggt[:FOLDER]")] = "none"
    """What estimates the cameras of generated pictures: the package pycolmap; VGGT of a folder or a model, else as it
    was downloaded, else the small one that comes with the package."""
    vbench: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """VBench's own command in an environment of its own."""
    name: Annotated[str | None, arg(help_behavior_hint="")] = None
    """Name of another program in tables and reports."""
    licence: str = "unknown"
    """Licence of another program's weights."""
    cache: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the user's)")] = None
    """Where rendered scenes are kept."""
    who: WorkerFlags = field(default_factory=WorkerFlags)


def run(arguments: list[str]) -> int:
    """Measure, write and print the table."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama evaluate",
        description="Score a method on a benchmark. A run that was stopped continues where it was.",
        config=CONFIG,
    )
    check("--scenes", options.scenes, options.scenes is None or options.scenes >= 1, "1 or more")
    check("--steps", options.steps, options.steps is None or options.steps >= 1, "1 or more")
    check("--guidance", options.guidance, 0 <= (options.guidance or 0) < math.inf, "0 or more")
    options.who.check()
    _check_place(options.out)
    from diorama.runner.spread import spread

    with spread(options.device, options.who.ray, options.who.workers) as who:
        return _measured(options, who)


def _measured(options: Arguments, who: "Here") -> int:
    from diorama.evaluation.benchmark import REPORT
    from diorama.evaluation.benchmark import run as measure

    device = "auto" if who.remote and who.device.startswith("cuda") else who.device  # GPUs may be elsewhere
    with who.first():  # who renders scenes that are not there yet
        benchmark = asked(options, device)
    scenes, title = benchmark.scenes, f"{benchmark.method.name} on {benchmark.protocol.name}"
    with Progress(title) as progress:
        summary = measure(benchmark, options.out, progress, who, partial(asked, options))
    show(summary, f"{title}, {scenes.count} scenes")
    for note in (*scenes.notes, *benchmark.tools.notes):
        print(f"note: {note}")
    written = REPORT if (options.out / REPORT).is_file() else "summary.json"
    print(f"{options.out / written}: means over scenes, ± half their 95 % interval")
    return 0


def asked(options: Arguments, device: str) -> "Benchmark":
    """The benchmark that flags mean, with the method on a device."""
    from diorama.evaluation.asking import Benchmark
    from diorama.evaluation.scoring import instruments
    from diorama.pipelines.base import pick_device

    protocol = _protocol(options)
    device = str(pick_device(device))
    side = min(protocol.size.height or 256, protocol.size.width or 256)
    tools = instruments(
        side, device=device, features=options.features, poses=options.poses, cloud_samples=protocol.cloud_samples
    )
    method = _method(options, protocol, device)
    return Benchmark(method, protocol, _scenes(options, protocol), tools, device, options.vbench)


def show(summary: dict[str, Any], title: str) -> None:
    """Print one table: a row for each metric that could be measured, a column for each setting."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    measured = [*summary["rows"], *summary["pooled"]]
    settings = list(dict.fromkeys(row["setting"] for row in measured))
    table = Table("", *settings, box=box.SIMPLE_HEAD, title=title)
    blank = []
    for metric in dict.fromkeys(row["metric"] for row in measured):
        cells = {row["setting"]: _cell(row) for row in measured if row["metric"] == metric}
        if set(cells.values()) == {"-"}:
            blank.append(metric)
        else:
            table.add_row(metric, *(cells.get(setting, "-") for setting in settings))
    seconds = {row["setting"]: row["seconds_per_16_views"] for row in summary["timing"]}
    table.add_row("seconds per 16 views", *(_number(seconds.get(setting)) for setting in settings))
    failures = [max((row["failures"] for row in summary["rows"] if row["setting"] == s), default=0) for s in settings]
    if any(failures):
        table.add_row("failures, at most", *map(str, failures))
    Console().print(table)
    if blank:
        print(f"not measured: {', '.join(blank)}")


def _cell(row: dict[str, Any]) -> str:
    value = row.get("mean", row.get("value"))
    return "-" if value is None else f"{_number(value)} ±{(row['high'] - row['low']) / 2:.2g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _protocol(options: Arguments) -> "Protocol":
    from diorama.evaluation.protocols import PROTOCOLS

    if options.benchmark not in PROTOCOLS:
        raise ValueError(f"benchmark {options.benchmark!r}: accepted are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[options.benchmark]
    if protocol.source == "worlds" and options.data is not None:
        raise ValueError(f"--data {options.data}: the benchmark {protocol.name} renders its own scenes; leave it out")
    if protocol.source != "worlds" and options.data is None:
        raise ValueError(f"the benchmark {protocol.name} needs --data FOLDER, with one folder for each scene")
    return protocol


def _method(options: Arguments, protocol: "Protocol", device: str) -> "Method":
    from diorama.evaluation.methods import find, samples
    from diorama.evaluation.outside import FOLDER, Outside

    outside = FOLDER in options.method
    if not outside and options.name is not None:
        raise ValueError(f"--name {options.name}: only another program takes a name; {options.method} has one")
    if outside:
        return Outside(options.method, options.out / "outside", options.name or "", options.licence)
    steps, guidance = options.steps, options.guidance
    if samples(options.method):
        steps = protocol.steps if steps is None else steps
        guidance = protocol.guidance if guidance is None else guidance
    return find(options.method, device=device, steps=steps, guidance=guidance)


def _scenes(options: Arguments, protocol: "Protocol") -> "Scenes":
    from diorama.data.worlds import SPLITS
    from diorama.evaluation.splits import Folders, Worlds

    count = options.scenes or (protocol.quick if options.quick else protocol.scenes)
    if options.data is not None:
        return Folders(protocol, options.data, count, options.split)
    if options.split is not None:
        raise ValueError(f"--split {options.split}: the benchmark {protocol.name} takes no such file")
    assert count is not None
    most = len(SPLITS["test"])
    check("--scenes", count, count <= most, f"1 to {most}")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diorama" / "benchmarks"
    with Progress("rendering worlds") as progress:
        return Worlds(protocol, count, options.cache or home, progress)


def _check_place(out: Path) -> None:
    """ValueError where the results cannot go, before anything is loaded or rendered."""
    if os.path.lexists(out) and not (out / "run.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: something else; accepted is a new folder or an unfinished run")
    parent = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{out}: {parent} is no folder that can be written to")
