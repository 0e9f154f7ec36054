"""Dense prediction head: features of four layers, fused from coarse to fine into a full-size map."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PIXELS_AT_ONCE = 2**14  # of full-size maps when inferring, the largest tensors of all


def uv_embedding(
    channels: int, grid: tuple[int, int], size: tuple[int, int], device: torch.device | None = None
) -> Float[Tensor, "channels height width"]:
    """Sines, cosines of x, then of y, at a grid's cell centres; an image of this `size` has its corners at radius 1."""
    diagonal = (size[0] ** 2 + size[1] ** 2) ** 0.5
    y, x = (
        length / diagonal * (torch.arange(1 - cells, cells, 2, device=device) / cells)
        for cells, length in zip(grid, size, strict=True)
    )
    frequencies = 100.0 ** -torch.linspace(0, 1, channels // 4 + 1, device=device)[:-1, None, None]
    waves = [wave(frequencies * place) for place in (x, y[:, None]) for wave in (torch.sin, torch.cos)]
    return torch.cat([wave.expand(-1, *grid) for wave in waves])


def in_turn(x: Tensor, rescale: nn.Module, level: nn.Module) -> Tensor:
    """A level of the head: brought to its own size, then convolved."""
    return level(rescale(x))


def at_once(x: Tensor, rescale: nn.Module, level: nn.Module) -> Tensor:
    """The same with a transposed convolution and the one behind it as one, which takes up to four times fewer products.

    A channel of ones carries the inner bias, so that it ends at the border as the enlarged map does.
    """
    if not isinstance(rescale, nn.ConvTranspose2d) or rescale.bias is None:
        return level(rescale(x))
    x = torch.cat([x, x.new_ones(len(x), 1, *x.shape[2:])], 1)
    weight = torch.cat([rescale.weight, rescale.bias[None, :, None, None].expand(1, -1, *rescale.kernel_size)])
    # What one pixel's patch becomes.
    weight = F.conv2d(weight, level.weight, padding=2)  # type: ignore[arg-type, call-arg]
    return F.conv_transpose2d(x, weight, stride=rescale.stride, padding=1)


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions around the identity, or around relu(x).

    VGGT's ReLU works in place, so that the skip carries what it left: its weights were trained with relu(x).
    """

    def __init__(self, features: int, *, vggt: bool = False) -> None:
        super().__init__()
        self.vggt = vggt
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch features height width"]) -> Float[Tensor, "batch features height width"]:
        positive = F.relu(x)
        return self.conv2(F.relu(self.conv1(positive), inplace=True)) + (positive if self.vggt else x)


class Fusion(nn.Module):
    """Adds a finer level to the coarser sum and enlarges the result."""

    def __init__(self, features: int, *, first: bool, vggt: bool = False) -> None:
        super().__init__()
        self.lateral = None if first else ResidualUnit(features, vggt=vggt)
        self.unit = ResidualUnit(features, vggt=vggt)
        self.out = nn.Conv2d(features, features, 1)

    def forward(
        self, x: Float[Tensor, "batch features h w"], finer: Tensor | None, size: tuple[int, int]
    ) -> Float[Tensor, "batch features height width"]:
        if self.lateral is not None and finer is not None:
            x = x + self.lateral(finer)
        # A 1x1 convolution and an interpolation commute: this order is four times cheaper.
        return F.interpolate(self.out(self.unit(x)), size, mode="bilinear", align_corners=True)


class DPTHead(nn.Module):
    """DPT, from token features of four layers to `outputs` channels at image size.

    `vggt` adds what VGGT's published weights expect: a tenth of `uv_embedding` before the first and the last
    convolutions, and relu(x) as the residual units' skip. RAE3D is trained without either.
    """

    def __init__(self, dim: int, features: int, channels: Sequence[int], outputs: int, *, vggt: bool = False) -> None:
        super().__init__()
        self.vggt = vggt
        self.norm = nn.LayerNorm(dim)
        self.project = nn.ModuleList(nn.Conv2d(dim, width, 1) for width in channels)
        self.rescale = nn.ModuleList(
            (
                nn.ConvTranspose2d(channels[0], channels[0], 4, 4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, 2, padding=1),
            )
        )
        self.level = nn.ModuleList(nn.Conv2d(width, features, 3, padding=1, bias=False) for width in channels)
        self.fuse = nn.ModuleList(Fusion(features, first=level == 3, vggt=vggt) for level in range(4))
        self.narrow = nn.Conv2d(features, features // 2, 3, padding=1)
        self.out = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(32, outputs, 1)
        )

    def forward(
        self, layers: Sequence[Float[Tensor, "batch token dim"]], grid: tuple[int, int], size: tuple[int, int]
    ) -> Float[Tensor, "batch outputs height width"]:
        """Tokens of a `grid` of patches from four layers, first to last, become a map of `size`."""
        maps = (
            self._placed(project(self.norm(x).transpose(1, 2).unflatten(-1, grid)), size)
            for x, project in zip(layers, self.project, strict=True)
        )
        # A gradient is cheaper through the convolutions one by one.
        convolved = in_turn if torch.is_grad_enabled() else at_once
        levels = [convolved(*each) for each in zip(maps, self.rescale, self.level, strict=True)]
        x = levels[3]
        for index in (3, 2, 1, 0):
            height, width = levels[index].shape[-2:]
            target = levels[index - 1].shape[-2:] if index else (2 * height, 2 * width)
            x = self.fuse[index](x, None if index == 3 else levels[index], tuple(target))
        x = self.narrow(x)
        # Gradients would keep all full-size maps anyway; without them, a few at a time stay in the cache.
        count = len(x) if torch.is_grad_enabled() else max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
        places = 0.1 * uv_embedding(x.shape[1], size, size, x.device).to(x.dtype) if self.vggt else x.new_zeros(())
        large = (F.interpolate(part, size, mode="bilinear", align_corners=True) for part in x.split(count))
        return torch.cat([self.out(part.add_(places)) for part in large])

    def _placed(
        self, x: Float[Tensor, "batch channels height width"], size: tuple[int, int]
    ) -> Float[Tensor, "batch channels height width"]:
        """x itself, which is fresh, changed where the head is VGGT's."""
        if not self.vggt:
            return x
        return x.add_(uv_embedding(x.shape[1], (x.shape[2], x.shape[3]), size, x.device).to(x.dtype), alpha=0.1)
