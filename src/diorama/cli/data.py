"""`diorama data ACTION`: prepares what training reads."""

import errno
import os
import shutil
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from diorama.cli.progress import Progress
from diorama.cli.requests import CONFIG, check

ACTIONS = {"worlds": "render procedural worlds once, with exact depth and cameras, for training to read"}
BYTES = 5  # per pixel: three of colour, two of depth


@dataclass(frozen=True)
class WorldsArguments:
    """Which worlds, and how they are rendered."""

    out: Positional[Path]
    """Folder of the cache; an unfinished one is continued."""
    scenes: int
    """Number of worlds."""
    split: Literal["train", "validation", "test"] = "train"
    """Whose seeds: no world is in two splits."""
    start: int = 0
    """First world of the split."""
    views: int = 12
    """Views of each world, along one path."""
    size: int = 64
    """Height and width in pixels."""
    samples: int = 4
    """Rays for each pixel's colour."""
    workers: int = 1
    """Processes that render."""


def run(arguments: list[str]) -> int:
    """Dispatch to an action."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    action, *flags = arguments
    if action not in ACTIONS:
        close = get_close_matches(action, ACTIONS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"accepted is {', '.join(ACTIONS)}"
        raise ValueError(f"unknown action {action!r}: {hint}")
    return _worlds(flags)


def _worlds(flags: list[str]) -> int:
    options = tyro.cli(
        WorldsArguments,
        args=flags,
        prog="diorama data worlds",
        description="Render procedural worlds for training. A run that was stopped continues where it was.",
        config=CONFIG,
    )
    for name, least in (("scenes", 1), ("start", 0), ("views", 1), ("size", 8), ("samples", 1), ("workers", 1)):
        check(f"--{name}", getattr(options, name), getattr(options, name) >= least, f"{least} or more")
    from diorama.data.cache import PLAN, write_cache
    from diorama.data.worlds import SPLITS

    seeds = SPLITS[options.split]
    most = len(seeds) - options.start
    check("--scenes", options.scenes, options.scenes <= most, f"at most {most} from --start {options.start} on")
    if not (options.out / PLAN).is_file():
        _check_place(options)
    with Progress("rendering worlds") as progress:
        write_cache(
            options.out,
            seeds[options.start : options.start + options.scenes],
            views=options.views,
            height=options.size,
            width=options.size,
            samples=options.samples,
            workers=options.workers,
            progress=progress,
        )
    print(f"{options.out}: {options.scenes} worlds of {options.views} views, {sum(progress.seconds):.1f} s")
    return 0


def _check_place(options: WorldsArguments) -> None:
    """ValueError where something else is, OSError if the disk is too small: a mapped file finds out by a signal."""
    out = options.out
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: something else; accepted is a new folder or an unfinished cache")
    wanted = options.scenes * options.views * options.size**2 * BYTES
    free = shutil.disk_usage(next(parent for parent in out.absolute().parents if parent.is_dir())).free
    if wanted > free:
        found = f"{out} ({wanted / 2**30:.1f} GiB wanted, {free / 2**30:.1f} GiB free)"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), found)


def _help() -> str:
    return "\n".join(
        [
            "usage: diorama data ACTION [options]",
            "",
            "Prepare data.",
            "",
            *(f"  {name}  {meaning}" for name, meaning in ACTIONS.items()),
            "",
            "'diorama data ACTION --help' lists an action's options.",
        ]
    )
