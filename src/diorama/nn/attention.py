"""Multi-head attention with an optional memory of keys and values computed earlier."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diorama.nn.rope import Rotation


class KeysValues(NamedTuple):
    """What attention needs to know of tokens that others attend to."""

    keys: Float[Tensor, "batch heads token dim"]
    values: Float[Tensor, "batch heads token dim"]

    def repeated(self, times: int) -> "KeysValues":
        """Every batch element `times` in a row."""
        return KeysValues(*(x[:, None].expand(-1, times, -1, -1, -1).flatten(0, 1) for x in self))


class RMSNorm(nn.RMSNorm):
    """RMS norm that stays in its input's dtype, so that half precision keeps the fused kernel."""

    def forward(self, x: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Self-attention; with a memory, the tokens attend to the memory's tokens too (one-way).

    `qk_norm` is whether an RMS norm is put on queries and keys, or the norm itself, made from a head's channels.
    """

    def __init__(
        self, dim: int, heads: int, *, bias: bool = False, qk_norm: bool | Callable[[int], nn.Module] = True
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels do not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)
        norm = qk_norm if callable(qk_norm) else partial(RMSNorm, eps=1e-6) if qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(dim // heads), norm(dim // heads)

    def _split(self, x: Float[Tensor, "batch token channels"]) -> Float[Tensor, "batch heads token dim"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Float[Tensor, "batch token dim"]) -> KeysValues:
        """Keys and values of tokens, to be attended to later; costs two of the three projections."""
        dim = x.shape[-1]
        bias = None if self.qkv.bias is None else self.qkv.bias[dim:]
        keys, values = map(self._split, F.linear(x, self.qkv.weight[dim:], bias).chunk(2, -1))
        return KeysValues(self.k_norm(keys), values)

    def forward(
        self, x: Float[Tensor, "batch token dim"], memory: KeysValues | None = None, rotation: Rotation | None = None
    ) -> tuple[Float[Tensor, "batch token dim"], KeysValues]:
        """Attended tokens, and these tokens' own keys and values; a `rotation` turns queries and keys."""
        queries, keys, values = map(self._split, self.qkv(x).chunk(3, -1))
        queries, keys = self.q_norm(queries), self.k_norm(keys)
        if rotation is not None:
            queries, keys = rotation.turn(queries), rotation.turn(keys)
        own = KeysValues(keys, values)
        if memory is not None:
            keys, values = torch.cat([memory.keys, keys], 2), torch.cat([memory.values, values], 2)
        attended = attend(queries, keys, values)
        return self.proj(attended.transpose(1, 2).flatten(2)), own


def attend(
    queries: Float[Tensor, "batch heads token dim"],
    keys: Float[Tensor, "batch heads known dim"],
    values: Float[Tensor, "batch heads known dim"],
) -> Float[Tensor, "batch heads token dim"]:
    """Softmax attention; training on a CPU spells it out, where the fused kernel's backward pass costs more."""
    if queries.device.type == "cpu" and queries.requires_grad and torch.is_grad_enabled():
        return (queries * queries.shape[-1] ** -0.5 @ keys.mT).softmax(-1) @ values
    return F.scaled_dot_product_attention(queries, keys, values)
