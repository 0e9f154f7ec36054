"""ARKitScenes as downloaded: photos, depth and poses with times of their own, and devices held any way up."""

from bisect import bisect_left
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diorama.data.images import read_image
from diorama.data.readers.depths import read_depth
from diorama.data.readers.stored import text
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

TRAJECTORY = "lowres_wide.traj"
PHOTOS = ("vga_wide", "lowres_wide")  # the larger first
SAME = 0.005  # seconds by which the times of one moment differ between files
WIDEST = 0.3  # seconds between two poses that a photo may lie in between; they come ten times a second
QUANTILE = 0.98
UP = np.array([0.0, 0.0, 1.0])  # of ARKitScenes' world


def read_arkitscenes(folder: str | Path) -> CapturedScene:
    """One video's folder, such as raw/Training/41048190: metres, every photo turned so that the sky is up.

    Poses are interpolated at the photos' times; photos without intrinsics, or outside the poses' times, are counted as
    missing. ValueError for what is no such folder, and where no photo is left.
    """
    folder = Path(folder)
    kind = next((name for name in PHOTOS if (folder / name).is_dir()), None)
    if kind is None:
        raise ValueError(f"{folder}: found no photos; accepted are {' or '.join(PHOTOS)} of ARKitScenes")
    photos = _stamped(folder / kind, (".png", ".jpg"))
    lenses, depths = _stamped(folder / f"{kind}_intrinsics", (".pincam",)), _stamped(folder / "lowres_depth", (".png",))
    times, poses = read_trajectory(folder / TRAJECTORY)
    found = []
    for time, photo in photos:
        lens, pose = _at(lenses, time), interpolated(times, poses, time)
        if lens is not None and pose is not None:
            found.append((photo, _at(depths, time), pose, *_pincam(lens)))
    if not found:
        raise ValueError(f"{folder}: none of its {len(photos)} photos has intrinsics and a pose at its time")
    turns = quarter_turns(np.stack([pose for _, _, pose, _, _ in found]))
    frames = []
    for photo, depth, pose, matrix, size in found:
        camera = turned(pose, matrix, size, turns, str(photo))
        reading = None if depth is None else partial(_depth, depth, turns)
        encoded = None if turns else photo.read_bytes
        frames.append(Frame(str(photo), partial(_photo, photo, turns), camera, reading, encoded=encoded))
    return CapturedScene(
        folder.resolve().name,
        tuple(frames),
        metric=True,
        depth_kind="lidar" if depths else "none",
        quantile=QUANTILE,
        missing=len(photos) - len(frames),
    )


class ARKitScenesSource:
    """The videos of a folder, of its Training and Validation, or of `raw`, in order of their names."""

    name = "arkitscenes"

    def __init__(self, folder: str | Path) -> None:
        places = ("*", "Training/*", "Validation/*", "raw/Training/*", "raw/Validation/*")
        found = (path for place in places for path in Path(folder).glob(place) if (path / TRAJECTORY).is_file())
        self._folders = sorted(path for path in found if any((path / kind).is_dir() for kind in PHOTOS))
        if not self._folders:
            raise ValueError(f"{folder}: found no video of ARKitScenes; accepted is one with {TRAJECTORY} and photos")

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> CapturedScene:
        return read_arkitscenes(self._folders[index])


def read_trajectory(path: Path) -> tuple[Float64[np.ndarray, " time"], Float64[np.ndarray, "time 4 4"]]:
    """Times in seconds, sorted, and camera-to-world in OpenCV axes, of lines `time axis-angle translation`.

    The lines hold world-to-camera. ValueError for others, and for numbers that are not finite.
    """
    from scipy.spatial.transform import Rotation

    try:
        rows = np.array([line.split() for line in text(path).splitlines() if line.strip()], dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != 7 or not np.isfinite(rows).all() or np.abs(rows).max() > 1e12:
            raise ValueError(f"an array of {list(rows.shape)}")
    except ValueError as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f"{path}: found {reason}; accepted are lines of 7 finite numbers") from error
    rows = rows[np.unique(rows[:, 0], return_index=True)[1]]
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(rows[:, 1:4]).as_matrix().transpose(0, 2, 1)
    poses[:, :3, 3] = -np.einsum("nij,nj->ni", poses[:, :3, :3], rows[:, 4:])
    return rows[:, 0], poses


def interpolated(
    times: Float64[np.ndarray, " time"], poses: Float64[np.ndarray, "time 4 4"], time: float
) -> Float64[np.ndarray, "4 4"] | None:
    """The pose at a time: straight between the neighbours, turning evenly; None where they are too far apart."""
    from scipy.spatial.transform import Rotation, Slerp

    after = bisect_left(times, time)
    for near in (after - 1, after):
        if 0 <= near < len(times) and abs(times[near] - time) < SAME:
            return poses[near]
    if not 0 < after < len(times) or times[after] - times[after - 1] > WIDEST:
        return None
    pair = [after - 1, after]
    share = (time - times[pair[0]]) / (times[after] - times[pair[0]])
    pose = np.eye(4)
    pose[:3, :3] = Slerp([0, 1], Rotation.from_matrix(poses[pair, :3, :3]))(share).as_matrix()
    pose[:3, 3] = (1 - share) * poses[pair[0], :3, 3] + share * poses[after, :3, 3]
    return pose


def quarter_turns(poses: Float64[np.ndarray, "view 4 4"]) -> int:
    """By how many quarter turns, counterclockwise, the photos of these cameras stand upright: 0 to 3."""
    x, y = (poses[:, :3, :2].transpose(0, 2, 1) @ UP).mean(0)  # where the sky is in the photos: rightwards, downwards
    if abs(y) >= abs(x):
        return 0 if y <= 0 else 2
    return 1 if x > 0 else 3


def turned(
    pose: Float64[np.ndarray, "4 4"],
    matrix: Float64[np.ndarray, "3 3"],
    size: tuple[int, int],
    turns: int,
    where: str,
) -> Cameras:
    """The camera of a photo of `size` once the photo is turned counterclockwise by quarters."""
    height, width = size
    for _ in range(turns):
        # What was right is up: x' = y, y' = -x, and pixels alike.
        quarter = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        pose = pose @ quarter.T
        centre = [matrix[1, 2], width - matrix[0, 2]]
        matrix = np.array([[matrix[1, 1], 0, centre[0]], [0, matrix[0, 0], centre[1]], [0, 0, 1]])
        height, width = width, height
    try:
        return Cameras(torch.from_numpy(pose)[None], torch.from_numpy(matrix)[None], height, width).checked()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _stamped(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[float, Path]]:
    """Files whose names end with their time, such as 41048190_3414.500.png, by time."""
    found = []
    for path in folder.glob("*") if folder.is_dir() else ():
        stamp = path.stem.rpartition("_")[2]
        if path.suffix.lower() in suffixes and stamp.replace(".", "", 1).isdecimal() and stamp.isascii():
            found.append((float(stamp), path))
    return sorted(found)


def _at(files: list[tuple[float, Path]], time: float) -> Path | None:
    """The file of a time, None where the nearest is of another."""
    place = bisect_left(files, time, key=lambda file: file[0])
    near = min(files[max(0, place - 1) : place + 1], key=lambda file: abs(file[0] - time), default=None)
    return near[1] if near is not None and abs(near[0] - time) < SAME else None


def _pincam(path: Path) -> tuple[Float64[np.ndarray, "3 3"], tuple[int, int]]:
    """`width height fx fy cx cy`, from the photo's top left corner."""
    try:
        width, height, fx, fy, cx, cy = (float(word) for word in text(path).split())
        size = (int(height), int(width))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: found {str(error)[:80]}; accepted are width height fx fy cx cy") from error
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), size


def _photo(path: Path, turns: int, max_pixels: int) -> Float[Tensor, "3 height width"]:
    return read_image(path, max_pixels=max_pixels, upright=False).rot90(turns, (-2, -1)).contiguous()


def _depth(path: Path, turns: int) -> Float[Tensor, "height width"]:
    return torch.from_numpy(read_depth(path, "png", 0.001)).rot90(turns, (-2, -1)).contiguous()
