"""A benchmark's questions, and the scenes they are about: rendered worlds, or captures with split and index files."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from diorama.data.cache import WorldsCache, write_cache
from diorama.data.cameras import nerfstudio_cameras, read_json
from diorama.data.images import image_size, read_image
from diorama.data.open import open as open_views
from diorama.data.worlds import SPLITS, WORLDS_VERSION
from diorama.evaluation import protocols
from diorama.evaluation.protocols import Size, uniform
from diorama.scene import Scene, Views

LAYOUTS = ("transforms.json", "scene.json", "cameras.json")


@dataclass(frozen=True)
class Question:
    """One scene in one setting."""

    setting: str
    scene: str
    known: tuple[int, ...]  # places among the scene's views
    scored: tuple[int, ...]
    cameras: bool = True  # whether the wanted cameras are told
    frames: tuple[int, ...] | None = None  # of the scene's sorted ones; None: as the protocol says

    @property
    def seed(self) -> int:
        """The scene's own, whatever the setting and whichever other scenes are asked about."""
        if self.scene.isdigit():
            return int(self.scene)
        return int.from_bytes(hashlib.sha256(self.scene.encode()).digest()[:4], "big")


@runtime_checkable
class Scenes(Protocol):
    """Where a benchmark's questions and true views come from."""

    digest: str  # SHA-256 of what is scored against
    notes: list[str]
    count: int  # scenes

    def questions(self) -> list[Question]:
        """All questions, ordered by setting, then scene."""
        ...

    def load(self, question: Question) -> Views:
        """The true views of a question on the CPU, at the size that is scored; ValueError or OSError for bad files."""
        ...


class Worlds:
    """The first `count` test worlds, rendered unless an earlier run did."""

    def __init__(
        self,
        protocol: protocols.Protocol,
        count: int,
        cache: Path,
        progress: Callable[[int, int], None] | None = None,
        samples: int = 4,
    ) -> None:
        self.protocol, self.count, self.notes = protocol, count, []
        height, width = protocol.size.of(0, 0)
        seeds = SPLITS["test"][:count]
        assert protocol.views is not None
        self.places = torch.arange(protocol.views)[None]
        path = protocol.path or protocol.views
        folder = cache / f"worlds-{WORLDS_VERSION}-test-{count}x{path}-{height}x{width}-{samples}"
        shape = dict(views=path, height=height, width=width, samples=samples)
        write_cache(folder, seeds, **shape, progress=progress)
        self.data = WorldsCache(folder, allow_test=True)
        self.rows = {str(seed): row for row, seed in enumerate(self.data.seeds)}
        self.digest = _worlds_digest(self.data)
        published = protocol.hashes.get(count)
        if published not in (None, self.digest):
            self.notes.append(
                f"the rendered scenes hash to {self.digest[:12]}, the published ones to {published[:12]}: "
                "this machine rounds differently, so compare numbers with care"
            )

    def questions(self) -> list[Question]:
        """All questions, ordered by setting, then scene."""
        return _questions(self.protocol, list(self.rows))

    def load(self, question: Question) -> Views:
        """The true views of a question, with exact points."""
        views = self.data.batch(torch.tensor([self.rows[question.scene]]), self.places)
        cameras = views.cameras
        assert cameras is not None and views.points is not None and views.confidence is not None
        cameras = replace(cameras, camera_to_world=cameras.camera_to_world[0], intrinsics=cameras.intrinsics[0])
        return Views(views.images[0], cameras, views.points[0], views.confidence[0])


class Folders:
    """Captures on disk: a folder of scenes, or one scene; index or split files where the protocol has some.

    Raises ValueError or OSError, before anything is measured, where there is no scene or none that can be read.
    """

    def __init__(
        self, protocol: protocols.Protocol, folder: Path, count: int | None = None, split: Path | None = None
    ) -> None:
        self.protocol, self.folder, self.notes = protocol, folder, []
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; accepted is a folder with one folder for each scene")
        if protocol.source == "index":
            if split is None:
                raise ValueError(f"the benchmark {protocol.name} needs --split FILE: {protocol.describes}")
            found = read_index(split)
        else:
            if split is not None:
                raise ValueError(f"--split {split}: the benchmark {protocol.name} takes no such file")
            names = _scene_names(folder)
            if not names:  # a single scene
                self.folder, names = folder.resolve().parent, [folder.resolve().name]
                folder = self.folder
            found = {name: _splits(folder / name) if protocol.source == "split" else [] for name in names}
        if count is not None and count < len(found):
            # Drawn once with a fixed seed: the first in the alphabet may all be of one kind.
            found = {name: found[name] for name in sorted(random.Random(0).sample(sorted(found), count))}
        self.splits, self.count = found, len(found)
        self._last: tuple[tuple[str, tuple[int, ...] | None], Views] | None = None  # asked for once in each setting
        self._probe()
        self.digest = _folder_digest(folder, list(found), split)

    def questions(self) -> list[Question]:
        """All questions, ordered by setting, then scene."""
        if self.protocol.source == "folders":
            return _questions(self.protocol, list(self.splits))
        asked = [
            Question(f"{len(part.known)} known", name, *part.places(), frames=part.frames)
            for name, parts in self.splits.items()
            for part in parts
        ]
        return sorted(asked, key=lambda question: int(question.setting.split()[0]))  # stable: scenes stay in order

    def load(self, question: Question) -> Views:
        """The true views of a question; ValueError or OSError that names the file."""
        key = question.scene, question.frames
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        path = self.folder / question.scene

        def chosen(frames: int) -> Sequence[int]:
            wanted = question.frames
            if wanted is None:
                assert self.protocol.views is not None
                if frames < self.protocol.views:
                    raise ValueError(f"{path}: {frames} frames; the benchmark takes {self.protocol.views} of a scene")
                return uniform(self.protocol.views, frames)
            if max(wanted) >= frames:
                raise ValueError(f"{path}: {frames} frames, but the split names number {max(wanted)}")
            return wanted

        views = sized(read_frames(path, chosen), self.protocol.size)
        self._last = (key, views)
        return views

    def _probe(self) -> None:
        """Whether any scene can be read: one that cannot counts as a failure later, but none at all is a mistake."""
        error: Exception | None = None
        asked = self.questions()
        for question in {question.scene: question for question in asked}.values():
            try:
                self.load(question)
                return
            except (ValueError, OSError) as found:
                error = error or found
        raise error or ValueError(f"{self.folder}: no scene in it that the benchmark {self.protocol.name} asks about")


class Part(NamedTuple):
    """What an index or split file says of a scene: which of its sorted frames are known, and which are wanted."""

    known: tuple[int, ...]
    wanted: tuple[int, ...]

    @property
    def frames(self) -> tuple[int, ...]:
        """All of them in order."""
        return tuple(sorted({*self.known, *self.wanted}))

    def places(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Known and wanted ones as places among `frames`."""
        frames = self.frames
        known, wanted = (tuple(map(frames.index, part)) for part in self)
        return known, wanted


def read_index(path: Path) -> dict[str, list[Part]]:
    """pixelSplat's index: {scene: {"context": [..], "target": [..]} or null}; null scenes are left out, as there."""
    return {
        name: [_part(entry, "context", "target", f"{path}: scene {name!r}")]
        for name, entry in sorted(read_json(path).items())
        if entry is not None
    }


def read_split(path: Path) -> Part:
    """Stable Virtual Camera's split: {"train_ids": [..], "test_ids": [..]} over the sorted images."""
    return _part(read_json(path), "train_ids", "test_ids", str(path))


def sized(views: Views, size: Size) -> Views:
    """Views resized until they cover the size they are scored at, then cropped around their centre."""
    height, width = views.images.shape[-2:]
    tall, wide = size.of(height, width)
    scale = max(tall / height, wide / width)
    views = views.resized(max(tall, round(height * scale)), max(wide, round(width * scale)))
    height, width = views.images.shape[-2:]
    return window(views, (height - tall) // 2, (width - wide) // 2, tall, wide)


def window(views: Views, top: int, left: int, height: int, width: int) -> Views:
    """The part of the pictures whose first pixel is (`top`, `left`), cameras and points in step."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    return Views(
        views.images[..., rows, columns],
        None if views.cameras is None else views.cameras.cropped(top, left, height, width),
        None if views.points is None else views.points[..., rows, columns, :],
        None if views.confidence is None else views.confidence[..., rows, columns],
    )


def read_frames(folder: Path, chosen: Callable[[int], Sequence[int]]) -> Views:
    """Those of a scene's frames, sorted by name, that `chosen(number of frames)` names; they have cameras."""
    if not (folder / "transforms.json").is_file() or (folder / "scene.json").is_file():
        found = open_views(folder)
        views = found.views if isinstance(found, Scene) else found
        if views.cameras is None:
            raise ValueError(f"{folder}: no cameras; accepted is transforms.json (nerfstudio) or a saved scene")
        return views[list(chosen(len(views)))]
    path = folder / "transforms.json"
    document = read_json(path)
    files = _frame_files(folder, document)
    rows = [files[place] for place in chosen(len(files))]
    # Only these are read: a whole capture would not fit at its full size.
    images: list[Tensor] = [read_image(file, upright=False) for _, file in rows]
    if any(image.shape != images[0].shape for image in images):
        raise ValueError(f"{path}: frames of different sizes; accepted is one size for all")
    try:
        cameras = nerfstudio_cameras(document, *image_size(rows[0][1])).checked()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    cameras = cameras[[number for number, _ in rows]].resized(*images[0].shape[-2:]).to(torch.float32)
    return Views(torch.stack(images), cameras)


def _frame_files(folder: Path, document: dict[str, Any]) -> list[tuple[int, Path]]:
    """Number and file of each frame whose image is there, sorted by name."""
    frames = document.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{folder / 'transforms.json'}: found no list of `frames`; accepted is nerfstudio's")
    named = [(number, folder / str(frame.get("file_path"))) for number, frame in enumerate(frames)]
    named = [(number, file if file.suffix else file.with_suffix(".png")) for number, file in named]
    inside = folder.resolve()
    there = [(n, file) for n, file in named if file.is_file() and file.resolve().is_relative_to(inside)]
    if not there:
        raise ValueError(f"{folder / 'transforms.json'}: none of its {len(frames)} frames has an image in this folder")
    return sorted(there, key=lambda row: row[1].name)


def _questions(protocol: protocols.Protocol, scenes: Sequence[str]) -> list[Question]:
    assert protocol.views is not None
    asked = []
    for setting in protocol.settings:
        known = setting.places(protocol.views)
        every = tuple(range(protocol.views))
        # Where all are known there is nothing else to score: that setting asks for reconstruction.
        scored = every if protocol.score_known or len(known) == len(every) else tuple(sorted({*every} - {*known}))
        asked += [Question(setting.name, scene, known, scored, setting.cameras) for scene in scenes]
    return asked


def _scene_names(folder: Path) -> list[str]:
    """Names of the scenes' folders; none where the folder is a scene itself."""
    if any((folder / name).is_file() for name in LAYOUTS):
        return []
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ValueError(f"{folder}: no folders in it; accepted is one folder for each scene, with {LAYOUTS[0]}")
    return names


def _splits(folder: Path) -> list[Part]:
    files = sorted(folder.glob("train_test_split_*.json"))
    if not files:
        raise ValueError(f"{folder}: no train_test_split_N.json, which this benchmark reads")
    return [read_split(file) for file in files]


def _part(entry: Any, known: str, wanted: str, where: str) -> Part:
    parts = [entry.get(name) if isinstance(entry, dict) else None for name in (known, wanted)]
    for name, part in zip((known, wanted), parts, strict=True):
        if not isinstance(part, list) or not part or any(type(n) is not int or n < 0 for n in part):
            raise ValueError(f"{where}: {name!r} is no list of frame numbers; accepted is {{{known!r}: [0, 9], ..}}")
    return Part(*(tuple(dict.fromkeys(part or ())) for part in parts))


def _worlds_digest(data: WorldsCache) -> str:
    """SHA-256 over the scenes' own: of pictures, depths and cameras as they are stored."""
    whole = hashlib.sha256()
    for row in range(len(data)):
        scene = hashlib.sha256(data.images[row].tobytes())
        scene.update(data.depth[row].tobytes())
        scene.update(data.camera_to_world[row].numpy().tobytes() + data.intrinsics[row].numpy().tobytes())
        whole.update(scene.digest())
    return whole.hexdigest()


def _folder_digest(folder: Path, scenes: Sequence[str], split: Path | None) -> str:
    """SHA-256 over names and sizes of the scenes' files, which tells another copy without reading all of it."""
    listed = []
    for scene in sorted(scenes):
        for parent, _, names in sorted(os.walk(folder / scene)):
            sizes = [(name, os.path.getsize(os.path.join(parent, name))) for name in sorted(names)]
            listed.append((os.path.relpath(parent, folder), sizes))
    content = json.dumps(listed).encode() + (b"" if split is None else split.read_bytes())
    return hashlib.sha256(content).hexdigest()
