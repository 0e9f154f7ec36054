"""`diorama.open`: what is there decides what is read."""

import math
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.cameras import CAMERA_FILES, nerfstudio_cameras, read_cameras, read_json, widened
from diorama.data.images import (
    MAX_PIXELS,
    MAX_PIXELS_TOGETHER,
    PHOTO_SUFFIXES,
    VIDEO_SUFFIXES,
    image_size,
    read_image,
    read_video,
)
from diorama.data.images import (
    field_of_view as exif_field_of_view,
)
from diorama.data.saved import read_folder
from diorama.geometry.cameras import Cameras
from diorama.scene import Scene, Views

DEFAULT_FIELD_OF_VIEW = 60.0  # degrees along the longer side: a phone's main camera spans 60 to 75, a video frame less

_ACCEPTED = (
    "a photo, a video, a folder of photos, a folder with transforms.json (nerfstudio) or cameras.json (Gen3R), "
    "or a saved scene"
)


class Capture(NamedTuple):
    """Photos with cameras, and all cameras of their file: often more than there are photos."""

    views: Views
    cameras: Cameras  # for images of the photos' size
    at: tuple[int, ...]  # which of them took the photos


def open(path: str | Path, *, field_of_view: float | None = None, views: int | None = None) -> Views | Scene:
    """The views or the saved scene in a file or folder.

    A photo gets a camera at the origin that spans `field_of_view` degrees along the longer side: as given, else from
    EXIF, else 60. A folder with cameras gives its photos with those cameras; a folder of photos and a video (`views`
    frames of it, all by default) have no cameras. Many large photos are reduced together to 2**27 pixels.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; accepted is {_ACCEPTED}")
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return Views(read_video(path, views))
    if views is not None:
        raise ValueError(f"{path}: {views} views wanted; accepted is a choice of `views` from a video")
    if path.is_dir() or path.name in CAMERA_FILES[:2]:
        return _open_folder(path if path.is_dir() else path.parent)
    if path.suffix.lower() == ".json":
        raise ValueError(f"{path}: found a camera path, which has no images; accepted is {_ACCEPTED}")
    image = read_image(path)
    degrees = (exif_field_of_view(path) or DEFAULT_FIELD_OF_VIEW) if field_of_view is None else field_of_view
    return Views(image[None], Cameras.from_fov(degrees, image.shape[-2], image.shape[-1]))


def open_capture(folder: str | Path) -> Capture | None:
    """The photos of a folder with transforms.json or cameras.json; None where it has neither."""
    folder = Path(folder)
    if (folder / "transforms.json").is_file():
        return _nerfstudio_capture(folder)
    if (folder / "cameras.json").is_file():
        return _gen3r_capture(folder)
    return None


def _open_folder(folder: Path) -> Views | Scene:
    if (folder / "scene.json").is_file():
        return read_folder(folder)
    capture = open_capture(folder)
    return Views(_read_together(photo_files(folder))) if capture is None else capture.views


def photo_files(folder: Path) -> list[Path]:
    """The photos in a folder, photo 10 after photo 9; ValueError where there are none."""
    photos = sorted((file for file in folder.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES), key=_natural)
    if not photos:
        names = sorted(file.name for file in folder.iterdir())[:4]
        raise ValueError(f"{folder}: found a folder of {', '.join(names) or 'nothing'}; accepted is {_ACCEPTED}")
    return photos


def _nerfstudio_capture(folder: Path) -> Capture:
    """The frames of transforms.json whose image is there; captures often list more than they hold."""
    path = folder / "transforms.json"
    document = read_json(path)
    frames = document.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{path}: found no list of `frames`; accepted is nerfstudio's transforms.json")
    photos = {index: file for index, frame in enumerate(frames) if (file := _frame_file(path, index, frame))}
    if not photos:
        raise ValueError(f"{path}: none of its {len(frames)} frames has an image in this folder")
    files = list(photos.values())
    images = _read_together(files, upright=False)  # its cameras are those of the pixels as they lie in the file
    full = image_size(files[0])
    try:
        cameras = nerfstudio_cameras(document, *full).checked()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if abs(math.log(cameras.width / cameras.height * full[0] / full[1])) > 0.02:
        found = f"cameras of {cameras.height}x{cameras.width} for images of {full[0]}x{full[1]}"
        raise ValueError(f"{path}: {found} ({files[0].name}); accepted is one shape for both")
    cameras, at = cameras.resized(*images.shape[-2:]).to(torch.float32), tuple(photos)
    return Capture(Views(images, cameras[at]), cameras, at)


def _frame_file(path: Path, index: int, frame: dict[str, object]) -> Path | None:
    name = frame.get("file_path")
    if not isinstance(name, str):
        return None  # a wanted camera without an image, as SEVA writes it
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{path}: frame {index} names {name!r}; accepted are files inside its folder")
    file = path.parent / parts
    if not file.suffix:
        file = file.with_suffix(".png")  # NeRF's Blender scenes leave it out
    return file if file.is_file() else None


def _gen3r_capture(folder: Path) -> Capture:
    """Cameras of Gen3R's square centre crop, for the whole images; first.png and last.png are the path's two ends."""
    photos = photo_files(folder)
    images, cameras = _read_together(photos), read_cameras(folder / "cameras.json")
    names = [photo.stem for photo in photos]
    at = tuple(range(cameras.views))
    if set(names) <= {"first", "last"}:
        at = tuple(0 if name == "first" else cameras.views - 1 for name in names)
    if len(at) != len(photos):
        raise ValueError(f"{folder}: {cameras.views} cameras for {len(photos)} photos; each photo needs its own camera")
    cameras = widened(cameras, *images.shape[-2:])
    return Capture(Views(images, cameras[at]), cameras, at)


def _read_together(files: list[Path], upright: bool = True) -> Float[Tensor, "view 3 height width"]:
    each = min(MAX_PIXELS, MAX_PIXELS_TOGETHER // len(files))
    images = [read_image(file, max_pixels=each, upright=upright) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            sizes = ["x".join(map(str, other.shape[-2:])) for other in (image, images[0])]
            raise ValueError(
                f"{file}: {sizes[0]} pixels but {files[0].name} has {sizes[1]}; accepted is one size for all"
            )
    return torch.stack(images)


def _natural(path: Path) -> list[str | int]:
    """Orders photo 10 after photo 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
