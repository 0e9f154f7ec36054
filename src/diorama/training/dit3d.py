"""Stages 1 and 2: the denoiser DiT3D on latents of a frozen RAE3D, of single images by class, then of many views."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int
from torch import Tensor, nn

from diorama.data.cache import WorldsCache
from diorama.data.loading import HeldOut
from diorama.data.open import open_scenes
from diorama.data.sources import is_worlds
from diorama.evaluation.metrics import gradient_energy, psnr
from diorama.flow import dimension_shift, interpolate, shifted
from diorama.geometry.cameras import Cameras
from diorama.models.checkpoints import check_weights
from diorama.models.dit3d import SIZES, DiT3D
from diorama.models.rae3d import RAE3D
from diorama.pipelines.base import pick_device
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition
from diorama.training.data import Data
from diorama.training.latents import Classes, Latents, encoded
from diorama.training.losses import direction_loss, velocity_loss
from diorama.training.online import Online, Sample
from diorama.training.statistics import Statistics
from diorama.training.trainer import WHOLE, Share, matrix_optimizers, step_generator


@dataclass(frozen=True)
class Config(Data):
    """Training of DiT3D; the defaults are the paper's where it gives them."""

    autoencoder: Path = field(kw_only=True)
    """Folder of a trained RAE3D."""
    size: str = "XL"
    """Row of DiT3D's table of sizes."""
    start: Path | None = None
    """Folder of a trained DiT3D of this size, or of its pipeline, to begin from; its table of classes is dropped."""
    single_images: bool = False
    """First stage of the curriculum: learn single images by class. What is known of each is its pose."""
    label: str = "kind"
    """Attribute of worlds that tells a single image's class; of photos (ImageNet) the folder does."""
    label_dropout: float = 0.1
    """Share of single images whose class is kept from the model, which is what guidance compares with."""
    steps: int = 80_000
    ema: float = 0.9995
    muon_rate: float = 0.0
    """Peak rate of Muon for the blocks' matrices; 0 leaves everything to AdamW."""
    statistics: Literal["own", "start"] = "own"
    """Whose latents have unit variance for the denoiser: this run's own, or those of the pipeline that --start names
    (the paper: its single images', throughout)."""
    statistics_batches: int = 256
    """With --online, batches that the run's own statistics are taken of before the first step."""
    online: bool = False
    """Encode samples at every step, not all before the first: for all data but one folder of worlds, and --dynamic."""
    window: int = 0
    """With --online, take a sample's views from so many neighbouring ones of its capture; 0: all."""
    scale_token: bool = False
    """Tell the model how far the farthest camera is, in median depths of the first view (not in the paper)."""
    scale_dropout: float = 0.5
    """Share of samples of which it is not told."""
    times: Literal["uniform", "logit-normal"] = "uniform"
    """How times are drawn before they are shifted towards noise (the paper: uniform; RAE: logit-normal)."""
    cosine_weight: float = 0.0
    """Weight of the velocity's direction beside its squared error (LightningDiT: 1)."""
    encoder_views: int = 16
    """Views of each sample."""
    visible: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Numbers of views that may be known; one is drawn for each condition (the paper hides 60 to 90 percent of 16)."""
    hidden: tuple[float, float] = (0.6, 0.9)
    """With --dynamic, range of the share of views that are not known, in place of --visible."""
    blind_probability: float = 0.1
    """Share of samples with nothing known, which is what guidance compares with."""
    samples: int = 1
    """View subsets encoded per scene, each with its own latents."""
    conditions: int = 2
    """Conditions encoded per subset."""
    guidance: float = 2.0
    """Default guidance of the saved pipeline."""
    title: str = "3DRAE + 3DDiT"
    """Name of the saved pipeline."""


class Batch(NamedTuple):
    """A step's share of samples, normalised."""

    data: Float[Tensor, "batch token dim"]
    known: Float[Tensor, "batch token dim"]
    label: Int[Tensor, " batch"] | None = None  # None where there are no classes
    log_scale: Float[Tensor, " batch"] | None = None  # None for a model without scale, NaN where it is not told


class DiT3DStage:
    """Rectified flow between noise and normalised latents."""

    def __init__(self, config: Config, trained: TokenPipeline | None = None) -> None:
        """Of a `trained` pipeline everything is kept but what of its denoiser takes gradients."""
        if config.single_images:
            config = replace(config, encoder_views=1, visible=(), conditions=0)
        self.config = config
        check_weights(RAE3D, config.autoencoder)
        found = started(config.start) if config.start else None
        if config.statistics == "start" and not (config.start and (config.start / "autoencoder").is_dir()):
            raise ValueError(f"--statistics start with --start {config.start}: accepted is a pipeline's folder there")
        device = pick_device(config.device)  # frozen, so that the loop, which moves what it trains, leaves it alone
        self.autoencoder = RAE3D.from_pretrained(config.autoencoder) if trained is None else trained.autoencoder
        self.autoencoder.eval().requires_grad_(False)
        self.autoencoder.load_encoder()  # here, so that one that is missing is said before any work
        nn.Module.to(self.autoencoder, device)
        self.folders = config.data if isinstance(config.data, tuple) else (config.data,)
        self.held_out = self._open()
        self.classes = Classes(self.folders, config.label) if config.single_images else None
        self.latents = self.online = None
        self._known_statistics = config.statistics == "start" or trained is not None
        if config.online:
            self.online = Online(config, self.autoencoder, self.classes)
            self._known_statistics = self._known_statistics or self.online.kept(self.autoencoder, self.statistics_file)
        else:
            self.latents = self._encode()
        if config.statistics == "start":
            keep_statistics(self.autoencoder, config.start)  # type: ignore[arg-type]
        tokens, channels = self.autoencoder.latent_mean.shape
        self.shift = dimension_shift(tokens, channels) if trained is None else float(trained.scheduler.shift)
        self.model = self._new(found) if trained is None else trained.denoiser
        self.modules: dict[str, nn.Module] = {"dit3d": self.model}
        self.optimizers = {"velocity": matrix_optimizers(self.model, config, config.muon_rate)}

    def _new(self, found: DiT3D | None) -> DiT3D:
        """A model of the flags' size, with the weights of a trained one if there is one."""
        torch.manual_seed(self.config.seed)
        tokens, channels = self.autoencoder.latent_mean.shape
        classes = 0 if self.classes is None else len(self.classes.names)
        told = {"classes": classes, "scale": self.config.scale_token}
        model = DiT3D(tokens=tokens, channels=channels, **told, **SIZES[self.config.size])
        if found is not None:
            begin(model, found)
        return model

    @property
    def statistics_file(self) -> Path:
        """Where a run that encodes at every step keeps its statistics."""
        return self.config.out / "statistics.safetensors"

    def _open(self) -> WorldsCache | HeldOut:
        """What is validated on; ValueError for data that cannot be used as the flags say."""
        config, worlds = self.config, [is_worlds(folder) for folder in self.folders]
        if not config.online and (len(worlds) > 1 or config.dynamic):
            found = "--dynamic" if config.dynamic else f"{len(worlds)} of --data"
            raise ValueError(f"{found}: samples of one folder of worlds alone are encoded once; accepted is --online")
        if not (config.online or worlds[0] or not self.folders[0].is_dir()):
            raise ValueError(f"{self.folders[0]}: no worlds, which alone are encoded once; accepted is --online")
        if is_worlds(config.validation) or not config.online:
            held_out: WorldsCache | HeldOut = WorldsCache(config.validation)
        else:
            views = max(2, config.encoder_views)
            held_out = HeldOut(open_scenes(config.validation), *config.image_size, views=views)
        caches = [(folder, WorldsCache(folder)) for folder in self.folders if not config.online or is_worlds(folder)]
        for folder, cache in (*caches, (config.validation, held_out)):
            if not (2 <= config.encoder_views <= cache.views or config.single_images):
                odd = f"encoder_views of {config.encoder_views} with scenes of {cache.views} views"
                raise ValueError(f"{folder}: {odd}; accepted are 2 to {cache.views}")
        return held_out

    def _encode(self) -> Latents:
        """Latents of one folder of worlds, whose statistics the autoencoder is given."""
        cache = WorldsCache(self.folders[0])
        self._labels = None if self.classes is None else self.classes.of(f"world {seed}" for seed in cache.seeds)
        latents = Latents.encoded(self.config.out / "latents.safetensors", self.autoencoder, cache, self.config)
        own = Statistics(*latents.data.shape[1:])
        for part in latents.data.split(64):
            own.add(part)
        self.autoencoder.latent_mean.copy_(own.mean)
        self.autoencoder.latent_std.copy_(own.std)
        return latents

    def batch(self, step: int, share: Share = WHOLE) -> Batch | Sample:
        """Normalised latents of random samples, of one of their conditions each, and their classes.

        Samples that are encoded at every step come as views.
        """
        if self.online is not None:
            return self.online.batch(step, share)
        config, generator, latents = self.config, step_generator(self.config.seed, step, 0), self.latents
        assert latents is not None
        rows = torch.randint(len(latents.data), (config.batch,), generator=generator)
        label = log_scale = None
        if self.classes is not None and self._labels is not None:
            labels = self._labels[rows % len(self._labels)]  # samples by scenes
            dropped = torch.rand(config.batch, generator=generator) < config.label_dropout
            label = share(labels.masked_fill(dropped, len(self.classes.names)))
            rows = share(rows)
            known = latents.blind[rows]
        else:
            column = torch.randint(config.conditions, (config.batch,), generator=generator)
            blind = torch.rand(config.batch, 1, 1, generator=generator) < config.blind_probability
            rows, column, blind = share(rows), share(column), share(blind)
            known = torch.where(blind, latents.blind[rows], latents.known[rows, column])
        if latents.log_scale is not None:
            dropped = share(torch.rand(config.batch, generator=generator) < config.scale_dropout)
            log_scale = latents.log_scale[rows].masked_fill(dropped, math.nan)
        both = (x.float().to(self.autoencoder.device) for x in (latents.data[rows], known))
        data, known = map(self.autoencoder.normalize, both)
        return Batch(data, known, label, log_scale)

    def _encoded(self, sample: Sample) -> Batch:
        """A step's share, encoded and normalised; before the first step the statistics for that are found."""
        assert self.online is not None
        nn.Module.to(self.autoencoder, self.model.device)  # where the loop has put what is trained
        if not self._known_statistics:
            self.online.keep(self.autoencoder, self.statistics_file)
            self._known_statistics = True
        data, known = map(self.autoencoder.normalize, encoded(self.autoencoder, sample.draw))
        return Batch(data, known, sample.label, sample.log_scale)

    def phases(self, batch: Batch | Sample, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: the velocity at times that are shifted towards noise."""
        found = self._encoded(batch) if isinstance(batch, Sample) else batch
        data, known = found.data.to(self.model.device), found.known.to(self.model.device)
        label, log_scale = (x if x is None else x.to(self.model.device) for x in (found.label, found.log_scale))
        if self.config.times == "uniform":
            t = torch.rand(len(data), generator=generator)
        else:
            t = torch.randn(len(data), generator=generator).sigmoid()
        t = shifted(t, self.shift).to(data.device)
        noise = torch.randn(data.shape, generator=generator).to(data.device)
        told = {"label": label, "log_scale": log_scale}
        predicted = self.model(interpolate(data, noise, t), t, known, **told).velocity.float()
        losses = {"velocity": velocity_loss(predicted, data, noise)}
        if self.config.cosine_weight:
            losses["direction"] = self.config.cosine_weight * direction_loss(predicted, data, noise)
        yield "velocity", losses

    def pipeline(self) -> TokenPipeline:
        """The whole model as users get it."""
        height, width = self.held_out.height, self.held_out.width
        return TokenPipeline(
            self.autoencoder,
            self.model,
            FlowMatchEulerDiscreteScheduler(shift=self.shift),
            title=self.config.title,
            licence="Apache-2.0",
            pixels=height * width,
            encoder_views=self.config.encoder_views,
            guidance=self.config.guidance,
        )

    def validate(self) -> tuple[dict[str, float], Float[Tensor, "3 height width"]]:
        """PSNR and gradient energy of generations from the first view of held-out scenes beside RAE3D's own.

        Of single images they are from the class alone, so that there is no PSNR of them.
        """
        config, count = self.config, min(16, len(self.held_out))
        every = torch.linspace(0, self.held_out.views - 1, config.encoder_views).round().long()
        views = self.held_out.batch(torch.arange(count), every.expand(count, -1))
        pipeline = self.pipeline()
        items = views.apart()
        paths: list[Cameras] = [item.cameras for item in items]  # type: ignore[misc]
        first, conditions = 1, [Condition(item[:1], (0,)) for item in items]
        if config.single_images:
            first, conditions = 0, [Condition(label=label) for label in self._held_out_labels(count)]
        made = pipeline.generate(conditions, paths, steps=20)
        plain = pipeline.reconstruct([item[:1] for item in items], paths)
        self.model.train()
        true, middle = views.images[:, first:], config.encoder_views // 2
        values, rows = {}, [views.images[:8, middle]]
        for name, scenes in (("generated", made), ("regressed", plain)):
            images = torch.stack([scene.views.images for scene in scenes])
            if name == "regressed" or not config.single_images:
                values[f"psnr_{name}"] = float(psnr(images[:, first:], true).mean())
            values[f"sharpness_{name}"] = float(
                gradient_energy(images[:, first:]).mean() / gradient_energy(true).mean()
            )
            rows.append(images[:8, middle])
        return values, torch.cat(list(torch.cat(rows, -2)), -1)

    def _held_out_labels(self, count: int) -> list[int | None]:
        """Classes of the first scenes validated on, where they have any."""
        if self.classes is None or not isinstance(self.held_out, WorldsCache):
            return [None] * count
        words = (str(row.get(self.config.label)) for row in self.held_out.attributes[:count])
        return [None if place == len(self.classes.names) else place for place in self.classes.places(words).tolist()]

    def save(self, folder: Path) -> None:
        """Write the pipeline: autoencoder with its statistics, denoiser and schedule; and the names of the classes."""
        self.pipeline().save_pretrained(folder)
        if self.classes is not None:
            (folder / "classes.json").write_text(json.dumps(self.classes.names, indent=0) + "\n")
        if self.online is not None:
            self.online.batches.close()


def started(folder: Path) -> DiT3D:
    """The DiT3D of a folder or of the pipeline in it; ValueError unless its weights are there and fit."""
    folder = folder / "denoiser" if (folder / "denoiser").is_dir() else folder
    check_weights(DiT3D, folder)
    return DiT3D.from_pretrained(folder, torch_dtype=torch.float32)


def begin(model: DiT3D, found: DiT3D) -> None:
    """Give a new model the weights of a trained one, whose table of classes is dropped where the new one has none.

    A scale that only the new one is told begins saying nothing. ValueError where anything else differs.
    """
    old, new = (
        {name: value for name, value in dict(x.config).items() if name[0] != "_"} | {"scale": x.scale_embed is not None}
        for x in (found, model)
    )
    state = found.state_dict()
    if model.label is None:
        old["classes"] = 0
        state.pop("label.weight", None)
    if model.scale_embed is not None and found.scale_embed is None:
        old["scale"] = True
        state |= {name: value for name, value in model.state_dict().items() if name.startswith("scale_embed.")}
    odd = [f"{name} was {old[name]}, is {value}" for name, value in new.items() if old[name] != value]
    if odd:
        raise ValueError(f"--start: a DiT3D of another shape ({', '.join(odd)}); accepted is one of the same")
    model.load_state_dict(state)


def keep_statistics(model: RAE3D, pipeline: Path) -> None:
    """Take over the latent statistics in a pipeline's folder; ValueError unless its autoencoder is this one."""
    folder = pipeline / "autoencoder"
    check_weights(RAE3D, folder)
    found = RAE3D.from_pretrained(folder, torch_dtype=torch.float32)
    if found.queries.shape != model.queries.shape or not torch.equal(found.queries, model.queries.cpu()):
        raise ValueError(f"{folder}: another autoencoder than --autoencoder; accepted is the same, or --statistics own")
    model.latent_mean.copy_(found.latent_mean)
    model.latent_std.copy_(found.latent_std)
