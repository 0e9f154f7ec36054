"""A scene as a COLMAP model with its images: what splat trainers and bundle adjustment start from.

images/00000.png             the views
sparse/0/cameras.bin         PINHOLE cameras, one for all views that share their intrinsics
sparse/0/images.bin          world-to-camera poses, and the pixels where tracks are seen
sparse/0/points3D.bin        tracks of two or more observations each, with their mean reprojection error

or the same three as .txt. Pixels are COLMAP's as they are ours: the first one's centre is (0.5, 0.5).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.spatial.transform import Rotation

from diorama.export.atomic import replacement
from diorama.export.folder import write_images
from diorama.export.tracks import MOST, TOLERANCE, Tracks, find_tracks
from diorama.export.world import World, world_of
from diorama.scene import Views

_PINHOLE = 1  # COLMAP's number of the model with fx, fy, cx, cy


class Model(NamedTuple):
    """The cameras as COLMAP has them."""

    lenses: Float64[np.ndarray, "lens 4"]  # fx, fy, cx, cy
    lens: Int64[np.ndarray, " view"]
    quaternions: Float64[np.ndarray, "view 4"]  # world to camera, real part first
    translations: Float64[np.ndarray, "view 3"]


def write_colmap(
    views: Views,
    path: str | Path,
    *,
    text: bool = False,
    tolerance: float = TOLERANCE,
    most: int = MOST,
    world: World | None = None,
    overwrite: bool = False,
) -> Tracks:
    """Write images and a sparse model, binary or text, and give the tracks of `find_tracks` that are in it.

    ValueError where no two views see a point alike, without depth, and for cameras with skew.
    """
    views = views.to("cpu", torch.float32)
    model = colmap_model(views)
    tracks = find_tracks(views, tolerance=tolerance, most=most)
    if not len(tracks.points):
        raise ValueError(
            f"{path}: none of {len(views)} views sees a point of another within {tolerance:g} pixels; a larger "
            "tolerance accepts depths that agree less"
        )
    write = _write_text if text else _write_binary
    with replacement(path, overwrite=overwrite) as folder:
        (folder / "sparse/0").mkdir(parents=True)
        write_images(folder / "images", views, range(len(views)))
        write(folder / "sparse/0", model, tracks, views, world or world_of(views))
    return tracks


def colmap_model(views: Views) -> Model:
    """The views' cameras, world-to-camera; ValueError for views without cameras, and for skew."""
    if views.cameras is None:
        raise ValueError("the scene has no cameras; accepted for COLMAP are scenes with cameras")
    matrices = views.cameras.intrinsics.double().numpy()
    if (np.abs(matrices[:, 0, 1]) > 1e-6).any():
        raise ValueError("a camera has skew; accepted for COLMAP's PINHOLE model are cameras without")
    values = matrices[:, (0, 1, 0, 1), (0, 1, 2, 2)]
    lenses, lens = np.unique(values, axis=0, return_inverse=True)
    poses = views.cameras.camera_to_world.double().numpy()
    # Through quaternions, so that what is left of rounding in the matrices moves no camera.
    turned = Rotation.from_matrix(poses[:, :3, :3]).inv()
    return Model(
        lenses, lens.reshape(-1).astype(np.int64), turned.as_quat(scalar_first=True), -turned.apply(poses[:, :3, 3])
    )


def _observations(tracks: Tracks, views: int) -> tuple[list[np.ndarray], np.ndarray]:
    """For each view which observations are in it, and for each observation its place in its view's list."""
    order = np.argsort(tracks.view, kind="stable")
    counts = np.bincount(tracks.view, minlength=views)
    lists = np.split(order, np.cumsum(counts)[:-1])
    place = np.empty(len(order), np.int64)
    for rows in lists:
        place[rows] = np.arange(len(rows))
    return lists, place


def _write_binary(folder: Path, model: Model, tracks: Tracks, views: Views, _: World) -> None:
    height, width = views.images.shape[-2:]
    lenses = np.zeros(len(model.lenses), [("id", "<u4"), ("model", "<i4"), ("size", "<u8", 2), ("values", "<f8", 4)])
    lenses["id"], lenses["model"] = np.arange(1, len(lenses) + 1), _PINHOLE
    lenses["size"], lenses["values"] = (width, height), model.lenses
    (folder / "cameras.bin").write_bytes(_count(len(lenses)) + lenses.tobytes())
    lists, place = _observations(tracks, len(views))
    head = np.dtype([("id", "<u4"), ("pose", "<f8", 7), ("lens", "<u4")])
    with (folder / "images.bin").open("wb") as file:
        file.write(_count(len(views)))
        for view, rows in enumerate(lists):
            pose = (*model.quaternions[view], *model.translations[view])
            file.write(np.array((view + 1, pose, model.lens[view] + 1), head).tobytes())
            file.write(f"{view:05d}.png\0".encode() + _count(len(rows)))
            seen = np.empty(len(rows), [("pixel", "<f8", 2), ("point", "<i8")])
            seen["pixel"], seen["point"] = tracks.pixels[rows], tracks.track[rows] + 1
            file.write(seen.tobytes())
    # Records differ in length with the track's; all of one length are written at once.
    lengths = np.bincount(tracks.track, minlength=len(tracks.points))
    starts = np.cumsum(lengths) - lengths
    with (folder / "points3D.bin").open("wb") as file:
        file.write(_count(len(lengths)))
        for length in np.unique(lengths).tolist():
            chosen = np.flatnonzero(lengths == length)
            kind = [("id", "<u8"), ("point", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")]
            records = np.empty(len(chosen), [*kind, ("seen", "<u4", (length, 2))])
            records["id"], records["length"] = chosen + 1, length
            records["point"], records["rgb"] = tracks.points[chosen], tracks.colours[chosen]
            records["error"] = tracks.errors[chosen]
            rows = starts[chosen, None] + np.arange(length)
            records["seen"] = np.stack([tracks.view[rows] + 1, place[rows]], -1)
            file.write(records.tobytes())


def _write_text(folder: Path, model: Model, tracks: Tracks, views: Views, world: World) -> None:
    height, width = views.images.shape[-2:]
    notes = "".join(f"# {line}\n" for line in world.lines())
    with (folder / "cameras.txt").open("w") as file:
        file.write(f"{notes}# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n")
        for number, values in enumerate(model.lenses.tolist(), 1):
            file.write(f"{number} PINHOLE {width} {height} {_words(values)}\n")
    lists, place = _observations(tracks, len(views))
    with (folder / "images.txt").open("w") as file:
        file.write(
            f"{notes}# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n# POINTS2D[] as (X, Y, POINT3D_ID)\n"
        )
        for view, rows in enumerate(lists):
            pose = _words([*model.quaternions[view].tolist(), *model.translations[view].tolist()])
            file.write(f"{view + 1} {pose} {model.lens[view] + 1} {view:05d}.png\n")
            triples = zip(tracks.pixels[rows].tolist(), (tracks.track[rows] + 1).tolist(), strict=True)
            file.write(" ".join(f"{x:.4f} {y:.4f} {point}" for (x, y), point in triples) + "\n")
    seen = np.stack([tracks.view + 1, place], -1).tolist()
    ends = np.cumsum(np.bincount(tracks.track, minlength=len(tracks.points))).tolist()
    with (folder / "points3D.txt").open("w") as file:
        file.write(f"{notes}# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n")
        start = 0
        values = zip(tracks.points.tolist(), tracks.colours.tolist(), tracks.errors.tolist(), ends, strict=True)
        for number, ((x, y, z), (r, g, b), error, end) in enumerate(values, 1):
            track = " ".join(f"{view} {index}" for view, index in seen[start:end])
            file.write(f"{number} {x:.9g} {y:.9g} {z:.9g} {r} {g} {b} {error:.4f} {track}\n")
            start = end


def _count(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _words(values: list[float]) -> str:
    return " ".join(f"{value:.17g}" for value in values)
