"""Depth for programs (16-bit codes) and for people (colours)."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8, UInt16
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from diorama.export.atomic import replacement
from diorama.export.ply import bytes_of
from diorama.export.world import World, world_of
from diorama.scene import Views

MILLIMETRE = 0.001  # nerfstudio's unit of a depth code; kept where it neither overflows nor is too coarse
CODES = 65535  # code 0 means no depth

# Google's polynomial fit of the turbo colour map, constant term first (Mikhailov 2019, Apache-2.0).
_TURBO = np.array(
    [
        [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
        [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
        [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
    ]
)


def valid_depth(views: Views) -> tuple[Float[Tensor, "view height width"], Bool[Tensor, "view height width"]]:
    """Depth, and where it is finite, in front of the camera and of confidence above 0; ValueError without depth."""
    depth = views.depth
    if depth is None:
        raise ValueError("the views have no depth; accepted are views with points and cameras")
    valid = depth.isfinite() & (depth > 0)
    return depth, valid if views.mask is None else valid & views.mask


def depth_unit(views: Views) -> float:
    """Scene units in one code of the 16-bit files: 0.001, or what spreads the largest depth over all codes."""
    depth, valid = valid_depth(views)
    largest = float(depth[valid].max()) if valid.any() else 1.0
    return MILLIMETRE if 1 <= largest <= CODES * MILLIMETRE else largest / CODES


def depth_codes(views: Views, unit: float) -> UInt16[np.ndarray, "view height width"]:
    """Depth in codes of `unit` scene units, rounded; 0 where it is not valid."""
    depth, valid = (values.detach().cpu().numpy() for values in valid_depth(views))
    codes = np.rint(np.where(valid, depth, 0).astype(np.float64) / unit)
    return np.where(valid, codes.clip(1, CODES), 0).astype(np.uint16)


def write_depth(views: Views, path: str | Path, *, world: World | None = None, overwrite: bool = False) -> None:
    """Write z-depth as a folder: 00000.png (16-bit codes, 0 = none), 00000.npy (float32, NaN = none), depth.json.

    depth.json and each PNG's text say how many units one code is. ValueError for views without depth.
    """
    depth, valid = (values.detach().cpu().numpy() for values in valid_depth(views))
    unit = depth_unit(views)
    about = {"depth": "z", "unit_per_code": unit, **(world or world_of(views)).record()}
    with replacement(path, overwrite=overwrite) as folder:
        folder.mkdir()
        for number, codes in enumerate(depth_codes(views, unit)):
            (folder / f"{number:05d}.png").write_bytes(png(codes, about))
            buffer = io.BytesIO()
            np.save(buffer, np.where(valid[number], depth[number], np.nan).astype(np.float32), allow_pickle=False)
            (folder / f"{number:05d}.npy").write_bytes(buffer.getvalue())
        (folder / "depth.json").write_text(json.dumps(about, indent=1) + "\n")


def coloured_depth(
    depth: Float[Tensor, "view height width"], valid: Bool[Tensor, "view height width"]
) -> Float[Tensor, "view 3 height width"]:
    """Depth as colours on one scale for all views, near in red and far in blue, grey where it is not valid."""
    inverse = torch.where(valid, 1 / depth.detach(), 0.0).cpu().double().numpy()
    mask = valid.cpu().numpy()
    low, high = np.quantile(inverse[mask], [0.02, 0.98]) if mask.any() else (0.0, 1.0)
    share = ((inverse - low) / max(high - low, 1e-12)).clip(0, 1)
    powers = share[..., None] ** np.arange(6)
    colours = np.where(mask[..., None], (powers @ _TURBO.T).clip(0, 1), 0.5)
    return torch.from_numpy(colours).float().movedim(-1, 1)


def preview(views: Views, *, columns: int = 8, side: int = 192, gap: int = 6) -> UInt8[np.ndarray, "height width 3"]:
    """A contact sheet: up to `columns` views evenly spaced, their images in one row and their depth in the next."""
    chosen = torch.linspace(0, len(views) - 1, min(columns, len(views))).round().long().tolist()
    height, width = views.images.shape[-2:]
    longer = max(height, width)
    size = (max(1, round(height * side / longer)), max(1, round(width * side / longer)))
    picked = views[chosen].to("cpu", torch.float32).resized(*size)
    rows = [picked.images.detach()]
    if picked.depth is not None:
        rows.append(coloured_depth(*valid_depth(picked)))
    sheet = torch.ones(3, len(rows) * (size[0] + gap) + gap, len(chosen) * (size[1] + gap) + gap)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = gap + row * (size[0] + gap), gap + column * (size[1] + gap)
            sheet[:, top : top + size[0], left : left + size[1]] = picture
    return bytes_of(sheet).movedim(0, -1).contiguous().numpy()


def png(pixels: np.ndarray, about: dict[str, Any] | None = None) -> bytes:
    """PNG file of 8-bit RGB "height width 3" or 16-bit grey "height width", with text entries about it."""
    buffer, text = io.BytesIO(), PngInfo()
    for name, value in (about or {}).items():
        text.add_itxt(name, str(value))
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4, pnginfo=text)
    return buffer.getvalue()
