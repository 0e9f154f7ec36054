"""DiT3D: denoiser of 3D latent tokens, LightningDiT blocks with a wide DDT head (arXiv 2604.11331, section 3.2)."""

import math
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from diorama.nn.attention import KeysValues, RMSNorm
from diorama.nn.blocks import ModulatedBlock, modulate
from diorama.nn.embeddings import TimeEmbed

# fmt: off
SIZES: dict[str, dict[str, Any]] = {  # keyword arguments of DiT3D by name; tokens and channels are the autoencoder's
    "tiny": dict(dim=192,  layers=6,  heads=3,  head_dim=256,  head_layers=2, head_heads=4),
    "S":    dict(dim=384,  layers=12, heads=6,  head_dim=2048, head_layers=2, head_heads=16),
    "B":    dict(dim=768,  layers=12, heads=12, head_dim=2048, head_layers=2, head_heads=16),
    "XL":   dict(dim=1152, layers=28, heads=16, head_dim=2048, head_layers=2, head_heads=16),
}
# fmt: on


class DiTOutput(NamedTuple):
    """Velocity, and the backbone's state, which the head can be asked again with."""

    velocity: Float[Tensor, "batch token channel"]
    state: Float[Tensor, "batch token dim"]


class ScaleEmbed(nn.Module):
    """Condition that says how large a scene is, by the logarithm of a ratio; a new one says nothing.

    What is not finite is not known, and says nothing ever.
    """

    octaves: Tensor

    def __init__(self, dim: int, octaves: int = 6) -> None:
        super().__init__()
        # One period is 16: factors of 3,000 either way differ, and so do those of a few percent.
        self.register_buffer("octaves", math.pi / 8 * 2.0 ** torch.arange(octaves), persistent=False)
        self.map = nn.Linear(2 * octaves, dim)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, log_scale: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        given = log_scale.isfinite()
        angles = log_scale.float().where(given, 0.0)[:, None] * self.octaves
        features = torch.cat([angles.sin(), angles.cos()], -1).to(self.map.weight.dtype)
        return self.map(features) * given[:, None]


class DiT3D(ModelMixin, ConfigMixin):
    """Velocity of noisy latent tokens given the tokens of what is known.

    `condition` is "channel" (known tokens beside the noisy ones, index by index), "token" (as more tokens of the
    backbone's sequence), "prefix" (the same, but they see only each other and no time, so that their keys and values
    serve all steps; not in the paper) or "none". `classes` > 0 adds a table for class-conditional pre-training, whose
    last row is the null class. `head_index` gives the head its own index embedding. `scale` adds a condition that says
    how far the farthest camera is for what the first view shows, without which one photo leaves that open (not in the
    paper).
    """

    config_name = "config.json"
    config: Any  # what __init__ was called with, by attribute

    @register_to_config
    def __init__(
        self,
        *,
        tokens: int = 1024,
        channels: int = 768,
        dim: int = 1152,
        layers: int = 28,
        heads: int = 16,
        head_dim: int = 2048,
        head_layers: int = 2,
        head_heads: int = 16,
        mlp_ratio: float = 4.0,
        condition: str = "channel",
        classes: int = 0,
        qk_norm: bool = True,
        head_index: bool = True,
        scale: bool = False,
    ) -> None:
        super().__init__()
        if condition not in ("channel", "token", "prefix", "none"):
            raise ValueError(f"condition {condition!r}: accepted are 'channel', 'token', 'prefix' and 'none'")
        inputs = 2 * channels if condition == "channel" else channels
        self.input = nn.Linear(inputs, dim)
        self.head_input = nn.Linear(inputs, head_dim)
        self.table = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.head_table = nn.Parameter(0.02 * torch.randn(tokens, head_dim)) if head_index else None
        apart = condition in ("token", "prefix")
        self.known_input = nn.Linear(channels, dim) if apart else None
        self.kind = nn.Parameter(0.02 * torch.randn(2, dim)) if apart else None  # noisy, known
        self.time = TimeEmbed(dim)
        self.label = nn.Embedding(classes + 1, dim) if classes else None
        self.scale_embed = ScaleEmbed(dim) if scale else None
        self.blocks = nn.ModuleList(
            ModulatedBlock(dim, heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm) for _ in range(layers)
        )
        self.state_projection = nn.Linear(dim, head_dim)
        self.head_blocks = nn.ModuleList(
            ModulatedBlock(head_dim, head_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm) for _ in range(head_layers)
        )
        self.output_norm = RMSNorm(head_dim, eps=1e-6)
        self.output_modulation = nn.Linear(head_dim, 2 * head_dim)
        self.output = nn.Linear(head_dim, channels)
        self._initialize()

    def register_to_config(self, **told: Any) -> None:
        """Leave out a scale that there is not: such models are saved as they were before there could be one."""
        super().register_to_config(**{key: value for key, value in told.items() if (key, value) != ("scale", False)})

    def _initialize(self) -> None:
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)
        blocks: list[ModulatedBlock] = [*self.blocks, *self.head_blocks]  # type: ignore[list-item]
        for block in blocks:
            for layer in (block.attention.qkv, block.attention.proj, block.mlp.gate_value, block.mlp.out):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.input, self.head_input, self.known_input, self.state_projection):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.output_modulation, self.output):  # a new model says velocity 0
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def backbone(
        self,
        noisy: Float[Tensor, "batch token channel"],
        t: Float[Tensor, " batch"],
        known: Float[Tensor, "batch token channel"] | None = None,
        label: Int[Tensor, " batch"] | None = None,
        log_scale: Float[Tensor, " batch"] | None = None,
        *,
        prefix: list[KeysValues] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """The head's condition for every token; changes slowly over t, so that near steps may share it (DDT)."""
        time = self.time(t).to(noisy.dtype)[:, None]
        condition = self._condition(time, label, log_scale)
        x = self.input(self._with_known(noisy, known)) + self.table
        tokens = x.shape[1]
        if self.known_input is not None and self.kind is not None:
            x = x + self.kind[0]
        if self.config.condition == "token":
            x = torch.cat([x, self._known_tokens(known)], 1)
        elif self.config.condition == "prefix" and prefix is None:
            prefix = self.prefix(known, label, log_scale)  # type: ignore[arg-type]
        for block, memory in zip(self.blocks, prefix or [None] * len(self.blocks), strict=True):
            x, _ = block(x, condition, memory)
        return nn.functional.silu(time + x[:, :tokens])

    def prefix(
        self,
        known: Float[Tensor, "batch token channel"],
        label: Int[Tensor, " batch"] | None = None,
        log_scale: Float[Tensor, " batch"] | None = None,
    ) -> list[KeysValues]:
        """Each block's keys and values of the known tokens, which no step changes; of a model with such a condition."""
        x, memory = self._known_tokens(known), []
        condition = self._condition(torch.zeros_like(x[:, :1]), label, log_scale)
        for block in self.blocks:
            x, own = block(x, condition)
            memory.append(own)
        return memory

    def _condition(self, start: Tensor, label: Tensor | None, log_scale: Tensor | None) -> Tensor:
        if self.label is not None and label is not None:
            start = start + self.label(label)[:, None]
        if self.scale_embed is not None and log_scale is not None:
            start = start + self.scale_embed(log_scale)[:, None]
        return nn.functional.silu(start)

    def _known_tokens(self, known: Tensor | None) -> Tensor:
        return self.known_input(known) + self.table + self.kind[1]  # type: ignore[misc, index]

    def forward(
        self,
        noisy: Float[Tensor, "batch token channel"],
        t: Float[Tensor, " batch"],
        known: Float[Tensor, "batch token channel"] | None = None,
        label: Int[Tensor, " batch"] | None = None,
        state: Float[Tensor, "batch token dim"] | None = None,
        log_scale: Float[Tensor, " batch"] | None = None,
        *,
        prefix: list[KeysValues] | None = None,
    ) -> DiTOutput:
        """Velocity at time t (1 = noise); a given `state` skips the backbone, a given `prefix` the known tokens.

        `log_scale` is the logarithm of the farthest camera's distance from the first, in median depths of the first
        view; NaN where that is not known.
        """
        if (known is None) != (self.config.condition == "none"):
            raise ValueError(f"condition {self.config.condition!r} with known tokens {known is not None}")
        if log_scale is not None and self.scale_embed is None:
            raise ValueError("log_scale given: this DiT3D was made without scale")
        if state is None:
            state = self.backbone(noisy, t, known, label, log_scale, prefix=prefix)
        condition = self.state_projection(state)
        x = self.head_input(self._with_known(noisy, known))
        if self.head_table is not None:
            x = x + self.head_table
        for block in self.head_blocks:
            x, _ = block(x, condition)
        shift, scale = self.output_modulation(nn.functional.silu(condition)).chunk(2, -1)
        return DiTOutput(self.output(modulate(self.output_norm(x), shift, scale)), state)

    def _with_known(self, noisy: Tensor, known: Tensor | None) -> Tensor:
        return torch.cat([noisy, known], -1) if known is not None and self.known_input is None else noisy
