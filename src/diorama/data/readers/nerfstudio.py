"""nerfstudio's transforms.json with its photos: DL3DV, SEVA's benchmark, phone captures, Gen3R's training layout."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.data.cameras import axes_of, nerfstudio_each, read_json
from diorama.data.images import image_size, read_image
from diorama.data.lenses import Lens
from diorama.data.readers.images import captions, natural
from diorama.data.scenes import CapturedScene, Frame, joined
from diorama.geometry.cameras import Cameras

MILLIMETRE = 0.001  # nerfstudio's unit of depth where the file names none
_BENT = ("OPENCV", "SIMPLE_RADIAL", "RADIAL", "OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
_COEFFICIENTS = ("k1", "k2", "k3", "k4", "p1", "p2")
_DEPTHS = {".png": "png", ".npy": "npy", ".exr": "exr"}


def read_nerfstudio(folder: str | Path) -> CapturedScene:
    """The frames of transforms.json whose photo is there, lens distortion undone, in the file's order.

    `path` holds all its cameras. Depth codes are scene units times `depth_unit_scale_factor`, captions are the lines of
    captions.txt. ValueError for what is no transforms.json, and where no frame has a photo.
    """
    folder = Path(folder)
    source = folder / "transforms.json"
    document = read_json(source)
    frames = document.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{source}: found no list of `frames`; accepted is nerfstudio's transforms.json")
    photos = {place: file for place, frame in enumerate(frames) if (file := _photo_file(source, place, frame))}
    if not photos:
        raise ValueError(f"{source}: none of its {len(frames)} frames has an image in this folder")
    try:
        cameras, lenses = _cameras(document, frames, image_size(next(iter(photos.values()))))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    unit = _unit(source, document)
    found = []
    for place, file in photos.items():
        lens, frame = lenses[place], frames[place]
        depth, mask = (_beside(source, place, frame, key) for key in ("depth_file_path", "mask_path"))
        found.append(
            Frame(
                str(file),
                partial(_image, file, lens),
                cameras[place],
                None if depth is None or not depth.is_file() else partial(_depth, depth, unit, lens),
                None if mask is None or not mask.is_file() else partial(_mask, mask, lens),
                encoded=file.read_bytes,
            )
        )
    one = len({(camera.height, camera.width) for camera in cameras}) == 1
    names = [natural(frame.name) for frame in found]
    described = folder / "captions.txt"
    return CapturedScene(
        folder.resolve().name,
        tuple(found),
        ordered=names == sorted(names),
        depth_kind="dense" if any(frame.depth for frame in found) else "none",
        captions=captions(described) if described.is_file() else (),
        missing=sum(isinstance(frame.get("file_path"), str) for frame in frames) - len(found),
        path=joined(cameras) if one else None,
        at=tuple(photos) if one else (),
        convention=("camera_to_world", axes_of(document)),
        splits=_splits(source, document, photos),
    )


def _cameras(
    document: Mapping[str, Any], frames: list[dict[str, Any]], size: tuple[int, int]
) -> tuple[list[Cameras], list[Lens | None]]:
    """Pinhole cameras of all frames, and the lens of those that have one."""
    straight = {key: value for key, value in document.items() if key not in (*_COEFFICIENTS, "camera_model")}
    bare = [
        {key: value for key, value in frame.items() if key not in (*_COEFFICIENTS, "camera_model")} for frame in frames
    ]
    cameras, lenses = [], []
    for place, camera in enumerate(nerfstudio_each(straight | {"frames": bare}, *size)):
        lens = _lens({**document, **frames[place]}, camera, place)
        if lens is not None:
            matrix = torch.from_numpy(lens.intrinsics())
            camera = Cameras(camera.camera_to_world, matrix[None], camera.height, camera.width)
        cameras.append(camera)
        lenses.append(lens)
    joined([camera.resized(*size) for camera in cameras]).checked()
    return cameras, lenses


def _lens(values: Mapping[str, Any], camera: Cameras, place: int) -> Lens | None:
    model = str(values.get("camera_model") or "")
    bends = {key: values[key] for key in _COEFFICIENTS if values.get(key)}
    fisheye = "FISHEYE" in model or bool(values.get("is_fisheye"))
    if model not in ("", "PINHOLE", "SIMPLE_PINHOLE", "perspective", *_BENT):
        accepted = ", ".join(("PINHOLE", *_BENT))
        raise ValueError(f"frame {place}: found the camera model {model[:40]!r}; accepted are {accepted}")
    if not all(isinstance(bend, int | float) and abs(bend) < 1e6 for bend in bends.values()):
        raise ValueError(f"frame {place}: found the lens {bends}; accepted are finite numbers")
    if bends.get("k4") and not fisheye:  # programs disagree on what a fourth coefficient multiplies
        raise ValueError(f"frame {place}: found k4 {bends['k4']} of {model or 'OPENCV'}; accepted are k1 k2 k3 p1 p2")
    if not bends and not fisheye:
        return None
    matrix = camera.intrinsics[0].tolist()
    pixels = {"fx": matrix[0][0], "fy": matrix[1][1], "cx": matrix[0][2], "cy": matrix[1][2]}
    return Lens.of_named(
        pixels | {key: float(bend) for key, bend in bends.items()}, camera.height, camera.width, fisheye
    )


def _photo_file(source: Path, place: int, frame: dict[str, Any]) -> Path | None:
    file = _beside(source, place, frame, "file_path")
    if file is not None and not file.suffix:
        file = file.with_suffix(".png")  # NeRF's Blender scenes leave it out
    return file if file is not None and file.is_file() else None


def _beside(source: Path, place: int, frame: dict[str, Any], key: str) -> Path | None:
    """The file that a frame names; None where it names none, as SEVA does for wanted cameras."""
    name = frame.get(key)
    if not isinstance(name, str) or not name:
        return None
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or len(name) > 250 or "\0" in name:
        raise ValueError(f"{source}: frame {place} names {name[:80]!r}; accepted are files inside its folder")
    return source.parent / parts


def _image(file: Path, lens: Lens | None, most: int) -> Float[Tensor, "3 height width"]:
    image = read_image(file, max_pixels=most, upright=False)  # its cameras are of the pixels as they lie in the file
    return image if lens is None else lens.straightened(image)


def _depth(file: Path, unit: float, lens: Lens | None) -> Float[Tensor, "height width"]:
    from diorama.data.readers.depths import read_depth

    stored = _DEPTHS.get(file.suffix.lower())
    if stored is None:
        raise ValueError(f"{file}: found depth in another format; accepted are {', '.join(_DEPTHS)}")
    depth = torch.from_numpy(read_depth(file, stored)) * unit  # type: ignore[arg-type]
    return depth if lens is None else lens.straightened(depth, "nearest")


def _mask(file: Path, lens: Lens | None) -> Bool[Tensor, "height width"]:
    mask = read_image(file, upright=False).amax(0) > 0.5
    return mask if lens is None else lens.straightened(mask, "nearest")


def _unit(source: Path, document: Mapping[str, Any]) -> float:
    unit = document.get("depth_unit_scale_factor", MILLIMETRE)
    if isinstance(unit, bool) or not isinstance(unit, int | float) or not 0 < unit < 1e6:
        raise ValueError(f"{source}: `depth_unit_scale_factor` is {str(unit)[:40]!r}; accepted is a positive number")
    return float(unit)


def _splits(source: Path, document: Mapping[str, Any], photos: Mapping[int, Path]) -> dict[str, tuple[int, ...]]:
    """Which photos are for what: `train`, `val`, `test` of transforms.json, `train 3` of train_test_split_3.json."""
    order = {place: number for number, place in enumerate(photos)}
    names = {str(document["frames"][place]["file_path"]): number for place, number in order.items()}
    found: dict[str, tuple[int, ...]] = {}
    for part in ("train", "val", "test"):
        files = document.get(f"{part}_filenames")
        if isinstance(files, list):
            found[part] = tuple(names[file] for file in files if isinstance(file, str) and file in names)
    by_name = sorted(photos, key=lambda place: photos[place].name)  # SEVA numbers sorted images
    for file in sorted(source.parent.glob("train_test_split_*.json")):
        content = read_json(file)
        for part in ("train", "test"):
            ids = content.get(f"{part}_ids")
            if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < len(photos) for i in ids):
                wrong = f"`{part}_ids` is no list of numbers from 0 to {len(photos) - 1}"
                raise ValueError(f"{file}: {wrong}; accepted are places among the photos sorted by name")
            found[f"{part} {file.stem.rpartition('_')[2]}"] = tuple(order[by_name[i]] for i in ids)
    return found
