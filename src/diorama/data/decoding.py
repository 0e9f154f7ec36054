"""Chosen frames of a capture at a wanted size: what goes wrong with one frame costs that frame."""

import logging
import threading
from collections.abc import Sequence

import torch

from diorama.data.scenes import CapturedScene, joined
from diorama.data.transforms import fitted
from diorama.geometry.rotations import rotate
from diorama.geometry.similarity import Similarity
from diorama.scene import Views

TOLD = 20  # skipped files of a kind that the log names; all are counted
FINER = 4  # pixels decoded for one that is kept: photos are reduced by whole factors, and then by what is left

_log = logging.getLogger(__name__)


class Skipped:
    """Counts what cannot be used and names the first of it in the log; for several threads."""

    def __init__(self) -> None:
        self._found: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, name: str, reason: Exception) -> None:
        """One more, unless it was met before."""
        with self._lock:
            names = self._found.setdefault(kind, set())
            count = len(names)
            names.add(name)
        if count < min(TOLD, len(names)):
            _log.warning("skipped: %s", reason)

    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        with self._lock:
            return {kind: len(names) for kind, names in self._found.items()}


def decoded(
    scene: CapturedScene,
    at: Sequence[int],
    height: int,
    width: int,
    *,
    place: tuple[float, float] = (0.5, 0.5),
    skipped: Skipped | None = None,
) -> Views:
    """Frames cut to one shape at one place, in the frame of the first camera, in single precision.

    Points and confidence are always there; what has no depth, or depth beyond the scene's quantile, has confidence 0.
    With `skipped`, a frame that cannot be read is counted there and the nearest other one takes its place; ValueError
    where as many as are wanted cannot be read.
    """
    chosen, taken, failed = [], set(at), 0
    for wanted in at:
        frame: int | None = wanted
        while True:
            try:
                chosen.append(_frame(scene, frame, height, width, place))
                break
            except (ValueError, OSError) as error:
                if skipped is None:
                    raise
                skipped.add("bad_frames", scene.frames[frame].name, error)
                failed += 1
                free = [other for other in range(len(scene)) if other not in taken]
                if failed > len(at) or not free:
                    raise ValueError(f"{scene.name}: {failed} frames that cannot be read; the last: {error}") from error
                frame = min(free, key=lambda other: abs(other - wanted))
                taken.add(frame)
    return _joined(chosen)


def _frame(scene: CapturedScene, frame: int, height: int, width: int, place: tuple[float, float]) -> Views:
    """One view, read at little more than the size that is wanted."""
    camera = scene.frames[frame].camera
    assert camera is not None
    shapes = camera.width / camera.height, width / height
    part = min(shapes) / max(shapes)  # of the photo, which the crop leaves
    view = fitted(scene.views([frame], max_pixels=int(FINER * height * width / part)), height, width, place)
    depth = view.depth
    if depth is None or view.confidence is None or view.cameras is None:
        assert view.cameras is not None
        points = view.cameras.unproject(torch.zeros(1, height, width, dtype=torch.float64))
        return Views(view.images, view.cameras, points, torch.zeros(1, height, width))
    confidence = view.confidence
    if scene.quantile < 1 and (confidence > 0).any():
        limit = depth[confidence > 0].quantile(scene.quantile)
        confidence = confidence * (depth <= limit)
    return Views(view.images, view.cameras, view.points, confidence)


def _joined(views: Sequence[Views]) -> Views:
    """Views of one world, from its first camera: there, single precision is enough for worlds of any size."""
    cameras = joined([view.cameras for view in views])  # type: ignore[misc]
    pose = cameras.camera_to_world[0]
    rotation = pose[:3, :3].mT
    first = Similarity(rotation, -rotate(rotation, pose[:3, 3]), pose.new_ones(()))
    images, points, confidence = (
        torch.cat(part)  # type: ignore[misc]
        for part in zip(*((view.images, view.points, view.confidence) for view in views), strict=True)
    )
    return Views(images, cameras, points, confidence).transformed(first).to(torch.float32)
