"""Rotary position embedding of tokens that stand on a grid: attention then depends on offsets, not on places."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Rotation(NamedTuple):
    """The angle of every pair of channels of every token, by its cosine and sine.

    The first half of a head's channels turns by the token's row, the second by its column; within a half, channel i
    and channel i + half/2 are one pair.
    """

    cosine: Float[Tensor, "token 2 pair"]
    sine: Float[Tensor, "token 2 pair"]

    def repeated(self, times: int) -> "Rotation":
        """For `times` grids in a row: views joined to one sequence."""
        return Rotation(*(x.repeat(times, 1, 1) for x in self))

    def turn(self, x: Float[Tensor, "batch heads token dim"]) -> Float[Tensor, "batch heads token dim"]:
        """Queries or keys, each turned by its token's place."""
        cosine, sine = self.cosine.to(x.dtype), self.sine.to(x.dtype)
        first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)
        return torch.stack([first * cosine - second * sine, second * cosine + first * sine], -2).flatten(-3)


def grid_rotation(
    grid: tuple[int, int], dim: int, *, special: int = 0, base: float = 100.0, device: torch.device | None = None
) -> Rotation:
    """Rotation of heads of `dim` channels for `special` tokens at place (0, 0), then a grid whose first is at (1, 1).

    Pair i turns by place * base ** (-i / pairs) radians. ValueError unless `dim` is a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"heads of {dim} channels: a rotation by rows and columns needs a multiple of 4")
    height, width = (torch.arange(1, cells + 1, device=device) for cells in grid)
    places = F.pad(torch.cartesian_prod(height, width), (0, 0, special, 0))
    pairs = dim // 4
    frequencies = base ** (-torch.arange(pairs, device=device) / pairs)
    angles = places[..., None] * frequencies
    return Rotation(angles.cos(), angles.sin())
