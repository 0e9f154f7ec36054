"""Photos and videos that nothing tells the cameras of."""

import re
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from diorama.data.images import PHOTO_SUFFIXES, read_image, read_video, resize
from diorama.data.scenes import CapturedScene, Frame


def photo_files(folder: Path) -> list[Path]:
    """The photos in a folder, photo 10 after photo 9; ValueError where there are none."""
    photos = sorted((file for file in folder.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES), key=natural)
    if not photos:
        names = sorted(file.name for file in folder.iterdir())[:4]
        raise ValueError(f"{folder}: found a folder of {', '.join(names) or 'nothing'}; accepted is a folder of photos")
    return photos


def read_photos(folder: str | Path) -> CapturedScene:
    """A photo or a folder of them, upright as EXIF says; whether one follows the other is not known."""
    folder = Path(folder)
    files = photo_files(folder) if folder.is_dir() else [folder]
    frames = tuple(Frame(str(file), partial(_photo, file), encoded=file.read_bytes) for file in files)
    return CapturedScene(folder.resolve().name, frames, ordered=False)


def read_clip(path: str | Path, views: int | None = None) -> CapturedScene:
    """A video: all frames, or `views` evenly spaced; decoded at once, for a video has no beginning in its middle."""
    path = Path(path)
    decoded = read_video(path, views)
    frames = (Frame(f"{path} frame {place}", partial(_frame, image)) for place, image in enumerate(decoded))
    return CapturedScene(path.stem, tuple(frames))


def captions(path: Path) -> tuple[str, ...]:
    """The lines of a text that are not empty, of its first megabyte."""
    with path.open("rb") as file:
        text = file.read(2**20).decode("utf-8", "replace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def natural(path: str | Path) -> list[str | int]:
    """Orders photo 10 after photo 9."""
    name = path.name if isinstance(path, Path) else path
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _photo(file: Path, most: int) -> Float[Tensor, "3 height width"]:
    return read_image(file, max_pixels=most)


def _frame(image: Float[Tensor, "3 height width"], most: int) -> Float[Tensor, "3 height width"]:
    height, width = image.shape[-2:]
    factor = max(1, -(-(height * width) // most)) ** 0.5
    return image if factor == 1 else resize(image, max(1, int(height / factor)), max(1, int(width / factor)))
