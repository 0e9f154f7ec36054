"""What readers give: one captured scene, its frames decoded when asked, and the sources that hold many."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.data.images import MAX_PIXELS, MAX_PIXELS_TOGETHER
from diorama.data.transforms import fitted
from diorama.geometry.cameras import Cameras
from diorama.scene import Views

DepthKind = Literal["none", "dense", "mvs", "lidar", "rendered"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One photo of a capture: its name and camera at once, its pixels when asked."""

    name: str  # as its capture calls it, for messages; unique in its scene
    image: Callable[[int], Float[Tensor, "3 height width"]]  # RGB in [0, 1], of at most so many pixels, lens undone
    camera: Cameras | None = None  # one view, float64, OpenCV axes; of the image, or for another size of its shape
    depth: Callable[[], Float[Tensor, "height width"]] | None = None  # z in scene units, 0 = invalid, inf = sky
    mask: Callable[[], Bool[Tensor, "height width"]] | None = None  # True = valid
    encoded: Callable[[], bytes] | None = None  # the photo's file, for who keeps it as it is; turned or bent perhaps


@dataclass(frozen=True, eq=False)
class CapturedScene:
    """Photos of one place, as a reader found them; depth and masks may have another size than their photo."""

    name: str
    frames: tuple[Frame, ...]  # in the order of the capture
    ordered: bool = True  # neighbours are near each other, as in a video
    metric: bool = False  # scene units are metres
    depth_kind: DepthKind = "none"
    quantile: float = 1.0  # depth beyond this share of a view's valid depth is not learnt from
    captions: tuple[str, ...] = ()
    missing: int = 0  # frames that the capture lists without their photo
    path: Cameras | None = None  # all cameras of the capture's file, where it tells more than there are photos
    at: tuple[int, ...] = ()  # which of `path` took the photos
    layout: str = "photos"  # what its files are called: COLMAP, a profile's name
    convention: tuple[str, str] = ("camera_to_world", "opencv")  # of the file, before it was read: for messages, checks
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # which frames the capture keeps for what

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError(f"{self.name}: found no photos; accepted is a scene of at least one")
        if len({frame.camera is None for frame in self.frames}) > 1:
            raise ValueError(f"{self.name}: some photos have no camera; accepted are cameras for all or for none")
        if self.path is not None and len(self.at) != len(self.frames):
            raise ValueError(f"{self.name}: {len(self.at)} places on a path for {len(self.frames)} photos")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def cameras(self) -> Cameras | None:
        """The frames' cameras, float64; ValueError where they are for images of several sizes."""
        cameras = [frame.camera for frame in self.frames if frame.camera is not None]
        if not cameras:
            return None
        sizes = sorted({(camera.height, camera.width) for camera in cameras})
        if len(sizes) > 1:
            found = ", ".join(f"{height}x{width}" for height, width in sizes[:3])
            raise ValueError(f"{self.name}: cameras for images of {found}; accepted is one size, or views of one")
        return joined(cameras)

    def views(
        self,
        at: Sequence[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> Views:
        """Some of the frames decoded, all by default, with cameras and, where there is depth, points (both float64).

        With `height` and `width` each is cropped around its centre to that shape and resized, else all must have one
        size. Images of more than `max_pixels` are reduced while they are read. ValueError names a frame that cannot be
        decoded or does not fit.
        """
        chosen = [self.frames[place] for place in (range(len(self)) if at is None else at)]
        if not chosen:
            raise ValueError(f"{self.name}: no frames chosen; accepted is at least one")
        most = min(max_pixels, MAX_PIXELS, MAX_PIXELS_TOGETHER // len(chosen))
        views = [_view(frame, most, None if height is None or width is None else (height, width)) for frame in chosen]
        for frame, view in zip(chosen, views, strict=True):
            if view.images.shape != views[0].images.shape:
                sizes = ["x".join(map(str, other.images.shape[-2:])) for other in (view, views[0])]
                other = chosen[0].name.rpartition("/")[2]
                raise ValueError(
                    f"{frame.name}: {sizes[0]} pixels but {other} has {sizes[1]}; accepted is one size for all"
                )
        cameras = [view.cameras for view in views if view.cameras is not None]
        points = [view.points for view in views if view.points is not None]
        confidence = [view.confidence for view in views if view.confidence is not None]
        whole = len(views)
        return Views(
            torch.cat([view.images for view in views]),
            joined(cameras) if cameras else None,
            torch.cat(points) if len(points) == whole else None,
            torch.cat(confidence) if len(confidence) == whole else None,
        )


@runtime_checkable
class SceneSource(Protocol):
    """Many scenes: a data set, a folder of captures, a packed shard; scenes open when asked, in a fixed order."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> CapturedScene: ...


def joined(cameras: Sequence[Cameras]) -> Cameras:
    """Cameras of one image size, one after the other."""
    poses = torch.cat([camera.camera_to_world for camera in cameras])
    matrices = torch.cat([camera.intrinsics for camera in cameras])
    return Cameras(poses, matrices, cameras[0].height, cameras[0].width)


def _view(frame: Frame, most: int, size: tuple[int, int] | None) -> Views:
    """One frame, decoded, at its own size or at a wanted one."""
    image = frame.image(most)
    camera = camera_at(frame, *image.shape[-2:])
    depth = None if frame.depth is None else _like(frame, frame.depth(), image)
    valid = None if frame.mask is None else _like(frame, frame.mask(), image)
    if depth is not None:
        known = depth.isfinite() & (depth > 0)
        valid = known if valid is None else valid & known
    points = None
    if camera is not None and depth is not None:
        points = camera.unproject(
            depth.nan_to_num(0, 0, 0).double()[None]
        )  # worlds may be kilometres from their origin
    view = Views(image[None], camera, points, None if valid is None else valid.float()[None])
    return view if size is None else fitted(view, *size)


def camera_at(frame: Frame, height: int, width: int) -> Cameras | None:
    """A frame's camera at its image's size; ValueError where the two have another shape."""
    camera = frame.camera
    if camera is None or (camera.height, camera.width) == (height, width):
        return camera
    # A side of odd length rounds when it is halved, so that shapes agree to about a pixel, or two per hundred.
    off = abs(camera.width * height - camera.height * width) / max(camera.width * height, camera.height * width)
    if off > 0.02:
        found = f"a camera of {camera.height}x{camera.width} for images of {height}x{width}"
        raise ValueError(f"{frame.name}: {found} pixels; accepted is one shape for both")
    return camera.resized(height, width)


def _like(frame: Frame, values: Tensor, image: Tensor) -> Tensor:
    """Depth or a mask at the image's size, nearest."""
    (height, width), (tall, wide) = image.shape[-2:], values.shape
    if (height, width) == (tall, wide):
        return values
    if abs(wide * height - tall * width) / max(wide * height, tall * width) > 0.02:
        found = f"depth or a mask of {tall}x{wide} for an image of {height}x{width}"
        raise ValueError(f"{frame.name}: {found} pixels; accepted is one shape for both")
    rows = ((torch.arange(height) + 0.5) * (tall / height)).long()
    columns = ((torch.arange(width) + 0.5) * (wide / width)).long()
    return values[rows][:, columns]
