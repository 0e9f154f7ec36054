"""Gen3RTransformer: Wan's denoiser for [appearance ; geometry] latents under camera control (arXiv 2601.04090)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan import WanAttention, WanRotaryPosEmbed, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

TEXT_TOKENS = 512  # of which all that a text lacks are zeros
TEXT_UNIT = 32  # text comes in so many tokens, so that few lengths are seen
PIXELS = 8  # pixels of the control beside each latent
# fmt: off
SIZES: dict[str, dict[str, Any]] = {  # keyword arguments of Gen3RTransformer by name; text and image widths come apart
    "tiny": dict(num_attention_heads=2,  attention_head_dim=64,  ffn_dim=512,  num_layers=10, freq_dim=128, added_kv_proj_dim=128),  # noqa: E501
    "1.3B": dict(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, freq_dim=256, added_kv_proj_dim=1536),  # noqa: E501
}
# fmt: on


class TiledRotary(WanRotaryPosEmbed):
    """Rotary table whose right half repeats its left: a geometry token has its appearance token's position."""

    def forward(self, hidden_states: Float[Tensor, "batch channel frame height width"]) -> tuple[Tensor, Tensor]:
        frames, height, width = hidden_states.shape[2:]
        t, h, w = self.patch_size
        if width % (2 * w):
            raise ValueError(f"latents {width} wide: accepted are multiples of {2 * w}, two halves of whole patches")
        grid = (frames // t, height // h, width // 2 // w)
        half = super().forward(hidden_states[..., : width // 2])
        tiled = [table.unflatten(1, grid).repeat(1, 1, 1, 2, 1, 1).flatten(1, 3) for table in half]
        return tiled[0], tiled[1]


class CameraAdapter(nn.Module):
    """Control at the pixels' resolution, folded into channels, to what is added to each patch's embedding."""

    def __init__(self, channels: int, dim: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels * PIXELS**2, dim, patch, stride=patch)
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, folded: Float[Tensor, "batch fold frame h w"]) -> Float[Tensor, "batch dim frame rows columns"]:
        x = self.conv(folded.transpose(1, 2).flatten(0, 1))
        x = x + self.conv2(F.relu(self.conv1(x)))
        return x.unflatten(0, (folded.shape[0], -1)).transpose(1, 2)


class ContextAttention:
    """Cross attention to image tokens and to text, as diffusers' processor does it, with the text's zeros as one key.

    After the text's projection they are all alike, so that one with their number for its weight says what they say.
    """

    text = TEXT_TOKENS  # tokens of the text that come; the last stands for all that are left out

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Float[Tensor, "batch token dim"],
        encoder_hidden_states: Float[Tensor, "batch context dim"],
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        image, text = encoder_hidden_states.tensor_split([encoder_hidden_states.shape[1] - self.text], 1)
        query = _heads(attn.norm_q(attn.to_q(hidden_states)), attn)
        weight = query.new_zeros(self.text)
        weight[-1] = math.log(TEXT_TOKENS - self.text + 1)
        mask = weight.expand(len(query), 1, query.shape[2], -1) if self.text < TEXT_TOKENS else None
        key, value = _heads(attn.norm_k(attn.to_k(text)), attn), _heads(attn.to_v(text), attn)
        read = F.scaled_dot_product_attention(query, key, value, mask)
        if image.shape[1] and attn.add_k_proj is not None and attn.add_v_proj is not None:
            key, value = _heads(attn.norm_added_k(attn.add_k_proj(image)), attn), _heads(attn.add_v_proj(image), attn)
            read = read + F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[1](attn.to_out[0](read.transpose(1, 2).flatten(2)))


def _heads(x: Float[Tensor, "batch token dim"], attn: WanAttention) -> Float[Tensor, "batch heads token channel"]:
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


class ControlledPatchEmbedding(nn.Conv3d):
    """Wan's patch embedding; channels beyond its own are folded control, whose embedding it adds."""

    def __init__(self, channels: int, control_channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__(channels, dim, patch, stride=patch)
        self.control = CameraAdapter(control_channels, dim, patch[1:])

    def forward(self, x: Float[Tensor, "batch channel frame h w"]) -> Float[Tensor, "batch dim frame rows columns"]:
        embedded = super().forward(x[:, : self.in_channels])
        return embedded + self.control(x[:, self.in_channels :]) if x.shape[1] > self.in_channels else embedded


class Gen3RTransformer(WanTransformer3DModel, ModelMixin, ConfigMixin):
    """Velocity of appearance latents (left half) and geometry latents (right half) of one clip.

    Channels in: noisy latents 16, condition latents 16, mask 4. The defaults are the published size. Names of the
    arguments are diffusers'; `control_channels` are the cameras', `tiled_rope` gives both halves the same positions.
    """

    config: Any  # what __init__ was called with, by attribute

    @register_to_config
    def __init__(
        self,
        *,
        patch_size: tuple[int, int, int] | list[int] = (1, 2, 2),
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        in_channels: int = 36,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 8960,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = 1280,
        added_kv_proj_dim: int | None = 1536,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        control_channels: int = 24,
        tiled_rope: bool = True,
    ) -> None:
        super().__init__(
            patch_size=tuple(patch_size),
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        dim, (t, h, w) = num_attention_heads * attention_head_dim, patch_size
        self.patch_embedding = ControlledPatchEmbedding(in_channels, control_channels, dim, (t, h, w))
        if tiled_rope:  # said by the configuration: a portrait clip's two halves are square together
            self.rope = TiledRotary(attention_head_dim, (t, h, w), rope_max_seq_len)
        self.context = ContextAttention()
        for block in self.blocks:
            block.attn2.processor = self.context  # type: ignore[union-attr]

    def forward(
        self,
        hidden_states: Float[Tensor, "batch channel frame height width"],
        timestep: Float[Tensor, " batch"],
        encoder_hidden_states: Float[Tensor, "batch text text_dim"],
        encoder_hidden_states_image: Float[Tensor, "batch image image_dim"] | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        *,
        control: Float[Tensor, "batch cameras frame pixels_high pixels_wide"] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Velocity (noise - data) at timestep 1000 t; `control` has 8x8 pixels a latent, None adds nothing at all.

        Text shorter than 512 tokens is filled up with zeros, which are attended to, as in training.
        """
        text = encoder_hidden_states.shape[1]
        if text > TEXT_TOKENS:
            raise ValueError(f"text of {text} tokens: accepted are at most {TEXT_TOKENS}")
        self.context.text = min(TEXT_UNIT * (text // TEXT_UNIT + 1), TEXT_TOKENS)  # at least one zero, if there are any
        if control is not None:
            frames, height, width = hidden_states.shape[2:]
            wanted = (self.config.control_channels, frames, PIXELS * height, PIXELS * width)
            if control.shape[1:] != wanted:
                raise ValueError(f"camera control of shape {tuple(control.shape[1:])}: accepted is {wanted}")
            folded = F.pixel_unshuffle(control.transpose(1, 2), PIXELS).transpose(1, 2)
            hidden_states = torch.cat([hidden_states, folded.to(hidden_states.dtype)], 1)
        return super().forward(  # type: ignore[return-value]
            hidden_states,
            timestep,  # type: ignore[arg-type]
            F.pad(encoder_hidden_states, (0, 0, 0, self.context.text - text)),
            encoder_hidden_states_image,
            return_dict,
            attention_kwargs,
        )
