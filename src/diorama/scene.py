"""The records that everything passes around: views, what is known, what is wanted, and the finished scene."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity

POSE_TOLERANCE = 1e-3  # of a known camera against the wanted one: radians, share of the path's extent, image widths


@dataclass(frozen=True)
class Shot:
    """Wanted views whose cameras are unknown and left to the model."""

    views: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Views:
    """Photos, dataset items, renderings or generated frames of one scene."""

    images: Float[Tensor, "*batch view 3 height width"]  # RGB in [0, 1]
    cameras: Cameras | None = None
    points: Float[Tensor, "*batch view height width 3"] | None = None  # world point of each pixel, on that pixel's ray
    confidence: Float[Tensor, "*batch view height width"] | None = None  # 0 = invalid

    def __post_init__(self) -> None:
        if self.images.ndim < 4 or self.images.shape[-3] != 3:
            raise ValueError(f"images of shape {tuple(self.images.shape)}: accepted is (..., views, 3, height, width)")
        size = self.images.shape[-2:]
        pixels = (*self.images.shape[:-3], *size)
        if self.points is not None and self.points.shape != (*pixels, 3):
            raise ValueError(f"points of shape {tuple(self.points.shape)}: these images accept {(*pixels, 3)}")
        if self.confidence is not None and self.confidence.shape != pixels:
            raise ValueError(f"confidence of shape {tuple(self.confidence.shape)}: these images accept {pixels}")
        if self.cameras is not None:
            found = (*self.cameras.camera_to_world.shape[:-2], self.cameras.height, self.cameras.width)
            if found != pixels:
                raise ValueError(
                    f"{self.images.shape[-4]} images of {size[0]}x{size[1]} but {self.cameras.views} cameras of "
                    f"{self.cameras.height}x{self.cameras.width}; each image needs its own camera of its size"
                )

    @property
    def depth(self) -> Float[Tensor, "*batch view height width"] | None:
        """z-depth of `points` in their cameras; None without points or cameras."""
        if self.points is None or self.cameras is None:
            return None
        forward = self.cameras.camera_to_world[..., None, None, :3, 2]
        return ((self.points - self.cameras.centers[..., None, None, :]) * forward).sum(-1)

    @property
    def mask(self) -> Tensor | None:
        """Where the points are valid, as booleans."""
        return None if self.confidence is None else self.confidence > 0

    def __len__(self) -> int:
        return self.images.shape[-4]

    def __getitem__(self, index: int | slice | list[int] | tuple[int, ...] | Tensor) -> "Views":
        """Some of the views; an integer keeps the view axis with one view."""
        if isinstance(index, Integral):
            place = int(index)
            if not -len(self) <= place < len(self):
                raise IndexError(f"view {place} of {len(self)}")
            index = [place]
        chosen = list(index) if isinstance(index, tuple) else index
        return replace(
            self,
            images=self.images[..., chosen, :, :, :],
            cameras=None if self.cameras is None else self.cameras[chosen],
            points=None if self.points is None else self.points[..., chosen, :, :, :],
            confidence=None if self.confidence is None else self.confidence[..., chosen, :, :],
        )

    def apart(self) -> list["Views"]:
        """The rows of a batch: one record for each scene."""
        absent = [None] * len(self.images)
        cameras = absent if self.cameras is None else self.cameras.apart()
        points, confidence = (absent if part is None else part for part in (self.points, self.confidence))
        return [Views(*row) for row in zip(self.images, cameras, points, confidence, strict=True)]

    def to(self, *args: Any) -> "Views":
        """On another device or in another dtype, with the arguments of `Tensor.to`."""
        return replace(
            self,
            images=self.images.to(*args),
            cameras=None if self.cameras is None else self.cameras.to(*args),
            points=None if self.points is None else self.points.to(*args),
            confidence=None if self.confidence is None else self.confidence.to(*args),
        )

    def resized(self, height: int, width: int) -> "Views":
        """The same views at another resolution: images antialiased, depth and confidence nearest, points on rays."""
        if (height, width) == self.images.shape[-2:]:
            return self
        batch = self.images.shape[:-3]
        images = F.interpolate(self.images.flatten(0, -4), (height, width), mode="bilinear", antialias=True)
        cameras = None if self.cameras is None else self.cameras.resized(height, width)
        points = confidence = None
        if self.confidence is not None:
            confidence = _nearest(self.confidence, height, width)
        if self.depth is not None and cameras is not None:
            points = cameras.unproject(_nearest(self.depth, height, width))
        elif self.points is not None:
            points = _nearest(self.points.movedim(-1, 0), height, width).movedim(0, -1)
        return replace(
            self,
            images=images.clamp(0, 1).reshape(*batch, 3, height, width),
            cameras=cameras,
            points=points,
            confidence=confidence,
        )

    def images_for(self, cameras: Cameras) -> Float[Tensor, "view 3 height width"]:
        """The images as cameras in the same places take them, that see no more than these: cropped and resized.

        A crop begins and ends between pixels, half a pixel from where it should at most.
        """
        if self.cameras is None:
            raise ValueError(
                "views without cameras: give them cameras, which tell what part of the images is asked for"
            )
        mine, theirs = self.cameras.intrinsics.to(cameras.intrinsics), cameras.intrinsics
        scale = mine[:, (0, 1), (0, 1)] / theirs[:, (0, 1), (0, 1)]  # pixels of these for one of theirs, along x and y
        corners = (mine[:, :2, 2] - scale * theirs[:, :2, 2]).round().int().clamp(min=0).tolist()
        sides = (scale * scale.new_tensor([cameras.width, cameras.height])).round().int().clamp(min=1).tolist()
        size = (cameras.height, cameras.width)
        images = []
        for image, (left, top), (width, height) in zip(self.images, corners, sides, strict=True):
            part = image[None, :, top : top + height, left : left + width]
            images.append(F.interpolate(part, size, mode="bilinear", antialias=True))
        return torch.cat(images).clamp(0, 1)

    def transformed(self, similarity: Similarity) -> "Views":
        """The same views after the world was mapped by `similarity`."""
        return replace(
            self,
            cameras=None if self.cameras is None else self.cameras.transformed(similarity),
            points=None if self.points is None else similarity.apply(self.points),
        )


@dataclass(frozen=True, eq=False)
class Condition:
    """What is known beforehand: some of the wanted views, a text, a class; all optional."""

    views: Views | None = None
    at: tuple[int, ...] = ()  # which of the wanted views the known ones are
    prompt: str | None = None
    label: int | None = None  # class, single-image pre-training only

    def __post_init__(self) -> None:
        known = 0 if self.views is None else len(self.views)
        if known != len(self.at):
            raise ValueError(f"{known} known views but {len(self.at)} places in `at`; each known view needs one place")
        if len(set(self.at)) != len(self.at) or any(place < 0 for place in self.at):
            raise ValueError(f"places {self.at} of the known views: accepted are different numbers from 0 on")

    def along(self, wanted: Cameras) -> "Condition":
        """The same, once it is known to be of this path: on the CPU, all views with cameras.

        Views without cameras take those of their places; of photos of another shape these see the centre. ValueError
        for places that the path does not have, and for known cameras that are not the wanted ones.
        """
        if self.views is None:
            return self
        outside = [place for place in self.at if place >= wanted.views]
        if outside:
            raise ValueError(f"known view at place {outside[0]} of {wanted.views} wanted views; places count from 0")
        known, there = self.views.to("cpu"), wanted[self.at]
        if known.images.ndim != 4:
            shape = tuple(known.images.shape)
            raise ValueError(f"known images of shape {shape}: accepted is (views, 3, height, width)")
        if known.cameras is None:
            cameras = there.widened(*known.images.shape[-2:])
        else:
            cameras = known.cameras.path()
            shapes = (cameras.fitted(wanted.height, wanted.width), cameras.resized(wanted.height, wanted.width))
            errors = torch.minimum(
                *(there.deviation(same) for same in shapes)
            )  # a photo may also be stretched by intent
            errors[:, 1] /= wanted.extent.clamp(min=1e-6)
            for place, row in zip(self.at, errors > POSE_TOLERANCE, strict=True):
                if row.any():
                    name = ("orientation", "position", "intrinsics")[int(row.int().argmax())]
                    raise ValueError(f"the known view at place {place} has another {name} than the wanted camera there")
        return replace(self, views=replace(known, images=known.images.float(), cameras=cameras))


@dataclass(frozen=True)
class Provenance:
    """Where a scene came from: enough to make it again."""

    model: str
    licence: str = "unknown"  # of the weights
    seed: int | None = None  # None where nothing was drawn
    settings: Mapping[str, Any] = field(default_factory=dict)  # JSON values: steps, guidance, trajectory, ...
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scene:
    """What a user gets, saves, exports and views, in the caller's world frame and units."""

    views: Views
    condition: Condition  # the known photos keep their own pixels
    latents: Float[Tensor, "token dim"] | Float[Tensor, "channel frame height width"] | None = None
    latent_frame: Similarity | None = None  # world -> latent, fixed at generation
    provenance: Provenance = field(default_factory=lambda: Provenance("unknown"))
    observed: Views | None = None  # known views, to 8 bits, that rendering looks at again where a model does so


def _nearest(
    values: Float[Tensor, "*batch view height width"], height: int, width: int
) -> Float[Tensor, "*batch view new_height new_width"]:
    rows = (torch.arange(height, device=values.device) + 0.5) * (values.shape[-2] / height)
    columns = (torch.arange(width, device=values.device) + 0.5) * (values.shape[-1] / width)
    return values[..., rows.long(), :][..., columns.long()]
