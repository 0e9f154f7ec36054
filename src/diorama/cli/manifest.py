"""Many requests in one file: a JSON object in each line, which asks for a scene as the flags of `generate` do."""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from diorama.cli.photos import PhotoFlags, degrees
from diorama.cli.requests import FREE, PathFlags, Request, camera_path, check, is_file, parsed_size, requested

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.splat\.ply|\.ply|\.glb|\.mp4|\.html)?")
LONGEST = 2**20  # letters of a line
KINDS: dict[type, tuple[Any, str]] = {
    str: (str, "text"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    list: (list, "a list"),
}
FIELDS: dict[str, type] = {
    "out": str, "photos": list, "at": list, "cameras": str, "fov": float, "trajectory": str, "views": int,
    "size": str, "prompt": str, "seed": int, "steps": int, "guidance": float,
}  # fmt: skip
ITEMS = {"photos": str, "at": int}


@dataclass(frozen=True)
class Entry:
    """A line, with what the command's flags say where it is silent."""

    line: int  # of the file, from 1 on
    out: str  # name in the folder of results
    photos: tuple[str, ...] = ()  # inside the manifest's folder, as are the other files
    at: tuple[int, ...] | None = None  # which of the wanted views the photos are, where the path tells their cameras
    cameras: str | None = None
    fov: float | None = None  # degrees
    trajectory: str | None = None
    views: int = 16
    size: str | None = None
    prompt: str | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None

    def digest(self, common: Any) -> str:
        """SHA-256 of all that decides the scene; `common`: JSON of what all lines share, such as the model."""
        asked = {key: value for key, value in asdict(self).items() if key not in ("line", "out")}
        return hashlib.sha256(json.dumps([asked, common], sort_keys=True).encode()).hexdigest()

    def shape(self, folder: Path) -> tuple[Any, ...]:
        """Equal for requests that can be sampled together, as far as can be told without decoding a photo."""
        from diorama.data.images import image_size

        sizes = []
        for photo in self.photos:
            try:
                sizes.append(image_size(folder / photo))
            except (ValueError, OSError):  # a folder, or what will fail on its own
                sizes.append(None)
        return self.steps, self.guidance, self.views, self.size, self.at, self.prompt is None, tuple(sizes)

    def request(self, folder: Path) -> Request:
        """Known views and wanted cameras; ValueError or OSError for photos that cannot be used."""
        path = self.path(folder)
        files = tuple(folder / photo for photo in self.photos)
        if self.at is not None:
            return _placed(files, self.at, self.fov, path)
        cameras = None if self.cameras is None else folder / self.cameras
        return requested(PhotoFlags(files, cameras, self.fov), path)

    def path(self, folder: Path) -> PathFlags:
        """The wanted views as flags tell them."""
        inside = self.trajectory and _tells_file(self.trajectory, folder)
        return PathFlags(str(folder / str(self.trajectory)) if inside else self.trajectory, self.views, self.size)


def read_manifest(path: Path, defaults: Entry) -> list[Entry]:
    """All lines of a manifest, checked; ValueError, in one line, names the file and the first line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8; accepted is a JSON object in each line") from None
    entries, wrong, names = [], {}, {}
    check_path = cache(_check_path)  # thousands of lines share a few
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            entry = _entry(text, replace(defaults, line=number))
            _check_numbers(entry)
            _check_files(entry, path.parent)
            few = replace(entry.path(path.parent), views=min(entry.views, 2))
            check_path(few, entry.fov, entry.cameras and path.parent / entry.cameras)
            before = names.setdefault(entry.out.lower(), number)  # some disks know no capital letters
            if before != number:
                raise ValueError(f"out {entry.out!r}: line {before} has that name; accepted is one for each")
            entries.append(entry)
        except (ValueError, OSError) as error:
            wrong[number] = " ".join(str(error).split()).removeprefix("--")
    if wrong:
        first, *others = wrong
        more = f" (wrong too: lines {', '.join(map(str, others[:20]))}{', ...' * (len(others) > 20)})" if others else ""
        raise ValueError(f"{path}, line {first}: {wrong[first]}{more}")
    if not entries:
        raise ValueError(f"{path}: no requests; accepted is a JSON object in each line")
    return entries


def _entry(text: str, defaults: Entry) -> Entry:
    """What a line says, of the right kinds."""
    try:
        found = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{error}; accepted is a JSON object") from None
    if not isinstance(found, dict):
        raise ValueError(f"found {text[:40]!r}; accepted is a JSON object")
    for key, value in found.items():
        if key not in FIELDS:
            raise ValueError(f"unknown {key[:60]!r}; accepted are {', '.join(FIELDS)}")
        if key == "photos" and isinstance(value, str):
            found[key] = value = [value]
        found[key] = _of_kind(key, value, FIELDS[key])
        for item in value if isinstance(value, list) else ():
            _of_kind(key, item, ITEMS[key])
    if "out" not in found:
        raise ValueError("lacks 'out'; accepted is the name of what is made")
    if not NAME.fullmatch(found["out"]):
        endings = "nothing, .mp4, .ply, .glb, .splat.ply or .html"
        raise ValueError(f"out {found['out'][:60]!r}: accepted are letters a-z, digits, - and _, then {endings}")
    return replace(defaults, **{key: tuple(x) if isinstance(x, list) else x for key, x in found.items()})


def _of_kind(key: str, value: Any, kind: type) -> Any:
    """The value, which is of that kind."""
    accepted, words = KINDS[kind]
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(f"{key}: found {value!r:.40}; accepted is {words}")
    try:
        return float(value) if kind is float else value
    except OverflowError:
        raise ValueError(f"{key}: found {value!r:.40}; accepted is a smaller number") from None


def _check_numbers(entry: Entry) -> None:
    check("views", entry.views, entry.views >= 1, "1 or more")
    check("steps", entry.steps, entry.steps is None or entry.steps >= 1, "1 or more")
    check("guidance", entry.guidance, 0 <= (entry.guidance or 0) < math.inf, "0 or more")
    check("seed", entry.seed, 0 <= entry.seed < 2**63, "0 to 2**63 - 1")
    parsed_size(entry.size or "1", 1, 1)
    if entry.at is None:
        return
    places = set(entry.at)
    if len(entry.at) != len(entry.photos) or len(places) < len(entry.at):
        raise ValueError(f"at {list(entry.at)} for {len(entry.photos)} photos: accepted is another place for each")
    if not places <= set(range(entry.views)):
        raise ValueError(f"at {list(entry.at)}: accepted are 0 to {entry.views - 1}, with {entry.views} views")
    if entry.cameras is not None:
        raise ValueError(f"at {list(entry.at)} with cameras {entry.cameras}: accepted is one of the two")


def _check_files(entry: Entry, folder: Path) -> None:
    """ValueError for files that are not there, or lie outside the manifest's folder."""
    inside = entry.trajectory and _tells_file(entry.trajectory, folder)
    for name in (*entry.photos, entry.cameras, entry.trajectory if inside else None):
        if name is None:
            continue
        path = folder / name
        if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name[:200]!r} leads outside the manifest's folder; accepted are files inside it")
        if not path.exists():
            raise ValueError(f"{name[:200]}: no such file or folder beside the manifest")
        if entry.at is not None and name in entry.photos and not path.is_file():
            raise ValueError(f"at with {name}, a folder: accepted are photos")


def _check_path(path: PathFlags, fov: float | None, cameras: Path | None) -> None:
    """ValueError for movements, fields of view and camera files that there are not."""
    from diorama.data.cameras import read_cameras
    from diorama.geometry.cameras import Cameras

    start = Cameras.from_fov(degrees(fov), 64, 64)
    if path.trajectory != FREE:
        camera_path(path, start)
    if cameras is not None:
        read_cameras(cameras, unstated=(64, 64))


def _tells_file(trajectory: str, folder: Path) -> bool:
    """Whether a trajectory means a file beside the manifest; names of movements come first."""
    return is_file(trajectory) or is_file(str(folder / trajectory))


def _placed(files: tuple[Path, ...], at: tuple[int, ...], fov: float | None, path: PathFlags) -> Request:
    """Photos that are some of the wanted views, whose cameras these have: those of a movement from the first one."""
    import torch

    from diorama.data.images import read_image
    from diorama.data.open import open
    from diorama.geometry.cameras import Cameras
    from diorama.scene import Shot, Views

    images = [read_image(file) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            sizes = ["x".join(map(str, other.shape[-2:])) for other in (image, images[0])]
            raise ValueError(f"{file}: {sizes[0]} pixels but {files[0]} has {sizes[1]}; accepted is one size for all")
    known = Views(torch.stack(images))
    height, width = images[0].shape[-2:]
    if path.trajectory == FREE:
        return Request(Shot(path.count, height, width), known, at)
    views: Any = open(files[0], field_of_view=fov)
    start = views.cameras or Cameras.from_fov(degrees(fov), height, width)
    return Request(camera_path(path, start), known, at)
