"""Colours of the worlds' surfaces: patterns, and a small atlas of 1/f noise, dead leaves and a user's pictures."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diorama.data.images import read_image, resize

SIZE = 128  # pixels of one side of an atlas layer
LEVELS = 8
NOISES, LEAVES = 4, 12  # layers 0..3 are grey noise, 4..15 dead leaves, 16.. a user's pictures
PATTERNS = (
    "plain",
    "stripes",
    "checker",
    "brick",
    "tiles",
    "planks",
    "noise",
    "leaves",
    "picture",
    "windows",
    "outlook",
)
# one material: colours a, b, c, then the named numbers
FIELDS = ("pattern", "scale", "grain", "emission", "gloss", "u", "v", "skirt", "layer", "turn")
WIDTH = 9 + len(FIELDS)


def read_pictures(folder: str | Path) -> Float[Tensor, "picture 3 128 128"]:
    """Up to 256 pictures of a folder as square textures in [0, 1]; ValueError if it holds none."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})[:256]
    if not files:
        raise ValueError(f"{folder}: found no pictures for textures, accepted are .jpg, .jpeg, .png and .webp files")
    return torch.stack([resize(read_image(file)[None], SIZE, SIZE)[0] for file in files])


@dataclass(frozen=True)
class Atlas:
    """All texels of all layers and mip levels, and their first channel alone, which is all that noise needs."""

    color: Float[Tensor, "3 texel"]
    grey: Float[Tensor, " texel"]


@lru_cache(maxsize=1)
def _layers() -> Float[Tensor, "layer 3 128 128"]:
    """The built-in layers, drawn from one fixed seed."""
    rng = np.random.Generator(np.random.PCG64(20260411))
    fx, fy = np.meshgrid(np.fft.fftfreq(SIZE) * SIZE, np.fft.fftfreq(SIZE) * SIZE)
    layers = []
    for power, stretch in ((1.0, 1.0), (1.5, 1.0), (1.0, 12.0), (2.0, 1.0)):
        radius = np.hypot(fx * stretch, fy)
        radius[0, 0] = np.inf
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIZE, SIZE))) / radius**power).real
        layers.append(np.repeat(np.clip(0.5 + 0.22 * field / field.std(), 0, 1)[None], 3, 0))
    layers += [_dead_leaves(rng) for _ in range(LEAVES)]
    return torch.from_numpy(np.stack(layers)).float()


def _dead_leaves(rng: np.random.Generator) -> np.ndarray:
    """Overlapping discs with power-law radii, the classic model of natural images, tiling without a seam."""
    y, x = np.mgrid[:SIZE, :SIZE]
    base = np.clip(rng.uniform(0.35, 0.7) + rng.normal(0, 0.12, 3), 0.1, 0.9)
    image = np.repeat(base[:, None, None], SIZE, 1).repeat(SIZE, 2)
    for radius in np.sort(4 * rng.power(1, 260) ** -0.5)[::-1].clip(3, 42):
        cx, cy = rng.uniform(0, SIZE, 2)
        dx, dy = np.abs(x - cx), np.abs(y - cy)
        inside = np.hypot(np.minimum(dx, SIZE - dx), np.minimum(dy, SIZE - dy)) < radius
        light = np.exp(rng.normal(0, 0.45))
        image[:, inside] = np.clip((base + rng.normal(0, 0.07, 3)) * light, 0.02, 0.95)[:, None]
    return image


def _stack(layers: Float[Tensor, "layer 3 128 128"]) -> Float[Tensor, "3 texel"]:
    levels = [torch.nn.functional.avg_pool2d(layers, 1 << i) if i else layers for i in range(LEVELS)]
    return torch.cat([level.transpose(0, 1).flatten(2) for level in levels], 2).flatten(1)


@lru_cache(maxsize=4)
def _built_in(device: str) -> Atlas:
    color = _stack(_layers()).to(device)
    return Atlas(color, color[0].contiguous())


def atlas(pictures: Float[Tensor, "picture 3 128 128"] | None, device) -> Atlas:
    """The built-in layers, then a user's pictures, on a device."""
    built_in = _built_in(str(device))
    if pictures is None:
        return built_in
    color = torch.cat([built_in.color, _stack(pictures.to(device))], 1)
    return Atlas(color, color[0].contiguous())


def look_up(
    table: Float[Tensor, "*color texel"],
    layer: Int[Tensor, " hit"],
    u: Float[Tensor, " hit"],
    v: Float[Tensor, " hit"],
    footprint: Float[Tensor, " hit"],
) -> Float[Tensor, "*color hit"]:
    """Bilinear colour of periodic layers at (u, v) in repeats, from the mip level that fits the pixel's footprint."""
    level = torch.log2((footprint * SIZE).clamp_(1, SIZE)).round_().int().clamp_max_(LEVELS - 1)
    size = SIZE >> level
    base = layer.int() * ((4 * SIZE * SIZE - 1) // 3) + _before(layer.device).index_select(0, level)
    x, y = (u - u.floor()) * size - 0.5, (v - v.floor()) * size - 0.5
    x0, y0 = x.floor(), y.floor()
    fx, fy = x - x0, y - y0
    last = size - 1
    x0, y0 = x0.int() & last, y0.int() & last
    x1, low, high = (x0 + 1) & last, base + y0 * size, base + ((y0 + 1) & last) * size
    top = torch.lerp(table.index_select(-1, low + x0), table.index_select(-1, low + x1), fx)
    return torch.lerp(top, torch.lerp(table.index_select(-1, high + x0), table.index_select(-1, high + x1), fx), fy)


@lru_cache(maxsize=4)
def _before(device: torch.device) -> Int[Tensor, " level"]:
    """Texels of a layer's mip levels before each one: 128^2 + 64^2 + ..."""
    sizes = [(SIZE >> level) ** 2 for level in range(LEVELS)]
    return torch.tensor([sum(sizes[:level]) for level in range(LEVELS)], dtype=torch.int32, device=device)


def _square(x: Tensor, width: Tensor) -> Tensor:
    """A square wave of period 1 in [-1, 1] whose edges are as wide as a pixel."""
    ramp = 1 - 4 * (x - x.floor() - 0.5).abs()
    return (ramp / (4 * width).clamp_min(0.02)).clamp(-1, 1) * (1 - width).clamp(0, 1)


def _hash(x: Tensor, y: Tensor) -> Tensor:
    # small integers only: sin of large arguments differs between devices
    mixed = (x.int() * 73 + y.int() * 151 + 7) % 1021
    return (mixed * mixed * 31 % 1021).to(x.dtype) / 1021


def _edge(distance: Tensor, wanted: float, width: Tensor) -> Tensor:
    return ((wanted - distance) / width.clamp_min(0.01) + 0.5).clamp(0, 1)


def _blocks(u: Tensor, v: Tensor, w: Tensor, shift: float, gap: float, long: float) -> tuple[Tensor, Tensor]:
    """How much of a pixel is joint, and a random tone per block, of blocks one high and `long` wide."""
    row = v.floor()
    across = u / long + (shift * (row % 2) if shift != 0.37 else _hash(row, row))
    du, dv = (0.5 - (across - across.floor() - 0.5).abs()) * long, 0.5 - (v - row - 0.5).abs()
    return _edge(torch.minimum(du, dv), gap, w) * (1 - w).clamp(0, 1), _hash(across.floor(), row)


def albedo(
    material: Float[Tensor, "width hit"],
    table: Atlas,
    u: Float[Tensor, " hit"],
    v: Float[Tensor, " hit"],
    low: Float[Tensor, " hit"],
    footprint: Float[Tensor, " hit"],
) -> Float[Tensor, "3 hit"]:
    """Linear colour at face coordinates (u, v), `low` above the face's foot, under pixels `footprint` wide; metres."""
    pattern, scale, grain, _, _, du, dv, skirt, layer, turn = material[9:]
    turned = turn > 0.5
    u, v = torch.where(turned, v, u), torch.where(turned, u, v)
    pu, pv, w = u / scale + du, v / scale + dv, footprint / scale
    floor = torch.zeros_like(layer, dtype=torch.int)
    speckle = look_up(table.grey, floor, u * 0.8 + dv, v * 0.8 + du, footprint * 0.6) - 0.5
    colour, pattern = material[0:3].clone(), pattern.int()
    many = torch.bincount(pattern, minlength=len(PATTERNS)).tolist()
    for index, name in enumerate(PATTERNS[1:], 1):
        if many[index]:
            at = (pattern == index).nonzero()[:, 0]
            hit = (pu.index_select(0, at), pv.index_select(0, at), w.index_select(0, at))
            colours = material[0:9].index_select(1, at).split(3)
            colour.index_copy_(1, at, _paint(name, hit, colours, table, layer.index_select(0, at).int()))
    colour = colour * (1 + grain * speckle).clamp_min_(0.1)
    return torch.where(low < skirt, material[6:9], colour)


def _paint(name: str, hit, colours, table: Atlas, layer: Tensor) -> Tensor:
    (u, v, w), (a, b, c) = hit, colours

    def mix(share: Tensor) -> Tensor:
        return a + (b - a) * share

    if name == "stripes":
        return mix(0.5 + 0.5 * _square(u, w))
    if name == "checker":
        return mix(0.5 + 0.5 * _square(u, w) * _square(v, w))
    if name == "noise":
        coarse = look_up(table.grey, layer, u, v, w)
        return mix(((coarse - 0.5) * 1.6 + 0.5).clamp(0, 1))
    if name in ("leaves", "picture"):
        share = 0.25 if name == "leaves" else 0.0
        return look_up(table.color, layer, u, v, w) ** 2.2 * (1 - share) + a * share
    if name == "planks":
        joint, tone = _blocks(u, v, w, 0.37, 0.02, 7.0)
        fibre = look_up(table.grey, torch.full_like(layer, 2), u * 0.12 + tone, v * 0.31, w * 0.3)
        return mix((0.55 * tone + 0.9 * (fibre - 0.5) + 0.25).clamp(0, 1)) * (1 - 0.6 * joint)
    if name == "outlook":  # what a window shows: sky above a line of trees
        leaf = look_up(table.grey, layer, u * 0.4, v * 0.4, w * 0.4)
        tree = ((0.45 * leaf - v) * 6).clamp(0, 1)
        sky = a + (c - a) * (0.5 + 0.5 * v).clamp(0, 1)
        return sky + (b * (0.5 + leaf) - sky) * tree
    if name == "windows":
        joint, tone = _blocks(u, v, w, 0.0, 0.27, 1.0)
        pane = c * (0.5 + tone)
        return pane + (a - pane) * joint
    joint, tone = _blocks(u, v, w, 0.5, 0.06, 2.4) if name == "brick" else _blocks(u, v, w, 0.0, 0.03, 1.0)
    return mix(tone) * (1 - joint) + c * joint
