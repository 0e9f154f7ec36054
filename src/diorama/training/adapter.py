"""Gen3R's first stage: the adapter between VGGT's tokens and latents like a frozen video VAE's (section 3.2)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diorama.evaluation.metrics import depth_abs_rel
from diorama.evaluation.poses import auc, pair_errors
from diorama.models.geometry_adapter import SIZES, GeometryAdapter, pack_tokens, unpack_tokens
from diorama.models.vggt import VGGTOutput
from diorama.pipelines.base import pick_device
from diorama.pipelines.gen3r import UNIT
from diorama.pipelines.gen3r_conditions import appearance_moments
from diorama.training.clips import Clip, ClipData, Clips, check_frames, in_range
from diorama.training.gen3r_losses import Form, Moments, adapter_losses, pointwise_kl
from diorama.training.kernels import first_weights
from diorama.training.parts import adapter_in, frozen, vggt_in, video_vae_in
from diorama.training.statistics import Statistics
from diorama.training.trainer import WHOLE, Share, step_generator


@dataclass(frozen=True)
class Config(ClipData):
    """Training of the adapter; the defaults are the published run's."""

    vggt: Path = field(kw_only=True)
    """Folder of a trained VGGT, which stays as it is."""
    video_vae: Path = field(kw_only=True)
    """Folder of a trained video VAE, which stays as it is."""
    size: str = "gen3r"
    """Row of GeometryAdapter's table of sizes; its channels follow from VGGT."""
    start: Path | None = None
    """Folder of an adapter of this size to begin from, ours or published."""
    frames: int = 49
    """Frames of a clip, 4k + 1."""
    short_frames: int = 25
    """Frames of a clip in the first steps: from long clips alone training hardly begins."""
    short_steps: int = 15_000
    """So many first steps."""
    losses: Literal["released", "paper"] = "released"
    """Forms of the losses: the released code's, or the paper's, whose weights are not published and guessed here."""
    alignment: Literal["video", "normal", "none"] = "video"
    """What latents are drawn to: the video VAE's of the same place (Gen3R), standard normal numbers, nothing."""
    statistics_clips: int = 256
    """Clips whose latents' mean and deviation are written into the model's config at the end."""
    steps: int = 21_000
    batch: int = 192
    learning_rate: float = 1e-5
    warmup: int = 0
    final_rate: float = 0.2
    clip: float = 0.5
    ema: float = 0.0
    weight_decay: float = 1e-4
    """Of AdamW."""


class Seen(NamedTuple):
    """What the frozen models say of clips, and what is left of it after the adapter."""

    true: Float[Tensor, "batch channel frame height width"]
    made: Float[Tensor, "batch channel frame height width"]
    known: VGGTOutput
    found: VGGTOutput
    moments: Moments  # of the adapter
    appearance: Moments  # of the video VAE


class AdapterStage:
    """Reconstruction of VGGT's tokens and of its geometry from latents beside those of the video."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        check_frames("frames", config.frames)
        check_frames("short-frames", config.short_frames)
        self.config, device = config, pick_device(config.device)
        self.vggt = frozen(vggt_in(config.vggt), device)
        self.vae: Any = frozen(video_vae_in(config.video_vae), device)
        self.data, self.held_out = (Clips(x, config.image_size, unit=UNIT) for x in (config.data, config.validation))
        channels, latents = 10 * self.vggt.config.dim, self.vae.config.z_dim
        if config.start:
            self.model = adapter_in(config.start)
            if (self.model.config.channels, self.model.config.latent_channels) != (channels, latents):
                found = f"{config.start}: an adapter of {self.model.config.channels} channels"
                raise ValueError(f"{found}; accepted is one of {channels}, which --vggt has, and {latents} latent ones")
        else:
            none = {"latents_mean": [0.0] * latents, "latents_std": [1.0] * latents}
            self.model = GeometryAdapter(channels=channels, latent_channels=latents, **SIZES[config.size] | none)
            first_weights(self.model, self.model.decoder.tokens_out, share=0.3)
        self.modules: dict[str, nn.Module] = {"adapter": self.model}
        optimizer = torch.optim.AdamW(
            self.model.parameters(), config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        self.optimizers: dict[str, list[torch.optim.Optimizer]] = {"adapter": [optimizer]}

    def batch(self, step: int, share: Share = WHOLE) -> Clip:
        """Clips of random scenes, short ones first."""
        config = self.config
        frames = config.short_frames if step < config.short_steps else config.frames
        return self.data.drawn(config, config.batch, frames, step_generator(config.seed, step, 0), share)

    def phases(self, batch: Clip, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: all terms, weighted."""
        seen = self.seen(batch.views.images, generator)
        divergence = None
        if self.config.alignment != "none":
            normal = tuple(torch.zeros_like(x) for x in seen.moments)
            divergence = pointwise_kl(seen.moments, seen.appearance if self.config.alignment == "video" else normal)  # type: ignore[arg-type]
        form: Form = self.config.losses
        yield "adapter", adapter_losses((seen.made, seen.true), (seen.found, seen.known), divergence, form)

    def seen(
        self, images: Float[Tensor, "batch frame 3 height width"], generator: torch.Generator | None = None
    ) -> Seen:
        """Clips through everything; latents are drawn with a generator, else they are the posterior's mean."""
        images = images.to(self.model.device)
        height, width = images.shape[-2:]
        with torch.no_grad():
            true = self.tokens(images)
            known = self.vggt.decode(unpack_tokens(true), height, width)
            appearance = tuple(x.float() for x in appearance_moments(self.vae, in_range(images)))
        posterior = self.model.encode(true)
        latents = posterior.mean
        if generator is not None:
            latents = latents + posterior.std * torch.randn(latents.shape, generator=generator).to(latents)
        made = self.model.decode(latents).float()
        found = self.vggt.decode(unpack_tokens(made), height, width)
        moments = posterior.mean.float(), posterior.logvar.float()
        return Seen(true.float(), made, known, found, moments, appearance)  # type: ignore[arg-type]

    def tokens(
        self, images: Float[Tensor, "batch frame 3 height width"]
    ) -> Float[Tensor, "batch channel frame rows columns"]:
        """VGGT's tokens of clips, packed."""
        patch = self.vggt.config.patch
        return pack_tokens(self.vggt.encode(images), images.shape[-2] // patch, images.shape[-1] // patch)

    def validate(self) -> tuple[dict[str, float], Float[Tensor, "3 height width"]]:
        """How far geometry after the adapter is from VGGT's own, and latents from the video's; depth before and after.

        `latent_distance`: of the two distributions' channels, means and deviations, root mean square.
        """
        numbers: list[list[float]] = []
        shown: list[Tensor] = []
        own, video = (Statistics(self.vae.config.z_dim) for _ in range(2))
        for images in self.held_out.first(self.config, 8, self.config.frames).views.images.split(1):
            seen = self.seen(images)
            error = depth_abs_rel(seen.found.depth, seen.known.depth, torch.ones_like(seen.known.depth).bool())
            worst = pair_errors(seen.found.cameras, seen.known.cameras).worst()
            numbers.append([float(error.mean()), float(auc(worst, 30).mean())])
            for statistics, (mean, _) in ((own, seen.moments), (video, seen.appearance)):
                statistics.add(mean.transpose(0, 1).flatten(1).T)
            pair = torch.cat([1 / x[0, 0].clamp(min=0.1) for x in (seen.known.depth, seen.found.depth)], -2)
            shown.append((pair / pair.amax()).cpu())
        depth, cameras = torch.tensor(numbers).mean(0).tolist()
        apart = torch.stack([own.mean - video.mean, own.std - video.std]).square().mean().sqrt()
        values = {"depth_abs_rel": depth, "auc_30": cameras, "latent_distance": float(apart)}
        return values, torch.cat(shown, -1)[None].repeat(3, 1, 1)

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Write the adapter with the statistics of its latents in its config."""
        config, latents = self.config, self.model.config.latent_channels
        old = [torch.tensor(self.model.config[name]).double() for name in ("latents_mean", "latents_std")]
        statistics = Statistics(latents)
        for number in range(config.statistics_clips):
            clip = self.data.drawn(config, 1, config.frames, step_generator(config.seed, number, 3))
            mean = self.model.encode(self.tokens(clip.views.images.to(self.model.device))).mean.float()
            statistics.add(mean.transpose(0, 1).flatten(1).T)
        # What was measured is normalised by what the config says so far.
        told = {"latents_mean": old[0] + old[1] * statistics.mean, "latents_std": old[1] * statistics.std}
        self.model.register_to_config(**{name: value.tolist() for name, value in told.items()})
        self.model.save_pretrained(folder)
