"""Between the autoencoder and the denoiser, or after both: the memory that keeps observed views sharp."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diorama.data.cache import WorldsCache
from diorama.data.transforms import mirrored
from diorama.evaluation.metrics import depth_abs_rel, psnr
from diorama.models.checkpoints import check_weights
from diorama.models.observed_memory import INFINITE, SIZES, ObservedMemory, Sharpened, Sweep
from diorama.models.rae3d import RAE3D
from diorama.pipelines.base import pick_device
from diorama.pipelines.decoding import decoded_depth
from diorama.pipelines.tokens import encode_views
from diorama.scene import Views
from diorama.training.losses import gradient_loss, log_depth_loss
from diorama.training.trainer import WHOLE, Run, Share, matrix_optimizers, step_generator


@dataclass(frozen=True)
class Config(Run):
    """Training of ObservedMemory on a frozen RAE3D."""

    data: Path = field(kw_only=True)
    """Pre-rendered Worlds of the train split (`diorama data worlds`)."""
    validation: Path = field(kw_only=True)
    """Pre-rendered Worlds of the validation split."""
    autoencoder: Path = field(kw_only=True)
    """Folder of a trained RAE3D."""
    size: str = "small"
    """Row of ObservedMemory's table of sizes."""
    known_views: tuple[int, ...] = (1, 2, 2, 3, 4, 4)
    """Numbers of known views; one is drawn per step."""
    target_views: int = 2
    """Views supervised per scene, none of them known."""
    noise: float = 0.2
    """The latents carry Gaussian noise of a level drawn from [0, noise] per sample, as in training RAE3D."""
    mirror: bool = False
    """Show half of the samples as their mirror image."""
    gradient_weight: float = 0.0
    """Weight of the image-gradient loss."""
    depth_weight: float = 0.02
    """Weight of the error of the finest search's log depth."""
    search_weight: float = 0.01
    """Weight of the searches' cross entropies."""
    colour_weight: float = 0.3
    """Weight of the error of the colours that each search finds."""


class ObservedMemoryStage:
    """Sharper images and depth of novel views, from what a frozen autoencoder decodes and the known views show."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        check_weights(RAE3D, config.autoencoder)
        self.autoencoder = RAE3D.from_pretrained(config.autoencoder, torch_dtype=torch.float32)
        self.autoencoder.eval().requires_grad_(False)
        self.autoencoder.load_encoder()  # here, so that one that is missing is said before any work
        nn.Module.to(self.autoencoder, pick_device(config.device))  # frozen, so the loop leaves it where it is
        if self.autoencoder.point_decoder is None:
            raise ValueError(f"{config.autoencoder}: decodes no points; accepted is a RAE3D with point_layers")
        self.data, self.held_out = WorldsCache(config.data), WorldsCache(config.validation)
        most = max(config.known_views) + config.target_views
        if self.data.views < most:
            raise ValueError(f"{config.data}: found {self.data.views} views a scene; accepted are {most} or more")
        self.model = ObservedMemory(**SIZES[config.size])
        self.modules: dict[str, nn.Module] = {"observed_memory": self.model}
        self.optimizers = {"search": matrix_optimizers(self.model, config, 0.0)}

    def batch(self, step: int, share: Share = WHOLE) -> tuple[Views, int]:
        """Views of random scenes, the first `known` of them known, the rest to be predicted."""
        config, generator = self.config, step_generator(self.config.seed, step, 0)
        known = config.known_views[int(torch.randint(len(config.known_views), (), generator=generator))]
        scenes = torch.randint(len(self.data), (config.batch,), generator=generator)
        order = torch.rand(config.batch, self.data.views, generator=generator).argsort(1)
        views = self.data.batch(share(scenes), share(order[:, : known + config.target_views]))
        if config.mirror:
            views = mirrored(views, share(torch.rand(config.batch, generator=generator) < 0.5))
        return views, known

    def phases(self, batch: tuple[Views, int], generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: images, and depth of every sweep."""
        config, (views, known) = self.config, batch
        level = config.noise * torch.rand(len(views.images), 1, 1, generator=generator)
        made, _, depth, mask = self._made(views, known, level, generator)
        true = views.images[:, known:].to(made.images.device)
        losses = {"image": F.mse_loss(made.images.float(), true)}
        if config.gradient_weight:
            losses["gradient"] = config.gradient_weight * gradient_loss(made.images.float(), true)
        found = 1 / made.sweeps[-1].best.clamp(min=INFINITE)
        losses["depth"] = config.depth_weight * log_depth_loss(found, depth, mask)
        for name, sweep in zip(("coarse", "fine"), made.sweeps, strict=True):
            losses[f"{name}_search"] = config.search_weight * hypothesis_loss(sweep, depth, mask)
            losses[f"{name}_colours"] = config.colour_weight * colour_loss(sweep, true)
        yield "search", losses

    def _made(
        self, views: Views, known: int, level: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[
        Sharpened,
        Float[Tensor, "batch view 3 height width"],
        Float[Tensor, "batch view height width"],
        Bool[Tensor, "batch view height width"],
    ]:
        """Wanted views with the memory and without, and their true depth in the latents' frame."""
        device = self.model.device
        cameras, similarity = views.cameras.normalized()  # type: ignore[union-attr]
        depth = views.depth * similarity.scale[:, None, None, None]  # type: ignore[operator]
        views, cameras = views.to(device), cameras.to(device)
        visible = torch.ones(len(views.images), known, dtype=torch.bool, device=device)
        with torch.no_grad():
            latents = encode_views(self.autoencoder, views[:known], cameras[:known], visible)
            if level is not None:
                latents = latents + (torch.randn(latents.shape, generator=generator) * level).to(device)
            decoded = self.autoencoder.decode(latents, cameras.plucker())
            guess = decoded_depth(decoded.points, cameras)  # type: ignore[arg-type]
        memory = self.model.read(views.images[:, :known], guess[:, :known], cameras[:known], visible)
        images = decoded.images[:, known:].clamp(0, 1)
        made = self.model(memory, images, guess[:, known:], cameras[known:])
        return made, images, depth[:, known:].to(device), views.mask[:, known:]  # type: ignore[index]

    def validate(self) -> tuple[dict[str, float], Float[Tensor, "3 height width"]]:
        """PSNR of unseen views from 4, 2 and 1 known ones with the memory and without, AbsRel, and pictures."""
        scenes, last = min(64, len(self.held_out)), self.held_out.views - 1
        values, rows = {}, []
        for places in ((0, last // 3, 2 * last // 3, last), (0, last), (0,)):
            rest, known = [view for view in range(last + 1) if view not in places], len(places)
            if not rest or len(set(places)) < known:
                continue
            order = torch.tensor([*places, *rest]).expand(scenes, -1)
            parts = [
                self._made(self.held_out.batch(rows, order[: len(rows)]), known)
                for rows in torch.arange(scenes).split(16)
            ]
            sharp, plain = (torch.cat(part).cpu() for part in zip(*[(p[0].images, p[1]) for p in parts], strict=True))
            true = self.held_out.batch(torch.arange(scenes), order[:, known:]).images
            values[f"psnr_{known}"] = float(psnr(sharp.clamp(0, 1), true).mean())
            values[f"psnr_{known}_latents"] = float(psnr(plain, true).mean())
            errors = torch.cat([depth_abs_rel(made.depth, depth, mask).cpu() for made, _, depth, mask in parts])
            values[f"depth_abs_rel_{known}"] = float(errors[errors.isfinite()].mean())
            rows += [images[:8, len(rest) // 2] for images in (true, plain, sharp)]
        return values, torch.stack(rows).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)

    def save(self, folder: Path) -> None:
        """Write the memory as a folder of config and safetensors."""
        self.model.save_pretrained(folder)


def colour_loss(sweep: Sweep, true: Float[Tensor, "batch view 3 height width"]) -> Float[Tensor, ""]:
    """Squared error of the colours that a search found, where it found any."""
    true = F.interpolate(true.flatten(0, 1), sweep.colours.shape[-2:], mode="area").unflatten(0, true.shape[:2])
    return ((sweep.colours - true).square() * sweep.seen).mean()


def hypothesis_loss(
    sweep: Sweep,
    depth: Float[Tensor, "batch view height width"],
    mask: Bool[Tensor, "batch view height width"],
) -> Float[Tensor, ""]:
    """Cross entropy of a search's hypotheses against the two nearest the truth.

    Truth outside their range counts as the nearest of them. Where the first hypothesis is infinity it is the truth of
    pixels without a surface; else these do not count.
    """
    likely, tried, size = sweep.likely, sweep.tried, sweep.likely.shape[-2:]
    sky = bool((tried[:, :, 0] == 0).all())
    depth, mask = (F.interpolate(part.float(), size, mode="nearest-exact") for part in (depth, mask))
    places = tried[:, :, int(sky) :].clamp(min=1e-12).log()
    wanted = -depth.clamp(min=1e-6).log()[:, :, None]
    wanted = torch.maximum(torch.minimum(wanted, places.amax(2, keepdim=True)), places.amin(2, keepdim=True))
    share = (1 - (places - wanted).abs() / sweep.step).clamp(min=0)
    share = share / share.sum(2, keepdim=True).clamp(min=1e-6) * mask[:, :, None]
    if sky:
        share = torch.cat([1 - mask[:, :, None], share], 2)
    error = -(share * likely.clamp(min=1e-8).log()).sum(2)
    return error.mean() if sky else error.sum() / mask.sum().clamp(min=1)
