"""Do a capture's cameras fit its pixels, and if not, read in which convention would they."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.features import Features, epipolar_distance, features, matched
from diorama.data.images import resize
from diorama.data.scenes import CapturedScene
from diorama.geometry.cameras import Cameras

PIXELS = 1.0  # largest median epipolar distance of cameras that fit, at LONGER
DEPTH = 0.01  # largest median share by which depth disagrees between views that fit
LONGER = 1000  # pixels along the longer side of the photos that are matched
FEWEST = 40  # matches of a pair that counts
CLEARER = 0.5  # another convention must bring the error below this share
LANDING = 0.05  # share of a view's depth that the other view must see

Poses = Float[np.ndarray, "view 4 4"]

_FLIPS = {
    "opencv": np.eye(4),
    "opengl": np.diag([1.0, -1, -1, 1]),
    "pytorch3d": np.diag([-1.0, -1, 1, 1]),
    "ned": np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
    "flu": np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
}  # their axes from ours: x right, y down, z forward
CONVENTIONS = tuple((way, axes) for way in ("camera_to_world", "world_to_camera") for axes in _FLIPS)


class Verdict(NamedTuple):
    """What a check found, for the declared convention and for the one that fits best."""

    kind: str  # "depth": shares of the depth; "epipolar": pixels of photos of LONGER; "none": nothing to test
    pairs: int
    samples: int  # matches, or pixels of depth
    error: float  # median, as declared
    declared: tuple[str, str]
    best: tuple[str, str]
    best_error: float
    size: tuple[int, int] = (0, 0)  # height and width that pixels are counted in

    @property
    def fits(self) -> bool | None:
        """Whether the cameras are right as declared; None where nothing could be tested.

        What is barely right is wrong if another convention is clearly better, as on a path that hardly turns.
        """
        if self.kind == "none":
            return None
        limit = DEPTH if self.kind == "depth" else PIXELS
        return self.error < (limit / 2 if self._clearer else limit)

    @property
    def other(self) -> tuple[str, str] | None:
        """The convention that fits where the declared one does not."""
        limit = DEPTH if self.kind == "depth" else PIXELS
        return self.best if self.fits is False and self._clearer and self.best_error < limit else None

    @property
    def _clearer(self) -> bool:
        return self.best_error < CLEARER * self.error


def check_cameras(scene: CapturedScene, pairs: int = 8, progress: Callable[[int, int], None] | None = None) -> Verdict:
    """The scene's cameras tested against its depth, or against matched points of its photos where it has none.

    ValueError where a frame cannot be decoded.
    """
    declared = scene.convention
    if scene.frames[0].camera is None or len(scene) < 2:
        return Verdict("none", 0, 0, float("nan"), declared, declared, float("nan"))
    chosen = _pairs(scene, pairs)
    warp = any(frame.depth is not None for frame in scene.frames)
    errors: dict[tuple[str, str], list[np.ndarray]] = {convention: [] for convention in CONVENTIONS}
    kept, size, known = 0, (0, 0), {}
    for number, places in enumerate(chosen):
        if progress is not None:
            progress(number, len(chosen))
        found = _warped(scene, places) if warp else _distances(scene, places, known)
        if found is not None:
            distances, size = found
            kept += 1
            for convention in CONVENTIONS:
                errors[convention].append(distances[convention])
        known = {
            place: value for place, value in known.items() if place in {p for pair in chosen[number:] for p in pair}
        }
    if not kept:
        return Verdict("none", 0, 0, float("nan"), declared, declared, float("nan"))
    medians = {convention: float(np.median(np.concatenate(values))) for convention, values in errors.items()}
    # Ties go to the first, for where a camera only moves along an axis two conventions agree.
    best = min(medians, key=lambda convention: (round(medians[convention], 4), CONVENTIONS.index(convention)))
    samples = sum(map(len, errors[declared]))
    kind = "depth" if warp else "epipolar"
    return Verdict(kind, kept, samples, medians[declared], declared, best, medians[best], size)


def _pairs(scene: CapturedScene, most: int) -> list[tuple[int, int]]:
    """Pairs of neighbours spread over the scene: near enough to match, far enough apart for cameras to matter."""
    gap = max(1, min(10, len(scene) // 30)) if scene.ordered else 1
    starts = np.unique(np.linspace(0, len(scene) - 1 - gap, min(most, len(scene) - gap)).round().astype(int))
    return [(int(start), int(start) + gap) for start in starts]


def _as_read(pose: np.ndarray, declared: tuple[str, str]) -> np.ndarray:
    """The matrix that stands in a file of this convention for an OpenCV camera-to-world pose."""
    matrix = pose @ np.linalg.inv(_FLIPS[declared[1]])
    return matrix if declared[0] == "camera_to_world" else np.linalg.inv(matrix)


def _understood(matrix: np.ndarray, convention: tuple[str, str]) -> np.ndarray:
    """OpenCV camera-to-world of a file's matrix."""
    pose = matrix if convention[0] == "camera_to_world" else np.linalg.inv(matrix)
    return pose @ _FLIPS[convention[1]]


def _relative(cameras: list[Cameras], declared: tuple[str, str]) -> dict[tuple[str, str], np.ndarray]:
    """The first camera in the frame of the second, in every convention."""
    matrices = [_as_read(camera.camera_to_world[0].numpy(), declared) for camera in cameras]
    relative = {}
    for convention in CONVENTIONS:
        one, two = (_understood(matrix, convention) for matrix in matrices)
        relative[convention] = np.linalg.inv(two) @ one
    return relative


def _distances(
    scene: CapturedScene, places: tuple[int, int], known: dict[int, tuple[Features, Cameras]]
) -> tuple[dict[tuple[str, str], np.ndarray], tuple[int, int]] | None:
    """Epipolar distances of matches in each convention; None for a pair with too few or without a baseline."""
    for place in places:
        if place not in known:
            known[place] = _featured(scene, place)
    (one, first), (two, second) = (known[place] for place in places)
    a, b = matched(one, two)
    if len(a) < FEWEST:
        return None
    lenses = [camera.intrinsics[0].numpy() for camera in (first, second)]
    found = {
        convention: _apart(a, b, relative, lenses)
        for convention, relative in _relative([first, second], scene.convention).items()
    }
    return found, (first.height, first.width)


def _apart(a: np.ndarray, b: np.ndarray, relative: np.ndarray, lenses: list[np.ndarray]) -> np.ndarray:
    """Pixels between each place and where its partner may lie: a line, or a point where the camera only turned."""
    back = np.linalg.inv(lenses[0])
    length = np.linalg.norm(relative[:3, 3])
    if length < 1e-9:
        moved = np.concatenate([a, np.ones((len(a), 1))], 1) @ (lenses[1] @ relative[:3, :3] @ back).T
        return np.linalg.norm(moved[:, :2] / np.where(moved[:, 2:] > 1e-9, moved[:, 2:], 1e-9) - b, axis=1).clip(
            max=1e6
        )
    x, y, z = relative[:3, 3] / length
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ relative[:3, :3]
    return epipolar_distance(a, b, np.linalg.inv(lenses[1]).T @ essential @ back)


def _featured(scene: CapturedScene, place: int) -> tuple[Features, Cameras]:
    views = scene.views([place])
    assert views.cameras is not None
    height, width = views.images.shape[-2:]
    scale = min(1.0, LONGER / max(height, width))
    height, width = round(height * scale), round(width * scale)
    return features(resize(views.images[0], height, width)), views.cameras.resized(height, width)


def _warped(
    scene: CapturedScene, places: tuple[int, int]
) -> tuple[dict[tuple[str, str], np.ndarray], tuple[int, int]] | None:
    """By what share the first view's depth, seen from the second, differs from the second's; None without depth."""
    frames = [scene.frames[place] for place in places]
    if any(frame.depth is None or frame.camera is None for frame in frames):
        return None
    depths = [frame.depth().double() for frame in frames if frame.depth is not None]
    cameras = [frame.camera.resized(*depth.shape) for frame, depth in zip(frames, depths, strict=True) if frame.camera]
    local = torch.eye(4, dtype=torch.float64)[None]
    stride = max(1, max(depths[0].shape) // 250)
    at_home = Cameras(local, cameras[0].intrinsics, *depths[0].shape)
    points = at_home.unproject(depths[0].nan_to_num(0, 0, 0)[None])[0, ::stride, ::stride].reshape(-1, 3)
    points = points[points[:, 2] > 0]
    if len(points) < FEWEST:
        return None
    there = Cameras(local, cameras[1].intrinsics, *depths[1].shape)
    found = {}
    for convention, relative in _relative(cameras, scene.convention).items():
        moved = points @ torch.from_numpy(relative[:3, :3]).mT + torch.from_numpy(relative[:3, 3])
        found[convention] = _disagreement(moved, there, depths[1], round(LANDING * len(points)))
    return found, tuple(depths[0].shape)  # type: ignore[return-value]


def _disagreement(
    points: Float[Tensor, "point 3"], camera: Cameras, depth: Float[Tensor, "height width"], fewest: int
) -> Float[np.ndarray, " sample"]:
    """Relative differences where points land on valid depth; all 1 where too few do."""
    points = points[points[:, 2] > 1e-6]
    pixels, z = camera.project(points[None])
    column, row = pixels[0].floor().clamp(-1, 2**24).long().unbind(-1)
    inside = (row >= 0) & (row < depth.shape[0]) & (column >= 0) & (column < depth.shape[1])
    seen = depth[row[inside], column[inside]]
    valid = seen.isfinite() & (seen > 0)
    if int(valid.sum()) < max(fewest, 1):
        return np.ones(max(fewest, 1))
    return ((z[0][inside][valid] - seen[valid]).abs() / seen[valid]).numpy()
