"""What a training step shows: size, number of views and scenes, which frames of a scene, which data set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


class Shape(NamedTuple):
    """What all scenes of a step have in common, on every device: nothing is padded."""

    height: int  # of every image, pixels
    width: int
    known: int  # views that the encoder gets; they come first
    targets: int  # views to be predicted, none of them known
    scenes: int  # of the whole step, a multiple of the number of devices

    @property
    def views(self) -> int:
        """Views of a scene."""
        return self.known + self.targets


@runtime_checkable
class Sampling(Protocol):
    """How the shapes of steps are drawn."""

    @property
    def most(self) -> int:
        """Views of a scene at most."""
        ...

    def shape(self, generator: torch.Generator, devices: int = 1) -> Shape:
        """The shape of the step whose random numbers these are."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Steps of one image size and number of scenes."""

    height: int
    width: int
    scenes: int  # of the whole step
    known: tuple[int, ...] = (2, 4, 6, 8)  # one is drawn per step
    targets: int = 4

    @property
    def most(self) -> int:
        """Views of a scene at most."""
        return max(self.known) + self.targets

    def shape(self, generator: torch.Generator, devices: int = 1) -> Shape:
        """That size and one of the numbers of known views."""
        known = self.known[int(torch.randint(len(self.known), (), generator=generator))]
        return Shape(self.height, self.width, known, self.targets, self.scenes)


@dataclass(frozen=True)
class Dynamic:
    """The paper's sampling (tables 5 and 6): size, aspect and views vary; scenes are as many as `budget` tokens hold.

    Pixels and the logarithm of the aspect are uniform; the pair of sides nearest to them, in whole patches and within
    both ranges, is taken. Raises ValueError where no sides are, or where one scene can exceed the budget.
    """

    patch: int = 14  # sides are multiples of it
    tokens: int = 1024  # latent ones
    budget: int = 60_000  # tokens on a device: those the encoder reads, and those read to decode each target
    pixels: tuple[int, int] = (37_000, 75_500)
    aspects: tuple[float, float] = (0.7, 1.8)  # width / height
    views: tuple[int, int] = (6, 18)
    targets: int = 4  # at most, which limits what a step costs; 0: all views are the encoder's

    def __post_init__(self) -> None:
        if not self.sides:
            found = f"{self.pixels[0]} to {self.pixels[1]} pixels of aspect {self.aspects[0]} to {self.aspects[1]}"
            raise ValueError(f"{found}: no sides in multiples of {self.patch}; accepted are wider ranges")
        least = 1 if not self.targets else 4
        if not least <= self.views[0] <= self.views[1]:
            raise ValueError(
                f"{self.views[0]} to {self.views[1]} views: accepted is a range that begins at {least} or more"
            )
        area = max(height * width for height, width in self.sides)
        patches = area // self.patch**2
        most = max(self.count(patches, *self._split(self.views[1], known / 100)) for known in range(100))
        if most > self.budget:
            raise ValueError(
                f"a budget of {self.budget} tokens: one scene takes up to {most}; accepted is that or more"
            )

    @property
    def most(self) -> int:
        """Views of a scene at most."""
        return self.views[1]

    @cached_property
    def sides(self) -> list[tuple[int, int]]:
        """Every height and width there may be, pixels."""
        longest = math.isqrt(int(self.pixels[1] * max(self.aspects[1], 1 / self.aspects[0]))) + 1
        steps = range(self.patch, longest + self.patch, self.patch)
        return [
            (height, width)
            for height in steps
            for width in steps
            if self.pixels[0] <= height * width <= self.pixels[1]
            and self.aspects[0] <= width / height <= self.aspects[1]
        ]

    def count(self, patches: int, known: int, targets: int) -> int:
        """Tokens of one scene whose views have so many patches."""
        return known * patches + self.tokens + targets * (patches + self.tokens)

    def shape(self, generator: torch.Generator, devices: int = 1) -> Shape:
        """Size, known and target views, and scenes to fill the budget of every device."""
        area, aspect, views, share = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = self.pixels[0] + (self.pixels[1] - self.pixels[0]) * area
        aspect = self.aspects[0] * (self.aspects[1] / self.aspects[0]) ** aspect
        height, width = min(
            self.sides,
            key=lambda side: math.log(side[0] * side[1] / area) ** 2 + math.log(side[1] / side[0] / aspect) ** 2,
        )
        total = self.views[0] + int(views * (self.views[1] - self.views[0] + 1))
        known, targets = self._split(total, share)
        scenes = self.budget // self.count(height * width // self.patch**2, known, targets)
        return Shape(height, width, known, targets, scenes * devices)

    def _split(self, views: int, share: float) -> tuple[int, int]:
        """Known views, 1 in a tenth of the steps, else 2 up to all but two; and targets of the rest."""
        if not self.targets:
            return views, 0
        known = 1 if share < 0.1 else 2 + int((share - 0.1) / 0.9 * (views - 3))
        return known, min(self.targets, views - known)


def choose_frames(
    poses: Float[Tensor, "frame 4 4"],
    known: int,
    targets: int,
    generator: torch.Generator,
    *,
    ordered: bool = True,
    window: int = 0,
) -> list[int]:
    """Different frames of a scene, known ones first: a stretch with a random stride, within `window` frames (0: all).

    Half of the draws keep time's order among the known ones, so that every view may be the first. Where frames are in
    no order, they are taken as ordered by how near their camera is to a random one. Raises ValueError for a scene of
    fewer frames.
    """
    count, views = len(poses), known + targets
    if count < views:
        raise ValueError(f"{count} frames where {views} are wanted")
    reach = min(count, max(views, window or count))
    stride = 1 + int(torch.randint(max(1, (reach - 1) // max(1, views - 1)), (), generator=generator))
    span = stride * (views - 1) + 1
    order, start = list(range(count)), int(torch.randint(count - span + 1, (), generator=generator))
    if not ordered:
        anchor = int(torch.randint(count, (), generator=generator))
        order, start = _nearness(poses, anchor).argsort(stable=True).tolist(), 0
    chosen = [order[start + stride * place] for place in torch.randperm(views, generator=generator).tolist()]
    keep = bool(torch.rand((), generator=generator) < 0.5)
    return [*(sorted(chosen[:known]) if keep else chosen[:known]), *chosen[known:]]


def _nearness(poses: Float[Tensor, "frame 4 4"], anchor: int) -> Float[Tensor, " frame"]:
    """How far each camera is from one: its place, as a share of the farthest, and its direction, of half a turn."""
    centers, forward = poses[:, :3, 3], poses[:, :3, 2]
    distance = (centers - centers[anchor]).norm(dim=-1)
    angle = (forward @ forward[anchor]).clamp(-1, 1).acos()
    far = distance / distance.max().clamp(min=1e-12) + angle / math.pi
    far[anchor] = -1
    return far


class Part(NamedTuple):
    """One row of the paper's table 7."""

    name: str
    domain: str
    scenes: int
    frames: int
    weight: float  # percent


# Weights as printed: they sum to 101.1, so that no use of them takes them for shares.
MIXTURE = (
    Part("CO3D", "indoor/object", 27_000, 2_600_000, 7.1),
    Part("WildRGBD", "indoor/object", 19_000, 6_800_000, 5.1),
    Part("ARKitScenes", "indoor/scene", 3_400, 900_000, 13.2),
    Part("ScanNet", "indoor/scene", 1_200, 1_900_000, 6.3),
    Part("ScanNet++", "indoor/scene", 855, 700_000, 3.4),
    Part("Taskonomy", "indoor/scene", 537, 4_600_000, 4.2),
    Part("HM3D", "indoor/scene", 899, 9_500_000, 4.7),
    Part("Hypersim", "indoor/scene", 767, 74_000, 5.0),
    Part("RE10K", "indoor/scene", 66_000, 8_900_000, 17.3),
    Part("Waymo", "outdoor/driving", 798, 800_000, 6.3),
    Part("Mapillary", "outdoor/driving", 74, 27_000, 0.6),
    Part("Virtual KITTI", "outdoor/driving", 50, 21_000, 0.7),
    Part("MVS-Synth", "outdoor/driving", 120, 12_000, 0.6),
    Part("DL3DV", "outdoor/scene", 6_000, 2_200_000, 8.4),
    Part("BlendedMVG", "in-the-wild/scene", 501, 115_000, 5.3),
    Part("MegaDepth", "in-the-wild/scene", 213, 123_000, 0.6),
    Part("TartanAir", "in-the-wild/scene", 369, 307_000, 3.9),
    Part("ImageNet", "in-the-wild/scene", 1_300_000, 1_300_000, 8.4),
)


def shares(weights: Sequence[str], sources: int) -> list[float]:
    """How often each of several sources is drawn, summing to 1: from numbers or names of MIXTURE; equal for none.

    ValueError for a number that is not positive, an unknown name, and another count than that of the sources.
    """
    if not weights:
        return [1 / sources] * sources
    if len(weights) != sources:
        raise ValueError(f"--weights: found {len(weights)} for {sources} of --data; accepted is one each, or none")
    known = {_plain(part.name): part.weight for part in MIXTURE}
    found = []
    for word in weights:
        try:
            value = known[_plain(word)] if _plain(word) in known else float(word)
        except ValueError:
            value = 0.0
        if not 0 < value < math.inf:
            names = ", ".join(part.name for part in MIXTURE)
            raise ValueError(f"--weights {word}: accepted are positive numbers and {names}")
        found.append(value)
    return [value / sum(found) for value in found]


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "")
