"""What all visitors see of a scene, prepared once: points, camera poses, small pictures, the live view's decoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diorama.export.depth import coloured_depth, valid_depth
from diorama.geometry.cameras import Cameras
from diorama.scene import Scene, Views
from diorama.viewer.cloud import Cloud, cloud_of
from diorama.viewer.live import LiveDecoder
from diorama.viewer.path import Flight
from diorama.viewer.poses import Pose, pose_of, up_of

POINTS = 400_000  # sent to a browser unless told otherwise: 6 MB, which a laptop without a graphics card still turns
PANEL = 240  # pixels of the longer side of the panels' pictures
PANELS = 2**23  # pixels of all of them together


@dataclass(frozen=True, eq=False)
class Stage:
    """A scene ready to be shown to any number of visitors."""

    poses: tuple[Pose, ...]
    images: Float[Tensor, "view 3 height width"]  # as large as the panels
    depths: Float[Tensor, "view 3 height width"] | None  # likewise, in colours of one scale
    cloud: Cloud | None
    flight: Flight
    up: Float[Tensor, "3"]
    centre: Float[Tensor, "3"]  # of the points, or of the cameras; scene units
    reach: float  # typical distance from a camera to what it sees, scene units
    known: frozenset[int]  # views that were given, not made
    caption: str
    most: int  # points that a visitor is sent
    decoder: LiveDecoder | None
    no_live: str  # why there is none

    @property
    def frustum(self) -> float:
        """Size of a camera's frustum, scene units."""
        return 0.1 * self.reach

    def hiding(self, position: Sequence[float], size: float) -> set[int]:
        """Cameras whose frusta, `size` times as large as usual, would stand in the way of who looks from there."""
        radius = 2 * size * self.frustum
        return {place for place, pose in enumerate(self.poses) if math.dist(pose.position, position) < radius}

    @property
    def sparsity(self) -> float:
        """How much wider points are drawn because so few of them are sent."""
        return 1.0 if self.cloud is None else max(1.0, math.sqrt(len(self.cloud.points) / self.most))

    @property
    def farthest(self) -> float:
        """Where the slider of the distance ends, in median depths: behind the last point, but not at a stray one."""
        if self.cloud is None or not len(self.cloud.points):
            return 1.0
        depth = self.cloud.depth
        ratio = float(depth.kthvalue(max(1, int(0.999 * len(depth)))).values / depth.median())
        return min(50.0, math.ceil(10 * max(1.0, ratio)) / 10)

    @property
    def planes(self) -> tuple[float, float]:
        """How near and how far a browser draws, scene units."""
        return 0.01 * self.reach, 1000 * max(1.0, math.sqrt(self.farthest)) * self.reach


def stage_of(shown: Scene | Views, decoder: LiveDecoder | None = None, no_live: str = "", most: int = POINTS) -> Stage:
    """Everything that visitors share; ValueError, in one line, for views that cannot stand in space."""
    if most < 1:
        raise ValueError(f"{most} points at most: accepted is 1 or more")
    views = (shown.views if isinstance(shown, Scene) else shown).to("cpu")
    if views.images.ndim != 4:
        raise ValueError(
            f"images of shape {tuple(views.images.shape)}: accepted is one scene, (views, 3, height, width)"
        )
    if views.cameras is None:
        raise ValueError("views without cameras: 'diorama reconstruct --poses vggt' finds them")
    cameras, cloud, small = views.cameras.checked(), cloud_of(views), _panels(views)
    centre = cameras.centers.mean(0).float()
    reach = float(cameras.extent) or 1.0
    if cloud is not None and len(cloud.points):
        centre, reach = cloud.points.median(0).values, float(cloud.depth.median())
    return Stage(
        poses=tuple(pose_of(cameras[place]) for place in range(cameras.views)),
        images=small.images.detach(),
        depths=None if small.depth is None else coloured_depth(*valid_depth(small)),
        cloud=cloud,
        flight=Flight.along(cameras),
        up=up_of(cameras),
        centre=centre,
        reach=reach,
        known=frozenset(shown.condition.at) if isinstance(shown, Scene) else frozenset(range(len(views))),
        caption=caption_of(shown, cameras),
        most=most,
        decoder=decoder,
        no_live=no_live,
    )


def caption_of(shown: Scene | Views, cameras: Cameras) -> str:
    """What is shown, in one line."""
    size = f"{cameras.views} views of {cameras.height}×{cameras.width} pixels"
    if not isinstance(shown, Scene):
        return size
    known, source = len(shown.condition.at), shown.provenance
    photos = f", {known} of them known" if known else ""
    return f"{size}{photos}; model {plain(source.model)}, weights {plain(source.licence)}"


def plain(text: str) -> str:
    """Words of a file as words: a page would read marks of Markdown and HTML as its own."""
    return "".join(letter if letter.isalnum() or letter in " .-+_," else " " for letter in text)[:80]


def _panels(views: Views) -> Views:
    height, width = views.images.shape[-2:]
    share = min(PANEL / max(height, width), math.sqrt(PANELS / (len(views) * height * width)))
    return views.resized(max(1, round(share * height)), max(1, round(share * width)))
