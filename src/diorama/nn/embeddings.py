"""From images, rays, times and classes to tokens."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, the frozen encoders' own


class PatchEmbed(nn.Conv2d):
    """One token for every patch of an image-shaped map."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__(channels, dim, patch, patch)
        nn.init.xavier_uniform_(self.weight.data.flatten(1))
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch token dim"]:
        return super().forward(x.to(self.weight.dtype)).flatten(2).transpose(1, 2)


class RayEmbed(nn.Module):
    """Tokens of a Plücker ray map with one visibility channel (3DRAE section 3.1).

    Of each patch's mean ray, `frequencies` > 0 adds Fourier features, which let small models tell near rays apart, and
    `products` all products of two coordinates: in those of two rays, the square of their distance is bilinear.
    """

    octaves: Tensor
    pairs: Tensor

    def __init__(self, dim: int, patch: int, frequencies: int = 0, *, products: bool = False) -> None:
        super().__init__()
        self.patch = patch
        self.map = PatchEmbed(7, dim, patch)
        self.fourier = nn.Linear(12 * frequencies, dim, bias=False) if frequencies else None
        self.products = nn.Linear(21, dim, bias=False) if products else None
        self.register_buffer("pairs", torch.triu_indices(6, 6), persistent=False)
        self.register_buffer("octaves", math.pi * 2.0 ** torch.arange(frequencies), persistent=False)

    def forward(
        self, rays: Float[Tensor, "batch 6 height width"], visible: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "batch token dim"]:
        """Tokens of every view; rays outside `visible` views carry no image and say so.

        Half precision begins behind the features, as in it neighbouring rays are one.
        """
        flag = visible.to(rays.dtype)[:, None, None, None].expand(-1, 1, *rays.shape[-2:])
        tokens = self.map(torch.cat([rays, flag], 1))
        if self.fourier is None and self.products is None:
            return tokens
        mean, kind = nn.functional.avg_pool2d(rays, self.patch).flatten(2).transpose(1, 2), self.map.weight.dtype
        if self.fourier is not None:
            angles = (mean[..., None] * self.octaves).flatten(-2)
            tokens = tokens + self.fourier(torch.cat([angles.sin(), angles.cos()], -1).to(kind))
        if self.products is not None:
            tokens = tokens + self.products((mean[..., self.pairs[0]] * mean[..., self.pairs[1]]).to(kind))
        return tokens


class TimeEmbed(nn.Module):
    """Gaussian Fourier features of t in [0, 1] through a small MLP; the frequencies are frozen."""

    frequencies: Tensor

    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(frequencies))
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        angles = 2 * math.pi * t[:, None].float() * self.frequencies
        features = torch.cat([angles.sin(), angles.cos()], -1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))  # type: ignore[arg-type]
