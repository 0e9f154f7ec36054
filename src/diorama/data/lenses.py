"""Lens distortion: photos as a pinhole camera of the same focal length would have taken them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

# COLMAP's models, by number: their parameters after which focal lengths, and what is known of how they bend.
MODELS = {
    "SIMPLE_PINHOLE": ("f", ""),
    "PINHOLE": ("ff", ""),
    "SIMPLE_RADIAL": ("f", "k1"),
    "RADIAL": ("f", "k1 k2"),
    "OPENCV": ("ff", "k1 k2 p1 p2"),
    "OPENCV_FISHEYE": ("ff", "k1 k2 k3 k4"),
    "FULL_OPENCV": ("ff", "k1 k2 p1 p2 k3 k4 k5 k6"),
    "FOV": None,
    "SIMPLE_RADIAL_FISHEYE": ("f", "k1"),
    "RADIAL_FISHEYE": ("f", "k1 k2"),
    "THIN_PRISM_FISHEYE": None,
    "RAD_TAN_THIN_PRISM_FISHEYE": None,
}
ACCEPTED = ", ".join(name for name, known in MODELS.items() if known)
_MOST_ZOOM = 2.0  # of the focal length, to leave no pixel without a source; what needs more is no usable photo


@dataclass(frozen=True)
class Lens:
    """A camera whose lens bends rays: pixels, then coefficients of OpenCV's polynomial or fisheye model."""

    fx: float
    fy: float
    cx: float
    cy: float
    height: int
    width: int
    kind: Literal["polynomial", "fisheye"] = "polynomial"
    radial: tuple[float, ...] = ()  # k1 k2 k3, then k4 k5 k6 of the denominator; of a fisheye k1 to k4
    tangential: tuple[float, float] = (0.0, 0.0)  # p1 p2

    @classmethod
    def of_colmap(cls, model: str, parameters: Sequence[float], height: int, width: int) -> "Lens":
        """The lens of one line of COLMAP's cameras; ValueError for a model or a count of parameters not known."""
        known = MODELS.get(model)
        if known is None:
            raise ValueError(f"found the camera model {model}; accepted are {ACCEPTED}")
        names = [*(("fx", "fy") if known[0] == "ff" else ("fx",)), "cx", "cy", *known[1].split()]
        if len(parameters) != len(names) or not np.isfinite(parameters).all():
            raise ValueError(f"found {len(parameters)} parameters of {model}; accepted are {len(names)} finite numbers")
        values = dict(zip(names, map(float, parameters), strict=True))
        return cls.of_named(values | {"fy": values.get("fy", values["fx"])}, height, width, "FISHEYE" in model)

    @classmethod
    def of_named(cls, values: dict[str, float], height: int, width: int, fisheye: bool) -> "Lens":
        """A lens from fx, fy, cx, cy and any of k1 to k6, p1, p2."""
        radial = tuple(values.get(f"k{number}", 0.0) for number in range(1, 5 if fisheye else 7))
        tangential = (values.get("p1", 0.0), values.get("p2", 0.0))
        place = (values["fx"], values["fy"], values["cx"], values["cy"], height, width)
        return cls(*place, kind="fisheye" if fisheye else "polynomial", radial=radial, tangential=tangential)

    @property
    def straight(self) -> bool:
        """Whether it bends nothing."""
        return self.kind == "polynomial" and not any(self.radial) and not any(self.tangential)

    def bent(self, places: Float[np.ndarray, "*any 2"]) -> Float[np.ndarray, "*any 2"]:
        """Where the lens images rays (x / z, y / z), in the same units."""
        x, y = places[..., 0], places[..., 1]
        square = x * x + y * y
        if self.kind == "fisheye":
            radius = np.sqrt(square)
            angle = np.arctan(radius)
            powers = sum(k * angle ** (2 * i + 2) for i, k in enumerate(self.radial))
            factor = np.where(radius > 1e-9, angle * (1 + powers) / np.maximum(radius, 1e-9), 1.0)
            return places * factor[..., None]
        above, below = (sum(k * square ** (i + 1) for i, k in enumerate(part)) for part in self._parts())
        factor = (1 + above) / (1 + below)
        p1, p2 = self.tangential
        slant = np.stack([2 * p1 * x * y + p2 * (square + 2 * x * x), p1 * (square + 2 * y * y) + 2 * p2 * x * y], -1)
        return places * factor[..., None] + slant  # type: ignore[index]

    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        """Of the straightened photo, in pixels; the focal length grows where a corner would see past the photo.

        ValueError for a lens that folds its image over within the photo.
        """
        zoom = 1.0 if self.straight else _zoom(self)
        return np.array([[zoom * self.fx, 0, self.cx], [0, zoom * self.fy, self.cy], [0, 0, 1]])

    def straightened(
        self, values: Shaped[Tensor, "*channel height width"], mode: str = "bilinear"
    ) -> Shaped[Tensor, "*channel height width"]:
        """An image, depth or mask (`mode` nearest) of this photo's shape, at its own size, as a pinhole shows it."""
        if self.straight:
            return values
        height, width = values.shape[-2:]
        stack = values.reshape(1, -1, height, width).float()
        found = F.grid_sample(stack, _grid(self, height, width), mode, "border", align_corners=False)
        return found.reshape(values.shape).to(values.dtype)

    def _parts(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.radial[:3], self.radial[3:]

    def _sources(self, places: Float[np.ndarray, "*any 2"], zoom: float) -> Float[np.ndarray, "*any 2"]:
        """Where in the photo, from (0, 0) to (1, 1), the straightened photo's places of that range come from."""
        size = np.array([self.width, self.height])
        centre, focal = np.array([self.cx, self.cy]), np.array([self.fx, self.fy])
        return (self.bent((places * size - centre) / (zoom * focal)) * focal + centre) / size


@lru_cache(maxsize=64)
def _zoom(lens: Lens) -> float:
    """The least growth of the focal length with which every pixel has a source, and none has two."""
    side = np.linspace(0, 1, 33)
    edges = [np.stack([side, np.full_like(side, end)], -1) for end in (0.0, 1.0)]
    border = np.concatenate([*edges, *(edge[:, ::-1] for edge in edges)])
    centre = np.array([lens.cx / lens.width, lens.cy / lens.height])
    rays = centre + (border - centre) * np.linspace(0, 1, 65)[:, None, None]
    size = np.array([lens.width, lens.height])
    for zoom in np.linspace(1, _MOST_ZOOM, 401):
        found = lens._sources(rays, zoom)
        outward = ((found - centre) * (border - centre) * size**2).sum(-1)
        # A pixel's tenth of slack: the border's pixels have their centres inside.
        inside = (found > -0.1 / size).all() and (found < 1 + 0.1 / size).all()
        if inside and (np.diff(outward, axis=0) > 0).all():
            return float(zoom)
    bends = [round(value, 4) for value in (*lens.radial, *lens.tangential)]
    raise ValueError(f"the lens {bends} folds its image over; accepted are lenses that show each direction once")


@lru_cache(maxsize=2)  # of a large photo a grid is 130 MB
def _grid(lens: Lens, height: int, width: int) -> Float[Tensor, "1 height width 2"]:
    rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    grid = np.empty((height, width, 2), np.float32)
    zoom = _zoom(lens)
    for row, y in enumerate(rows):
        grid[row] = 2 * lens._sources(np.stack([columns, np.full(width, y)], -1), zoom) - 1
    return torch.from_numpy(grid)[None]
