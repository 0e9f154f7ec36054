"""Photos without cameras as scenes of one view, such as ImageNet's, whose intrinsics a sidecar file lists."""

import json
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.images import PHOTO_SUFFIXES, read_image
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

SIDECAR = "intrinsics.jsonl"
MAX_LINE = 2**16  # letters that tell of one photo
_NUMBERS = ("fx", "fy", "cx", "cy", "height", "width")


class SingleViewSource:
    """The photos that intrinsics.jsonl of a folder lists, in its order, each a scene with its camera at the origin.

    A line is {"file": "n01440764/n01440764_18.JPEG", "fx": 400, "fy": 400, "cx": 250, "cy": 187.5, "height": 375,
    "width": 500, "by": "moge"}, in pixels of the photo turned as its EXIF tag says; another raises ValueError.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        file = self.folder / SIDECAR
        if not file.is_file():
            raise ValueError(f"{file}: no such file; recipes/data/intrinsics.py writes it")
        self._rows = []
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), ""), 1):
                if len(line) == MAX_LINE:
                    raise ValueError(
                        f"{file}: line {number} has {MAX_LINE} letters or more; accepted is one photo a line"
                    )
                if line.strip():
                    self._rows.append(_row(line, f"{file}: line {number}"))
        if not self._rows:
            raise ValueError(f"{file}: found no line; recipes/data/intrinsics.py writes one for each photo")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> CapturedScene:
        row = self._rows[index]
        matrix = torch.tensor([[row["fx"], 0, row["cx"]], [0, row["fy"], row["cy"]], [0, 0, 1]], dtype=torch.float64)
        camera = Cameras(torch.eye(4, dtype=torch.float64)[None], matrix[None], row["height"], row["width"])
        photo = self.folder / row["file"]
        frame = Frame(str(photo), partial(_photo, photo), camera, encoded=photo.read_bytes)
        return CapturedScene(row["file"], (frame,))


def photos_below(folder: Path) -> list[str]:
    """The photos in a folder and in its folders, by their paths below it."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in PHOTO_SUFFIXES)
    return sorted(file.relative_to(folder).as_posix() for file in files)


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("file"), str):
        raise ValueError(f"{where} names no file; accepted is an object with file, {', '.join(_NUMBERS)}")
    path = PurePosixPath(row["file"])
    if path.is_absolute() or ".." in path.parts or "\0" in row["file"]:
        raise ValueError(f"{where} names {row['file']!r:.80}; accepted are files below its folder")
    for key in _NUMBERS:
        value = row.get(key)
        whole = isinstance(value, int) if key in ("height", "width") else isinstance(value, int | float)
        if isinstance(value, bool) or not whole or not 0 < value < 1e6:  # type: ignore[operator]
            raise ValueError(f"{where}: {key} is {value!r:.40}; accepted is a positive number")
    return row


def _photo(path: Path, max_pixels: int) -> Float[Tensor, "3 height width"]:
    return read_image(path, max_pixels=max_pixels)
