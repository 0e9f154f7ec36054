"""IDR's and NeuS's captures (DTU): photos, masks, and one archive of projection matrices."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from diorama.data.images import image_size, read_image
from diorama.data.readers.images import photo_files
from diorama.data.readers.stored import npz_arrays
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

CAMERAS = ("cameras.npz", "cameras_sphere.npz")
_SKEW = 1e-3  # share of the focal length


def read_idr(folder: str | Path) -> CapturedScene:
    """The photos of `image`, whose cameras are world_mat_N @ scale_mat_N, N counting photos.

    The object fills a sphere of radius 1; masks lie in `mask`. ValueError for matrices that are no cameras, and where
    photos outnumber them.
    """
    folder = Path(folder)
    file = next((folder / name for name in CAMERAS if (folder / name).is_file()), None)
    place = next((folder / name for name in ("image", "images", "rgb") if (folder / name).is_dir()), None)
    if file is None or place is None:
        raise ValueError(
            f"{folder}: found no {CAMERAS[0]} or no photos; accepted is IDR's layout: image, mask, {CAMERAS[0]}"
        )
    photos = photo_files(place)
    masks = photo_files(folder / "mask") if (folder / "mask").is_dir() else []
    matrices = _matrices(file, len(photos))
    frames = []
    for number, (photo, matrix) in enumerate(zip(photos, matrices, strict=True)):
        try:
            pose, lens = decomposed(matrix)
            camera = Cameras(torch.from_numpy(pose)[None], torch.from_numpy(lens)[None], *image_size(photo)).checked()
        except ValueError as error:
            raise ValueError(f"{file}: camera {number}: {error}") from error
        mask = partial(_mask, masks[number]) if len(masks) == len(photos) else None
        frames.append(Frame(str(photo), partial(_photo, photo), camera, mask=mask, encoded=photo.read_bytes))
    return CapturedScene(folder.resolve().name, tuple(frames), ordered=False)


def decomposed(
    projection: Float64[np.ndarray, "3 4"],
) -> tuple[Float64[np.ndarray, "4 4"], Float64[np.ndarray, "3 3"]]:
    """Camera-to-world and intrinsics (centres at +0.5) of a projection matrix for pixels counted from 0."""
    from scipy.linalg import rq

    left, turn = rq(projection[:, :3])
    signs = np.diag(np.where(np.diag(left) < 0, -1.0, 1.0))
    left, turn = left @ signs, signs @ turn
    if not left[2, 2] > 0 or np.abs(np.diag(left)).min() < 1e-9 * np.abs(left).max():
        raise ValueError("a projection of rank below 3; accepted are cameras")
    centre = -np.linalg.solve(projection[:, :3], projection[:, 3])
    if np.linalg.det(turn) < 0:  # a projection is known up to its sign alone
        turn = -turn
    matrix = left / left[2, 2]
    if abs(matrix[0, 1]) > _SKEW * matrix[0, 0]:
        raise ValueError(f"skew {matrix[0, 1]:.3g}; accepted are cameras without")
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn.T, centre
    return pose, np.array([[matrix[0, 0], 0, matrix[0, 2] + 0.5], [0, matrix[1, 1], matrix[1, 2] + 0.5], [0, 0, 1]])


def _matrices(file: Path, count: int) -> list[Float64[np.ndarray, "3 4"]]:
    try:
        worlds = npz_arrays(file, [f"world_mat_{number}" for number in range(count)])
        scales = npz_arrays(file, [f"scale_mat_{number}" for number in range(count)])
        if any(array.shape != (4, 4) or array.dtype.kind not in "fiu" for array in (*worlds, *scales)):
            raise ValueError("matrices of other shapes than 4x4")
        found = [(world.astype(float) @ scale.astype(float))[:3] for world, scale in zip(worlds, scales, strict=True)]
        if not all(np.isfinite(matrix).all() and np.abs(matrix).max() < 1e15 for matrix in found):
            raise ValueError("matrices that are not finite")
    except Exception as error:  # an archive fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file}: found {reason[:160]}; accepted are world_mat_N and scale_mat_N of {count}"
        ) from error
    return found


def _photo(path: Path, max_pixels: int) -> Float[Tensor, "3 height width"]:
    return read_image(path, max_pixels=max_pixels, upright=False)


def _mask(path: Path) -> Bool[Tensor, "height width"]:
    return read_image(path, upright=False).amax(0) > 0.5
