"""Stage 0: the autoencoder of views, RAE3D."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diorama.data.cache import WorldsCache
from diorama.data.transforms import mirrored
from diorama.evaluation.metrics import depth_abs_rel, psnr
from diorama.geometry.cameras import Cameras
from diorama.models.checkpoints import check_weights
from diorama.models.rae3d import RAE3D, SIZES
from diorama.pipelines.tokens import encode_views
from diorama.scene import Views
from diorama.training.losses import gradient_loss, point_loss
from diorama.training.trainer import WHOLE, Run, Share, matrix_optimizers, step_generator


@dataclass(frozen=True)
class Config(Run):
    """Training of RAE3D; the defaults are the paper's where it gives them."""

    data: Path = field(kw_only=True)
    """Pre-rendered Worlds of the train split (`diorama data worlds`)."""
    validation: Path = field(kw_only=True)
    """Pre-rendered Worlds of the validation split."""
    size: str = "base-256"
    """Row of RAE3D's table of sizes."""
    start: Path | None = None
    """Folder of a trained RAE3D of this size to begin from, instead of random weights."""
    muon_rate: float = 0.0
    """Peak rate of Muon for the blocks' matrices; 0 leaves everything to AdamW."""
    known_views: tuple[int, ...] = (2, 4, 6, 8)
    """Numbers of views the encoder may get; one is drawn per step."""
    target_views: int = 4
    """Views supervised per scene."""
    known_targets: int = 0
    """How many of those are known views again, which teaches small models to carry detail at all (the paper: none)."""
    window: int = 0
    """Take a sample's views from so many neighbouring ones of the path, which makes motions small; 0: all."""
    point_views: int = 1
    """How many of them are supervised in 3D as well."""
    noise: float = 0.8
    """Latents are decoded with Gaussian noise of a level drawn from [0, noise] per sample (RAE)."""
    mask_probability: float = 0.3
    """Share of samples some of whose views hide their image."""
    mask_ratio: tuple[float, float] = (0.1, 0.95)
    """Share of hidden views in those samples."""
    blind_probability: float = 0.02
    """Share of samples all of whose views hide their image."""
    mirror: bool = False
    """Show half of the samples as their mirror image."""
    gradient_weight: float = 0.0
    """Weight of the image-gradient loss."""
    point_weight: float = 1.0
    """Weight of the point-map losses."""
    point_unit: Literal["frame", "scene", "distance"] = "frame"
    """Unit of point errors: the latent frame's (farthest camera), the scene's mean point distance (VGGT), or each
    point's own distance from its camera, which weighs near and far alike as AbsRel does."""


def visible_views(batch: int, views: int, config: Config, generator: torch.Generator) -> Bool[Tensor, "batch view"]:
    """Which views show their image: some samples hide a share of theirs, a few hide all."""
    low, high = config.mask_ratio
    kind = torch.rand(batch, generator=generator)
    ratio = low + (high - low) * torch.rand(batch, generator=generator)
    hidden = torch.where(kind < config.mask_probability, (ratio * views).round(), 0.0)
    hidden = torch.where(kind > 1 - config.blind_probability, float(views), hidden)
    return torch.rand(batch, views, generator=generator).argsort(1) >= hidden[:, None]


class RAE3DStage:
    """Reconstruction of novel views and their points from noisy latents."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.data, self.held_out = WorldsCache(config.data), WorldsCache(config.validation)
        _check_views(config, self.data.views, self.held_out.views)
        self.model = RAE3D(**SIZES[config.size])
        if config.start:
            check_weights(RAE3D, config.start)
            self.model.load_state_dict(RAE3D.from_pretrained(config.start, torch_dtype=torch.float32).state_dict())
        self.modules: dict[str, nn.Module] = {"rae3d": self.model}
        self.optimizers = {"reconstruction": matrix_optimizers(self.model, config, config.muon_rate)}

    def batch(self, step: int, share: Share = WHOLE) -> tuple[Views, int]:
        """Views of random scenes, the first `known` for the encoder, the rest to be predicted."""
        config, generator = self.config, step_generator(self.config.seed, step, 0)
        window = min(config.window or self.data.views, self.data.views)
        known = config.known_views[int(torch.randint(len(config.known_views), (), generator=generator))]
        total = min(known + config.target_views, window)
        scenes = torch.randint(len(self.data), (config.batch,), generator=generator)
        begin = torch.randint(self.data.views - window + 1, (config.batch, 1), generator=generator)
        order = begin + torch.rand(config.batch, window, generator=generator).argsort(1)[:, :total]
        again = min(known, config.known_targets)
        order[:, total - again :] = order[:, :again]
        # Half of the samples keep time's order among the known views, so that both kinds of first view are learnt.
        sorted_known = torch.cat([order[:, :known].sort(1).values, order[:, known:]], 1)
        keep = torch.rand(config.batch, 1, generator=generator) < 0.5
        views = self.data.batch(share(scenes), share(torch.where(keep, sorted_known, order)))
        if config.mirror:
            views = mirrored(views, share(torch.rand(config.batch, generator=generator) < 0.5))
        return views, known

    def phases(self, batch: tuple[Views, int], generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: image, gradient and point losses."""
        config, (views, known) = self.config, batch
        device = self.model.device
        scenes = views.images.shape[0]
        visible = visible_views(scenes, known, config, generator).to(device)
        level = config.noise * torch.rand(scenes, 1, 1, generator=generator)
        cameras, similarity = views.cameras.normalized()  # type: ignore[union-attr]
        views, cameras = views.to(device), cameras.to(device)
        latents = encode_views(self.model, views[:known], cameras[:known], visible)
        noise = torch.randn(latents.shape, generator=generator) * level
        cache = self.model.cache(latents + noise.to(device))
        target, rays = views[known:], cameras[known:].plucker()
        images = self.model.decode_images(cache, rays)
        losses = {"image": F.mse_loss(images.float(), target.images)}
        if config.gradient_weight:
            losses["gradient"] = config.gradient_weight * gradient_loss(images.float(), target.images)
        if config.point_views and config.point_weight:
            some = target[: config.point_views]
            points, confidence = self.model.decode_points(cache, rays[:, : config.point_views])
            true: Tensor = similarity.to(device).apply(some.points)  # type: ignore[arg-type]
            unit = _point_unit(config.point_unit, true, some.mask, cameras[known : known + config.point_views])  # type: ignore[arg-type]
            terms = point_loss(points / unit, 1 + confidence, true / unit, some.mask)  # type: ignore[arg-type]
            losses |= {f"point_{name}": config.point_weight * value for name, value in terms.items()}
        yield "reconstruction", losses

    def validate(self) -> tuple[dict[str, float], Float[Tensor, "3 height width"]]:
        """PSNR of unseen views from 4, 2 and 1 known ones, AbsRel of depth from 4, and pictures.

        Numbers of known views that leave no other to predict are left out.
        """
        scenes, last = min(64, len(self.held_out)), self.held_out.views - 1
        values, rows = {}, []
        for places in ((0, last // 3, 2 * last // 3, last), (0, last), (0,)):
            if len(places) > last:
                continue
            rest = [view for view in range(last + 1) if view not in places]
            views = self.held_out.batch(torch.arange(scenes), torch.tensor([*places, *rest]).expand(scenes, -1))
            known = len(places)
            views = views.to(self.model.device)
            cameras, similarity = views.cameras.normalized()  # type: ignore[union-attr]
            visible = torch.ones(scenes, known, dtype=torch.bool, device=self.model.device)
            latents = encode_views(self.model, views[:known], cameras[:known], visible)
            decoded = self.model.decode(latents, cameras[known:].plucker())
            target = views[known:]
            values[f"psnr_{known}"] = float(psnr(decoded.images.float(), target.images).mean())
            rows += [target.images[:8, len(rest) // 2], decoded.images[:8, len(rest) // 2].float()]
            if known == 4:
                points = similarity.inverse().apply(decoded.points)  # type: ignore[arg-type]
                depth = Views(target.images, target.cameras, points).depth
                error = depth_abs_rel(depth, target.depth, target.mask)  # type: ignore[arg-type]
                values["depth_abs_rel"] = float(error[error.isfinite()].mean())
        return values, torch.stack(rows).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)

    def save(self, folder: Path) -> None:
        """Write the autoencoder as a folder of config and safetensors."""
        self.model.save_pretrained(folder)


def _check_views(config: Config, views: int, held_out: int) -> None:
    """ValueError unless every number of known views leaves one to predict."""
    known, window = max(config.known_views), min(config.window or views, views)
    if known >= window:
        raise ValueError(f"{config.data}: {known} known views of {window} leave none to predict; accepted are fewer")
    if held_out < 2:
        raise ValueError(f"{config.validation}: found {held_out} view a scene; accepted are 2 or more")


def _point_unit(
    kind: str,
    points: Float[Tensor, "batch view height width 3"],
    mask: Bool[Tensor, "batch view height width"],
    cameras: Cameras,
) -> Float[Tensor, "batch #view #height #width 1"]:
    if kind == "distance":
        unit = (points - cameras.centers[:, :, None, None]).norm(dim=-1)
    elif kind == "scene":
        unit = points.norm(dim=-1).where(mask, 0.0).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
        unit = unit[:, None, None, None]
    else:
        unit = points.new_ones(len(points), 1, 1, 1)
    return unit.clamp(min=1e-3)[..., None]
