"""Omnidata's starter data, of which Taskonomy and HM3D are parts: a folder for each kind of picture."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diorama.data.cameras import read_json
from diorama.data.images import read_image
from diorama.data.readers.depths import read_depth
from diorama.data.readers.frames import to_opencv
from diorama.data.readers.profiles import Pattern
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

PHOTOS = Pattern("point_{point:d}_view_{view:d}_domain_rgb.png", "Omnidata")
CODES_PER_METRE = 512
NO_SURFACE = 65535  # the code where a ray leaves the scan through a hole

_ANY = "point_*_view_*_domain_rgb.png"
_INFOS = ("point_info", "fixatedpose")  # what the end of a camera's file is called; the second in older downloads


def read_omnidata(folder: str | Path) -> CapturedScene:
    """One building's photos, ROOT/rgb/COMPONENT/BUILDING, with what the folders beside `rgb` tell of them; metres.

    Photos are in the order of the point that they look at: neighbours show the same. Those without point_info are
    counted as missing; ValueError where none has it, and for what is no camera.
    """
    folder = Path(folder)
    hits = PHOTOS.found(folder)
    if not hits or len(folder.resolve().parents) < 3:
        raise ValueError(f"{folder}: found no photo of Omnidata; accepted is ROOT/rgb/COMPONENT/BUILDING/{PHOTOS.text}")
    frames = []
    for photo, named in hits:
        files = (_beside(photo, "point_info", f"{name}.json", named) for name in _INFOS)
        info = next((file for file in files if file.is_file()), None)
        if info is not None:
            depth = _beside(photo, "depth_zbuffer", "depth_zbuffer.png", named)
            reading = partial(_depth, depth) if depth.is_file() else None
            frames.append(Frame(str(photo), partial(_photo, photo), _camera(info), reading, encoded=photo.read_bytes))
    if not frames:
        raise ValueError(f"{folder}: {len(hits)} photos but no camera for any; accepted are point_info/*.json")
    return CapturedScene(
        "/".join(folder.resolve().parts[-2:]),
        tuple(frames),
        ordered=False,
        metric=True,
        depth_kind="rendered" if any(frame.depth for frame in frames) else "none",
        missing=len(hits) - len(frames),
    )


class OmnidataSource:
    """The buildings of one component, such as `taskonomy` or `hm3d`, in order of their names."""

    def __init__(self, root: str | Path, component: str) -> None:
        self.name, folder = component, Path(root) / "rgb" / component
        self._folders = sorted(path for path in folder.glob("*") if any(path.glob(_ANY)))
        if not self._folders:
            raise ValueError(f"{folder}: found no building; accepted are folders of {PHOTOS.text}")

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> CapturedScene:
        return read_omnidata(self._folders[index])


def pose_matrix(place: Float64[np.ndarray, "3"], angles: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "4 4"]:
    """OpenCV camera-to-world of a camera of Blender: turned by `angles` about the world's x, then y, then z."""
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_euler("xyz", angles).as_matrix(), place
    return to_opencv(pose, "opengl")


def _camera(path: Path) -> Cameras:
    document = read_json(path)
    place, angles = (_three(document, key, path) for key in ("camera_location", "camera_rotation_final"))
    wide, side = document.get("field_of_view_rads"), document.get("resolution")
    if not isinstance(wide, int | float) or not 1e-3 < wide < math.pi - 1e-3:
        raise ValueError(f"{path}: field_of_view_rads is {str(wide)[:40]}; accepted is an angle below pi")
    if type(side) is not int or not 0 < side < 2**14:
        raise ValueError(f"{path}: resolution is {str(side)[:40]}; accepted is the photo's side in pixels")
    focal = side / 2 / math.tan(wide / 2)
    matrix = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]], dtype=torch.float64)
    try:
        return Cameras(torch.from_numpy(pose_matrix(place, angles))[None], matrix[None], side, side).checked()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _three(document: dict[str, Any], key: str, path: Path) -> Float64[np.ndarray, "3"]:
    try:
        values = np.array(document.get(key), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.shape != (3,) or not np.isfinite(values).all() or np.abs(values).max() > 1e12:
        raise ValueError(f"{path}: {key} is {str(document.get(key))[:60]!r}; accepted are three finite numbers")
    return values


def _beside(photo: Path, domain: str, ending: str, named: dict[str, str]) -> Path:
    """The file of the same view in another domain's folder."""
    building = photo.parent.resolve()
    name = f"point_{named['point']}_view_{named['view']}_domain_{ending}"
    return building.parents[2] / domain / building.parent.name / building.name / name


def _photo(path: Path, max_pixels: int) -> Float[Tensor, "3 height width"]:
    return read_image(path, max_pixels=max_pixels, upright=False)


def _depth(path: Path) -> Float[Tensor, "height width"]:
    codes = read_depth(path, "png")
    return torch.from_numpy(np.where(codes < NO_SURFACE, codes / np.float32(CODES_PER_METRE), np.float32(0)))
