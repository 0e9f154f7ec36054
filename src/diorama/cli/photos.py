"""The photos that a command is given, and where their cameras come from: a file, their folder, a guess, an estimate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from torch import Tensor

    from diorama.geometry.cameras import Cameras
    from diorama.scene import Views

CAPTURES = ("transforms.json", "cameras.json")


@dataclass(frozen=True)
class PhotoFlags:
    """What is known. Several photos need cameras, or --poses."""

    photos: Annotated[Positional[tuple[Path, ...]], arg(help_behavior_hint="(default: none)")] = ()
    """Photos, or one folder that tells their cameras: transforms.json, cameras.json, a COLMAP model, a data set's."""
    cameras: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """One camera for each photo: transforms.json, cameras.json, camera_path.json or a saved scene."""
    fov: Annotated[float | None, arg(metavar="DEGREES", help_behavior_hint="(default: from EXIF, else 60)")] = None
    """Field of view along the longer side, where no camera is given."""
    poses: Annotated[str | None, arg(metavar="vggt[:FOLDER]|colmap", help_behavior_hint="")] = None
    """What finds the cameras of photos without any: VGGT (of a folder or a model; else as it was downloaded; else the
    small one that comes with the package), or the package pycolmap."""


class Taken(NamedTuple):
    """Photos with cameras, as `diorama.data.open.Capture`."""

    views: "Views"
    cameras: "Cameras"  # for images of the photos' size; often more than there are photos
    at: tuple[int, ...]  # which of them took the photos
    poses: str | None = None  # what found them, with its licence


def degrees(fov: float | None) -> float:
    from diorama.data.open import DEFAULT_FIELD_OF_VIEW

    return DEFAULT_FIELD_OF_VIEW if fov is None else fov


def taken(flags: PhotoFlags, most: int, device: str) -> Taken | None:
    """The photos and their cameras; a single photo without a camera has a guessed one that its views do not name.

    Of a video whose cameras are to be found, `most` frames are taken.
    """
    from diorama.data.cameras import read_cameras
    from diorama.data.open import open, open_capture
    from diorama.geometry.cameras import Cameras
    from diorama.scene import Scene

    names = " ".join(map(str, flags.photos))
    if not flags.photos:
        if flags.cameras is not None:
            raise ValueError(f"--cameras {flags.cameras}: no photos given; accepted for a path is --trajectory FILE")
        if flags.poses is not None:
            raise ValueError(f"--poses {flags.poses}: no photos given; accepted are photos whose cameras it can find")
        return None
    if flags.poses is not None:
        return _estimated(flags, most, device)
    path = flags.photos[0]
    if len(flags.photos) > 1:
        views = _read(flags.photos)
    else:
        folder = path.parent if path.name in CAPTURES else path
        if flags.cameras is None and folder.is_dir() and not (folder / "scene.json").is_file():
            capture = open_capture(folder)
            if capture is not None:
                return Taken(*capture)
        opened = open(path, field_of_view=flags.fov)
        if isinstance(opened, Scene):
            raise ValueError(f"{path}: a scene that is made already; 'diorama render' shows it from other cameras")
        views = opened
    height, width = views.images.shape[-2:]
    if flags.cameras is not None:
        if flags.fov is not None:
            raise ValueError(f"--fov {flags.fov}: {flags.cameras} tells the field of view; leave one out")
        cameras = read_cameras(flags.cameras, unstated=(height, width))
        cameras = _fitting(flags.cameras, cameras, len(views), height, width)
        return Taken(replace(views, cameras=cameras), cameras, tuple(range(len(views))))
    if len(views) > 1:
        accepted = "--cameras FILE with one for each, a folder that tells them (docs/data.md), or --poses vggt"
        raise ValueError(f"{names}: {len(views)} photos without cameras; accepted is {accepted}")
    guessed = views.cameras or Cameras.from_fov(degrees(flags.fov), height, width)
    return Taken(replace(views, cameras=None), guessed, (0,))


def _read(files: tuple[Path, ...]) -> "Views":
    """Several photos of one size."""
    import torch

    from diorama.scene import Views

    images = _images(files)
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            sizes = ["x".join(map(str, other.shape[-2:])) for other in (image, images[0])]
            raise ValueError(f"{file}: {sizes[0]} pixels but {files[0]} has {sizes[1]}; accepted is one size for all")
    return Views(torch.stack(images))


def _images(files: Sequence[Path]) -> "list[Tensor]":
    from diorama.data.images import MAX_PIXELS, MAX_PIXELS_TOGETHER, read_image

    return [read_image(file, max_pixels=min(MAX_PIXELS, MAX_PIXELS_TOGETHER // len(files))) for file in files]


def _alike(images: "list[Tensor]") -> "list[Tensor]":
    """Centred parts of the images' mean shape, all at the size of the smallest."""
    from diorama.data.images import resize

    shape = math.exp(sum(math.log(image.shape[-1] / image.shape[-2]) for image in images) / len(images))
    parts = []
    for image in images:
        height, width = image.shape[-2:]
        tall, wide = max(1, min(height, round(width / shape))), max(1, min(width, round(height * shape)))
        top, left = (height - tall) // 2, (width - wide) // 2
        parts.append(image[..., top : top + tall, left : left + wide])
    size = min((part.shape[-2:] for part in parts), key=math.prod)
    return [resize(part, *size) for part in parts]


def _fitting(file: Path, cameras: "Cameras", count: int, height: int, width: int) -> "Cameras":
    """The cameras at the photos' size; ValueError where number or shape differ."""
    from diorama.data.cameras import GEN3R_SIZE

    if cameras.views != count:
        raise ValueError(f"{file}: {cameras.views} cameras for {count} photos; accepted is one for each")
    if cameras.height == cameras.width == GEN3R_SIZE:
        return cameras.widened(height, width)
    if abs(math.log(cameras.width / cameras.height * height / width)) > 0.02:
        found = f"cameras of {cameras.height}x{cameras.width} for photos of {height}x{width}"
        raise ValueError(f"{file}: {found}; accepted is one shape for both")
    return cameras.resized(height, width)


def unposed(flags: PhotoFlags, most: int, by: str) -> "Views":
    """Photos of any sizes, or `most` frames of a video, whose cameras `by` is to find.

    Photos of several sizes become one: cropped around their centres to the mean shape, and reduced to the smallest.
    ValueError where something tells their cameras already.
    """
    import torch

    from diorama.data.images import VIDEO_SUFFIXES, read_video
    from diorama.data.open import photo_files
    from diorama.scene import Views

    if flags.cameras is not None:
        raise ValueError(f"--cameras {flags.cameras}: {by} finds the cameras of photos without any; leave one out")
    if flags.fov is not None:
        raise ValueError(f"--fov {flags.fov}: {by} finds the field of view; leave --fov out")
    files = list(flags.photos)
    if len(files) == 1:
        folder = files[0].parent if files[0].name in CAPTURES else files[0]
        told = next((name for name in CAPTURES if (folder / name).is_file()), None)
        if told is not None:
            raise ValueError(f"{folder}: {told} tells the cameras, which {by} would find; accepted are photos alone")
        if folder.suffix.lower() in VIDEO_SUFFIXES and folder.is_file():
            frames = read_video(folder)
            return Views(frames[thinned(len(frames), most)])
        files = photo_files(folder) if folder.is_dir() else files
    images = _images(files)
    sizes = {tuple(image.shape[-2:]) for image in images}
    if len(sizes) > 1:
        images = _alike(images)
        height, width = images[0].shape[-2:]
        print(f"photos of {len(sizes)} sizes are cropped and reduced to {height}x{width}")
    return Views(torch.stack(images))


def _estimated(flags: PhotoFlags, most: int, device: str) -> Taken:
    """The photos with the cameras that --poses finds, at the photos' own size."""
    from diorama.evaluation.estimators import find_estimator
    from diorama.pipelines.base import pick_device

    views, where = unposed(flags, most, f"--poses {flags.poses}"), pick_device(device)
    estimator = find_estimator(str(flags.poses), where)
    cameras = estimator(views.images)
    if cameras is None:
        found = f"no cameras found for all {len(views)} photos"
        raise ValueError(f"--poses {flags.poses}: {found}; accepted are sharp photos that overlap")
    name = f"{estimator.title} ({estimator.licence})"  # type: ignore[attr-defined]
    print(f"cameras of {len(views)} photos by {name}")
    return Taken(replace(views, cameras=cameras), cameras, tuple(range(len(views))), name)


def thinned(count: int, most: int, keep: tuple[int, ...] = ()) -> list[int]:
    """At most `most` of `count` places, evenly spaced, first and last and those to `keep` among them, in order."""
    if count <= most:
        return list(range(count))
    places = {round(i * (count - 1) / max(most - 1, 1)) for i in range(most)}
    for place in keep:
        if place not in places:
            places.remove(min(places - set(keep), key=lambda other: abs(other - place)))
            places.add(place)
    return sorted(places)
