"""A video VAE of Wan's kind (diffusers' class) of any size, from random weights: for tiny Gen3R's appearance."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor, nn

from diorama.evaluation.metrics import psnr
from diorama.models.perceptual import load_lpips
from diorama.training.clips import Clip, ClipData, Clips, check_frames, in_range
from diorama.training.kernels import first_weights, kernel_optimizers
from diorama.training.parts import video_vae_in
from diorama.training.statistics import Statistics
from diorama.training.trainer import WHOLE, Share, step_generator

SIZES: dict[str, dict[str, Any]] = {  # keyword arguments of AutoencoderKLWan by name
    # Wan 2.2's kind, for a fourth of the work: 2x2 pixels at a time, and averages beside every change of size.
    "tiny": dict(
        base_dim=32,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
    ),
    "wan2.1": dict(base_dim=96, dim_mult=[1, 2, 4, 4], num_res_blocks=2),
}
LPIPS_FRAMES = 4  # of each clip, at most


@dataclass(frozen=True)
class Config(ClipData):
    """Training of a video VAE; these losses and weights are ours, Wan's own training is not published."""

    size: str = "wan2.1"
    """Row of the table of sizes."""
    start: Path | None = None
    """Folder of a video VAE of this size to begin from, in diffusers' layout or Wan's own."""
    frames: int = 17
    """Frames of a clip, 4k + 1."""
    image_size: tuple[int, int] = (256, 256)
    steps: int = 100_000
    warmup: int = 1_000
    muon_rate: float = 0.0
    """Peak rate of Muon for convolutions; 0 leaves everything to AdamW."""
    kl_weight: float = 1e-4
    """Weight of the KL divergence to standard normal numbers, in the mean over latent numbers."""
    lpips_weight: float = 0.0
    """Weight of LPIPS, over the VGG16 in your cache of published weights."""
    statistics_clips: int = 256
    """Clips whose latents' mean and deviation are written into the model's config at the end."""


class VideoVAEStage:
    """Reconstruction of clips from few numbers."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        check_frames("frames", config.frames)
        self.config = config
        self.data, self.held_out = (Clips(x, config.image_size, unit=8) for x in (config.data, config.validation))
        told: dict[str, Any] = SIZES[config.size] | {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
        self.model: Any = AutoencoderKLWan(**told)
        if config.start:
            found = video_vae_in(config.start)
            if any(found.config[name] != value for name, value in SIZES[config.size].items()):
                raise ValueError(f"{config.start}: a video VAE of another size; accepted is --size {config.size}")
            self.model = found
        else:
            first_weights(self.model, self.model.decoder.conv_out)
        self.lpips = load_lpips() if config.lpips_weight else None
        self.modules: dict[str, nn.Module] = {"video_vae": self.model}
        self.optimizers = {"reconstruction": kernel_optimizers(self.model, config, config.muon_rate)}

    def batch(self, step: int, share: Share = WHOLE) -> Clip:
        """Clips of random scenes."""
        config = self.config
        return self.data.drawn(config, config.batch, config.frames, step_generator(config.seed, step, 0), share)

    def phases(self, batch: Clip, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: distance of pixels, divergence of latents, perhaps LPIPS."""
        config, true = self.config, in_range(batch.views.images.to(self.model.device))
        posterior = self.model.encode(true).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        made = self.model.decode(posterior.mean + posterior.std * noise).sample.float()
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        losses = {"reconstruction": (made - true).abs().mean(), "divergence": config.kl_weight * divergence}
        if self.lpips is not None:
            chosen = torch.randperm(config.frames, generator=generator)[:LPIPS_FRAMES]
            pair = ((x[:, :, chosen].transpose(1, 2).flatten(0, 1) / 2 + 0.5).clamp(0, 1) for x in (made, true))
            losses["lpips"] = config.lpips_weight * self.lpips.to(made.device)(*pair).mean()
        yield "reconstruction", losses

    def validate(self) -> tuple[dict[str, float], Float[Tensor, "3 height width"]]:
        """PSNR of held-out clips from their latents' means, the latents' deviation, and pictures."""
        images = self.held_out.first(self.config, 8, self.config.frames).views.images
        made, spread = [], []
        for clip in images.split(1):
            mean = self.model.encode(in_range(clip.to(self.model.device))).latent_dist.mean
            made.append(self.model.decode(mean).sample.float().cpu().transpose(1, 2) / 2 + 0.5)
            spread.append(mean.float().std())
        found, middle = torch.cat(made), self.config.frames // 2
        rows = torch.cat([images[:, middle], found[:, middle]], -2)
        values = {"psnr": float(psnr(found, images).mean()), "latent_std": float(torch.stack(spread).mean())}
        return values, torch.cat(list(rows), -1)

    def save(self, folder: Path) -> None:
        """Write the model, with its latents' statistics in its config, as diffusers reads it."""
        config, statistics = self.config, Statistics(self.model.config.z_dim)
        with torch.no_grad():
            for number in range(config.statistics_clips):
                clip = self.data.drawn(config, 1, config.frames, step_generator(config.seed, number, 3))
                mean = self.model.encode(in_range(clip.views.images.to(self.model.device))).latent_dist.mean
                statistics.add(mean.float().transpose(0, 1).flatten(1).T)
        self.model.register_to_config(latents_mean=statistics.mean.tolist(), latents_std=statistics.std.tolist())
        self.model.save_pretrained(folder)
