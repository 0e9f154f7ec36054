"""Stages 1 and 2: the denoiser DiT3D on latents of a frozen RAE3D, of single images by class, then of many views."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int
from torch import Tensor, nn

from diorama.data.cache import WorldsCache
from diorama.evaluation.metrics import gradient_energy, psnr
from diorama.flow import dimension_shift, interpolate, shifted
from diorama.geometry.cameras import Cameras
from diorama.models.checkpoints import check_weights
from diorama.models.dit3d import SIZES, DiT3D
from diorama.models.rae3d import RAE3D
from diorama.pipelines.base import pick_device
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition
from diorama.training.latents import Latents, class_names, class_of_scenes
from diorama.training.losses import velocity_loss
from diorama.training.trainer import WHOLE, Run, Share, matrix_optimizers, step_generator


@dataclass(frozen=True)
class Config(Run):
    """Training of DiT3D; the defaults are the paper's where it gives them."""

    data: Path = field(kw_only=True)
    """Pre-rendered Worlds of the train split (`diorama data worlds`)."""
    validation: Path = field(kw_only=True)
    """Pre-rendered Worlds of the validation split."""
    autoencoder: Path = field(kw_only=True)
    """Folder of a trained RAE3D."""
    size: str = "XL"
    """Row of DiT3D's table of sizes."""
    start: Path | None = None
    """Folder of a trained DiT3D of this size, or of its pipeline, to begin from; its table of classes is dropped."""
    single_images: bool = False
    """First stage of the curriculum: learn single images by class. What is known of each is its pose."""
    label: str = "kind"
    """Attribute of worlds that tells a single image's class."""
    label_dropout: float = 0.1
    """Share of single images whose class is kept from the model, which is what guidance compares with."""
    steps: int = 80_000
    ema: float = 0.9995
    muon_rate: float = 0.0
    """Peak rate of Muon for the blocks' matrices; 0 leaves everything to AdamW."""
    encoder_views: int = 16
    """Views of each sample."""
    visible: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Numbers of views that may be known; one is drawn for each condition (the paper hides 60 to 90 percent of 16)."""
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


class DiT3DStage:
    """Rectified flow between noise and normalised latents."""

    def __init__(self, config: Config) -> None:
        if config.single_images:
            config = replace(config, encoder_views=1, visible=(), conditions=0)
        self.config = config
        check_weights(RAE3D, config.autoencoder)
        found = started(config.start) if config.start else None
        device = pick_device(config.device)  # frozen, so that the loop, which moves what it trains, leaves it alone
        self.autoencoder = RAE3D.from_pretrained(config.autoencoder).eval().requires_grad_(False)
        self.autoencoder.load_encoder()  # here, so that one that is missing is said before any work
        nn.Module.to(self.autoencoder, device)
        self.data, self.held_out = WorldsCache(config.data), WorldsCache(config.validation)
        for folder, cache in ((config.data, self.data), (config.validation, self.held_out)):
            if not (2 <= config.encoder_views <= cache.views or config.single_images):
                odd = f"encoder_views of {config.encoder_views} with scenes of {cache.views} views"
                raise ValueError(f"{folder}: {odd}; accepted are 2 to {cache.views}")
        self.names = class_names(self.data, config.label) if config.single_images else []
        if config.single_images and not self.names:
            known = sorted({name for row in self.data.attributes for name in row if isinstance(row[name], str)})
            raise ValueError(f"{config.data}: no scene has a --label {config.label}; accepted are {', '.join(known)}")
        self.latents = Latents.encoded(config.out / "latents.safetensors", self.autoencoder, self.data, config)
        values = self.latents.data.float()
        self.autoencoder.latent_mean.copy_(values.mean(0))
        std = values.std(0) if len(values) > 1 else torch.ones_like(values[0])  # one sample has no deviation
        self.autoencoder.latent_std.copy_(std.clamp(min=1e-3))
        tokens, channels = values.shape[1:]
        self.shift = dimension_shift(tokens, channels)
        torch.manual_seed(config.seed)
        self.model = DiT3D(tokens=tokens, channels=channels, classes=len(self.names), **SIZES[config.size])
        if found is not None:
            begin(self.model, found)
        self.modules: dict[str, nn.Module] = {"dit3d": self.model}
        self.optimizers = {"velocity": matrix_optimizers(self.model, config, config.muon_rate)}

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """Normalised latents of random samples, of one of their conditions each, and their classes."""
        config, generator = self.config, step_generator(self.config.seed, step, 0)
        rows = torch.randint(len(self.latents.data), (config.batch,), generator=generator)
        if config.single_images:
            labels = class_of_scenes(self.data, config.label, self.names)[rows % len(self.data)]  # samples by scenes
            dropped = torch.rand(config.batch, generator=generator) < config.label_dropout
            label = share(torch.where(dropped, len(self.names), labels))
            rows = share(rows)
            known = self.latents.blind[rows]
        else:
            column = torch.randint(config.conditions, (config.batch,), generator=generator)
            blind = torch.rand(config.batch, 1, 1, generator=generator) < config.blind_probability
            label, rows, column, blind = None, share(rows), share(column), share(blind)
            known = torch.where(blind, self.latents.blind[rows], self.latents.known[rows, column])
        latents = (self.latents.data[rows], known)
        return Batch(*(self.autoencoder.normalize(x.float().to(self.autoencoder.device)) for x in latents), label)

    def phases(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: the velocity at shifted uniform times."""
        data, known, label = (x if x is None else x.to(self.model.device) for x in batch)
        t = shifted(torch.rand(len(data), generator=generator), self.shift).to(data.device)
        noise = torch.randn(data.shape, generator=generator).to(data.device)
        predicted = self.model(interpolate(data, noise, t), t, known, label=label).velocity
        yield "velocity", {"velocity": velocity_loss(predicted.float(), data, noise)}

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
            labels = class_of_scenes(self.held_out, config.label, self.names).tolist()
            first = 0
            conditions = [Condition(label=None if x == len(self.names) else x) for x in labels[:count]]
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

    def save(self, folder: Path) -> None:
        """Write the pipeline: autoencoder with its statistics, denoiser and schedule; and the names of the classes."""
        self.pipeline().save_pretrained(folder)
        if self.names:
            (folder / "classes.json").write_text(json.dumps(self.names, indent=0) + "\n")


def started(folder: Path) -> DiT3D:
    """The DiT3D of a folder or of the pipeline in it; ValueError unless its weights are there and fit."""
    folder = folder / "denoiser" if (folder / "denoiser").is_dir() else folder
    check_weights(DiT3D, folder)
    return DiT3D.from_pretrained(folder, torch_dtype=torch.float32)


def begin(model: DiT3D, found: DiT3D) -> None:
    """Give a new model the weights of a trained one, whose table of classes is dropped where the new one has none.

    ValueError where anything else differs (3DDiT's second stage begins so).
    """
    table = () if model.label is not None else ("classes",)
    odd = [
        f"{name} was {found.config.get(name)}, is {value}"
        for name, value in dict(model.config).items()
        if not name.startswith("_") and name not in table and found.config.get(name) != value
    ]
    if odd:
        raise ValueError(f"--start: a DiT3D of another shape ({', '.join(odd)}); accepted is one of the same")
    dropped = {"label.weight"} if model.label is None else set()
    model.load_state_dict({name: value for name, value in found.state_dict().items() if name not in dropped})
