"""Scenes to learn from, kept open, each known to have cameras."""

from functools import lru_cache
from pathlib import Path

from diorama.data.cache import PLAN
from diorama.data.scenes import CapturedScene, SceneSource

OPENED = 64  # scenes of each source that stay open: their cameras, no pixels
ACCEPTED = "worlds, shards, a data set, or captures with cameras (nerfstudio, COLMAP, ...)"


class NoCameras(ValueError):
    """A capture whose cameras nothing tells: a mistake of whoever named it, not a file that went bad."""


class OpenScenes:
    """A source whose last used scenes stay open, for several threads. Raises NoCameras for one without cameras."""

    def __init__(self, source: SceneSource) -> None:
        self.name, self.source = source.name, source
        self._opened = lru_cache(OPENED)(self._open)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> CapturedScene:
        return self._opened(index)

    def _open(self, index: int) -> CapturedScene:
        scene = self.source[index]
        if scene.frames[0].camera is None:
            raise NoCameras(
                f"{scene.frames[0].name}: found photos that nothing tells the cameras of; accepted are {ACCEPTED}"
            )
        return scene


def is_worlds(folder: Path) -> bool:
    """Whether a folder was begun as a cache of worlds."""
    return (folder / PLAN).is_file() and (folder / "images.npy").is_file()
