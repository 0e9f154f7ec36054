"""Folders with one photo, one camera and perhaps one depth map per frame, as a profile describes them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from diorama.data.images import MAX_PIXELS_IN_FILE, image_size, read_image
from diorama.data.lenses import Lens
from diorama.data.readers.depths import read_depth, read_grey
from diorama.data.readers.profiles import (
    Axes,
    Depth,
    Intrinsics,
    Named,
    Pattern,
    Pose,
    Profile,
    Stored,
    patterns,
    profiles,
)
from diorama.data.readers.stored import Values, read_stored
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

# What our camera's axes (x right, y down, z forward) are called in other conventions: theirs = matrix @ ours.
_AXES: dict[Axes, list[list[float]]] = {
    "opencv": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "opengl": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "pytorch3d": [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
    "ned": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    "flu": [[0, 0, 1], [-1, 0, 0], [0, -1, 0]],
}


def read_frames(folder: str | Path, profile: Profile, sequence: str | None = None) -> CapturedScene:
    """The scene in a folder; `sequence` chooses one of several videos where the profile tells them apart.

    Frames without a camera file, or with a pose that is not finite, are left out and counted as missing. ValueError
    where nothing is left, and for camera files that are not what the profile says.
    """
    folder = Path(folder)
    hits = _photos(folder, profile, sequence)
    if not hits:
        raise ValueError(f"{folder}: found no photo of {profile.title}; accepted is {profile.images}")
    named = [names for _, names in hits]
    several = len({names[profile.sequence] for names in named}) if profile.sequence else 1
    if profile.apart and several > 1:
        raise ValueError(
            f"{folder}: {several} scenes of {profile.title}; accepted is one: --profile {profile.name} --scene 0"
        )
    poses = read_stored(folder, profile.pose, named)
    fixed = np.array(profile.intrinsics.values)
    intrinsics = [fixed] * len(hits) if profile.intrinsics.values else read_stored(folder, profile.intrinsics, named)
    bends = [None] * len(hits) if profile.lens is None else read_stored(folder, profile.lens, named)
    frames = []
    for (path, names), *values in zip(hits, poses, intrinsics, bends, strict=True):
        if values[0] is None or values[1] is None or not np.isfinite(values[0]).all():
            continue
        try:
            camera, lens = _camera(path, profile, *values)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        depth = _depth_of(folder, names, profile, lens)
        frames.append(Frame(str(path), partial(_image, path, lens), camera, depth, encoded=path.read_bytes))
    if not frames:
        wanted = ", ".join(patterns(profile))
        raise ValueError(f"{folder}: {len(hits)} photos but no camera for any; accepted are {wanted}")
    return CapturedScene(
        name=folder.name if sequence is None else f"{folder.name}/{sequence}",
        frames=tuple(frames),
        ordered=profile.ordered and several == 1,
        metric=profile.metric,
        depth_kind=profile.depth_kind,
        quantile=profile.quantile,
        missing=len(hits) - len(frames),
    )


def find_profile(folder: str | Path) -> Profile | None:
    """The shipped profile that a scene's folder fits best: most of its files there, then the most telling names.

    None where no profile fits; ValueError where several fit equally well.
    """
    folder = Path(folder)
    fits = [(score, profile) for profile in profiles().values() if (score := _fit(folder, profile)) is not None]
    best = [profile for score, profile in fits if score == max(score for score, _ in fits)]
    if len(best) > 1:
        names = " and ".join(profile.name for profile in best)
        raise ValueError(f"{folder}: the layouts {names} fit equally well; accepted is the name of one")
    return best[0] if best else None


class FramesSource:
    """The scenes of a data set on disk, in order of their names; ValueError where there are none."""

    def __init__(self, folder: str | Path, profile: Profile) -> None:
        folder = Path(folder)
        self.name, self.folder, self.profile = profile.name, folder, profile
        self._scenes: list[tuple[Path, str | None]] = []
        globs = (folder.glob(glob) if glob != "." else [folder] for glob in profile.scenes)
        found = {path for paths in globs for path in paths if path.is_dir()}
        found -= {path for glob in profile.without for path in folder.glob(glob)}
        for path in sorted(found):
            hits = _photos(path, profile)
            sequences = {names[profile.sequence] for _, names in hits} if profile.sequence else {None} if hits else ()
            self._scenes += [(path, sequence) for sequence in sorted(sequences, key=str)]
        if not self._scenes:
            wanted = " or ".join(f"{glob}/{profile.images}" for glob in profile.scenes)
            raise ValueError(f"{folder}: found no scene of {profile.title}; accepted is {wanted}")

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> CapturedScene:
        path, sequence = self._scenes[index]
        names = [path.relative_to(self.folder).as_posix(), sequence]
        return replace(
            read_frames(path, self.profile, sequence), name="/".join(name for name in names if name and name != ".")
        )


def to_opencv(camera_to_world: Float64[np.ndarray, "4 4"], axes: Axes) -> Float64[np.ndarray, "4 4"]:
    """The same pose for a camera whose x is right, y down and z forward; the world stays."""
    turn = np.eye(4)
    turn[:3, :3] = _AXES[axes]
    return camera_to_world @ turn


def pose_matrix(values: Values, pose: Pose) -> Float64[np.ndarray, "4 4"]:
    """Camera-to-world in OpenCV axes, from numbers as `pose` says they are stored; ValueError if they cannot be."""
    matrix = np.eye(4)
    if pose.form == "quaternion":
        from scipy.spatial.transform import Rotation  # which matrices need not wait for

        if values.size != 7:
            raise ValueError(f"a pose of {values.size} numbers; accepted are tx ty tz qx qy qz qw")
        matrix[:3, 3] = values[:3]
        matrix[:3, :3] = Rotation.from_quat(values[3:]).as_matrix()
    elif values.size in (12, 16):
        matrix[: values.size // 4] = values.reshape(-1, 4)
    else:
        raise ValueError(f"a pose of {values.size} numbers; accepted are 12 or 16")
    if not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6):
        raise ValueError(f"a pose whose last row is {matrix[3].tolist()}; accepted is 0 0 0 1")
    if pose.direction == "world_to_camera":
        try:
            matrix = np.linalg.inv(matrix)
        except np.linalg.LinAlgError as error:
            raise ValueError("a pose that has no inverse; accepted are rotations and translations") from error
    if pose.swap_world_xy:
        matrix = matrix[[1, 0, 2, 3]]
    return to_opencv(matrix, pose.axes)


def intrinsics_matrix(
    values: Values, stored: Intrinsics, size: tuple[int, int]
) -> tuple[Float64[np.ndarray, "3 3"], tuple[int, int]]:
    """Pixels with centres at +0.5, and the height and width that they are for (`size` unless the numbers say)."""
    size = (stored.size[0], stored.size[1]) if stored.size else size
    if not np.isfinite(values).all():
        raise ValueError(f"intrinsics {values.tolist()}; accepted are finite numbers")
    if stored.form == ("matrix",):
        if values.size not in (9, 12, 16):
            raise ValueError(f"intrinsics of {values.size} numbers; accepted are 9, 12 or 16")
        matrix = values.reshape(-1, 3 if values.size == 9 else 4)[:3, :3].copy()
    else:
        if values.size != len(stored.form):
            raise ValueError(f"intrinsics of {values.size} numbers; accepted are {len(stored.form)}")
        known = dict(zip(stored.form, values.tolist(), strict=True))
        size = (int(known.get("h", size[0])), int(known.get("w", size[1])))
        if not all(0 < side < MAX_PIXELS_IN_FILE for side in size):
            raise ValueError(f"intrinsics for images of {size[0]:.0f}x{size[1]:.0f}; accepted are sizes of images")
        focal = known.get("f", known.get("f/w", 0.0) * size[1])
        matrix = np.array([[known.get("fx", focal), 0, known.get("cx", size[1] / 2)], [0, 0, 0], [0, 0, 1.0]])
        matrix[1, 1:] = known.get("fy", focal), known.get("cy", size[0] / 2)
    if stored.centers == "integer":
        matrix[:2, 2] += 0.5
    return matrix, size


def clean_depth(values: Float32[np.ndarray, "height width"], depth: Depth) -> Float32[np.ndarray, "height width"]:
    """z in scene units, 0 = invalid, inf = sky, from values as stored times their scale."""
    sky = (values >= depth.sky_from) & np.isfinite(depth.sky_from)  # else what is infinite is merely invalid
    values = np.where(np.isfinite(values) & (values > 0) & ~sky, values, np.float32(0))
    if depth.percentile < 100 and (values > 0).any():
        values[values > np.percentile(values[values > 0], depth.percentile)] = 0
    values[values > depth.far] = 0
    values[sky] = np.inf
    return values


def _photos(folder: Path, profile: Profile, sequence: str | None = None) -> list[tuple[Path, Named]]:
    dropped = {path for glob in profile.drop for path in folder.glob(glob)}
    known = {} if sequence is None else {profile.sequence: sequence}
    return [hit for hit in Pattern(profile.images, profile.name).found(folder, known) if hit[0] not in dropped]


def _camera(
    path: Path, profile: Profile, pose: Values, values: Values, bend: Values | None
) -> tuple[Cameras, Lens | None]:
    """The camera of a photo, and its lens where that is still to be undone."""
    sized = bool(profile.intrinsics.size) or {"w", "h"} <= set(profile.intrinsics.form)
    matrix, (height, width) = intrinsics_matrix(values, profile.intrinsics, (0, 0) if sized else image_size(path))
    lens = None
    if profile.lens is not None:
        if bend is None or bend.size != len(profile.lens.form) or not np.isfinite(bend).all():
            raise ValueError(f"no lens of {len(profile.lens.form)} finite numbers; accepted is {profile.lens.file}")
        named = dict(zip(("fx", "fy", "cx", "cy"), (*matrix.diagonal()[:2], *matrix[:2, 2]), strict=True))
        lens = Lens.of_named(named | dict(zip(profile.lens.form, bend.tolist(), strict=True)), height, width, False)
        matrix = lens.intrinsics()
    poses = torch.from_numpy(pose_matrix(pose, profile.pose))[None]
    return Cameras(poses, torch.from_numpy(matrix)[None], height, width).checked(), lens


def _image(path: Path, lens: Lens | None, max_pixels: int) -> Float[Tensor, "3 height width"]:
    image = read_image(path, max_pixels=max_pixels, upright=False)  # the cameras are for the pixels as stored
    return image if lens is None else lens.straightened(image)


def _depth_of(
    folder: Path, named: Named, profile: Profile, lens: Lens | None
) -> Callable[[], Float[Tensor, "height width"]] | None:
    if profile.depth is None:
        return None
    path = Pattern(profile.depth.file, profile.name).file(folder, named)
    return None if path is None else partial(_depth, folder, path, named, profile.depth, lens)


def _depth(folder: Path, path: Path, named: Named, depth: Depth, lens: Lens | None) -> Float[Tensor, "height width"]:
    values = read_depth(path, depth.read, depth.scale * _frame_scale(folder, path, named, depth))
    marked = {"invalid": np.zeros(values.shape, bool), "sky": np.zeros(values.shape, bool)}
    for cut in depth.cut:
        file = Pattern(cut.file, path.name).file(folder, named)
        mask = None if file is None else read_grey(file) >= cut.at_least
        if mask is not None and mask.shape != values.shape:
            raise ValueError(f"{file}: another size than {path.name}; accepted is the same")
        if mask is not None:
            marked[cut.marks] |= mask
    values = clean_depth(np.where(marked["invalid"] | marked["sky"], np.float32(0), values), depth)
    values[marked["sky"] & ~marked["invalid"]] = np.inf
    found = torch.from_numpy(values)
    return found if lens is None else lens.straightened(found, "nearest")


def _frame_scale(folder: Path, path: Path, named: Named, depth: Depth) -> float:
    """What else a frame's depth is multiplied by; 0, so that nothing is valid, where its file has no number."""
    if not depth.scale_file:
        return 1.0
    file = Pattern(depth.scale_file, path.name).file(folder, named)
    if file is None:
        raise ValueError(f"{path}: found no scale for it; accepted is {depth.scale_file}")
    (scale,) = read_stored(folder, Stored(depth.scale_file, "npz", (depth.scale_key,)), [named])
    if scale is None or scale.size != 1:
        raise ValueError(f"{file}: found no single number {depth.scale_key!r}; accepted is one")
    return float(scale[0]) if np.isfinite(scale[0]) else 0.0


def _fit(folder: Path, profile: Profile) -> tuple[int, int] | None:
    """How many kinds of files a folder has of a profile, and how much their names say; None if it lacks a camera."""
    hits = _photos(folder, profile)
    if not hits:
        return None
    first = hits[0][1]
    there = {file: Pattern(file, profile.name).file(folder, first) is not None for file in patterns(profile)}
    if profile.depth is not None and not there[profile.depth.file]:
        return None
    for stored in (profile.pose, profile.intrinsics, profile.lens):
        if stored is None or not stored.file:
            continue
        together = stored.read in ("rows", "log", "stack")  # one file for all: the first may be the one without
        try:
            found = read_stored(folder, stored, [named for _, named in hits] if together else [first])
        except ValueError:
            return None
        if all(values is None for values in found):
            return None
    return sum(there.values()), len(profile.images)
