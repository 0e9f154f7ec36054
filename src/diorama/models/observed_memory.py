"""Observed-view memory: what was photographed is looked up again along each wanted pixel's ray, and stays sharp.

A scene's latents are few: they keep the whole and lose the detail. This module takes what RAE3D decoded of a view,
image and depth, and searches around that depth for the surface on which the known views agree, first coarsely, then
finely. The colours found there replace the decoded ones where a known view saw the place. The papers have no such part.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diorama.geometry.cameras import Cameras

# fmt: off
SIZES: dict[str, dict[str, Any]] = {  # keyword arguments of ObservedMemory by name; pairs go from coarse to fine
    "small": dict(widths=(24, 16), channels=(13, 5), hidden=(16, 8), layers=(2, 1), hypotheses=(15, 6), reach=(0.9, 0.12), blend=16),  # noqa: E501
}
# fmt: on
NEAR = 1e-3  # in a known camera's depth over the wanted one's: what comes nearer to its plane than this is behind it
NEAREST = 0.02  # decoded depth in the latents' frame, below which it is an error of the decoder
SAME = (
    2e3  # how fast a known view stops being the wanted one, per squared angle between them: 0.4 is left at 1.2 degrees
)
INFINITE = 1e-6  # disparity in that frame, below which a logarithm sees no difference


class Level(NamedTuple):
    """The known views at one resolution, as points in space look them up."""

    features: Float[Tensor, "batch known channel h w"]  # learnt ones, then the decoded disparity, then RGB
    cameras: Cameras


class Memory(NamedTuple):
    """The known views of a batch of scenes: made once, asked by any number of wanted views."""

    coarse: Level  # half of the resolution
    fine: Level
    visible: Bool[Tensor, "batch known"]  # False fills up scenes that know fewer views than others


class Found(NamedTuple):
    """What known views show at hypotheses along the rays of wanted ones."""

    features: Float[Tensor, "batch_view channel known hypothesis h w"]  # learnt ones, then RGB
    clues: Float[Tensor, "batch_view 3 known hypothesis h w"]  # log distance ratio, angle, log depth mismatch
    seen: Float[Tensor, "batch_view 1 known hypothesis h w"]  # 1 where the point falls into the image

    @property
    def weight(self) -> Float[Tensor, "batch_view 1 known hypothesis h w"]:
        """The share of each known view in a mean over those that see the point."""
        return self.seen / self.seen.sum(2, keepdim=True).clamp(min=1)


class Sweep(NamedTuple):
    """What one search found, for training."""

    likely: Float[Tensor, "batch view hypothesis h w"]  # sums to 1 over hypotheses
    tried: Float[Tensor, "batch view hypothesis h w"]  # disparities, each a factor above the last; 0 first for the sky
    step: float  # log of that factor
    best: Float[Tensor, "batch view h w"]  # disparity of the likeliest
    colours: Float[Tensor, "batch view 3 h w"]  # what the known views show there, as likely as that is
    seen: Float[Tensor, "batch view 1 h w"]  # how likely it is that one sees the place
    same: Float[Tensor, "batch view 1 h w"]  # 1 where one sees it along the wanted ray itself


class Sharpened(NamedTuple):
    """What the memory makes of decoded views."""

    images: Float[Tensor, "batch view 3 height width"]  # RGB, about [0, 1], not clamped
    depth: Float[Tensor, "batch view height width"]  # z
    sweeps: list[Sweep]  # coarse, then fine


class Search(nn.Module):
    """How likely each hypothesis along a ray is the surface, from how well the known views agree there."""

    factors: Tensor

    def __init__(
        self, channels: int, hidden: int, layers: int, factors: Float[Tensor, " hypothesis"], step: float
    ) -> None:
        super().__init__()
        self.register_buffer("factors", factors, persistent=False)
        self.step = step
        self.mix = Pointwise(3 * (channels + 3) + 6, hidden)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv3d(hidden, hidden, 3, padding=1)) for _ in range(layers)
        )
        self.score = Pointwise(hidden, 1)
        self.choice = nn.Sequential(Pointwise(2 * (channels + 3) + 4 + hidden, 16), nn.ReLU(), Pointwise(16, 1))

    def tried(self, disparity: Float[Tensor, "batch view h w"]) -> Float[Tensor, "batch view hypothesis h w"]:
        """Disparities (1 / z-depth) to try around a first guess."""
        return disparity[:, :, None] * self.factors[:, None, None]

    def forward(
        self,
        found: Found,
        tried: Float[Tensor, "batch view hypothesis h w"],
        same: Float[Tensor, "batch_view 1 known h w"],
        context: Float[Tensor, "batch_view channel h w"],
    ) -> tuple[Sweep, Float[Tensor, "batch_view hidden h w"]]:
        """The search's result and features of it; `context` describes the decoded picture, learnt ones, then RGB."""
        found = Found(*(part.to(context.dtype) for part in found))
        mean, spread = _agreement(found.features, found.seen)
        seen, unlike = found.seen.sum(2), (mean - context[:, :, None]).square()
        place = self.factors.log().clamp(min=-4).to(seen.dtype)[:, None, None].expand_as(seen)
        clues = [_agreement(found.clues, found.seen)[0], seen.log1p(), (seen > 0).to(seen), place]
        x = self.mix(torch.cat([mean, spread, unlike, *clues], 1))
        for layer in self.layers:
            x = x + layer(x)
        likely = self.score(F.relu(x))[:, 0].float().softmax(1)
        # The hypotheses are summed up before the known views are told apart, which costs a fraction of the reverse.
        share = likely[:, None].to(x)
        summary = (x * share).sum(2)
        weight = found.seen * share[:, :, None]
        features, clues, seen = ((part * weight).sum(3) for part in found)
        parts = (likely, *self._chosen(features, clues, seen, same.to(seen) * seen, summary))
        likely, *rest = (part.unflatten(0, tried.shape[:2]) for part in parts)
        return Sweep(likely, tried, self.step, _best(likely, tried), *rest), summary

    def _chosen(
        self, features: Tensor, clues: Tensor, seen: Tensor, same: Tensor, summary: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The colour that the known views agree on, how likely one sees the place, and whether along the same ray."""
        features, clues = (part / seen.clamp(min=1e-2) for part in (features, clues))
        mean, _ = _agreement(features, seen)
        common = summary[:, :, None].expand(-1, -1, seen.shape[2], -1, -1)
        rows = torch.cat([features, (features - mean[:, :, None]).square(), clues, seen, common], 1)
        share = (self.choice(rows) + seen.clamp(min=1e-4).log() + 30 * same).softmax(2)
        return (features[:, -3:] * share).sum(2), seen.amax(2), same.amax(2)


class Pointwise(nn.Linear):
    """A linear map of the channels, which come after the batch: as a product of matrices, faster than a convolution."""

    def forward(self, x: Float[Tensor, "batch channel *place"]) -> Float[Tensor, "batch out *place"]:
        return (self.weight @ x.flatten(2) + self.bias[:, None]).unflatten(2, x.shape[2:])


def _agreement(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the known views, which stand in axis 2, each counted as far as it sees the place."""
    weight = seen / seen.sum(2, keepdim=True).clamp(min=1)
    mean = (values * weight).sum(2)
    return mean, ((values - mean[:, :, None]).square() * weight).sum(2)


class ObservedMemory(ModelMixin, ConfigMixin):
    """Searches the known views for what RAE3D's decoded pictures show blurred.

    Works with any number of known views, any size and aspect: all lengths that it sees are ratios to decoded depths.
    """

    config_name = "config.json"
    config: Any  # what __init__ was called with, by attribute

    @register_to_config
    def __init__(  # architecture is given by name, from SIZES or a config file
        self,
        *,
        widths: Sequence[int] = (24, 16),
        channels: Sequence[int] = (13, 5),
        hidden: Sequence[int] = (16, 8),
        layers: Sequence[int] = (2, 1),
        hypotheses: Sequence[int] = (15, 6),
        reach: Sequence[float] = (0.9, 0.12),
        blend: int = 16,
    ) -> None:
        """Pairs go from coarse to fine; `reach` is how far the two searches go, as the log of a ratio of depths."""
        super().__init__()
        self.trunk, inputs = nn.ModuleList(), 3
        for width, stride in zip(reversed(widths), (1, 2), strict=True):
            self.trunk.append(nn.Sequential(_conv(inputs, width, stride), nn.ReLU(), _conv(width, width), nn.ReLU()))
            inputs = width
        self.known = nn.ModuleList(map(_conv, widths, channels))
        self.wanted = nn.ModuleList(map(_conv, widths, channels))
        factors = [torch.linspace(-far, far, count).exp() for far, count in zip(reach, hypotheses, strict=True)]
        factors[0] = torch.cat([torch.zeros(1), factors[0]])  # the sky
        steps = [2 * far / (count - 1) for far, count in zip(reach, hypotheses, strict=True)]
        self.searches = nn.ModuleList(map(Search, channels, hidden, layers, factors, steps))
        self.blending = nn.Sequential(nn.Conv2d(13 + sum(hidden) + channels[1], blend, 1), nn.ReLU())
        for dilation in (1, 2, 4):
            self.blending.append(nn.Conv2d(blend, blend, 3, padding=dilation, dilation=dilation))
            self.blending.append(nn.ReLU())
        self.blending.append(_conv(blend, 4))
        nn.init.zeros_(self.blending[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.blending[-1].bias)  # type: ignore[arg-type]

    def read(
        self,
        images: Float[Tensor, "batch known 3 height width"],
        depth: Float[Tensor, "batch known height width"],
        cameras: Cameras,
        visible: Bool[Tensor, "batch known"],
    ) -> Memory:
        """What is remembered of known views in the latents' frame; `depth` is RAE3D's at their own cameras."""
        plain = torch.cat([1 / depth[:, :, None].clamp(min=NEAREST), images], 2).flatten(0, 1).float()
        levels = []
        for features, head in zip(self._features(images.flatten(0, 1)), self.known, strict=True):
            size = features.shape[-2:]
            rows = torch.cat([head(features).float(), F.interpolate(plain, size, mode="area")], 1)
            levels.append(Level(rows.unflatten(0, images.shape[:2]), cameras.resized(*size)))
        return Memory(*levels, visible)  # type: ignore[call-arg]

    def forward(
        self,
        memory: Memory,
        images: Float[Tensor, "batch view 3 height width"],
        depth: Float[Tensor, "batch view height width"],
        cameras: Cameras,
    ) -> Sharpened:
        """Wanted views after the search; images in [0, 1] and depth are RAE3D's, cameras in the latents' frame."""
        flat, shape, size = images.flatten(0, 1).to(self.dtype), images.shape[:2], images.shape[-2:]
        guess = disparity = 1 / depth.float().clamp(min=NEAREST)
        sweeps, summaries = [], []
        levels = zip(memory[:2], self.searches, self.wanted, self._features(flat), strict=True)
        for known, search, head, features in levels:
            small = features.shape[-2:]
            tried = search.tried(F.interpolate(disparity, small, mode="nearest" if sweeps else "area"))  # type: ignore[operator]
            found = look_up(known, memory.visible, tried, cameras.resized(*small))
            context = torch.cat([head(features), F.interpolate(flat, small, mode="area")], 1)
            same = _same(known.cameras, cameras, F.interpolate(guess, small, mode="area"))
            sweep, summary = search(found, tried, same, context)
            disparity = sweep.best
            sweeps.append(sweep)
            summaries.append(F.interpolate(summary, size, mode="bilinear"))
        shift = (disparity.clamp(min=INFINITE) / guess).log().clamp(-2, 2).flatten(0, 1)[:, None].to(flat)
        rough = F.interpolate(sweeps[0].colours.flatten(0, 1), size, mode="bilinear")
        colours, seen = sweep.colours.flatten(0, 1), sweep.seen.flatten(0, 1)
        doubt = -(sweep.likely * sweep.likely.clamp(min=1e-8).log()).sum(2).flatten(0, 1)[:, None].to(flat)
        unlike = (colours - flat).square().mean(1, keepdim=True)
        told = [colours, rough, seen, shift, doubt, unlike, *summaries, context]
        share, rest = self.blending(torch.cat(told, 1)).split([1, 3], 1)
        # A camera that is a known one shows the photo itself, which no network needs to learn.
        same = sweep.same.flatten(0, 1)
        share = same + (1 - same) * (share + 2).sigmoid() * seen
        mixed = flat + share * (colours - flat) + (1 - same) * rest
        middle = F.interpolate(_median(sweeps[0]), size, mode="bilinear")
        return Sharpened(mixed.unflatten(0, shape), 1 / middle, sweeps)

    def _features(self, images: Float[Tensor, "many 3 height width"]) -> list[Float[Tensor, "many channel h w"]]:
        """Of pictures, at half of the resolution and at all of it."""
        fine = self.trunk[0](2 * images.to(self.dtype) - 1)
        return [self.trunk[1](fine), fine]


def _best(
    likely: Float[Tensor, "batch view hypothesis h w"], tried: Float[Tensor, "batch view hypothesis h w"]
) -> Float[Tensor, "batch view h w"]:
    """The mean disparity of the likeliest hypothesis and its neighbours: a mean of all would fall between surfaces."""
    index = torch.arange(likely.shape[2], device=likely.device)[:, None, None]
    near = likely * ((index - likely.argmax(2, keepdim=True)).abs() <= 1)
    return (near * tried).sum(2) / near.sum(2)


def _median(sweep: Sweep) -> Float[Tensor, "batch view h w"]:
    """The disparity whose depth has the least expected error relative to the true one, a surface given (no sky).

    That is the median of the hypotheses weighted by likelihood over depth, between them as if evenly spread in the log.
    """
    weight = sweep.likely * sweep.tried
    share = weight / weight.sum(2, keepdim=True)
    before, places = share.cumsum(2) - share, sweep.tried.clamp(min=INFINITE).log()
    index = ((before + share) < 0.5).sum(2, keepdim=True).clamp(max=share.shape[2] - 1)
    before, share, place = (part.gather(2, index)[:, :, 0] for part in (before, share, places))
    return (place + sweep.step * (((0.5 - before) / share.clamp(min=1e-6)).clamp(0, 1) - 0.5)).exp()


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


def look_up(
    level: Level,
    visible: Bool[Tensor, "batch known"],
    disparity: Float[Tensor, "batch view hypothesis h w"],
    cameras: Cameras,
) -> Found:
    """What known views show at points on the rays of `cameras`, given by disparity (1 / z-depth; 0 is at infinity)."""
    batch, known = visible.shape
    world = level.cameras.world_to_camera
    # Everything times the disparity, so that infinity is a number like any other.
    local = torch.einsum("bkij,bvhwj->ibkvhw", world[..., :3, :3], cameras.directions())[:, :, :, :, None]
    origin = torch.einsum("bkij,bvj->ibkv", world[..., :3, :3], cameras.centers)
    origin = origin + world[..., :3, 3].movedim(-1, 0)[..., None]
    points = local + disparity[:, None] * origin[..., None, None, None]
    z = points[2].clamp(min=NEAR)
    grid = _grid(points[0] / z, points[1] / z, level.cameras)
    inside = (points[2] > NEAR) & (grid.abs() <= 1).all(-1) & visible[:, :, None, None, None, None]
    places = grid.clamp(-2, 2).flatten(0, 1).flatten(1, 3)
    values = F.grid_sample(level.features.flatten(0, 1), places, padding_mode="border", align_corners=False)
    values = values.unflatten(2, disparity.shape[1:-1]).unflatten(0, (batch, known)).permute(0, 3, 2, 1, 4, 5, 6)
    features, theirs, colours = values.flatten(0, 1).split([level.features.shape[2] - 4, 1, 3], 1)
    cosine = (points * local).sum(0) * (points.square().sum(0) * local.square().sum(0)).clamp(min=1e-12).rsqrt()
    rows = [part.transpose(1, 2).flatten(0, 1)[:, None] for part in (z.log(), cosine, inside)]
    nearer, cosine, inside = rows  # the first: how many times farther the known camera is from the point
    mine = disparity.clamp(min=INFINITE).log().flatten(0, 1)[:, None, None]
    mismatch = theirs.clamp(min=INFINITE).log() + nearer - mine
    clues = torch.cat([nearer.clamp(-2, 2), 4 * (1 - cosine), mismatch.clamp(-2, 2)], 1)
    return Found(torch.cat([features, colours], 1), clues, inside.to(values))


def _same(
    known: Cameras, cameras: Cameras, disparity: Float[Tensor, "batch view h w"]
) -> Float[Tensor, "batch_view 1 known h w"]:
    """1 where a wanted camera stands in a known one's place, less the farther apart the surface sees them."""
    apart = (cameras.centers[:, :, None] - known.centers[:, None]).square().sum(-1)
    return (-SAME * apart[..., None, None] * disparity[:, :, None].square()).exp().flatten(0, 1)[:, None]


def _grid(x: Tensor, y: Tensor, cameras: Cameras) -> Float[Tensor, "*any 2"]:
    """Places in images as grid_sample has them, of directions (x, y, 1) in the cameras, whose axes lead those of x."""
    ones = (1,) * (x.ndim - 2)
    places = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))
    fx, skew, cx, fy, cy = (cameras.intrinsics[..., i, j].unflatten(-1, (-1, *ones)) for i, j in places)
    u, v = (fx * x + skew * y + cx) / cameras.width, (fy * y + cy) / cameras.height
    return 2 * torch.stack([u, v], -1) - 1
