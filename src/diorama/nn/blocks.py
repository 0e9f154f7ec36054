"""Transformer blocks: plain pre-norm ones and ones modulated by a condition."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diorama.nn.attention import Attention, KeysValues, RMSNorm
from diorama.nn.rope import Rotation


class MLP(nn.Sequential):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int, ratio: float = 4.0, *, bias: bool = False) -> None:
        hidden = int(dim * ratio)
        super().__init__(nn.Linear(dim, hidden, bias=bias), nn.GELU(), nn.Linear(hidden, dim, bias=bias))


class SwiGLU(nn.Module):
    """Gated MLP: silu(gate) * value, projected back."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_value = nn.Linear(dim, 2 * hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
        gate, value = self.gate_value(x).chunk(2, -1)
        return self.out(nn.functional.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor for every channel of a residual branch."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm block: attention, then an MLP; without linear biases in LVSM's flavour.

    With `bias` and a `layer_scale` to start from it is DINOv2's; VGGT's also has nn.LayerNorm as `qk_norm`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        depth: int = 0,
        bias: bool = False,
        qk_norm: bool | Callable[[int], nn.Module] = True,
        eps: float = 1e-5,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=eps, bias=bias)
        self.attention = Attention(dim, heads, bias=bias, qk_norm=qk_norm)
        self.attention_scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.mlp_norm = nn.LayerNorm(dim, eps=eps, bias=bias)
        self.mlp = MLP(dim, mlp_ratio, bias=bias)
        self.mlp_scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        for layer in (self.attention.qkv, self.mlp[0]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        for layer in (self.attention.proj, self.mlp[2]):  # keeps the residual stream's size independent of depth
            nn.init.normal_(layer.weight, std=0.02 / (2 * (depth + 1)) ** 0.5)  # type: ignore[arg-type]

    def keys_values(self, x: Float[Tensor, "batch token dim"]) -> KeysValues:
        """What later tokens need to attend to these ones at this block."""
        return self.attention.keys_values(self.attention_norm(x))

    def forward(
        self, x: Float[Tensor, "batch token dim"], memory: KeysValues | None = None, rotation: Rotation | None = None
    ) -> tuple[Float[Tensor, "batch token dim"], KeysValues]:
        """The block's output, and its tokens' keys and values; a `rotation` turns queries and keys."""
        attended, own = self.attention(self.attention_norm(x), memory, rotation)
        x = x + self.attention_scale(attended)
        return x + self.mlp_scale(self.mlp(self.mlp_norm(x))), own


class ModulatedBlock(nn.Module):
    """LightningDiT block: RMSNorm, SwiGLU, adaLN-zero from a condition per sample or per token (3DDiT section 3.2)."""

    def __init__(self, dim: int, heads: int, *, mlp_ratio: float = 4.0, qk_norm: bool = True) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, bias=True, qk_norm=qk_norm)
        self.mlp_norm = RMSNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim, int(2 / 3 * int(dim * mlp_ratio)))
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        condition: Float[Tensor, "batch one_or_token dim"],
        memory: KeysValues | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], KeysValues]:
        """The block's output, and its tokens' keys and values."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(nn.functional.silu(condition)).chunk(6, -1)
        attended, own = self.attention(modulate(self.attention_norm(x), shift_a, scale_a), memory)
        x = x + gate_a * attended
        return x + gate_m * self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m)), own


def modulate(
    x: Float[Tensor, "batch token dim"],
    shift: Float[Tensor, "batch one_or_token dim"],
    scale: Float[Tensor, "batch one_or_token dim"],
) -> Float[Tensor, "batch token dim"]:
    """Adaptive layer norm's affine part."""
    return torch.addcmul(shift, x, 1 + scale)
