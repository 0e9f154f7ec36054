"""Clips: neighbouring frames of a scene in their order, with cameras and captions; what Gen3R's stages learn from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.cache import WorldsCache
from diorama.data.decoding import Skipped, decoded
from diorama.data.loading import stacked
from diorama.data.open import open_scenes
from diorama.data.sources import OpenScenes, is_worlds
from diorama.scene import Views
from diorama.training.stage import WHOLE, Run, Share


@dataclass(frozen=True)
class ClipData(Run):
    """A training run on clips."""

    data: Path = field(kw_only=True)
    """What to learn from: worlds (`diorama data worlds`), captures with cameras, a data set or shards."""
    validation: Path = field(kw_only=True)
    """The same of the validation split, not learnt from."""
    image_size: tuple[int, int] = (560, 560)
    """Height and width of captures' frames; worlds keep their own."""
    strides: tuple[int, ...] = (1, 2)
    """How many frames of the scene a clip may go on by; one is drawn for each, where the scene is long enough."""
    starts: int = 0
    """At so many places, evenly spread, clips may begin; 0: anywhere. Of few, all that is kept is soon read again."""


class Clip(NamedTuple):
    """Clips of one size and length."""

    views: Views  # "batch view"
    scenes: tuple[int, ...]  # whose they are, by their place in the source


class Clips:
    """The scenes of a folder, of which clips are taken; ValueError where images are not whole `unit`s of pixels."""

    def __init__(self, folder: Path, image_size: tuple[int, int], *, unit: int) -> None:
        self.cache = WorldsCache(folder) if is_worlds(folder) else None
        self.source = None if self.cache else OpenScenes(open_scenes(folder))
        self.height, self.width = (self.cache.height, self.cache.width) if self.cache else image_size
        if self.height % unit or self.width % unit:
            hint = "rendered so (`diorama data worlds --size`)" if self.cache else "by --image-size"
            found = f"{folder}: images of {self.height}x{self.width}"
            raise ValueError(f"{found}; accepted are multiples of {unit}, {hint}")
        self._skipped = Skipped()

    def __len__(self) -> int:
        return len(self.cache or self.source)  # type: ignore[arg-type]

    def length(self, scene: int) -> int:
        """Frames of a scene."""
        return self.cache.views if self.cache else len(self.source[scene])  # type: ignore[index]

    def captions(self, scene: int) -> tuple[str, ...]:
        """What is said of a scene: a world's own caption, or the lines of its files; perhaps nothing."""
        return (self.cache.captions[scene],) if self.cache else self.source[scene].captions  # type: ignore[index]

    def name(self, scene: int) -> str:
        """What a scene is called."""
        return f"world {self.cache.seeds[scene]}" if self.cache else self.source[scene].name  # type: ignore[index]

    def drawn(self, how: ClipData, batch: int, frames: int, generator: torch.Generator, share: Share = WHOLE) -> Clip:
        """Clips of so many frames of random scenes, one share of them: as much chance is used whatever the share."""
        scenes = torch.randint(len(self), (batch,), generator=generator)
        stride = torch.tensor(how.strides)[torch.randint(len(how.strides), (batch,), generator=generator)]
        start = torch.rand(batch, generator=generator)
        start = (start * how.starts).floor() / how.starts if how.starts else start
        mine = zip(*(share(x).tolist() for x in (scenes, stride, start)), strict=True)
        return self.at([(scene, places(self.length(scene), frames, *how)) for scene, *how in mine])

    def first(self, how: ClipData, count: int, frames: int) -> Clip:
        """Clips of the first scenes from their first frame on, with the longest stride: what validation measures on."""
        chosen = range(min(count, len(self)))
        return self.at([(scene, places(self.length(scene), frames, max(how.strides), 0.0)) for scene in chosen])

    def at(self, rows: list[tuple[int, list[int]]]) -> Clip:
        """Given frames of given scenes."""
        scenes = tuple(scene for scene, _ in rows)
        if self.cache:
            return Clip(self.cache.batch(torch.tensor(scenes), torch.tensor([frames for _, frames in rows])), scenes)
        size = (self.height, self.width)
        made = [decoded(self.source[scene], at, *size, skipped=self._skipped) for scene, at in rows]  # type: ignore[index]
        return Clip(stacked(made), scenes)


def places(length: int, frames: int, stride: int, chance: float) -> list[int]:
    """Frames of a clip in a scene of `length`, `stride` apart or as far as there is room.

    The last is shown again where there is none, as published; `chance` in [0, 1) says where it begins.
    """
    stride = max(1, min(stride, (length - 1) // max(1, frames - 1)))
    room = max(0, length - 1 - stride * (frames - 1))
    start = int(chance * (room + 1))
    return [min(start + stride * number, length - 1) for number in range(frames)]


def in_range(images: Float[Tensor, "batch view 3 height width"]) -> Float[Tensor, "batch 3 view height width"]:
    """Images in [0, 1] as a video VAE reads them, in [-1, 1]."""
    return 2 * images.transpose(1, 2) - 1


def check_frames(flag: str, *counts: int) -> None:
    """ValueError for a clip that is no whole number of latent frames."""
    for count in counts:
        if count % 4 != 1:
            raise ValueError(f"--{flag} {count}: accepted are 4k + 1 frames, such as 17, 25 and 49")
