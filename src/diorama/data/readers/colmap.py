"""COLMAP's models, text and binary, with or without the photos undistorted."""

import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.data.images import read_image
from diorama.data.lenses import MODELS, Lens
from diorama.data.readers.images import natural
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

PLACES = ("sparse/0", "sparse", ".", "colmap/sparse/0", "colmap/sparse", "colmap", "dense/sparse", "dslr/colmap")
_MASKS = ("resized_anon_masks", "rgb_masks")  # of ScanNet++, beside its photos
PHOTOS = ("images", "images_2", "images_4", "images_8", ".", "resized_images", "rgb")
MOST_LINE = 2**26  # bytes; an image's line of points is some hundred kilobytes
MOST_FAR = 1e12  # scene units; what is not even in our solar system is no pose
_COUNTS = {name: (1 if known[0] == "f" else 2) + 2 + len(known[1].split()) for name, known in MODELS.items() if known}


class Row(NamedTuple):
    """One photo of a model as its file has it: its name, the number of its camera, and its pose."""

    name: str
    camera: int
    world_to_camera: Float[np.ndarray, "7"]  # quaternion w x y z, translation


class Taken(NamedTuple):
    """One photo of a model."""

    name: str
    lens: Lens
    camera_to_world: Float[Tensor, "4 4"]  # OpenCV axes


def find_model(folder: Path) -> Path | None:
    """The folder of COLMAP's model in a capture: of several, the one with most photos; None where there is none."""
    for place in PLACES:
        if _files(folder / place):
            siblings = sorted(path for path in (folder / place).parent.glob("*") if path.is_dir() and _files(path))
            if place != "sparse/0" or len(siblings) < 2:
                return folder / place
            return max(siblings, key=lambda path: _files(path)[1].stat().st_size)  # type: ignore[index]
    return None


def read_colmap(folder: str | Path, photos: str | None = None) -> CapturedScene:
    """The photos of a COLMAP model, lens distortion undone, in the order of their names.

    `photos` names their folder where it is not one that COLMAP and its users call so. ValueError for what is no model.
    """
    folder = Path(folder)
    model = find_model(folder)
    if model is None:
        raise ValueError(f"{folder}: found no cameras and images (.txt or .bin); accepted is a folder with COLMAP's")
    camera_file, image_file = _files(model)  # type: ignore[misc]
    taken = read_model(model)
    place = _photo_folder(folder, taken, image_file, photos)
    frames = []
    for item in taken:
        file = place / inside(item.name, image_file)
        if file.is_file():
            lens = item.lens
            camera = _camera(lens, item.camera_to_world, camera_file)
            photo = partial(_photo, file, lens)
            mask = _mask(folder, place, item.name, lens)
            frames.append(Frame(str(file), photo, camera, mask=mask, encoded=file.read_bytes))
    if not frames:
        raise ValueError(f"{image_file}: none of its {len(taken)} images is in {place}")
    return CapturedScene(
        folder.resolve().name,
        tuple(frames),
        ordered=False,
        missing=len(taken) - len(frames),
        convention=("world_to_camera", "opencv"),
    )


def read_model(model: Path) -> list[Taken]:
    """The photos that COLMAP's cameras and images of a folder list, in the order of names; ValueError for none."""
    camera_file, image_file = _files(model) or (model / "cameras.txt", model / "images.txt")
    lenses, rows = _lenses(camera_file), sorted(_images(image_file), key=lambda row: natural(row.name))
    if not rows:
        raise ValueError(f"{image_file}: found no images; accepted is a model of at least one")
    unlisted = next((row for row in rows if row.camera not in lenses), None)
    if unlisted is not None:
        found = f"{unlisted.name!r} has camera {unlisted.camera}"
        raise ValueError(f"{image_file}: {found}; {camera_file.name} does not list it")
    poses = _poses([row.world_to_camera for row in rows], image_file)
    return [Taken(row.name, lenses[row.camera], pose) for row, pose in zip(rows, poses, strict=True)]


def _files(model: Path) -> tuple[Path, Path] | None:
    for suffix in (".bin", ".txt"):
        files = (model / f"cameras{suffix}", model / f"images{suffix}")
        if all(file.is_file() for file in files):
            return files
    return None


def _photo_folder(folder: Path, taken: list[Taken], source: Path, photos: str | None) -> Path:
    roots = [folder / photos] if photos else [*(at / name for at in (folder, source.parent.parent) for name in PHOTOS)]
    if not photos:
        roots.append(source.parent / "images")
    found = [sum((root / inside(item.name, source)).is_file() for item in taken) for root in roots]
    return roots[int(np.argmax(found))]


def _photo(file: Path, lens: Lens, most: int) -> Float[Tensor, "3 height width"]:
    # COLMAP reads pixels as they lie in the file.
    return lens.straightened(read_image(file, max_pixels=most, upright=False))


def _mask(folder: Path, photos: Path, name: str, lens: Lens) -> Callable[[], Bool[Tensor, "height width"]] | None:
    named = PurePosixPath(name)
    files = [folder / "masks" / f"{name}.png"]
    files += [photos.parent / kind / named.with_suffix(".png") for kind in _MASKS]
    file = next((file for file in files if file.is_file()), None)
    return None if file is None else partial(_valid, file, lens)


def _valid(file: Path, lens: Lens) -> Bool[Tensor, "height width"]:
    """COLMAP's masks are black where a photo is not to be used."""
    return lens.straightened(read_image(file, upright=False).amax(0) > 0, "nearest")


def _camera(lens: Lens, pose: Float[Tensor, "4 4"], source: Path) -> Cameras:
    try:
        matrix = torch.from_numpy(lens.intrinsics())
        return Cameras(pose[None], matrix[None], lens.height, lens.width).checked()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _poses(rows: list[Float[np.ndarray, "7"]], source: Path) -> Float[Tensor, "view 4 4"]:
    """Camera-to-world from COLMAP's world-to-camera: OpenCV's axes already, quaternions of any length."""
    from scipy.spatial.transform import Rotation

    values = np.stack(rows)
    bounded = (np.abs(values) < MOST_FAR).all()
    if not bounded or (np.linalg.norm(values[:, :4], axis=1) < 1e-6).any():
        raise ValueError(f"{source}: found a pose that is not finite; accepted are quaternions and translations")
    rotations = Rotation.from_quat(values[:, [1, 2, 3, 0]]).as_matrix().transpose(0, 2, 1)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = rotations
    poses[:, :3, 3] = -np.einsum("nij,nj->ni", rotations, values[:, 4:])
    return torch.from_numpy(poses)


def inside(name: str, source: Path) -> PurePosixPath:
    """A photo's name as a path that leads nowhere else; ValueError for others."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or len(name.encode()) > 250 or "\0" in name:
        raise ValueError(f"{source}: names {name[:80]!r}; accepted are files inside its folder")
    return parts


def _lenses(path: Path) -> dict[int, Lens]:
    found = {}
    for number, model, width, height, parameters in _camera_rows(path):
        if not (0 < width < 2**16 and 0 < height < 2**16):
            raise ValueError(f"{path}: camera {number} has {width}x{height} pixels; accepted are 1 to 65535 a side")
        try:
            found[number] = Lens.of_colmap(model, parameters, height, width)
        except ValueError as error:
            raise ValueError(f"{path}: camera {number}: {error}") from error
    return found


def _camera_rows(path: Path) -> Iterator[tuple[int, str, int, int, list[float]]]:
    if path.suffix == ".txt":
        for line in _lines(path):
            words = line.split()
            if words and not words[0].startswith("#"):
                try:
                    yield int(words[0]), words[1], int(words[2]), int(words[3]), [float(word) for word in words[4:]]
                except (ValueError, IndexError) as error:
                    raise ValueError(f"{path}: {line[:60]!r} is no camera: id, model, width, height, ...") from error
        return
    with path.open("rb") as file:
        for _ in range(*_unpacked(file, "<Q", path)):
            number, kind, width, height = _unpacked(file, "<iiQQ", path)
            model = list(MODELS)[kind] if 0 <= kind < len(MODELS) else f"number {kind}"
            if model not in _COUNTS:
                raise ValueError(f"{path}: found the camera model {model}; accepted are {', '.join(_COUNTS)}")
            yield number, model, width, height, list(_unpacked(file, f"<{_COUNTS[model]}d", path))


def _images(path: Path) -> Iterator[Row]:
    return _text_images(path) if path.suffix == ".txt" else _binary_images(path)


def _text_images(path: Path) -> Iterator[Row]:
    """Every image has two lines; the second, its points, may be empty, and some programs leave it out."""
    points = False  # whether a line of points may come
    for line in _lines(path):
        words = line.split(maxsplit=9)
        if points and (len(words) < 10 or _number(line.rsplit(maxsplit=1)[-1])):
            points = False
            continue
        if not words or words[0].startswith("#"):
            continue
        try:
            numbers = [float(word) for word in words[1:8]]
            yield Row(words[9].strip(), int(words[8]), np.array(numbers))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}: {line[:60]!r} is no image: id, quaternion, translation, camera, name") from error
        points = True


def _binary_images(path: Path) -> Iterator[Row]:
    size = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(*_unpacked(file, "<Q", path)):
            _, *pose, camera = _unpacked(file, "<I7dI", path)
            name = bytearray()
            while (letter := file.read(1)) != b"\0":
                name += letter
                if not letter or len(name) > 1024:
                    raise ValueError(f"{path}: cut short, or no model of COLMAP's")
            (count,) = _unpacked(file, "<Q", path)
            if count * 24 > size - file.tell():
                raise ValueError(f"{path}: an image of {count} points is cut short")
            file.seek(count * 24, 1)
            yield Row(name.decode("utf-8", "replace"), camera, np.array(pose))


def _unpacked(file: BinaryIO, form: str, path: Path) -> tuple:
    size = struct.calcsize(form)
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"{path}: cut short; accepted are whole models")
    return struct.unpack(form, data)


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while line := file.readline(MOST_LINE):
            if len(line) == MOST_LINE:
                raise ValueError(f"{path}: found a line of more than {MOST_LINE} bytes; accepted is COLMAP's text")
            yield line.decode("utf-8", "replace")


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
