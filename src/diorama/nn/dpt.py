"""Dense prediction head: features of four layers, fused from coarse to fine into a full-size map."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


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
    maps = [wave(frequencies * place.expand(grid)) for place in (x, y[:, None]) for wave in (torch.sin, torch.cos)]
    return torch.cat(maps)


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
        return (positive if self.vggt else x) + self.conv2(F.relu(self.conv1(positive)))


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
        return self.out(F.interpolate(self.unit(x), size, mode="bilinear", align_corners=True))


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
        self.out = nn.Sequential(nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1))

    def forward(
        self, layers: Sequence[Float[Tensor, "batch token dim"]], grid: tuple[int, int], size: tuple[int, int]
    ) -> Float[Tensor, "batch outputs height width"]:
        """Tokens of a `grid` of patches from four layers, first to last, become a map of `size`."""
        levels = [
            level(rescale(self._placed(project(self.norm(x).transpose(1, 2).unflatten(-1, grid)), size)))
            for x, project, rescale, level in zip(layers, self.project, self.rescale, self.level, strict=True)
        ]
        x = levels[3]
        for index in (3, 2, 1, 0):
            height, width = levels[index].shape[-2:]
            target = levels[index - 1].shape[-2:] if index else (2 * height, 2 * width)
            x = self.fuse[index](x, None if index == 3 else levels[index], tuple(target))
        return self.out(self._placed(F.interpolate(self.narrow(x), size, mode="bilinear", align_corners=True), size))

    def _placed(
        self, x: Float[Tensor, "batch channels height width"], size: tuple[int, int]
    ) -> Float[Tensor, "batch channels height width"]:
        if not self.vggt:
            return x
        return x + 0.1 * uv_embedding(x.shape[1], (x.shape[2], x.shape[3]), size, x.device).to(x.dtype)
