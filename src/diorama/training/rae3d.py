"""Stage 0: the autoencoder of views, RAE3D."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diorama.data.cache import WorldsCache
from diorama.data.loading import Batches, HeldOut, WorldsBatches
from diorama.evaluation.metrics import depth_abs_rel, psnr
from diorama.geometry.cameras import Cameras
from diorama.models.checkpoints import check_weights
from diorama.models.perceptual import load_lpips
from diorama.models.rae3d import RAE3D, SIZES
from diorama.pipelines.tokens import encode_views
from diorama.scene import Views
from diorama.training.adversarial import Adversary, balanced
from diorama.training.data import Data, open_batches, open_held_out, sampling
from diorama.training.losses import gradient_loss, point_loss
from diorama.training.trainer import WHOLE, Share, matrix_optimizers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(Data):
    """Training of RAE3D; the defaults are the paper's where it gives them."""

    size: str = "base-256"
    """Row of RAE3D's table of sizes."""
    encoder: Literal["patches", "dinov2", "siglip2", "da3"] = "patches"
    """What looks at the images: a frozen 2D encoder (the paper: dinov2), or trained patches alone (its "ImgOnly")."""
    encoder_folder: Path | None = None
    """Published weights of the encoder, unless they are in the diorama or Hugging Face cache."""
    encoder_layers: int = 1
    """How many last layers of the encoder are summed."""
    pixel_branch: bool = False
    """Add trained patches to the encoder's tokens, through a gate that begins closed."""
    attention: Literal["one_way", "mutual"] = "one_way"
    """Whether latents attend to a target's rays as well (mutual, the paper's) or are decoded from a cache."""
    neck_attention: Literal["full", "hub", "one_way"] = "full"
    """What known views read: each other (full, the paper's), the latents (hub), or themselves alone (one_way)."""
    start: Path | None = None
    """Folder of a trained RAE3D of this size to begin from, instead of random weights."""
    muon_rate: float = 0.0
    """Peak rate of Muon for the blocks' matrices; 0 leaves everything to AdamW."""
    known_views: tuple[int, ...] = (2, 4, 6, 8)
    """Numbers of views the encoder may get; one is drawn per step. With --dynamic 1, or 2 up to all but two."""
    target_views: int = 4
    """Views supervised per scene; at most, with --dynamic."""
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
    masking: Literal["own", "paper", "paper-appendix"] = "own"
    """Which views hide their image: as the three settings above say, or as the paper's table 5 or its section A.4."""
    mirror: bool = False
    """Show half of the samples as their mirror image."""
    gradient_weight: float = 0.0
    """Weight of the image-gradient loss."""
    lpips_weight: float = 0.0
    """Weight of LPIPS (the paper: 1), over the VGG16 in your cache of published weights."""
    adversarial_weight: float = 0.0
    """Weight of the adversarial loss (the paper: 0.75), brought to the image losses' strength; 0: no discriminator."""
    discriminator: str = "dinov2-s14"
    """What the discriminator looks through: dinov2-s14 (the paper), dino-s8 (RAE), dino-s16 or worlds64 (embedded)."""
    discriminator_rate: float = 2e-4
    """Peak rate of the discriminator's AdamW."""
    discriminator_start: int = 50_000
    """Step from which on the discriminator learns."""
    adversarial_start: int = 60_000
    """Step from which on the adversarial loss counts."""
    point_weight: float = 1.0
    """Weight of the point-map losses."""
    point_quantile: float = 1.0
    """Share of a batch's point errors that counts, the greatest being outliers (VGGT: 0.98)."""
    point_unit: Literal["frame", "scene", "distance"] = "frame"
    """Unit of point errors: the latent frame's (farthest camera), the scene's mean point distance (VGGT), or each
    point's own distance from its camera, which weighs near and far alike as AbsRel does."""


class Masking(NamedTuple):
    """How views hide their image; the fields are those of Config."""

    mask_probability: float
    mask_ratio: tuple[float, float]
    blind_probability: float


# The paper contradicts itself; A.4's share of views is that of its denoiser's training (table 6).
MASKINGS = {"paper": Masking(0.1, (0.1, 0.6), 0.0), "paper-appendix": Masking(0.1, (0.6, 0.9), 0.0)}


class Sample(NamedTuple):
    """A step's batch."""

    views: Views
    known: int  # how many of the views are the encoder's, the rest is to be predicted
    step: int
    complete: Bool[Tensor, " batch"]  # scenes whose pixels without depth have no surface


def visible_views(batch: int, views: int, config: Config, generator: torch.Generator) -> Bool[Tensor, "batch view"]:
    """Which views show their image: some samples hide a share of theirs, a few hide all."""
    probability, (low, high), blind = _masking(config)
    kind = torch.rand(batch, generator=generator)
    ratio = low + (high - low) * torch.rand(batch, generator=generator)
    hidden = torch.where(kind < probability, (ratio * views).round(), 0.0)
    hidden = torch.where(kind > 1 - blind, float(views), hidden)
    return torch.rand(batch, views, generator=generator).argsort(1) >= hidden[:, None]


class RAE3DStage:
    """Reconstruction of novel views and their points from noisy latents."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        size = SIZES[config.size]
        wanted = {"known": config.known_views, "targets": config.target_views}
        drawn = sampling(config, patch=size["patch"], tokens=size["tokens"], **wanted)
        choice = {"window": config.window, "known_targets": config.known_targets, "mirror": config.mirror}
        self.batches, self.held_out = open_batches(config, drawn, **choice), open_held_out(config)
        _check_views(config, self.batches, self.held_out)
        _check_losses(config)
        self.model = _model(config)
        self.modules: dict[str, nn.Module] = {"rae3d": self.model}
        self.optimizers = {"reconstruction": matrix_optimizers(self.model, config, config.muon_rate)}
        self.lpips = load_lpips() if config.lpips_weight else None
        self.adversary = Adversary(config.discriminator) if config.adversarial_weight else None
        if self.adversary:
            judge = torch.optim.AdamW(
                self.adversary.heads.parameters(), config.discriminator_rate, betas=(0.9, 0.95), weight_decay=0.0
            )
            self.modules["discriminator"], self.optimizers["discrimination"] = self.adversary.heads, [judge]

    def batch(self, step: int, share: Share = WHOLE) -> Sample:
        """Views of random scenes, the first `known` for the encoder, the rest to be predicted."""
        batch = self.batches.batch(step, share)
        return Sample(batch.views, batch.known, step, batch.complete)

    def phases(self, batch: Sample, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Image and point losses; then, on the same images, the discriminator's where there is one and it is time."""
        config, (views, known, step, complete) = self.config, batch
        device = self.model.device
        scenes = views.images.shape[0]
        visible = visible_views(scenes, known, config, generator)
        level = config.noise * torch.rand(scenes, 1, 1, generator=generator)
        cameras, similarity = views.cameras.normalized()  # type: ignore[union-attr]
        views, cameras = views.to(device), cameras.to(device)
        latents = encode_views(self.model, views[:known], cameras[:known], visible.to(device))
        noise = torch.randn(latents.shape, generator=generator) * level
        cache = self.model.cache(latents + noise.to(device))
        target, rays = views[known:], cameras[known:].plucker()
        images = self.model.decode_images(cache, rays).float()
        # Nobody can tell how a scene looks of which nothing is seen: a mean image is right there, and not realistic.
        judged = visible.any(1).nonzero().flatten() if visible.any() else torch.arange(scenes)
        if self.adversary and step >= config.adversarial_start:
            losses = balanced(
                images,
                self.model.output.weight,  # type: ignore[arg-type]
                lambda shown: self._image_losses(shown, target.images),
                lambda shown: self.adversary.unlikeliness(shown[judged].flatten(0, 1), generator),  # type: ignore[union-attr]
                config.adversarial_weight,
            )
        else:
            losses = self._image_losses(images, target.images)
        if config.point_views and config.point_weight:
            some = target[: config.point_views]
            points, confidence = self.model.decode_points(cache, rays[:, : config.point_views])
            true: Tensor = similarity.to(device).apply(some.points)  # type: ignore[arg-type]
            unit = _point_unit(config.point_unit, true, some.mask, cameras[known : known + config.point_views])  # type: ignore[arg-type]
            parts = (points / unit, 1 + confidence, true / unit, some.mask)
            terms = _point_terms(parts, complete.to(device), config.point_quantile)  # type: ignore[arg-type]
            losses |= {f"point_{name}": config.point_weight * value for name, value in terms.items()}
        yield "reconstruction", losses
        if self.adversary and step >= config.discriminator_start:
            pair = (x[judged].flatten(0, 1) for x in (target.images, images))
            yield "discrimination", {"discriminator": self.adversary.confusion(*pair, generator)}  # type: ignore[call-arg]

    def _image_losses(
        self, images: Float[Tensor, "batch view 3 height width"], true: Float[Tensor, "batch view 3 height width"]
    ) -> dict[str, Float[Tensor, ""]]:
        config, losses = self.config, {"image": F.mse_loss(images, true)}
        if config.gradient_weight:
            losses["gradient"] = config.gradient_weight * gradient_loss(images, true)
        if self.lpips is not None:
            net = self.lpips.to(images.device)
            losses["lpips"] = config.lpips_weight * net(images.flatten(0, 1), true.flatten(0, 1)).mean()
        return losses

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
            if known == 4 and decoded.points is not None and target.mask.any():  # type: ignore[union-attr]
                points = similarity.inverse().apply(decoded.points)  # type: ignore[arg-type]
                depth = Views(target.images, target.cameras, points).depth
                error = depth_abs_rel(depth, target.depth, target.mask)  # type: ignore[arg-type]
                values["depth_abs_rel"] = float(error[error.isfinite()].mean())
        values |= {kind: float(count) for kind, count in self.batches.counts().items()}
        return values, torch.stack(rows).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)

    def save(self, folder: Path) -> None:
        """Write the autoencoder as a folder of config and safetensors, with its encoder if that was not in a cache."""
        self.model.save_pretrained(folder)
        if self.config.encoder_folder:
            self.model.save_encoder(folder)
        if counts := self.batches.counts():
            found = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items())
            _log.warning("%s: skipped %s", self.config.data, found)
        self.batches.close()


def _model(config: Config) -> RAE3D:
    """The autoencoder to train, with its frozen encoder loaded, which is refused here where its weights are absent."""
    looking = {"encoder": config.encoder, "encoder_layers": config.encoder_layers, "pixel_branch": config.pixel_branch}
    reading = {"attention": config.attention, "neck_attention": config.neck_attention}
    model = RAE3D(**SIZES[config.size], **reading, **looking)
    if config.start:
        check_weights(RAE3D, config.start)
        model.load_state_dict(RAE3D.from_pretrained(config.start, torch_dtype=torch.float32).state_dict())
    model.load_encoder(config.encoder_folder)
    return model


def _check_views(config: Config, batches: Batches, held_out: WorldsCache | HeldOut) -> None:
    """ValueError unless every number of known views leaves one to predict, and images are whole patches."""
    if isinstance(batches, WorldsBatches):
        known, views = max(config.known_views), batches.cache.views
        window = min(config.window or views, views)
        if known >= window:
            found = f"{config.data}: {known} known views of {window}"
            raise ValueError(f"{found} leave none to predict; accepted are fewer")
    if held_out.views < 2:
        raise ValueError(f"{config.validation}: found {held_out.views} view a scene; accepted are 2 or more")
    patch, sizes = SIZES[config.size]["patch"], {str(config.validation): (held_out.height, held_out.width)}
    if isinstance(batches, WorldsBatches):
        sizes[str(config.data)] = (batches.cache.height, batches.cache.width)
    elif not config.dynamic:
        sizes["--image-size"] = config.image_size
    for name, (height, width) in sizes.items():
        if height % patch or width % patch:
            found = f"{name}: images of {height}x{width}"
            raise ValueError(f"{found}; accepted are multiples of {patch} (--image-size, for captures)")


def _masking(config: Config) -> Masking:
    own = Masking(config.mask_probability, config.mask_ratio, config.blind_probability)
    return MASKINGS.get(config.masking, own)


def _check_losses(config: Config) -> None:
    """ValueError, in one line, for losses and masks that cannot be meant."""
    if config.masking != "own":
        for name, value in _masking(config)._asdict().items():
            if (given := getattr(config, name)) not in (value, Config.__dataclass_fields__[name].default):
                flag = f"--{name.replace('_', '-')} {given}"
                raise ValueError(f"{flag} with --masking {config.masking}, which says {value}: accepted is one of them")
    if config.adversarial_weight and config.discriminator_start > config.adversarial_start:
        found = f"--discriminator-start {config.discriminator_start}"
        raise ValueError(f"{found}: accepted is at most --adversarial-start {config.adversarial_start}")
    for name in ("lpips_weight", "adversarial_weight"):
        if getattr(config, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: accepted is 0 or more")
    if not 0 < config.point_quantile <= 1:
        raise ValueError(f"--point-quantile {config.point_quantile}: accepted is above 0, up to 1")


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


def _point_terms(
    parts: tuple[Tensor, Tensor, Tensor, Tensor], complete: Bool[Tensor, " batch"], quantile: float
) -> dict[str, Float[Tensor, ""]]:
    """Point losses of scenes that have depth; only complete ones say that there is no surface where they have none."""
    if complete.all():
        return point_loss(*parts, quantile=quantile)
    told = complete | parts[-1].flatten(1).any(1)
    # Without any, all count for nothing: every process must have gradients of the same parameters.
    some = told if told.any() else ~told
    terms = point_loss(*(part[some] for part in parts), quantile=quantile)
    terms["empty"] = point_loss(*(part[complete] for part in parts))["empty"] if complete.any() else 0 * terms["empty"]
    return {name: term * told.any() for name, term in terms.items()}
