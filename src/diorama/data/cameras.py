"""Camera paths from files: nerfstudio's transforms.json and camera_path.json, Gen3R's cameras.json, a saved scene."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diorama.data.scenes import joined
from diorama.geometry.cameras import Cameras

GEN3R_SIZE = 560  # Gen3R's intrinsics are for its 560x560 crop; its files do not say so
MAX_JSON = 2**26  # bytes; 50,000 frames, read into twenty times the memory
CAMERA_FILES = ("scene.json", "transforms.json", "cameras.json", "camera_path.json")

_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_ACCEPTED = (
    "nerfstudio's transforms.json (`frames`) or camera_path.json (`camera_path`), Gen3R's cameras.json "
    "(`extrinsics`, `intrinsics`), or a saved scene"
)
_PINHOLES = ("", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "perspective")


def read_cameras(
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    unstated: tuple[int, int] | tuple[None, None] = (None, None),
) -> Cameras:
    """The cameras (float64) of a file or of a folder that holds one, in the file's order and world frame.

    They are scaled to `height` and `width` where these are given; a file that states no size needs them, or takes
    `unstated`. What is not finite, rigid and of positive focal length raises ValueError naming the file and the camera.
    """
    path = _camera_file(Path(path))
    if (height is None) != (width is None):
        raise ValueError(f"height {height} and width {width}; accepted are both or neither")
    document = read_json(path)
    try:
        if "frames" in document:
            found = nerfstudio_cameras(document, *(unstated if height is None else (height, width)))
        elif "camera_path" in document:
            found = _nerfstudio_path(document)
        elif "extrinsics" in document:
            found = _gen3r_cameras(document)
        elif isinstance(document.get("cameras"), dict):
            found = cameras_from_json(document["cameras"])
        else:
            raise ValueError(f"found the keys {sorted(document)[:8]}; accepted is {_ACCEPTED}")
        found = found if height is None or width is None else found.resized(height, width)
        found.to(torch.float32).checked()  # what models compute in: 1e300 is finite until it is float32
        return found.checked()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def widened(cameras: Cameras, height: int, width: int) -> Cameras:
    """Cameras of whole images, given those of the largest centred part that has another shape (Gen3R: a square)."""
    return cameras.widened(height, width)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError of one line for anything else."""
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{path}: found {size} bytes; accepted is a JSON file of at most {MAX_JSON}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: found a JSON {type(document).__name__}; accepted is an object")
    return document


def nerfstudio_cameras(document: dict[str, Any], height: int | None = None, width: int | None = None) -> Cameras:
    """Cameras (float64) of a transforms.json, one for each frame; OpenGL axes unless `axes` says "opencv".

    `height` and `width` are the images' where the document does not state them. The map in `applied_transform` is
    undone, which leads back to the world that the poses were estimated in.
    """
    each = nerfstudio_each(document, height, width)
    sizes = {(camera.height, camera.width) for camera in each}
    if len(sizes) > 1:
        if height is None or width is None:
            raise ValueError(f"frames of different sizes {sorted(sizes)[:3]}; give one height and width for all")
        each = [camera.resized(height, width) for camera in each]
    return joined(each)


def nerfstudio_each(document: dict[str, Any], height: int | None = None, width: int | None = None) -> list[Cameras]:
    """One camera (float64) for each frame of a transforms.json, each for its own image size."""
    frames = _items(document, "frames")
    flip = _OPENGL_TO_OPENCV if axes_of(document) == "opengl" else np.eye(4)
    undo = np.eye(4)
    if "applied_transform" in document:
        undo = np.linalg.inv(_pose(document["applied_transform"], "applied_transform"))
    cameras = []
    for number, frame in enumerate(frames):
        where = f"frame {number}"
        pose = undo @ _pose(frame.get("transform_matrix"), f"{where}: transform_matrix") @ flip
        matrix, size = _nerfstudio_intrinsics({**document, **frame}, where, height, width)
        cameras.append(_cameras([pose], [matrix], *size))
    return cameras


def axes_of(document: dict[str, Any]) -> str:
    """Which axes the cameras of a transforms.json have: nerfstudio's unless it says otherwise."""
    axes = str(document.get("axes", document.get("camera_convention", "opengl"))).lower()
    if axes not in ("opengl", "opencv"):
        raise ValueError(f"found axes {axes[:40]!r}; accepted are opengl and opencv")
    return axes


def cameras_from_json(document: dict[str, Any]) -> Cameras:
    """Cameras (float64) of our own JSON form: OpenCV axes, camera-to-world, pixels."""
    poses, matrices = _items(document, "camera_to_world", list), _items(document, "intrinsics", list)
    if len(poses) != len(matrices):
        raise ValueError(f"found {len(poses)} camera_to_world but {len(matrices)} intrinsics; each camera needs both")
    size = [_number(document, key, "cameras") for key in ("height", "width")]
    return _cameras(
        [_pose(pose, f"camera_to_world {i}") for i, pose in enumerate(poses)],
        [_matrix(matrix, 3, 3, f"intrinsics {i}") for i, matrix in enumerate(matrices)],
        *map(int, size),
    )


def _nerfstudio_path(document: dict[str, Any]) -> Cameras:
    """A path drawn in nerfstudio's viewer: OpenGL camera-to-world, vertical field of view in degrees."""
    if document.get("camera_type", "perspective") not in _PINHOLES:
        raise ValueError(f"found camera_type {document['camera_type']!r}; accepted is perspective")
    height, width = (int(_number(document, key, "the path")) for key in ("render_height", "render_width"))
    poses, matrices = [], []
    for number, item in enumerate(_items(document, "camera_path")):
        values = np.asarray(item.get("camera_to_world", []), dtype=object).reshape(-1).tolist()
        rows = [values[start : start + 4] for start in range(0, len(values), 4)]
        poses.append(_pose(rows, f"camera {number}: camera_to_world") @ _OPENGL_TO_OPENCV)
        focal = 0.5 * height / math.tan(_angle(_number(item, "fov", f"camera {number}"), f"camera {number}") / 2)
        matrices.append(np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]))
    return _cameras(poses, matrices, height, width)


def _gen3r_cameras(document: dict[str, Any]) -> Cameras:
    """Gen3R's world-to-camera matrices and the intrinsics of its 560x560 crop."""
    inverses, matrices = _items(document, "extrinsics", list), _items(document, "intrinsics", list)
    if len(inverses) != len(matrices):
        raise ValueError(f"found {len(inverses)} extrinsics but {len(matrices)} intrinsics; each camera needs both")
    world_to_camera = [_pose(item, f"extrinsics {number}") for number, item in enumerate(inverses)]
    intrinsics = [_matrix(item, 3, 3, f"intrinsics {number}") for number, item in enumerate(matrices)]
    inverse = _cameras(world_to_camera, intrinsics, GEN3R_SIZE, GEN3R_SIZE).checked()
    return replace(inverse, camera_to_world=inverse.world_to_camera)


def _nerfstudio_intrinsics(
    values: dict[str, Any], where: str, height: int | None, width: int | None
) -> tuple[np.ndarray, tuple[int, int]]:
    model = str(values.get("camera_model", ""))
    distortion = {key: values[key] for key in ("k1", "k2", "k3", "k4", "p1", "p2") if values.get(key)}
    if model not in _PINHOLES or distortion:
        raise ValueError(f"{where}: found the lens {model} {distortion}; accepted are undistorted images (PINHOLE)")
    h = int(_number(values, "h", where) if "h" in values else height or 0)
    w = int(_number(values, "w", where) if "w" in values else width or 0)
    if h < 1 or w < 1:
        raise ValueError(f"{where}: found no image size (`w`, `h`); give height and width")
    if "fl_x" in values:
        fx = _number(values, "fl_x", where)
    elif "camera_angle_x" in values:
        fx = 0.5 * w / math.tan(_angle(math.degrees(_number(values, "camera_angle_x", where)), where) / 2)
    else:
        raise ValueError(f"{where}: found no focal length; accepted are `fl_x` or `camera_angle_x`")
    fy = _number(values, "fl_y", where) if "fl_y" in values else fx
    cx = _number(values, "cx", where) if "cx" in values else w / 2
    cy = _number(values, "cy", where) if "cy" in values else h / 2
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), (h, w)


def _cameras(poses: Any, matrices: Any, height: int, width: int) -> Cameras:
    return Cameras(torch.from_numpy(np.stack(poses)), torch.from_numpy(np.stack(matrices)), height, width)


def _items(document: dict[str, Any], key: str, kind: type = dict) -> list[Any]:
    items = document.get(key)
    if not isinstance(items, list) or not items:
        raise ValueError(f"`{key}` is {'empty' if items == [] else 'no list'}; accepted is at least one camera")
    for number, item in enumerate(items):
        if not isinstance(item, kind):
            raise ValueError(f"`{key}` {number} is a {type(item).__name__}; accepted is a {kind.__name__}")
    return items


def _number(values: dict[str, Any], key: str, where: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: `{key}` is {value!r}; accepted is a finite number")
    return float(value)


def _angle(degrees: float, where: str) -> float:
    if not 0 < degrees < 180:
        raise ValueError(f"{where}: field of view {degrees} degrees; accepted is more than 0 and less than 180")
    return math.radians(degrees)


def _pose(value: Any, where: str) -> np.ndarray:
    if isinstance(value, list) and len(value) == 3:
        value = [*value, [0.0, 0.0, 0.0, 1.0]]
    return _matrix(value, 4, 4, where)


def _matrix(value: Any, rows: int, columns: int, where: str) -> np.ndarray:
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (rows, columns) or not np.isfinite(matrix).all():
        raise ValueError(f"{where} is no matrix of {rows}x{columns} finite numbers")
    return matrix


def _camera_file(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such camera file or folder")
    if not path.is_dir():
        return path
    for name in CAMERA_FILES:
        if (path / name).is_file():
            return path / name
    raise ValueError(f"{path}: found no camera file in this folder; accepted is {_ACCEPTED}")
