"""Files and folders that are there whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARKS = ("scene.json", "diorama.json")  # a folder with one of these was written by us, and may be replaced


@contextmanager
def replacement(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A path beside `path` to write a file or folder at; it takes the place of `path` once the block is left well.

    Whatever ends the block early leaves `path` as it was and nothing beside it. An existing `path` raises
    FileExistsError unless `overwrite`; a folder is only ever replaced if it is a saved scene or an export of one.
    """
    path = Path(path)
    check_free(path, overwrite=overwrite)
    made = [parent for parent in path.absolute().parents if not parent.exists()]
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _take_place(temporary, path)
    except BaseException as error:
        _remove(temporary)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, f"{os.strerror(error.errno)}; nothing was written", str(path)) from error
        raise


def check_free(path: Path, *, overwrite: bool) -> None:
    """FileExistsError where something stands that may not be replaced."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(f"{path}: exists already; choose another name or allow it to be overwritten")
    if path.is_dir() and not any((path / mark).is_file() for mark in MARKS):
        raise FileExistsError(f"{path}: a folder that is no saved scene, so it is not overwritten; choose another name")


def _take_place(temporary: Path, path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        if temporary.is_dir() and os.path.lexists(path):
            raise FileExistsError(f"{path}: a file, not overwritten by a folder; choose another name")
        os.replace(temporary, path)
        return
    if not temporary.is_dir():
        raise FileExistsError(f"{path}: a folder, not overwritten by a file; choose another name")
    # No system call exchanges two folders everywhere, so the old one steps aside and comes back if the new one fails.
    aside = path.with_name(f"{temporary.name}.old")
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # mostly because it was never made
            path.unlink()
