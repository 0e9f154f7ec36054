"""Samples of the denoiser that are encoded as they are learnt from: of any data, and of sizes that change."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from diorama.models.rae3d import RAE3D
from diorama.training.data import open_batches, sampling
from diorama.training.latents import Classes, Draw, encoded, kept_of, known_places, log_scales, weights_of
from diorama.training.statistics import Statistics
from diorama.training.trainer import WHOLE, Share, step_generator

if TYPE_CHECKING:
    from diorama.training.dit3d import Config


class Sample(NamedTuple):
    """A step's share before it is encoded."""

    draw: Draw  # of two encodings: all views, and what is known of them
    label: Int[Tensor, " batch"] | None
    log_scale: Float[Tensor, " batch"] | None


class Online:
    """Draws a step's samples, and finds the statistics of their latents before the first."""

    def __init__(self, config: "Config", model: RAE3D, classes: Classes | None) -> None:
        if config.single_images and config.dynamic:
            config = replace(config, sample_views=(1, 1))
        self.config, self.classes = config, classes
        patch, tokens = model.config.patch, model.config.tokens
        self._drawn = sampling(config, patch=patch, tokens=tokens, known=(config.encoder_views,), targets=0)
        self.batches = open_batches(config, self._drawn, window=config.window, mirror=True)

    def batch(self, step: int, share: Share = WHOLE) -> Sample:
        """Views of scenes, which of them are known, and of single images the class; some are kept from the model."""
        config, found = self.config, self.batches.batch(step, share)
        count, views = found.views.images.shape[:2]
        # Of each share its own: how many scenes there are in all is known to the sampling alone.
        generator = step_generator(config.seed, step, 3, share.index)
        known = self._known(count, views, generator)
        known &= torch.rand(count, 1, generator=generator) >= config.blind_probability
        label = log_scale = None
        if self.classes is not None:
            dropped = torch.rand(count, generator=generator) < config.label_dropout
            label = self.classes.of(found.names).masked_fill(dropped, len(self.classes.names))
        if config.scale_token:
            dropped = torch.rand(count, generator=generator) < config.scale_dropout
            log_scale = log_scales(found.views).masked_fill(dropped, torch.nan)
        return Sample(Draw(found.views, torch.stack([torch.ones_like(known), known])), label, log_scale)

    def _known(self, samples: int, views: int, generator: torch.Generator) -> Bool[Tensor, "batch view"]:
        """Which views are known; of a single image none, whose pose is all that is."""
        config = self.config
        if views == 1:
            return torch.zeros(samples, 1, dtype=torch.bool)
        if config.dynamic:
            low, high = config.hidden
            share = low + (high - low) * torch.rand(samples, generator=generator)
            count = ((1 - share) * views).round().long().clamp(1, views - 1)
        else:
            count = torch.tensor(config.visible)[torch.randint(len(config.visible), (samples,), generator=generator)]
        return known_places(count, views, generator)

    @torch.no_grad()
    def statistics(self, model: RAE3D) -> Statistics:
        """Of the latents of batches that are never learnt from, each process's share of them, over all processes."""
        found = Statistics(*model.latent_mean.shape)
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        share = Share(torch.distributed.get_rank(), torch.distributed.get_world_size()) if grouped else WHOLE
        # Its own: the next step's may be drawn meanwhile.
        batches = open_batches(self.config, self._drawn, window=self.config.window, mirror=True)
        for number in range(self.config.statistics_batches):
            views = batches.batch(self.config.steps + number, share).views
            found.add(encoded(model, Draw(views, torch.ones(1, *views.images.shape[:2], dtype=torch.bool)))[0])
        batches.close()
        return found.reduced()

    def keep(self, model: RAE3D, file: Path) -> None:
        """Give the model the statistics, and write them; the first process does that."""
        found = self.statistics(model)
        model.latent_mean.copy_(found.mean)
        model.latent_std.copy_(found.std)
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            tensors = {"mean": model.latent_mean.cpu(), "std": model.latent_std.cpu()}
            save_file(tensors, file.with_suffix(".part"), self._made_of(model))
            file.with_suffix(".part").replace(file)

    def kept(self, model: RAE3D, file: Path) -> bool:
        """Give the model the statistics of the file, if it is there; ValueError if they are of something else."""
        if not kept_of(file, self._made_of(model)):
            return False
        found = load_file(file)
        model.latent_mean.copy_(found["mean"])
        model.latent_std.copy_(found["std"])
        return True

    def _made_of(self, model: RAE3D) -> dict[str, str]:
        names = ("data", "seed", "encoder_views", "window", "batch", "steps", "dynamic", "statistics_batches")
        return {name: str(getattr(self.config, name)) for name in names} | {"autoencoder": weights_of(model)}
