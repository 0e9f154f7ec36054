"""Packed shards, written: scenes encoded by several processes, then joined in order to tar files with an index."""

import json
import multiprocessing
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import torch

from diorama.data.cache import deaf_to_interrupts
from diorama.data.members import PhotoFormat, encode_cameras, encode_description, encode_frame
from diorama.data.open import open_scenes
from diorama.data.scenes import CapturedScene, SceneSource
from diorama.data.shards import DIGITS, FORMAT, INDEX, SPLIT, TABLE, VERSION


@dataclass(frozen=True)
class Plan:
    """What is packed, and how; a run that was stopped is continued by the same alone."""

    source: str  # path of what `open_scenes` opens
    profile: str | None = None
    split: str = "train"
    dataset: str = ""  # name of the source where empty
    licence: str = "not stated"
    size: int = 640  # of the shorter side, in pixels, at most
    photos: PhotoFormat = "jpg"  # how photos are kept whose files cannot be kept as they are
    megabytes: int = 1000  # of a shard, unless one scene has more


@dataclass(frozen=True)
class Packed:
    """What became of the scenes."""

    scenes: int
    frames: int
    shards: int
    left_out: tuple[str, ...]  # why, one line for each scene


def pack(
    out: str | Path, plan: Plan, *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Packed:
    """Write the scenes of a source to `out` as shards of one split; a killed run continues where it stopped.

    Frames that cannot be decoded are left out and counted as missing, scenes without any other are left out and told.
    FileExistsError where the split is there already, ValueError for a run begun with another plan and for a source
    without a scene that can be packed.
    """
    out = Path(out)
    if not SPLIT.fullmatch(plan.split):
        raise ValueError(f"split {plan.split!r:.90}: accepted are letters, digits, _ and -, at most 80")
    source = _source(plan.source, plan.profile)
    work = out / f".packing-{plan.split}"
    _begin(out, work, plan)
    shards = _Shards(out, work, plan)
    todo = [(str(work), plan, number) for number in range(shards.next, len(source))]
    for number, part in enumerate(_encoded(todo, workers), shards.next):
        shards.add(number, part)
        if progress:
            progress(number + 1, len(source))
    return shards.finish()


def _begin(out: Path, work: Path, plan: Plan) -> None:
    """A folder to work in, or that of an earlier run with the same plan."""
    table, file = out / f"{plan.split}{TABLE}", work / "plan.json"
    if table.exists() and not file.exists():
        shutil.rmtree(work, ignore_errors=True)  # killed while it was being removed
        raise FileExistsError(f"{table}: exists already; choose another folder or split")
    if file.exists():
        found = json.loads(file.read_text())
        odd = [name for name, value in asdict(plan).items() if found.get(name) != value]
        if odd:
            raise ValueError(f"{file}: an earlier run had another {odd[0]}; accepted is the same, or a new folder")
        return
    if any(out.glob(f"{plan.split}-{DIGITS}.tar")):
        raise FileExistsError(f"{out}: holds shards of {plan.split!r} already; choose another folder or split")
    work.mkdir(parents=True, exist_ok=True)
    with _replacing(file, work) as draft:
        draft.write(json.dumps(asdict(plan)).encode())


def _encoded(todo: list[tuple[str, Plan, int]], workers: int) -> Iterator[dict[str, Any]]:
    """Parts in the order of their scenes, whoever makes them."""
    if workers == 1 or len(todo) < 2:
        yield from map(_part, todo)
        return
    with deaf_to_interrupts():  # workers inherit it: the keyboard interrupts this process alone, which ends them
        pool = multiprocessing.get_context("spawn").Pool(workers)
    with pool:
        yield from pool.imap(_part, todo)


@lru_cache(maxsize=1)
def _source(path: str, profile: str | None) -> SceneSource:
    return open_scenes(path, profile)


def _part(job: tuple[str, Plan, int]) -> dict[str, Any]:
    """One scene's members as a piece of a tar, and what the index will tell of it; written last, that says it is there.

    An earlier run's is taken as it is.
    """
    work, plan, number = Path(job[0]), job[1], job[2]
    told = work / f"{number:06d}.json"
    if told.exists():
        return json.loads(told.read_text())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    source = _source(plan.source, plan.profile)
    try:
        with _replacing(work / f"{number:06d}.tar", work) as file:
            part = _write_scene(file, source[number], number, plan, plan.dataset or source.name)
    except (ValueError, FileNotFoundError) as error:
        part = {"left_out": str(error)}
    finally:
        torch.set_num_threads(before)
    with _replacing(told, work) as file:
        file.write(json.dumps(part).encode())
    return part


def _write_scene(file: IO[bytes], scene: CapturedScene, number: int, plan: Plan, dataset: str) -> dict[str, Any]:
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", scene.name).strip("_")[-70:]
    tar = _Writer(file, f"{number:06d}-{slug}" if slug else f"{number:06d}")
    placed, kept, first = [], [], None
    for place, frame in enumerate(scene.frames):
        try:
            members, told = encode_frame(frame, plan.size, plan.photos)
        except (ValueError, FileNotFoundError) as error:
            first = first or error
            continue
        for name, data in members.items():
            tar.add(f"{len(kept):06d}.{name}", data)
        kept.append(place)
        placed.append(told)
    if not kept:
        raise ValueError(f"{scene.name}: none of its {len(scene)} frames can be decoded; the first: {first}")
    tar.add("cameras.npz", encode_cameras(placed))
    more = {"dataset": dataset, "split": plan.split, "licence": plan.licence, "version": VERSION}
    tar.add("meta.json", encode_description(scene, kept, more))
    return {
        "key": tar.key,
        "name": scene.name[:200],
        "n_frames": len(kept),
        "cameras": placed[0].camera is not None,
        "is_metric": scene.metric,
        "ordered": scene.ordered,
        "depth_kind": scene.depth_kind,
        "members": tar.members,
    }


class _Writer:
    """A piece of a tar with the members of one scene, without the end that a tar has."""

    def __init__(self, file: IO[bytes], key: str) -> None:
        self.file, self.key, self.members = file, key, {}

    def add(self, name: str, data: bytes) -> None:
        header = tarfile.TarInfo(f"{self.key}/{name}")  # mode 644 of nobody at time 0: packing twice gives the same
        header.size = len(data)
        self.file.write(header.tobuf(tarfile.USTAR_FORMAT))
        self.members[name] = [self.file.tell(), len(data), zlib.crc32(data)]
        self.file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))


class _Shards:
    """Parts that become shards as soon as they fill one, and go then."""

    def __init__(self, out: Path, work: Path, plan: Plan) -> None:
        self.out, self.work, self.plan = out, work, plan
        self.count, self.next = 0, 0  # shards that are whole, and the first scene that is in none of them
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._bytes, self._left_out = 0, []
        while (index := self._index(self.count)).exists():
            self.next = json.loads(index.read_text())["next"]
            self.count += 1

    def add(self, number: int, part: dict[str, Any]) -> None:
        """Take the part of the next scene."""
        size = 0 if "left_out" in part else (self.work / f"{number:06d}.tar").stat().st_size
        if self._bytes and self._bytes + size > self.plan.megabytes * 10**6:
            self._write()
        self._waiting.append((number, part))
        self._bytes += size

    def finish(self) -> Packed:
        """Write what waits and the table of all scenes, last; then nothing but shards is left."""
        if self._bytes:
            self._write()
        rows, left_out = [], [part["left_out"] for _, part in self._waiting]
        for number in range(self.count):
            index = self._index(number)
            left_out += json.loads(index.read_text())["left_out"]
            rows += list(_rows(index))
        if not rows:
            shutil.rmtree(self.work)
            with suppress(OSError):
                self.out.rmdir()
            raise ValueError(f"{self.plan.source}: found no scene that can be packed; the first: {left_out[0]}")
        with _replacing(self.out / f"{self.plan.split}{TABLE}", self.work) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        shutil.rmtree(self.work)
        return Packed(len(rows), sum(row["n_frames"] for row in rows), self.count, tuple(left_out))

    def _index(self, number: int) -> Path:
        return self.out / f"{self.plan.split}-{number:06d}{INDEX}"

    def _write(self) -> None:
        """One shard of the parts that wait: first the tar, then the index that says it is whole, then they go."""
        index = self._index(self.count)
        lines, left_out = [], []
        with _replacing(index.with_name(f"{self.plan.split}-{self.count:06d}.tar"), self.work) as file:
            for number, part in self._waiting:
                if "left_out" in part:
                    left_out.append(part["left_out"])
                    continue
                start = file.tell()
                moved = {name: [start + place, *rest] for name, (place, *rest) in part["members"].items()}
                with (self.work / f"{number:06d}.tar").open("rb") as piece:
                    shutil.copyfileobj(piece, file, 2**20)
                lines.append(json.dumps({**part, "members": moved}, separators=(",", ":")))
            file.write(bytes(2 * tarfile.BLOCKSIZE))
            size = file.tell()
        head = {"format": FORMAT, "version": VERSION, "bytes": size, "next": self._waiting[-1][0] + 1}
        head["left_out"] = left_out
        with _replacing(index, self.work) as file:  # one line for each scene, to be read alone
            body = ",\n".join(lines)
            file.write(f'{json.dumps(head)[:-1]}, "scenes": [\n{body}\n]}}\n'.encode())
        for number, _ in self._waiting:
            for ending in ("tar", "json"):
                (self.work / f"{number:06d}.{ending}").unlink(missing_ok=True)
        self._waiting, self._bytes, self.count = [], 0, self.count + 1


def _rows(index: Path) -> Iterator[dict[str, Any]]:
    """The table's rows of one shard."""
    start = 0
    with index.open("rb") as lines:
        for line in lines:
            if start and line.startswith(b"{"):
                scene = json.loads(line.rstrip(b",\n"))
                del scene["members"]
                shard = index.name[: -len(INDEX)]
                yield {**scene, "shard": shard, "index": [start, len(line.rstrip(b",\n"))]}
            start += len(line)


@contextmanager
def _replacing(path: Path, work: Path) -> Iterator[IO[bytes]]:
    """A file that takes its place when it is whole and on the disk; until then it lies in the folder to work in."""
    draft = work / f"{path.name}.{os.getpid()}.draft"
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
