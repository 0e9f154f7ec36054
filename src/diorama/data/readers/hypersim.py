"""Hypersim as downloaded: HDF5 pictures of unlimited brightness, distances along rays, poses in asset units."""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from diorama.data.images import MAX_PIXELS_IN_FILE, resize
from diorama.data.readers.frames import to_opencv
from diorama.data.readers.hdf5 import read_hdf5
from diorama.data.readers.profiles import Pattern
from diorama.data.readers.stored import text
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

PARAMETERS = "metadata_camera_parameters.csv"  # of all scenes; not in their archives but in Hypersim's repository
PHOTOS = Pattern("images/scene_{camera}_final_hdf5/frame.{frame:d}.color.hdf5", "Hypersim")

_GAMMA = 2.2
_PERCENTILE, _BRIGHTNESS = 90.0, 0.8  # that share of the pixels becomes at most so bright
_LUMA = np.array([0.3, 0.59, 0.11], np.float32)


def read_hypersim(folder: str | Path, camera: str | None = None) -> CapturedScene:
    """One scene, such as ai_001_001, of one trajectory (`camera`: cam_00) or of all; metres.

    Photos are tone-mapped as Hypersim's authors do. ValueError without metadata_camera_parameters.csv, which lies in
    the scene's folder or above it, and for scenes whose camera is no pinhole (tilted, skewed).
    """
    folder = Path(folder)
    hits = PHOTOS.found(folder, {} if camera is None else {"camera": camera})
    if not hits:
        raise ValueError(f"{folder}: found no photo of Hypersim; accepted is {PHOTOS.text}")
    unit, (matrix, height, width) = _metres_per_unit(folder), _parameters(folder)
    cameras = sorted({named["camera"] for _, named in hits})
    poses = {name: _poses(folder / "_detail" / name, unit) for name in cameras}
    frames = []
    for photo, named in hits:
        pose = poses[named["camera"]].get(int(named["frame"]))
        if pose is not None and np.isfinite(pose).all():
            seen = Cameras(torch.from_numpy(pose)[None], torch.from_numpy(matrix)[None], height, width).checked()
            distance = _geometry(photo, "depth_meters")
            depth = partial(_depth, distance, matrix) if distance.is_file() else None
            frames.append(Frame(str(photo), partial(_photo, photo), seen, depth))
    if not frames:
        raise ValueError(f"{folder}: {len(hits)} photos but no pose for any; accepted are _detail/cam_XX/*.hdf5")
    return CapturedScene(
        folder.name if camera is None else f"{folder.name}/{camera}",
        tuple(frames),
        ordered=len(cameras) == 1,
        metric=True,
        depth_kind="rendered",
        missing=len(hits) - len(frames),
    )


class HypersimSource:
    """The trajectories of the scenes in a folder, in order of their names."""

    name = "hypersim"

    def __init__(self, folder: str | Path) -> None:
        scenes = sorted(path for path in Path(folder).glob("ai_*") if path.is_dir())
        self._places = [(scene, name) for scene in scenes for name in _cameras(scene)]
        if not self._places:
            raise ValueError(f"{folder}: found no scene of Hypersim; accepted is ai_VVV_NNN/{PHOTOS.text}")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> CapturedScene:
        return read_hypersim(*self._places[index])


def tone_mapped(
    colour: Float32[np.ndarray, "height width 3"], valid: np.ndarray | None = None
) -> Float32[np.ndarray, "height width 3"]:
    """RGB in [0, 1]: scaled so that the 90th percentile of the brightness of valid pixels becomes 0.8 after gamma."""
    colour = np.nan_to_num(colour, nan=0.0, posinf=0.0, neginf=0.0)
    bright = (colour @ _LUMA)[... if valid is None else valid]
    present = float(np.percentile(bright, _PERCENTILE)) if bright.size else 1.0
    scale = _BRIGHTNESS**_GAMMA / present if present > 1e-4 else 0.0
    return (colour * np.float32(scale)).clip(0, 1) ** np.float32(1 / _GAMMA)


def planar(
    distance: Float32[np.ndarray, "height width"], matrix: Float64[np.ndarray, "3 3"]
) -> Float32[np.ndarray, "height width"]:
    """z of what lies at a distance along each pixel's ray."""
    height, width = distance.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(matrix).T
    return (distance / np.linalg.norm(rays, axis=-1)).astype(np.float32)


def intrinsics(
    uv_to_ray: Float64[np.ndarray, "3 3"], height: int, width: int, where: str
) -> Float64[np.ndarray, "3 3"]:
    """Pixels, from a matrix that takes (u, v, 1), -1 to 1 rightwards and upwards, to rays of a camera looking along -z.

    ValueError where it is no pinhole with square angles: the paper's readers leave out such scenes too.
    """
    pixel_to_uv = np.array([[2 / width, 0, -1], [0, -2 / height, 1], [0, 0, 1]])
    rays = np.diag([1.0, -1.0, -1.0]) @ uv_to_ray @ pixel_to_uv
    try:
        matrix = np.linalg.inv(rays)
        matrix = matrix / matrix[2, 2]
    except (np.linalg.LinAlgError, FloatingPointError) as error:
        raise ValueError(f"{where}: a camera without inverse; accepted is a pinhole") from error
    off = abs(matrix[0, 1]) + abs(matrix[1, 0]) + width * np.abs(matrix[2, :2]).sum()
    if not np.isfinite(matrix).all() or off > 1e-3 * abs(matrix[0, 0]) or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise ValueError(f"{where}: a tilted or skewed camera; accepted is a pinhole")
    return matrix * [[1, 0, 1], [0, 1, 1], [0, 0, 1]]


def _cameras(scene: Path) -> list[str]:
    return sorted({named["camera"] for _, named in PHOTOS.found(scene)})


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from csv.DictReader(text(path).splitlines())
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}: found {error}; accepted is a table as Hypersim's authors write it") from error


def _metres_per_unit(folder: Path) -> float:
    path = folder / "_detail/metadata_scene.csv"
    for row in _rows(path):
        if row.get("parameter_name") == "meters_per_asset_unit":
            return _numbers(path, row, ["parameter_value"])[0]
    raise ValueError(f"{path}: found no meters_per_asset_unit; accepted is Hypersim's table")


def _parameters(folder: Path) -> tuple[Float64[np.ndarray, "3 3"], int, int]:
    """Intrinsics, height and width of a scene's photos."""
    places = [place / PARAMETERS for place in (folder, *folder.resolve().parents[:2])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(f"{places[1]}: no such file; it comes with Hypersim's code, contrib/mikeroberts3000")
    for row in _rows(path):
        if row.get("scene_name") == folder.resolve().name:
            keys = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
            sides = _numbers(path, row, ["settings_output_img_height", "settings_output_img_width"])
            height, width = (int(side) for side in sides)
            if height < 1 or width < 1 or height * width > MAX_PIXELS_IN_FILE:
                raise ValueError(f"{path}: {folder.name} has {height}x{width} pixels; accepted are sizes of photos")
            matrix = np.array(_numbers(path, row, keys)).reshape(3, 3)
            return intrinsics(matrix, height, width, f"{path}: {folder.name}"), height, width
    raise ValueError(f"{path}: found no {folder.resolve().name}; accepted is a scene that it lists")


def _numbers(path: Path, row: dict[str, str], keys: list[str]) -> list[float]:
    try:
        values = [float(row[key]) for key in keys]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: found no number {error}; accepted are {', '.join(keys)}") from error
    if not np.isfinite(values).all() or np.abs(values).max() > 1e6:
        raise ValueError(f"{path}: {keys[0]} is {values[0]}; accepted are finite numbers")
    return values


def _poses(folder: Path, unit: float) -> dict[int, Float64[np.ndarray, "4 4"]]:
    """Camera-to-world in OpenCV axes and metres, by the frame's number."""
    files = [folder / f"camera_keyframe_{name}.hdf5" for name in ("orientations", "positions", "frame_indices")]
    turns, places = (read_hdf5(file, "dataset").astype(np.float64) for file in files[:2])
    if turns.shape[1:] != (3, 3) or places.shape != (len(turns), 3):
        found = f"orientations {list(turns.shape)} and positions {list(places.shape)}"
        raise ValueError(f"{folder}: found {found}; accepted are Nx3x3 and Nx3")
    numbers = read_hdf5(files[2], "dataset").reshape(-1) if files[2].is_file() else np.arange(len(turns))
    if len(numbers) != len(turns):
        raise ValueError(f"{files[2]}: found {len(numbers)} indices for {len(turns)} poses; accepted is one each")
    found = {}
    for number, turn, place in zip(numbers.tolist(), turns, places, strict=True):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn, place * unit
        found[int(number)] = to_opencv(pose, "opengl")
    return found


def _geometry(photo: Path, kind: str) -> Path:
    """The file of another kind of picture of the same frame."""
    folder = photo.parent.name.replace("_final_hdf5", "_geometry_hdf5")
    return photo.parent.parent / folder / photo.name.replace(".color.", f".{kind}.")


def _photo(path: Path, max_pixels: int) -> Float[Tensor, "3 height width"]:
    colour = read_hdf5(path, "dataset")
    if colour.ndim != 3 or colour.shape[2] != 3:
        raise ValueError(f"{path}: found {list(colour.shape)}; accepted are height x width x 3")
    entities = _geometry(path, "render_entity_id")
    valid = read_hdf5(entities, "dataset") != -1 if entities.is_file() else None
    if valid is not None and valid.shape != colour.shape[:2]:
        raise ValueError(f"{entities}: another size than {path.name}; accepted is the same")
    image = torch.from_numpy(tone_mapped(colour.astype(np.float32), valid)).movedim(-1, 0).contiguous()
    height, width = image.shape[1:]
    factor = (max(1, -(-height * width // max_pixels))) ** 0.5
    return image if factor == 1 else resize(image, max(1, int(height / factor)), max(1, int(width / factor)))


def _depth(path: Path, matrix: Float64[np.ndarray, "3 3"]) -> Float[Tensor, "height width"]:
    distance = read_hdf5(path, "dataset")
    if distance.ndim != 2:
        raise ValueError(f"{path}: found {list(distance.shape)}; accepted are height x width")
    distance = distance.astype(np.float32)
    return torch.from_numpy(planar(np.where(np.isfinite(distance) & (distance > 0), distance, 0), matrix))
