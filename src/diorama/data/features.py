"""Points that two photos show alike: corners, described by oriented gradients, that one fundamental matrix explains."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LEVELS = 5  # of the pyramid, each smaller by a factor of sqrt 2
MOST = 1500  # corners of a photo
RATIO = 0.85  # of the nearest to the second nearest descriptor's distance (Lowe 2004, section 7.1)
ORIENTATIONS = 8
CELLS = 4  # along each side of a descriptor
SPACING = 5.0  # pixels between cells, at the corner's level


class Features(NamedTuple):
    """Corners of one photo."""

    places: Float[Tensor, "corner 2"]  # x, y in the photo's pixels, first centre at 0.5
    descriptors: Float[Tensor, "corner 128"]  # of length 1


def features(image: Float[Tensor, "3 height width"]) -> Features:
    """Corners of a photo at several sizes, for photos of about the same side up."""
    grey = (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)[None, None]
    height, width = grey.shape[-2:]
    places, descriptors = [], []
    for level in range(LEVELS):
        tall, wide = (round(side / 2 ** (level / 2)) for side in (height, width))
        if min(tall, wide) < 48:
            break
        small = _blurred(F.interpolate(grey, (tall, wide), mode="bilinear", antialias=True), 0.8)
        found = _corners(small, round(MOST / 2 ** (level / 2 + 1.3)))
        descriptors.append(_described(small, found))
        places.append(found * found.new_tensor([width / wide, height / tall]))
    if not places:
        raise ValueError(f"photos of {height}x{width} pixels; accepted for matching are at least 48 a side")
    return Features(torch.cat(places), torch.cat(descriptors))


def matched(one: Features, two: Features) -> tuple[Float[np.ndarray, "match 2"], Float[np.ndarray, "match 2"]]:
    """Places in both photos that look most alike both ways, and agree with one fundamental matrix."""
    likeness = one.descriptors @ two.descriptors.mT
    if min(likeness.shape) < 16:
        return np.empty((0, 2)), np.empty((0, 2))
    best, partner = likeness.topk(2)
    distance = (2 - 2 * best).clamp(min=0).sqrt()
    rows = torch.arange(len(likeness))
    keep = (distance[:, 0] < RATIO * distance[:, 1]) & (likeness.argmax(0)[partner[:, 0]] == rows)
    first, second = (places.double().numpy() for places in (one.places[keep], two.places[partner[keep, 0]]))
    agree = _agreeing(first, second)
    return first[agree], second[agree]


def epipolar_distance(
    first: Float[np.ndarray, "match 2"],
    second: Float[np.ndarray, "match 2"],
    fundamental: Float[np.ndarray, "*any 3 3"],
) -> Float[np.ndarray, "*any match"]:
    """Distance in pixels between a place and the line of its partner, the mean of both photos."""
    a, b = (np.concatenate([places, np.ones((len(places), 1))], 1) for places in (first, second))
    lines, back = a @ np.swapaxes(fundamental, -1, -2), b @ fundamental
    off = np.abs((lines * b).sum(-1))
    lengths = [np.maximum(np.hypot(line[..., 0], line[..., 1]), 1e-12) for line in (lines, back)]
    return off * (1 / lengths[0] + 1 / lengths[1]) / 2


def _blurred(image: Float[Tensor, "batch channel height width"], sigma: float) -> Tensor:
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, -1)
    padded = F.pad(image, (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(padded, kernel, groups=image.shape[1])
    return F.conv2d(across, kernel.mT, groups=image.shape[1])


def _gradient(image: Float[Tensor, "1 1 height width"]) -> tuple[Tensor, Tensor]:
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _corners(image: Float[Tensor, "1 1 height width"], most: int) -> Float[Tensor, "corner 2"]:
    """Maxima of the smaller eigenvalue of the structure tensor (Shi and Tomasi), to a part of a pixel."""
    dx, dy = _gradient(image)
    xx, xy, yy = _blurred(torch.cat([dx * dx, dx * dy, dy * dy], 1), 1.5)[0]
    strength = (xx + yy) / 2 - (((xx - yy) / 2) ** 2 + xy**2).sqrt()
    peaks = F.max_pool2d(strength[None, None], 7, 1, 3)[0, 0] == strength
    edge = 10  # a descriptor's half
    inside = torch.zeros_like(peaks)
    inside[edge:-edge, edge:-edge] = True
    rows, columns = (peaks & inside & (strength > 1e-7)).nonzero().unbind(1)
    chosen = strength[rows, columns].topk(min(most, len(rows))).indices
    rows, columns = rows[chosen], columns[chosen]
    offsets = []
    for down, right in ((0, 1), (1, 0)):
        before, at, after = (strength[rows + step * down, columns + step * right] for step in (-1, 0, 1))
        offsets.append(((before - after) / (2 * (before + after - 2 * at)).clamp(max=-1e-12)).clamp(-0.5, 0.5))
    return torch.stack([columns + 0.5 + offsets[0], rows + 0.5 + offsets[1]], -1)


def _described(image: Float[Tensor, "1 1 height width"], places: Float[Tensor, "corner 2"]) -> Tensor:
    """Histograms of oriented gradients in cells around each place, upright (after SIFT, Lowe 2004, section 6)."""
    dx, dy = _gradient(image)
    angle = torch.atan2(dy, dx) * ORIENTATIONS / (2 * torch.pi)
    bins = torch.arange(ORIENTATIONS).float()[:, None, None]
    away = (angle[0] - bins).remainder(ORIENTATIONS)
    share = (1 - torch.minimum(away, ORIENTATIONS - away)).clamp(min=0)
    maps = _blurred((share * torch.hypot(dx, dy)[0])[None], SPACING / 2)
    steps = (torch.arange(CELLS) - (CELLS - 1) / 2) * SPACING
    cells = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2)
    size = places.new_tensor([image.shape[-1], image.shape[-2]])
    grid = 2 * (places[:, None] + cells) / size - 1
    found = F.grid_sample(maps, grid[None], "bilinear", "border", align_corners=False)[0].permute(1, 2, 0).flatten(1)
    clipped = F.normalize(F.normalize(found).clamp(max=0.2), p=1.0)
    return clipped.sqrt()  # the square root compares histograms better (Arandjelovic and Zisserman 2012)


def _agreeing(
    first: Float[np.ndarray, "match 2"], second: Float[np.ndarray, "match 2"], within: float = 1.5
) -> np.ndarray:
    """The matches within so many pixels of the fundamental matrix that most agree with, of 600 drawn at random."""
    count = len(first)
    if count < 16:
        return np.zeros(count, bool)
    random = np.random.default_rng(0)
    best = np.zeros(count, bool)
    for _ in range(6):
        drawn = np.stack([random.choice(count, 8, replace=False) for _ in range(100)])
        distances = epipolar_distance(first, second, _fundamental(first[drawn], second[drawn]))
        winner = distances[(distances < within).sum(-1).argmax()] < within
        best = winner if winner.sum() > best.sum() else best
    for _ in range(3):
        if best.sum() >= 16:
            refined = epipolar_distance(first, second, _fundamental(first[best], second[best])) < within
            best = refined if refined.sum() >= best.sum() else best
    return best


def _fundamental(
    first: Float[np.ndarray, "*any match 2"], second: Float[np.ndarray, "*any match 2"]
) -> Float[np.ndarray, "*any 3 3"]:
    """By eight points or more, normalised (Hartley 1997)."""
    scaled, maps = [], []
    for places in (first, second):
        middle = places.mean(-2, keepdims=True)
        scale = np.sqrt(2) / np.maximum(np.linalg.norm(places - middle, axis=-1).mean(-1), 1e-9)[..., None, None]
        scaled.append((places - middle) * scale)
        step = np.zeros((*places.shape[:-2], 3, 3))
        step[..., 0, 0] = step[..., 1, 1] = scale[..., 0, 0]
        step[..., :2, 2] = -(middle * scale)[..., 0, :]
        step[..., 2, 2] = 1
        maps.append(step)
    a, b = (np.concatenate([places, np.ones_like(places[..., :1])], -1) for places in scaled)
    rows = (b[..., :, None] * a[..., None, :]).reshape(*a.shape[:-1], 9)
    found = np.linalg.svd(rows.swapaxes(-1, -2) @ rows)[2][..., -1, :].reshape(*a.shape[:-2], 3, 3)
    u, s, v = np.linalg.svd(found)
    s[..., 2] = 0
    return maps[1].swapaxes(-1, -2) @ (u * s[..., None, :] @ v) @ maps[0]
