"""Rendered worlds as captures, so that they are packed, and mixed with others, as captures are."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.cache import WorldsCache
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras


class WorldsSource:
    """The worlds of a cache that `diorama data worlds` finished; sky is infinitely far."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        self.cache = WorldsCache(folder)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return WorldsSource, (self.folder,)  # else the mapped pixels of all worlds would travel

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, index: int) -> CapturedScene:
        cache = self.cache
        row = range(len(cache))[index]
        poses, matrices = (values[row].double() for values in (cache.camera_to_world, cache.intrinsics))
        cameras = Cameras(poses, matrices, cache.height, cache.width)
        name = f"world {cache.seeds[row]}"
        frames = (
            Frame(
                f"{self.folder}: {name}, view {view}",
                partial(_image, cache, row, view),
                cameras[view],
                partial(_depth, cache, row, view),
            )
            for view in range(cache.views)
        )
        captions = (cache.captions[row],)
        return CapturedScene(
            name, tuple(frames), metric=True, depth_kind="rendered", captions=captions, layout="worlds"
        )


def _image(cache: WorldsCache, row: int, view: int, most: int) -> Float[Tensor, "3 height width"]:
    return torch.from_numpy(np.array(cache.images[row, view])).movedim(-1, 0).float() / 255


def _depth(cache: WorldsCache, row: int, view: int) -> Float[Tensor, "height width"]:
    depth = torch.from_numpy(cache.depth[row, view].astype(np.float32))
    return depth.where(depth > 0, torch.inf)  # a world has no hole but the sky
