"""MegaDepth as downloaded: straightened photos and depth in HDF5, beside a COLMAP model of the bent ones."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diorama.data.images import image_size, read_image
from diorama.data.lenses import Lens
from diorama.data.readers.colmap import inside, read_model
from diorama.data.readers.hdf5 import read_hdf5
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

QUANTILE = 0.96
_SHAPE = 0.02  # share by which a straightened photo's shape may differ from the one that its lens tells
_LEAST, _MOST = 0.2, 2.0  # COLMAP keeps the sides of straightened photos within these shares of the bent ones'


def read_megadepth(folder: str | Path) -> CapturedScene:
    """The photos of one model, MegaDepth_v1/0001/dense0, whose cameras MegaDepth_v1_SfM/0001/sparse/manhattan/0 holds.

    Intrinsics are worked out for the straightened photos (`straightened`). Photos that are absent, or of another shape,
    are counted as missing; ValueError where none is left, and where there is no model.
    """
    folder = Path(folder)
    model = find_cameras(folder)
    if model is None:
        wanted = "MegaDepth_v1_SfM/<scene>/sparse/manhattan/<number> beside MegaDepth_v1/<scene>/dense<number>"
        raise ValueError(f"{folder}: found no cameras for it; accepted is {wanted}")
    taken, frames = read_model(model), []
    for item in taken:
        photo = folder / "imgs" / inside(item.name, model)
        if not photo.is_file():
            continue
        size = image_size(photo)
        matrix = straightened(item.lens, size)
        if matrix is None:
            continue
        try:
            camera = Cameras(item.camera_to_world[None], torch.from_numpy(matrix)[None], *size).checked()
        except ValueError as error:
            raise ValueError(f"{model}: {item.name!r:.60}: {error}") from error
        depth = folder / "depths" / inside(item.name, model).with_suffix(".h5")
        reading = partial(_depth, depth) if depth.is_file() else None
        frames.append(Frame(str(photo), partial(_photo, photo), camera, reading, encoded=photo.read_bytes))
    if not frames:
        raise ValueError(f"{folder}: none of the {len(taken)} photos of {model} is in imgs")
    return CapturedScene(
        "/".join(folder.resolve().parts[-2:]),
        tuple(frames),
        ordered=False,
        depth_kind="mvs",
        quantile=QUANTILE,
        missing=len(taken) - len(frames),
        convention=("world_to_camera", "opencv"),
    )


class MegaDepthSource:
    """The models of MegaDepth_v1, or of a folder that holds it and MegaDepth_v1_SfM, in order of their names."""

    name = "megadepth"

    def __init__(self, folder: str | Path) -> None:
        folders = {path for place in ("", "MegaDepth_v1/") for path in Path(folder).glob(f"{place}*/dense*")}
        self._folders = sorted(path for path in folders if (path / "imgs").is_dir() and find_cameras(path))
        if not self._folders:
            raise ValueError(f"{folder}: found no model of MegaDepth; accepted are <scene>/dense<number>/imgs")

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> CapturedScene:
        return read_megadepth(self._folders[index])


def find_cameras(folder: Path) -> Path | None:
    """The COLMAP model of a `dense` folder: within its scene, or in MegaDepth_v1_SfM beside MegaDepth_v1."""
    folder = folder.resolve()
    number, scene = folder.name.removeprefix("dense"), folder.parent
    if number == folder.name or len(scene.parents) < 2:
        return None
    roots = [scene, *(place / "MegaDepth_v1_SfM" / scene.name for place in scene.parents[:2])]
    models = [root / "sparse" / "manhattan" / number for root in roots]
    return next((model for model in models if (model / "images.txt").is_file()), None)


def straightened(lens: Lens, size: tuple[int, int]) -> Float64[np.ndarray, "3 3"] | None:
    """Intrinsics of a photo of `size` that COLMAP straightened; None for a photo of another shape than it makes.

    The focal length and the principal point's share of each side stay; a photo of another size was scaled afterwards.
    """
    grown = straight_size(lens)
    if grown is None:
        return None
    down, across = size[0] / grown[0], size[1] / grown[1]
    if abs(down / across - 1) > _SHAPE:
        return None
    cx, cy = lens.cx / lens.width * size[1], lens.cy / lens.height * size[0]
    return np.array([[lens.fx * across, 0, cx], [0, lens.fy * down, cy], [0, 0, 1]])


def straight_size(lens: Lens) -> tuple[int, int] | None:
    """Height and width to which COLMAP grows or shrinks a photo, no pixel of it empty; None where it cannot."""
    if lens.straight:
        return lens.height, lens.width
    sides, centre = np.array([lens.width, lens.height], float), np.array([lens.cx, lens.cy])
    focal = np.array([lens.fx, lens.fy])
    grown = []
    for axis in (0, 1):
        along = np.append(np.linspace(0.5, sides[1 - axis] - 0.5, 33), centre[1 - axis])  # widest there, or at the ends
        border = np.empty((2, len(along), 2))
        border[..., axis], border[..., 1 - axis] = [[0.5], [sides[axis] - 0.5]], along
        straight = _unbent(lens, (border - centre) / focal)[..., axis] * focal[axis]
        near, far = -straight[0].max(), straight[1].min()
        if not near > 0 or not far > 0:
            return None
        share = max(centre[axis] / near, (sides[axis] - 0.5 - centre[axis]) / far)
        grown.append(max(1, int(np.clip(1 / share, _LEAST, _MOST) * sides[axis])))
    return grown[1], grown[0]


def _unbent(lens: Lens, places: Float64[np.ndarray, "*any 2"]) -> Float64[np.ndarray, "*any 2"]:
    """Rays (x / z, y / z) that a lens images at these places, in the same units; the nearest where it images none."""
    rays = places
    for _ in range(60):
        step = places - lens.bent(rays)
        rays = rays + step
        if np.abs(step).max() < 1e-10:
            break
    return rays


def _photo(path: Path, max_pixels: int) -> Float[Tensor, "3 height width"]:
    return read_image(path, max_pixels=max_pixels, upright=False)


def _depth(path: Path) -> Float[Tensor, "height width"]:
    """Negative values only say what is in front of what."""
    depth = read_hdf5(path, "depth")
    if depth.ndim != 2:
        raise ValueError(f"{path}: found {list(depth.shape)}; accepted are height x width")
    return torch.from_numpy(np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32))
