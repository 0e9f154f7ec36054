"""A contact sheet: photos small, and their cameras from above and from the side, in one picture."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from diorama.export.atomic import replacement
from diorama.export.ply import bytes_of
from diorama.geometry.cameras import Cameras

THUMBNAIL = 160  # pixels along the longer side
PANEL = 480  # pixels a side
_PAPER, _INK, _GRID = (255, 255, 255), (40, 40, 40), (225, 225, 225)


def contact_sheet(images: Sequence[Float[Tensor, "3 height width"]], cameras: Cameras | None) -> Image.Image:
    """Small photos in rows; below them every camera's frustum, the first in blue, the last in red."""
    columns = min(len(images), 6)
    rows = math.ceil(len(images) / columns)
    width = max(columns * (THUMBNAIL + 4) + 4, 0 if cameras is None else 2 * PANEL)
    height = rows * (THUMBNAIL + 4) + 4
    sheet = Image.new("RGB", (width, height + (0 if cameras is None else PANEL)), _PAPER)
    for number, image in enumerate(images):
        small = Image.fromarray(bytes_of(image[None])[0].movedim(0, -1).cpu().numpy())
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        row, column = divmod(number, columns)
        sheet.paste(small, (4 + column * (THUMBNAIL + 4), 4 + row * (THUMBNAIL + 4)))
    if cameras is not None:
        centers, corners = _frusta(cameras)
        for number, (label, axes) in enumerate((("from above", (0, 2)), ("from the side", (0, 1)))):
            panel = _panel(centers[:, axes], corners[:, :, axes], label)
            sheet.paste(panel, (number * PANEL, height))
    return sheet


def write_sheet(sheet: Image.Image, path: str | Path, *, overwrite: bool = False) -> None:
    """Write it as PNG, whole or not at all."""
    with replacement(path, overwrite=overwrite) as temporary:
        sheet.save(temporary, "PNG")


def _frusta(cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Centres and far corners in axes of the sheet: the path's longest way, the cameras' mean up, and across both."""
    poses, lenses = cameras.camera_to_world.double().cpu(), cameras.intrinsics.double().cpu()
    centers = poses[:, :3, 3] - poses[:, :3, 3].mean(0)
    spread = centers.norm(dim=-1).max().clamp(min=1e-9)
    length = 0.12 * spread if spread > 1e-6 else torch.ones(())
    edges = torch.tensor([[0.0, 0], [cameras.width, 0], [cameras.width, cameras.height], [0, cameras.height]]).double()
    pixels = torch.cat([edges, torch.ones(4, 1)], 1)
    rays = pixels @ lenses.inverse().mT @ poses[:, :3, :3].mT
    corners = centers[:, None] + length * rays
    up = -poses[:, :3, 1].mean(0)
    up = up / up.norm().clamp(min=1e-9)
    flat = centers - (centers @ up)[:, None] * up
    across = torch.linalg.svd(flat + 1e-9 * poses[:, :3, 0])[2][0]
    across = across - (across @ up) * up
    across = across / across.norm().clamp(min=1e-9)
    axes = torch.stack([across, up, torch.linalg.cross(across, up)], -1)
    return (centers @ axes).numpy(), (corners @ axes).numpy()


def _panel(centers: np.ndarray, corners: np.ndarray, label: str) -> Image.Image:
    panel = Image.new("RGB", (PANEL, PANEL), _PAPER)
    draw = ImageDraw.Draw(panel)
    everything = np.concatenate([centers, corners.reshape(-1, 2)])
    low, high = everything.min(0), everything.max(0)
    scale = (PANEL - 60) / max(float((high - low).max()), 1e-9)

    def at(point: np.ndarray) -> tuple[float, float]:
        x, y = (point - (low + high) / 2) * scale
        return PANEL / 2 + x, PANEL / 2 - y

    draw.rectangle((0, 0, PANEL - 1, PANEL - 1), outline=_GRID)
    draw.text((10, 8), label, fill=_INK)
    for number, (center, four) in enumerate(zip(centers, corners, strict=True)):
        share = number / max(len(centers) - 1, 1)
        colour = (round(220 * share + 30), 60, round(220 * (1 - share) + 30))
        for corner, following in zip(four, np.roll(four, -1, 0), strict=True):
            draw.line([at(center), at(corner), at(following)], fill=colour)
        x, y = at(center)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    return panel
