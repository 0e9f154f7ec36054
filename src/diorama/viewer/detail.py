"""Level of detail: how many pixels of a live picture are decoded while a camera moves, and once it rests."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

MOVING = 0.1  # seconds that a picture may take while the camera moves
RESTING = 2.0  # seconds that it may take once the camera rests
SEARCH = 3  # how often a pixel could be decoded while it is looked up in the known views


class Level(NamedTuple):
    """One way to decode a picture."""

    density: float  # pixels per pixel of the scene's own views, along one side
    shifts: int  # patch grids along one side that are blended, so that patches leave no seams
    memory: bool  # each pixel is looked up in the known views, where the model does that


COARSE, SWIFT, PLAIN, BLENDED = Level(0.5, 1, False), Level(1.0, 1, False), Level(1.0, 1, True), Level(1.0, 2, True)
LEVELS = (COARSE, SWIFT, PLAIN, BLENDED)  # from coarse to fine


class Size(NamedTuple):
    """Of a picture, in pixels: multiples of the patch."""

    height: int
    width: int


def size_at(fov: float, aspect: float, focal: float, patch: int, most: int) -> Size:
    """The picture in whole patches that fills a window whose vertical field of view is `fov` radians.

    Its pixels are as wide as a camera's of `focal` pixels, wider where it would have more than `most` of them.
    """
    height = 2 * focal * math.tan(0.5 * fov)
    width = height * aspect
    shrink = min(1.0, math.sqrt(most / (height * width)))
    rows, columns = (max(1, round(shrink * side / patch)) for side in (height, width))
    while rows * columns > max(1, most // patch**2):  # rounding may have gone over it
        rows, columns = (rows - 1, columns) if rows > columns else (rows, columns - 1)
    return Size(rows * patch, columns * patch)


def work_of(size: Size, level: Level, patch: int, memory: bool) -> int:
    """What a picture costs, in decoded pixels: shifted grids reach one patch farther; `memory`: the model has one."""
    reach = patch if level.shifts > 1 else 0
    search = SEARCH * size.height * size.width if memory and level.memory else 0
    return level.shifts**2 * (size.height + reach) * (size.width + reach) + search


@dataclass
class Pace:
    """How fast this machine decodes, learnt from every picture."""

    seconds: float = field(default=0.0)  # for one pixel; 0 = nothing known yet

    def learn(self, work: int, seconds: float) -> None:
        """A picture of so many pixels took so long; the mean forgets half of the past with every one."""
        found = seconds / work
        self.seconds = found if self.seconds == 0 else 0.5 * (self.seconds + found)

    def level(self, works: dict[Level, int], limit: float) -> Level:
        """The finest level that takes no longer than `limit` seconds, the coarsest if none does."""
        fast = [level for level, work in works.items() if work * self.seconds <= limit]
        return max(fast or [min(works)])
