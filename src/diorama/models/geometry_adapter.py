"""GeometryAdapter: VGGT's tokens of a clip <-> latents shaped like a video VAE's (Gen3R, arXiv 2601.04090)."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanRMS_norm
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor, nn

SPECIAL_TOKENS = 5  # before the patches of each view: one of the camera, four registers
LATENTS_MEAN = (  # of the published weights, over clips of 49 frames
    0.14257538, 0.18577661, 0.14208488, 0.06298031, 0.09738383, -0.06001362, -0.04728968, -0.12326089,
    -0.04308648, -0.10522724, 0.08278389, -0.00270301, -0.09203526, 0.03170688, 0.11458898, 0.10679868,
)  # fmt: skip
LATENTS_STD = (
    0.56929547, 0.61451489, 0.68560797, 0.78598368, 0.51151282, 0.75570852, 0.80284864, 0.63438177,
    0.82458758, 0.59266430, 0.75781488, 0.70593017, 0.70382243, 0.57837099, 0.73155540, 0.71971470,
)  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {  # keyword arguments of GeometryAdapter by name; `channels` follow from VGGT
    "tiny": dict(dim=16, reduction=8),
    "gen3r": dict(dim=128, reduction=10),
}
Layer = Float[Tensor, "batch frame token dim"]
Tokens = Float[Tensor, "batch channel frame height width"]  # packed, on VGGT's grid of patches
Latents = Float[Tensor, "batch latent latent_frame latent_height latent_width"]
Past = dict[nn.Module, Tensor]  # what each causal layer has to remember of the frames before a chunk


def pack_tokens(layers: Sequence[Layer], height: int, width: int) -> Tokens:
    """Patch tokens of a grid of height x width, layer by layer, then the last layer's camera token at every place."""
    camera = layers[-1][:, :, :1].expand(-1, -1, height * width, -1)
    maps = torch.cat([*(layer[:, :, -height * width :] for layer in layers), camera], -1)
    return maps.unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)


def unpack_tokens(packed: Tokens, special: int = SPECIAL_TOKENS) -> list[Layer]:
    """VGGT's four layers again; the camera token's mean over all places stands for every special token."""
    *layers, camera = packed.flatten(3).permute(0, 2, 3, 1).chunk(5, -1)
    camera = camera.mean(2, keepdim=True).expand(-1, -1, special, -1)
    return [torch.cat([camera, layer], 2) for layer in layers]


class Norm(WanRMS_norm):
    """RMS norm over channels in few passes, of which half precision takes the root in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, images=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = wide.square().sum(1, keepdim=True).clamp(min=1e-24).rsqrt()
        return (wide * inverse).to(x.dtype) * (self.gamma * self.scale)


class CausalConv3d(nn.Conv3d):
    """A 3x3x3 (or 3x1x1) convolution that sees the two frames before each frame and none after it.

    `past` is read for the frames before x, zeros if it has none, and left with the last two of x.
    """

    def __init__(self, inputs: int, outputs: int, side: int = 3) -> None:
        super().__init__(inputs, outputs, (3, side, side), padding=(0, side // 2, side // 2))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        before = None if past is None else past.get(self)
        before = x.new_zeros(*x.shape[:2], 2, *x.shape[3:]) if before is None else before
        if past is not None:
            last = x if x.shape[2] > 1 else torch.cat([before, x], 2)
            past[self] = last[:, :, -2:].clone()  # a view would keep all of x alive
        # Torch's own 3D convolution is slow on a CPU, and a gradient would have to keep the sums of frames.
        plain = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled() or x.shape[2] == 1
        return super().forward(torch.cat([before, x], 2)) if plain else self._by_pairs(before, x)

    def _by_pairs(self, before: Tensor, x: Tensor) -> Tensor:
        """The same from 2D convolutions: four instead of six for two frames (Winograd's F(2, 3), over time)."""
        count = x.shape[2]
        parts = [before, x, before[:, :, : count % 2]]  # of an odd last pair, one frame is made and left out
        frames = torch.cat([part.transpose(1, 2) for part in parts], 1)
        even, odd = frames[:, ::2], frames[:, 1::2]
        a, b, c, d = (part.flatten(0, 1) for part in (even[:, :-1], odd[:, :-1], even[:, 1:], odd[:, 1:]))
        first, second, third = self.weight.unbind(2)
        convolved = partial(F.conv2d, padding=self.padding[1:])  # type: ignore[call-arg]
        mean = convolved(b + c, (first + second + third) / 2, self.bias)
        half = convolved(c - b, (first - second + third) / 2)
        pairs = torch.stack([mean + half + convolved(a - c, first), mean - half - convolved(b - d, third)], 1)
        return pairs.unflatten(0, (x.shape[0], -1)).flatten(1, 2)[:, :count].transpose(1, 2)


class Residual(nn.Module):
    """Two causal convolutions beside the identity, or beside a 1x1x1 convolution where channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs)
        self.conv1 = CausalConv3d(inputs, outputs)
        self.norm2 = Norm(outputs)
        self.conv2 = CausalConv3d(outputs, outputs)
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)), past)
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden)), past)


def residuals(*dims: int) -> list[nn.Module]:
    """Blocks between neighbouring numbers of channels."""
    return [Residual(inputs, outputs) for inputs, outputs in itertools.pairwise(dims)]


class FrameConv(nn.Module):
    """A 3x3 convolution of each frame by itself."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        return self.conv(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


class HalveTime(FrameConv):
    """2k + 1 frames to k + 1: the first stays, each later one is made of three, the first of them shared."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x = super().forward(x)
        before = None if past is None else past.get(self)
        made = [x[:, :, :1]] if before is None else []
        x = x if before is None else torch.cat([before, x], 2)
        if past is not None:
            past[self] = x[:, :, -1:].clone()
        return torch.cat([*made, self.time_conv(x)] if x.shape[2] > 1 else made, 2)


class DoubleTime(FrameConv):
    """k + 1 frames to 2k + 1: the first stays and no later one sees it, each later one becomes two."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim // 2)
        self.time_conv = CausalConv3d(dim, 2 * dim, 1)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        started = past is not None and self in past
        made, rest = ([], x) if started else ([x[:, :, :1]], x[:, :, 1:])
        if rest.shape[2]:
            pairs = self.time_conv(rest, past).unflatten(1, (2, -1))
            made.append(pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3))
        if past is not None:
            past[self] = x.new_empty(0)  # a mark that the first frame has gone by
        return super().forward(torch.cat(made, 2))


class Stem(nn.Conv2d):
    """A 3x3 convolution of maps enlarged by 7/4, most of the encoder's work: each tap is applied before pixels repeat.

    That is the same by linearity, with 49/16 times fewer products; taps are summed in at least float32.
    """

    def forward(self, x: Float[Tensor, "frame channel h w"]) -> Float[Tensor, "frame out height width"]:
        size = height, width = 7 * x.shape[-2] // 4, 7 * x.shape[-1] // 4
        maps = x.movedim(1, -1)  # as `pack_tokens` leaves them in memory
        wide = torch.promote_types(x.dtype, torch.float32)
        total = x.new_zeros(x.shape[0], height + 2, width + 2, self.out_channels, dtype=wide).movedim(-1, 1)
        for top, left in itertools.product(range(3), range(3)):
            tap = F.linear(maps, self.weight[:, :, 2 - top, 2 - left]).movedim(-1, 1)
            total[..., top : top + height, left : left + width] += F.interpolate(tap, size, mode="nearest-exact")
        total = total[..., 1:-1, 1:-1]
        return (total if self.bias is None else total + self.bias[:, None, None]).to(x.dtype)


class Encoder(nn.Module):
    """Token maps of 4k + 1 frames to the moments of k + 1 latent frames."""

    def __init__(self, channels: int, latent_channels: int, dim: int, reduction: int) -> None:
        super().__init__()
        self.stem = Stem(channels, channels // reduction, 3)
        self.conv_in = CausalConv3d(channels // reduction, 4 * dim)
        self.blocks = nn.ModuleList([
            *residuals(4 * dim, 4 * dim, 4 * dim), FrameConv(4 * dim, 4 * dim), *residuals(4 * dim, 2 * dim, 2 * dim),
            HalveTime(2 * dim), *residuals(2 * dim, dim, dim), HalveTime(dim), *residuals(dim, dim, dim),
        ])  # fmt: skip
        self.middle = nn.ModuleList([Residual(dim, dim), WanAttentionBlock(dim), Residual(dim, dim)])
        self.norm_out = Norm(dim)
        self.conv_out = CausalConv3d(dim, 2 * latent_channels)

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        frames = self.stem(tokens.transpose(1, 2).flatten(0, 1))
        x = self.conv_in(frames.unflatten(0, (tokens.shape[0], -1)).transpose(1, 2), past)
        for block in [*self.blocks, *self.middle]:
            x = block(x) if isinstance(block, WanAttentionBlock) else block(x, past)
        return self.conv_out(F.silu(self.norm_out(x)), past)


class Decoder(nn.Module):
    """k + 1 latent frames to the token maps of 4k + 1 frames."""

    def __init__(self, channels: int, latent_channels: int, dim: int, reduction: int) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(latent_channels, dim)
        self.middle = nn.ModuleList([Residual(dim, dim), WanAttentionBlock(dim), Residual(dim, dim)])
        self.blocks = nn.ModuleList([
            *residuals(dim, dim, dim, dim), DoubleTime(dim), *residuals(dim // 2, dim, dim, dim), DoubleTime(dim),
            *residuals(dim // 2, 2 * dim, 2 * dim, 2 * dim), FrameConv(2 * dim, dim),
            *residuals(dim, 4 * dim, 4 * dim, 4 * dim),
        ])  # fmt: skip
        self.norm_out = Norm(4 * dim)
        self.conv_out = CausalConv3d(4 * dim, channels // reduction)
        self.tokens_out = nn.Conv2d(channels // reduction, channels, 3, stride=2)

    def forward(self, latents: Tensor, past: Past | None = None) -> Tensor:
        x = self.conv_in(latents, past)
        for block in [*self.middle, *self.blocks]:
            x = block(x) if isinstance(block, WanAttentionBlock) else block(x, past)
        frames = self.conv_out(F.silu(self.norm_out(x)), past).transpose(1, 2).flatten(0, 1)
        size = (8 * x.shape[-2] // 7, 8 * x.shape[-1] // 7)  # the published code says 80x80, whatever comes
        frames = F.pad(F.interpolate(frames, size, mode="nearest-exact"), (0, 1, 0, 1))
        return self.tokens_out(frames).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


class GeometryAdapter(ModelMixin, ConfigMixin):
    """Variational autoencoder from packed VGGT tokens (14 pixels a patch) to normalised latents (8 pixels, 4 frames).

    Clips have 4k + 1 frames; grids are multiples of 4 patches. The defaults are the published size and its statistics:
    a mean of the posterior is (mu - latents_mean) / latents_std, its logarithmic variance is never rescaled.
    """

    config_name = "config.json"
    config: Any  # what __init__ was called with, by attribute

    @register_to_config
    def __init__(
        self,
        *,
        channels: int = 10240,
        latent_channels: int = 16,
        dim: int = 128,
        reduction: int = 10,
        latents_mean: Sequence[float] = LATENTS_MEAN,
        latents_std: Sequence[float] = LATENTS_STD,
    ) -> None:
        super().__init__()
        if not len(latents_mean) == len(latents_std) == latent_channels:
            counts = f"{len(latents_mean)} means and {len(latents_std)} deviations"
            raise ValueError(f"latent statistics: {counts} for {latent_channels} channels; accepted is one each")
        self.encoder = Encoder(channels, latent_channels, dim, reduction)
        self.quant_conv = nn.Conv3d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(channels, latent_channels, dim, reduction)

    @apply_forward_hook  # or nothing would move an offloaded adapter to its device
    def encode(self, tokens: Tokens, *, chunk: int | None = None) -> DiagonalGaussianDistribution:
        """Posterior of the normalised latents, batch latent (frame + 3) / 4 height * 7/4 width * 7/4.

        `chunk` latent frames at a time need less memory and give the same, up to rounding.
        """
        frames, (height, width) = tokens.shape[2], tokens.shape[3:]
        if frames % 4 != 1 or height % 4 or width % 4:
            found = f"tokens of {frames} frames, {height}x{width} patches"
            raise ValueError(f"{found}: accepted are 4k + 1 frames, multiples of 4 patches")
        starts = range(0, (frames + 3) // 4, chunk) if chunk else ()
        past: Past = {}
        pieces = [self.encoder(tokens[:, :, max(0, 4 * i - 3) : 4 * (i + (chunk or 0)) - 3], past) for i in starts]
        moments = self.quant_conv(torch.cat(pieces, 2) if pieces else self.encoder(tokens))
        mean, log_variance = moments.chunk(2, 1)
        center, scale = self._statistics(mean)
        return DiagonalGaussianDistribution(torch.cat([(mean - center) / scale, log_variance], 1))

    @apply_forward_hook
    def decode(self, latents: Latents, *, chunk: int | None = None) -> Tokens:
        """Packed tokens of 4 * latent_frame - 3 frames, at 4/7 of the latents' size; `chunk` as in `encode`."""
        height, width = latents.shape[3:]
        if height % 7 or width % 7:
            raise ValueError(f"geometry latents of {height}x{width}: accepted are multiples of 7")
        center, scale = self._statistics(latents)
        latents = self.post_quant_conv(latents * scale + center)
        past: Past = {}
        pieces = [self.decoder(piece, past) for piece in latents.split(chunk, 2)] if chunk else []
        return torch.cat(pieces, 2) if pieces else self.decoder(latents)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, shaped and typed for latents."""
        both = like.new_tensor([self.config.latents_mean, self.config.latents_std])[..., None, None, None]
        return both[0], both[1]
