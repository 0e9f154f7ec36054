"""`diorama download NAME`: published weights to this machine, once their size and terms have been seen."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from diorama.cli.progress import Progress
from diorama.cli.requests import CONFIG
from diorama.models.downloads import DOWNLOADS, fetch, listing, remaining, unfinished

MIB = 2**20


@dataclass(frozen=True)
class Arguments:
    """What is fetched, and where to."""

    name: Annotated[Positional[str], arg(metavar="|".join(DOWNLOADS))]
    """What to fetch."""
    out: Annotated[
        Path | None, arg(help_behavior_hint="(default: DIORAMA_CACHE, else ~/.cache/diorama, and the name)")
    ] = None
    """The folder; what is whole there already is not fetched again."""
    yes: bool = False
    """Agree to size and licence beforehand, where nobody can be asked."""


def run(arguments: list[str]) -> int:
    """Say what would come, ask, and bring it; gives 0 once all is there and whole."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama download",
        description="Fetch published weights. A download that was stopped continues; every file's hash is checked.",
        config=CONFIG,
    )
    found = listing(options.name)
    folder = options.out or _cache(options.name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; accepted is a folder, new or of an earlier download")
    print(f"{options.name}: {found.published.repository} at {found.revision[:12]}, from {found.hub}")
    print(f"  licence: {found.published.licence}" + (f"; its page says: {found.stated}" if found.stated else ""))
    print(f"  {len(found.files)} files, {_size(found.size)}, to {folder}", flush=True)
    with Progress("checking what is there (MiB)") as progress:
        files = unfinished(found, folder, _Count(found.size, progress))
    if files:
        bytes_to_come = remaining(files, folder)
        print(f"  {len(files)} of them to fetch, {_size(bytes_to_come)}", flush=True)
        _check_space(folder, bytes_to_come)
        _agreed(options.name, options.yes)
    with Progress("downloading (MiB)") as progress:
        fetch(found, files, folder, _Count(remaining(files, folder), progress))
    print(f"{folder}: all files are there and whole; use it as --model {folder}")
    if options.name == "gen3r":
        print(f"  half the size, quicker to load: diorama convert {folder} FOLDER")
    return 0


class _Count:
    """Adds bytes up for a bar."""

    def __init__(self, size: int, progress: Progress) -> None:
        self.done, self.size, self.progress = 0, size, progress

    def __call__(self, count: int) -> None:
        self.done += count
        self.progress(self.done // MIB, max(self.size // MIB, 1))


def _agreed(name: str, beforehand: bool) -> None:
    """ValueError unless the user says yes."""
    if beforehand:
        return
    if not sys.stdin.isatty():
        raise ValueError(f"download {name}: nothing was fetched; --yes agrees to size and licence")
    if input("Fetch it under this licence? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError(f"download {name}: nothing was fetched")


def _check_space(folder: Path, wanted: int) -> None:
    """ValueError where the disk is too small."""
    home = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(home).free
    if wanted > free:
        raise ValueError(f"{folder}: {_size(free)} are free; accepted is a place with {_size(wanted)}")


def _cache(name: str) -> Path:
    from diorama.models.perceptual import cache_folder

    return cache_folder(name)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
