"""Packed shards, read: ordinary tar files with a byte index beside them, so that any frame is one read away.

A folder holds `train-000000.tar` with `train-000000.idx.json`, the next ones, and `train.scenes.jsonl` with one row for
each scene. `diorama.data.packing` writes them, `diorama.data.members` knows what lies in them.
"""

import os
import re
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from diorama.data.images import Encoded
from diorama.data.members import (
    MAX_BYTES,
    counts,
    decode_cameras,
    decode_depth_file,
    decode_description,
    decode_image,
    decode_mask,
    parsed,
    photo_bytes,
)
from diorama.data.scenes import CapturedScene, Frame

FORMAT, VERSION = "diorama shard", 1
TABLE, INDEX = ".scenes.jsonl", ".idx.json"
MAX_TABLE = 2**28  # bytes of scenes.jsonl: a million scenes
DIGITS = 6 * "[0-9]"
SPLIT = re.compile(r"[A-Za-z0-9_-]{1,80}")

_SHARD = re.compile(r"[A-Za-z0-9_-]{1,80}-[0-9]{6}")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_MEMBER = re.compile(r"cameras\.npz|meta\.json|[0-9]{6}\.(rgb\.(jpg|png)|depth\.png|mask\.png)")
_LINE = 2**16  # bytes of a row of scenes.jsonl
_END = 2 * tarfile.BLOCKSIZE  # of zeros, with which a tar ends
_ACCEPTED = "accepted are whole shards, as `diorama data verify` tells"


class Row(NamedTuple):
    """A line of scenes.jsonl: which scene, and where the index tells of it."""

    key: str
    shard: str
    index: tuple[int, int]  # first byte and length of its line in the shard's index
    frames: int


class Member(NamedTuple):
    """Where one file lies in a tar, and the CRC-32 of its bytes."""

    offset: int
    size: int
    crc: int | None


class Stored(NamedTuple):
    """A tar or an index as it was when its folder was opened."""

    path: str
    size: int
    changed: int  # in nanoseconds


@dataclass(frozen=True)
class Damage:
    """What `verify` found."""

    file: str
    fault: str
    scene: str | None = None  # that cannot be read, by its key


class ShardSource:
    """The scenes of one split of a folder of shards, in the order in which they were packed.

    The split is `train`, or the only one there is, unless named. ValueError for a folder that holds none, and for a
    table that is not as written; what a scene's own bytes lack is told when that scene, or that frame, is opened.
    """

    def __init__(self, folder: str | Path, split: str | None = None) -> None:
        self.folder = Path(folder)
        there = splits(self.folder)
        self.split = split or ("train" if "train" in there or len(there) != 1 else there[0])
        if self.split not in there:
            accepted = f"one of {', '.join(there)}" if there else "a folder that `diorama data pack` finished"
            raise ValueError(f"{self.folder}: found no {self.split}{TABLE}; accepted is {accepted}")
        self.name = self.folder.resolve().name
        self.rows = list(read_table(self.folder / f"{self.split}{TABLE}"))
        if not self.rows:
            raise ValueError(f"{self.folder / f'{self.split}{TABLE}'}: found no scene; {_ACCEPTED}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> CapturedScene:
        row = self.rows[index]
        tar = stored(self.folder / f"{row.shard}.tar")
        return read_scene(tar, row.key, read_members(self.folder, row))

    def told(self, index: int) -> dict[str, Any]:
        """A scene's meta.json: its licence, data set, reader and the rest, as they were packed."""
        row = self.rows[index]
        tar, member = stored(self.folder / f"{row.shard}.tar"), read_members(self.folder, row)["meta.json"]
        return parsed(read_bytes(tar, member), f"{tar.path}: {row.key}/meta.json")


def splits(folder: str | Path) -> list[str]:
    """Which splits a folder of shards holds; none where it is no such folder."""
    names = (file.name[: -len(TABLE)] for file in Path(folder).glob(f"*{TABLE}"))
    return sorted(name for name in names if SPLIT.fullmatch(name))


def read_table(path: Path) -> Iterator[Row]:
    """The rows of scenes.jsonl; ValueError names the line that is none."""
    size = stored(path).size
    if size > MAX_TABLE:
        raise ValueError(f"{path}: found {size} bytes; accepted are at most {MAX_TABLE}")
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, _LINE), b""), 1):
            row = parsed(line, f"{path}: line {number}")
            key, shard, index, frames = (row.get(name) for name in ("key", "shard", "index", "n_frames"))
            if not (_named(_KEY, key) and _named(_SHARD, shard) and counts(index, 2) and counts([frames])):
                found = f"{path}: line {number} has {str((key, shard, index))[:80]}"
                raise ValueError(f"{found}; accepted are a key, a shard of this folder and a place in its index")
            yield Row(key, shard, (index[0], index[1]), frames)  # type: ignore[arg-type, index]


def read_members(folder: Path, row: Row) -> dict[str, Member]:
    """A scene's members by their names in it, as the shard's index tells; ValueError where it does not."""
    path = folder / f"{row.shard}{INDEX}"
    line = parsed(read_bytes(stored(path), Member(*row.index, None)), f"{path}: the line of {row.key}")
    found = line.get("members")
    if line.get("key") != row.key or not isinstance(found, dict) or not {"cameras.npz", "meta.json"} <= found.keys():
        raise ValueError(f"{path}: tells of another scene where {row.key} should be; {_ACCEPTED}")
    for name, place in found.items():
        if not _named(_MEMBER, name) or not counts(place, 3):
            raise ValueError(f"{path}: {row.key} has {f'{name}: {place}'[:80]!r}; accepted are offset, size and CRC-32")
    return {name: Member(*place) for name, place in found.items()}


def read_scene(tar: Stored, key: str, members: dict[str, Member]) -> CapturedScene:
    """A scene of a shard, its frames decoded when asked; ValueError where its cameras or description are damaged."""
    where = f"{tar.path}: {key}"

    def held(name: str) -> Callable[[], Encoded]:
        return partial(_held, tar, members[name], f"{where}/{name}")

    placed = decode_cameras(held("cameras.npz")().data, f"{where}/cameras.npz")
    frames = []
    for number, (camera, _, span) in enumerate(placed):
        photo = next((n for n in (f"{number:06d}.rgb.jpg", f"{number:06d}.rgb.png") if n in members), None)
        if photo is None:
            raise ValueError(f"{where}: has {len(placed)} cameras but no photo {number}; {_ACCEPTED}")
        depth, mask = (
            name if name in members else None for name in (f"{number:06d}.depth.png", f"{number:06d}.mask.png")
        )
        frames.append(
            Frame(
                f"{where}/{photo}",
                partial(decode_image, held(photo)),
                camera,
                None if depth is None else partial(decode_depth_file, held(depth), span),
                None if mask is None else partial(decode_mask, held(mask)),
                encoded=partial(photo_bytes, held(photo)),
            )
        )
    told = decode_description(held("meta.json")().data, len(frames), f"{where}/meta.json")
    return CapturedScene(frames=tuple(frames), layout="packed shards", **told)


def stored(path: Path) -> Stored:
    """A file of a shard; ValueError where there is none, or something else than a regular file."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; {_ACCEPTED}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: found no regular file; {_ACCEPTED}")
    return Stored(str(path), found.st_size, found.st_mtime_ns)


def read_bytes(file: Stored, member: Member, where: str | None = None) -> bytes:
    """One member's bytes; ValueError where the file ends before it, and where they have another CRC-32."""
    where = where or file.path
    if member.size > MAX_BYTES:
        raise ValueError(f"{where}: {member.size} bytes; accepted are at most {MAX_BYTES}")
    if member.offset + member.size > file.size:
        end = member.offset + member.size
        raise ValueError(f"{where}: the file is cut off at byte {file.size}, before {end}; {_ACCEPTED}")
    data = os.pread(_opened(file).number, member.size, member.offset)
    if len(data) != member.size or member.crc not in (None, zlib.crc32(data)):
        raise ValueError(f"{where}: its bytes are not those that were packed; {_ACCEPTED}")
    return data


def verify(folder: str | Path, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
    """Read every byte of a folder of shards; what is damaged, and which scenes that costs. The others can be read.

    ValueError for a folder without shards.
    """
    folder, found = Path(folder), []
    if not splits(folder):
        raise ValueError(f"{folder}: found no *{TABLE}; accepted is a folder that `diorama data pack` finished")
    for split in splits(folder):
        table, rows = folder / f"{split}{TABLE}", {}
        try:
            for row in read_table(table):
                rows.setdefault(row.shard, []).append(row)
        except ValueError as error:
            found.append(Damage(str(table), _fault(error, table)))
        there = {file.name[: -len(INDEX)] for file in folder.glob(f"{split}-{DIGITS}{INDEX}")}
        there |= {file.stem for file in folder.glob(f"{split}-{DIGITS}.tar")} | rows.keys()
        for number, shard in enumerate(sorted(there)):
            found += _verify_shard(folder, shard, rows.get(shard, []))
            if progress:
                progress(number + 1, len(there))
    return found


def _verify_shard(folder: Path, shard: str, rows: list[Row]) -> list[Damage]:
    path, index = folder / f"{shard}.tar", folder / f"{shard}{INDEX}"
    found, spans = [], []
    for row in rows:
        try:
            tar, members = stored(path), read_members(folder, row)
            spans += [(member.offset, member.size) for member in members.values()]
            for name, member in members.items():
                _verify_header(tar, f"{row.key}/{name}", member)
                read_bytes(tar, member, f"{path}: {name}")
            read_scene(tar, row.key, members)
        except ValueError as error:
            found.append(Damage(str(path), _fault(error, path), row.key))
    try:
        tar, bytes_, scenes = stored(path), *_index_head(index)
        if tar.size != bytes_:
            found.append(Damage(str(path), f"has {tar.size} bytes of {bytes_}"))
        elif not found and not _without_gaps(spans, bytes_):
            found.append(Damage(str(path), "holds bytes that its index does not tell of"))
        if scenes != len(rows):
            found.append(Damage(str(index), f"tells of {scenes} scenes, the table of {len(rows)}"))
    except ValueError as error:
        found.append(Damage(str(index), _fault(error, index)))
    return found


def _verify_header(tar: Stored, name: str, member: Member) -> None:
    """ValueError unless a tar's header before a member tells of a plain file of that name and size."""
    start = member.offset - tarfile.BLOCKSIZE
    if start < 0:
        raise ValueError(f"{tar.path}: {name} has no header; {_ACCEPTED}")
    header = read_bytes(tar, Member(start, tarfile.BLOCKSIZE, None))
    try:
        told = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"{tar.path}: {name} has a damaged header ({error}); {_ACCEPTED}") from error
    if not told.isreg() or (told.name, told.size) != (name, member.size):
        raise ValueError(f"{tar.path}: has {told.name[:80]!r} of {told.size} bytes where {name} should be; {_ACCEPTED}")


def _index_head(path: Path) -> tuple[int, int]:
    """How many bytes a tar has, and how many scenes, as its index says; ValueError where that is not whole."""
    size = stored(path).size
    scenes = last = 0
    with path.open("rb") as lines:
        head = parsed(lines.readline(MAX_BYTES).rstrip() + b"]}", f"{path}: its first line")
        while line := lines.readline(MAX_BYTES):
            scenes += line.startswith(b'{"key"')
            last = line
    if (head.get("format"), head.get("version")) != (FORMAT, VERSION) or not counts([head.get("bytes")]):
        raise ValueError(f"{path}: {str(head)[:60]!r}; accepted is {FORMAT!r} version {VERSION}")
    if last != b"]}\n":
        raise ValueError(f"{path}: cut off at byte {size}")
    return head["bytes"], scenes


def _without_gaps(spans: list[tuple[int, int]], end: int) -> bool:
    """Whether headers and members fill a tar from its first byte to its end."""
    at = 0
    for offset, size in sorted(spans):
        if offset != at + tarfile.BLOCKSIZE:
            return False
        at = offset + size + -size % tarfile.BLOCKSIZE
    return at + _END == end


def _fault(error: ValueError, path: Path) -> str:
    """An error without the file's name and what would be accepted."""
    return str(error).removeprefix(f"{path}: ").partition("; accepted")[0]


def _named(pattern: re.Pattern[str], name: Any) -> bool:
    return isinstance(name, str) and pattern.fullmatch(name) is not None


class _Descriptor:
    """An open file that is closed when nobody reads from it any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=128)  # of a process and of no source, so that sources and frames can be sent to another process
def _opened(file: Stored) -> _Descriptor:
    return _Descriptor(file.path)


def _held(tar: Stored, member: Member, where: str) -> Encoded:
    return Encoded(read_bytes(tar, member, where), where)
