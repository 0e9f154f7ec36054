"""`diorama data pack`, `verify` and `info`: captures as packed shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from diorama.cli.progress import Progress
from diorama.cli.requests import CONFIG, check

if TYPE_CHECKING:
    from diorama.data.scenes import CapturedScene

TOLD = 20  # lines of one kind that are printed; all are counted


@dataclass(frozen=True)
class PackArguments:
    """What is packed, where to, and how photos are kept."""

    source: Positional[Path]
    """A capture, a folder of captures, a data set, rendered worlds, a saved scene."""
    out: Positional[Path]
    """Folder of the shards; an unfinished one is continued."""
    profile: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="(default: the one that fits)")] = (
        None
    )
    """Layout of the source, where several fit or none does."""
    split: str = "train"
    """What the scenes are for; each split has its own shards."""
    dataset: Annotated[str, arg(help_behavior_hint="(default: the source's name)")] = ""
    """Name of the data set, kept in each scene."""
    licence: str = "not stated"
    """Under which the photos may be used, kept in each scene."""
    size: int = 640
    """Shorter side of the photos in pixels; larger ones are reduced."""
    photos: Literal["jpg", "png"] = "jpg"
    """How photos are kept whose files cannot stay as they are: quality 95, or without loss."""
    megabytes: int = 1000
    """Of a shard; scenes stay whole."""
    workers: int = 1
    """Processes that encode."""


@dataclass(frozen=True)
class FolderArguments:
    """Which shards."""

    folder: Positional[Path]
    """Folder that `diorama data pack` wrote."""


def pack(flags: list[str]) -> int:
    """Write shards; exit code 1 where scenes had to be left out."""
    options = tyro.cli(
        PackArguments,
        args=flags,
        prog="diorama data pack",
        description="Pack scenes into shards, for fast random access to single frames. A run that was stopped "
        "continues where it was. Exit code 1: scenes were left out.",
        config=CONFIG,
    )
    for name, least in (("size", 8), ("megabytes", 1), ("workers", 1)):
        check(f"--{name}", getattr(options, name), getattr(options, name) >= least, f"{least} or more")
    from diorama.data import packing

    plan = packing.Plan(
        source=str(options.source.absolute()),
        profile=options.profile,
        split=options.split,
        dataset=options.dataset,
        licence=options.licence,
        size=options.size,
        photos=options.photos,
        megabytes=options.megabytes,
    )
    with Progress("packing scenes") as progress:
        packed = packing.pack(options.out, plan, workers=options.workers, progress=progress)
    counted = f"{packed.scenes} scenes, {packed.frames} frames, {packed.shards} shards"
    print(f"{options.out}: {counted}, {sum(progress.seconds):.1f} s")
    _print_some([f"left out  {reason}" for reason in packed.left_out])
    return 1 if packed.left_out else 0


def verify(flags: list[str]) -> int:
    """Read every byte; exit code 1 where some are not as they were written."""
    options = tyro.cli(
        FolderArguments,
        args=flags,
        prog="diorama data verify",
        description="Read every byte of packed shards and name the scenes that damage costs. Exit code 1: some are.",
        config=CONFIG,
    )
    from diorama.data.shards import read_table, splits
    from diorama.data.shards import verify as verified

    with Progress("reading shards") as progress:
        found = verified(options.folder, progress)
    lost = len({(damage.file, damage.scene) for damage in found if damage.scene})
    _print_some([f"damaged   {d.file}: {f'{d.scene}: ' if d.scene else ''}{d.fault}" for d in found])
    if found:
        print(f"{options.folder}: {lost} scenes cannot be read; the others can")
        return 1
    count = sum(1 for split in splits(options.folder) for _ in read_table(options.folder / f"{split}.scenes.jsonl"))
    print(f"{options.folder}: {count} scenes, all as they were packed")
    return 0


def info(flags: list[str]) -> int:
    """Say what shards hold."""
    options = tyro.cli(
        FolderArguments,
        args=flags,
        prog="diorama data info",
        description="Say what packed shards hold, from their tables.",
        config=CONFIG,
    )
    from diorama.data.shards import ShardSource, splits

    there = splits(options.folder)
    if not there:
        raise ValueError(f"{options.folder}: found no *.scenes.jsonl; accepted is a folder that 'data pack' finished")
    for split in there:
        source = ShardSource(options.folder, split)
        frames, shards = [row.frames for row in source.rows], {row.shard for row in source.rows}
        size = sum((options.folder / f"{shard}.tar").stat().st_size for shard in shards)
        counted = f"{len(source)} scenes of {min(frames)} to {max(frames)} frames, {sum(frames)} in all"
        print(f"{options.folder}, {split}: {counted}; {size / 1e6:.1f} MB in {len(shards)} shards")
        print("\n".join(f"  {line}" for line in described(source[0])))
        told = source.told(0)
        print(f"  from {str(told.get('dataset'))[:60]}, by {str(told.get('reader'))[:60]}")
        print(f"  licence  {str(told.get('licence'))[:200]}")
    return 0


def described(scene: "CapturedScene") -> list[str]:
    """What was found, in lines."""
    import numpy as np

    first = scene.views([0])
    height, width = first.images.shape[-2:]
    missing = f", {scene.missing} more without their file" if scene.missing else ""
    count = f"{len(scene)} photo{'s' if len(scene) > 1 else ''}{missing}"
    lines = [f"{scene.name}: {scene.layout}, {count}; the first has {height}x{width} pixels"]
    if first.cameras is None:
        return [*lines, "cameras  none"]
    centers = [frame.camera.centers[0] for frame in scene.frames if frame.camera is not None]
    reach = max(float((center - centers[0]).norm()) for center in centers)
    unit = "m" if scene.metric else "units"
    wide = f"{float(first.cameras.fov[0]):.1f} degrees wide"
    lines.append(f"cameras  {' '.join(scene.convention)}; {wide}; from the first to the farthest {reach:.4g} {unit}")
    count = sum(frame.depth is not None for frame in scene.frames)
    if first.depth is None or first.mask is None:
        return [*lines, f"depth    {count or 'none'}"]
    valid = first.depth[first.mask].numpy()
    near, far = np.quantile(valid, (0.05, 0.95)) if len(valid) else (0.0, 0.0)
    share = len(valid) / (height * width)
    span = f"the first's {near:.4g} to {far:.4g} {unit} (5 to 95 %), {share:.0%} valid"
    return [*lines, f"depth    {count} of {len(scene)} photos; {span}"]


def _print_some(lines: list[str]) -> None:
    for line in lines[:TOLD]:
        print(line)
    if len(lines) > TOLD:
        print(f"... and {len(lines) - TOLD} more")
