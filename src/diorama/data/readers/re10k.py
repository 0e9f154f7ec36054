"""RealEstate10K and ACID: camera text beside frames cut from their videos, and pixelSplat's `.torch` chunks."""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from diorama.data.images import PHOTO_SUFFIXES, image_size, read_image
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

MAX_BYTES = 2**26  # of one clip's text or one chunk's index
QUANTILE = 0.98


def read_re10k(text: str | Path, frames: str | Path | None = None) -> CapturedScene:
    """The clip of one camera text, with the frames that were cut from its video at the timestamps in it.

    Photos are `<timestamp>.jpg` or `.png` in `frames`, by default in the folder beside the text with its name. Lines
    without a photo are counted as missing; ValueError where none has one, or where the text is no list of cameras.
    """
    text = Path(text)
    folder = text.with_suffix("") if frames is None else Path(frames)
    rows = read_rows(text)
    found = []
    for stamp, row in rows:
        photo = next((file for suffix in PHOTO_SUFFIXES if (file := folder / f"{stamp}{suffix}").is_file()), None)
        if photo is not None:
            camera = _camera(row, image_size(photo), f"{text}: {stamp}")
            found.append(Frame(str(photo), partial(_photo, photo), camera, encoded=photo.read_bytes))
    if not found:
        raise ValueError(f"{text}: none of its {len(rows)} frames is in {folder}; accepted are <timestamp>.jpg or .png")
    return CapturedScene(text.stem, tuple(found), quantile=QUANTILE, missing=len(rows) - len(found))


def read_rows(text: Path) -> list[tuple[int, Float64[np.ndarray, "18"]]]:
    """Timestamps in microseconds and their cameras: normalised fx fy cx cy, two zeros, world-to-camera 3x4.

    The first line is the video's address. ValueError names a line that is not 19 finite numbers.
    """
    with text.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    lines = data.decode("utf-8", "replace").splitlines()
    if len(data) > MAX_BYTES or not lines:
        raise ValueError(f"{text}: found {len(data)} bytes or more; accepted are 1 to {MAX_BYTES}")
    rows = []
    for number, line in enumerate(lines):
        words = line.split()
        if not words or (number == 0 and len(words) < 19):
            continue
        try:
            stamp, row = int(words[0]), np.array(words[1:], dtype=np.float64)
        except ValueError:
            row = np.empty(0)
        if row.shape != (18,) or not np.isfinite(row).all():
            raise ValueError(f"{text}: line {number + 1} is {line[:40]!r}; accepted are a timestamp and 18 numbers")
        rows.append((stamp, row))
    if not rows:
        raise ValueError(f"{text}: found no camera; accepted are lines of a timestamp and 18 numbers")
    return rows


class ClipSource:
    """The clips of a folder of camera texts whose frames are there, in order of their names."""

    def __init__(self, folder: str | Path, frames: str | Path | None = None) -> None:
        folder = Path(folder)
        self.name, self._frames = folder.name, Path(folder if frames is None else frames)
        self._texts = [text for text in sorted(folder.glob("*.txt")) if (self._frames / text.stem).is_dir()]
        if not self._texts:
            raise ValueError(f"{folder}: found no <clip>.txt with a folder {self._frames / '<clip>'} of its frames")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> CapturedScene:
        text = self._texts[index]
        return read_re10k(text, self._frames / text.stem)


class ChunkSource:
    """The clips in a folder of pixelSplat's chunks (RE10K, ACID, DL3DV), found by its index.json.

    Nothing but tensors and plain values is unpickled. ValueError for an index that does not name files of this folder,
    and for chunks that are not what it says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        self._places = sorted(_index(self.folder).items())

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> CapturedScene:
        key, file = self._places[index]
        clip = next((clip for clip in _chunk(self.folder / file) if clip.get("key") == key), None)
        if clip is None:
            raise ValueError(f"{self.folder / file}: found no clip {key!r}; accepted is a chunk as index.json says")
        return _clip(clip, self.folder / file)


def _index(folder: Path) -> dict[str, str]:
    """Which chunk holds which clip; from the chunks themselves where there is no index."""
    path = folder / "index.json"
    if not path.is_file():
        chunks = sorted(folder.glob("*.torch"))
        found = {str(clip.get("key")): chunk.name for chunk in chunks for clip in _chunk(chunk)}
        if not found:
            raise ValueError(f"{folder}: found no index.json and no .torch chunk; accepted is a folder of chunks")
        return found
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: found {path.stat().st_size} bytes; accepted are at most {MAX_BYTES}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(document, dict) or not document:
        raise ValueError(f"{path}: found a JSON {type(document).__name__}; accepted is an object of clips and chunks")
    for key, file in document.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".torch"):
            raise ValueError(f"{path}: {key!r:.40} lies in {file!r:.60}; accepted are .torch files of this folder")
    return document


@lru_cache(maxsize=2)  # neighbours are read one after the other, and a mapped chunk costs no memory
def _chunk(path: Path) -> list[dict[str, Any]]:
    """The clips of one chunk, mapped from disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
            if not stored or sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")
        clips = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: found no chunk ({reason[:120]}); accepted are tensors and plain values") from error
    if not isinstance(clips, list) or not all(isinstance(clip, dict) for clip in clips):
        raise ValueError(f"{path}: found a {type(clips).__name__}; accepted is a list of clips")
    return clips


def _clip(clip: dict[str, Any], path: Path) -> CapturedScene:
    key, cameras, photos = clip.get("key"), clip.get("cameras"), clip.get("images")
    where = f"{path}: {key!r:.60}"
    if not isinstance(cameras, Tensor) or cameras.ndim != 2 or cameras.shape[1] != 18:
        raise ValueError(f"{where} has no cameras; accepted are 18 numbers for each frame")
    if not isinstance(photos, list) or len(photos) != len(cameras):
        raise ValueError(f"{where} has {len(cameras)} cameras but not as many images; accepted is one each")
    frames, size = [], None
    for number, (row, photo) in enumerate(zip(cameras.double().numpy(), photos, strict=True)):
        if not isinstance(photo, Tensor) or photo.dtype != torch.uint8 or photo.ndim != 1:
            raise ValueError(f"{where}: image {number} is no row of bytes; accepted is an encoded photo")
        name = f"{where}, frame {number}"
        if size is None:  # one video, one size
            with _unpacked(photo, name) as file:
                size = image_size(file)
        encoded = partial(_bytes, photo)
        frames.append(Frame(name, partial(_packed_photo, photo, name), _camera(row, size, name), encoded=encoded))
    return CapturedScene(str(key), tuple(frames), quantile=QUANTILE)


def _camera(row: Float64[np.ndarray, "18"], size: tuple[int, int], where: str) -> Cameras:
    """Pixels and camera-to-world, from shares of the image's width and height and world-to-camera."""
    height, width = size
    fx, fy, cx, cy = row[:4]
    matrix = np.array([[fx * width, 0, cx * width], [0, fy * height, cy * height], [0, 0, 1]])
    pose = torch.cat([torch.from_numpy(row[6:].reshape(3, 4).copy()), torch.tensor([[0.0, 0, 0, 1]]).double()])
    try:
        found = Cameras(pose[None], torch.from_numpy(matrix)[None], height, width).checked()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Cameras(found.world_to_camera, found.intrinsics, height, width)


def _photo(path: Path, max_pixels: int) -> Float[Tensor, "3 height width"]:
    return read_image(path, max_pixels=max_pixels, upright=False)


def _bytes(photo: UInt8[Tensor, " bytes"]) -> bytes:
    return photo.numpy().tobytes()


@contextmanager
def _unpacked(photo: UInt8[Tensor, " bytes"], where: str) -> Iterator[Path]:
    """The photo as a file, for the one decoder, which takes files; its errors name the clip instead."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo"
        path.write_bytes(_bytes(photo))
        try:
            yield path
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), where)) from error


def _packed_photo(photo: UInt8[Tensor, " bytes"], where: str, max_pixels: int) -> Float[Tensor, "3 height width"]:
    with _unpacked(photo, where) as path:
        return _photo(path, max_pixels)
