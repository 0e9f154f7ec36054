"""`diorama data ACTION`: prepares what training reads."""

import errno
import os
import shutil
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from diorama.cli.progress import Progress
from diorama.cli.requests import CONFIG, check
from diorama.cli.shards import described, info, pack, verify

if TYPE_CHECKING:
    from diorama.data.check import Verdict
    from diorama.data.scenes import CapturedScene

ACTIONS = {
    "worlds": "render procedural worlds once, with exact depth and cameras, for training to read",
    "check": "say what a folder of photos holds, and whether its cameras fit its pixels",
    "pack": "pack captures into shards, for fast random access to single frames",
    "verify": "read every byte of packed shards and name what is damaged",
    "info": "say what packed shards hold",
}
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


@dataclass(frozen=True)
class CheckArguments:
    """Which capture, and how closely it is looked at."""

    path: Positional[Path]
    """Folder of a capture, or of a data set: docs/data.md lists the layouts."""
    profile: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="(default: the one that fits)")] = (
        None
    )
    """Layout of the folder, where several fit or none does."""
    scene: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="(default: the first)")] = None
    """Which scene of a data set."""
    pairs: int = 8
    """Pairs of photos that are compared."""
    sheet: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Write photos and cameras as one picture."""
    overwrite: bool = False
    """Replace an existing picture."""


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
    return {"worlds": _worlds, "check": _check, "pack": pack, "verify": verify, "info": info}[action](flags)


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


def _check(flags: list[str]) -> int:
    options = tyro.cli(
        CheckArguments,
        args=flags,
        prog="diorama data check",
        description="Say what a capture holds and test its cameras. Exit code 1: they do not fit.",
        config=CONFIG,
    )
    check("--pairs", options.pairs, options.pairs >= 1, "1 or more")
    if options.sheet is not None:
        from diorama.export.atomic import check_free

        check("--sheet", options.sheet, options.sheet.suffix.lower() == ".png", "a .png")
        check_free(options.sheet, overwrite=options.overwrite)
    from diorama.data.check import check_cameras

    scene = _found(options)
    print("\n".join(described(scene)))
    with Progress("comparing photos") as progress:
        verdict = check_cameras(scene, options.pairs, progress)
    print(_said(verdict, scene))
    if options.sheet is not None:
        _draw(scene, options.sheet, options.overwrite)
    return 1 if verdict.fits is False else 0


def _found(options: CheckArguments) -> "CapturedScene":
    from diorama.data.images import VIDEO_SUFFIXES
    from diorama.data.open import open_scene, open_source
    from diorama.data.readers.images import read_clip, read_photos

    path, place = options.path, options.scene
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; accepted is the folder of a capture or a data set")
    source = open_source(path, options.profile if place is not None else None) if path.is_dir() else None
    if source is None:
        check("--scene", place, place is None, "a data set's folder, with --profile where its files do not tell it")
        clip = path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        return read_clip(path) if clip else open_scene(path, options.profile) or read_photos(path)
    check("--scene", place, 0 <= (place or 0) < len(source), f"0 to {len(source) - 1}")
    print(f"{path}: {len(source)} scenes; number {place or 0}:")
    return source[place or 0]


def _said(verdict: "Verdict", scene: "CapturedScene") -> str:
    if verdict.fits is None:
        alone = scene.frames[0].camera is None or len(scene) < 2
        reason = "no photos with cameras to compare" if alone else "no two photos compared show enough of the same"
        return f"check    {reason}: nothing to test"
    deep = verdict.kind == "depth"
    error, best = (f"{e:.2%} of the depth" if deep else f"{e:.2f} px" for e in (verdict.error, verdict.best_error))
    what = "pixels" if deep else f"matches at {verdict.size[0]}x{verdict.size[1]}"
    line = f"check    error {error}, median of {verdict.samples} {what} in {verdict.pairs} pairs: the cameras"
    if verdict.fits:
        return f"{line} fit"
    if verdict.other is None:
        return f"{line} do not fit, in no convention (best {' '.join(verdict.best)}, {best})"
    return f"{line} do not fit; as {' '.join(verdict.other)} they would ({best})"


def _draw(scene: "CapturedScene", path: Path, overwrite: bool) -> None:
    from diorama.data.scenes import joined
    from diorama.export.sheet import contact_sheet, write_sheet

    places = sorted({round(i * (len(scene) - 1) / 17) for i in range(18)})
    images = [scene.frames[place].image(2**18) for place in places]
    cameras = [frame.camera for frame in scene.frames if frame.camera is not None]
    same = [camera.resized(cameras[0].height, cameras[0].width) for camera in cameras]
    write_sheet(contact_sheet(images, joined(same) if same else None), path, overwrite=overwrite)
    print(f"sheet    {path}")


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
