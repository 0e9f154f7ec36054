"""Stage 2: the denoiser DiT3D on the latents of a frozen RAE3D, conditioned on some of the same views."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Bool, Float
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diorama.data.cache import WorldsCache
from diorama.data.transforms import mirrored
from diorama.evaluation.metrics import gradient_energy, psnr
from diorama.flow import dimension_shift, interpolate, shifted
from diorama.geometry.cameras import Cameras
from diorama.models.checkpoints import check_weights
from diorama.models.dit3d import SIZES, DiT3D
from diorama.models.rae3d import RAE3D
from diorama.pipelines.base import pick_device
from diorama.pipelines.tokens import TokenPipeline, encode_views
from diorama.scene import Condition, Views
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


class Latents:
    """Latents of every sample and of its conditions, encoded once and kept on disk."""

    def __init__(self, data: Tensor, known: Tensor, blind: Tensor) -> None:
        self.data, self.known, self.blind = data, known, blind

    @classmethod
    @torch.no_grad()
    def encoded(cls, file: Path, model: RAE3D, cache: WorldsCache, config: Config) -> "Latents":
        """Read them from `file`, or encode the cache's scenes and write it; of several processes only the first does.

        Raises ValueError if the file was made with other settings, another autoencoder or other data. One that does
        not say what it was made of is made again.
        """
        made_of = _fingerprint(model, cache, config)
        while not _made_of(file, made_of):
            if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
                return cls._made(file, made_of, model, cache, config)
            time.sleep(0.1)
        return cls(**load_file(file))

    @classmethod
    def _made(cls, file: Path, made_of: dict[str, str], model: RAE3D, cache: WorldsCache, config: Config) -> "Latents":
        parts: dict[str, list[Tensor]] = {"data": [], "known": [], "blind": []}
        scenes = torch.arange(len(cache)).repeat(config.samples)
        for number, part in enumerate(track(scenes.split(16), description="encoding latents", transient=True)):
            generator = step_generator(config.seed, number, 2)
            views = _subset(cache, part, config.encoder_views, generator)
            views = mirrored(views, torch.rand(len(part), generator=generator) < 0.5).to(model.device)
            cameras = views.cameras.normalized()[0]  # type: ignore[union-attr]
            count = torch.tensor(config.visible)[
                torch.randint(len(config.visible), (config.conditions, len(part)), generator=generator)
            ]
            masks = [torch.ones(len(part), config.encoder_views, dtype=torch.bool)]
            masks += [_known_places(row, config.encoder_views, generator) for row in count]
            masks += [torch.zeros(len(part), config.encoder_views, dtype=torch.bool)]
            with torch.autocast(model.device.type, torch.bfloat16):
                made = [encode_views(model, views, cameras, mask.to(model.device)).half().cpu() for mask in masks]
            parts["data"].append(made[0])
            parts["known"].append(torch.stack(made[1:-1], 1))
            parts["blind"].append(made[-1])
        tensors = {name: torch.cat(values) for name, values in parts.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file.with_suffix(".part"), made_of)
        file.with_suffix(".part").replace(file)
        return cls(**tensors)


def _fingerprint(model: RAE3D, cache: WorldsCache, config: Config) -> dict[str, str]:
    """Everything that latents depend on, by a name that a user knows."""
    architecture = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
    weights = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, parameter in sorted(model.named_parameters()):  # and no buffers: encoding does not use the statistics
        weights.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
    names = ("version", "views", "height", "width", "samples", "seeds")
    data = hashlib.sha256(json.dumps([cache.meta[name] for name in names]).encode())
    settings = {name: asdict(config)[name] for name in ("seed", "encoder_views", "visible", "samples", "conditions")}
    found = {name: json.dumps(value) for name, value in settings.items()}
    return found | {"autoencoder": weights.hexdigest()[:16], "data": data.hexdigest()[:16]}


def _made_of(file: Path, wanted: dict[str, str]) -> bool:
    """Whether the file is there and says what it was made of; ValueError if that is something else than wanted."""
    if not file.exists():
        return False
    try:
        with safe_open(file, "pt") as stored:
            found = stored.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error}); remove it to encode again") from None
    odd = [f"{name} was {found[name]}, is {value}" for name, value in wanted.items() if found.get(name, value) != value]
    if odd:
        raise ValueError(f"{file}: made with other settings ({', '.join(odd)}); use them or another --out")
    return found.keys() >= wanted.keys()


def _subset(cache: WorldsCache, scenes: Tensor, views: int, generator: torch.Generator) -> Views:
    """Some views of each scene in time's order, or in any order so that every view may be the first."""
    order = torch.rand(len(scenes), cache.views, generator=generator).argsort(1)[:, :views]
    keep = torch.rand(len(scenes), 1, generator=generator) < 0.5
    return cache.batch(scenes, torch.where(keep, order.sort(1).values, order))


def _known_places(count: Tensor, views: int, generator: torch.Generator) -> Bool[Tensor, "batch view"]:
    """`count` known views a row; the first view is among them half of the time."""
    rank = torch.rand(len(count), views, generator=generator)
    rank[:, 0] -= (torch.rand(len(count), generator=generator) < 0.5).float()
    return rank.argsort(1).argsort(1) < count[:, None]


class DiT3DStage:
    """Rectified flow between noise and normalised latents."""

    def __init__(self, config: Config) -> None:
        self.config = config
        check_weights(RAE3D, config.autoencoder)
        device = pick_device(config.device)  # frozen, so that the loop, which moves what it trains, leaves it alone
        self.autoencoder = RAE3D.from_pretrained(config.autoencoder).eval().requires_grad_(False)
        self.autoencoder.load_encoder()  # here, so that one that is missing is said before any work
        nn.Module.to(self.autoencoder, device)
        self.data, self.held_out = WorldsCache(config.data), WorldsCache(config.validation)
        for folder, cache in ((config.data, self.data), (config.validation, self.held_out)):
            if not 2 <= config.encoder_views <= cache.views:
                found = f"encoder_views of {config.encoder_views} with scenes of {cache.views} views"
                raise ValueError(f"{folder}: {found}; accepted are 2 to {cache.views}")
        self.latents = Latents.encoded(config.out / "latents.safetensors", self.autoencoder, self.data, config)
        values = self.latents.data.float()
        self.autoencoder.latent_mean.copy_(values.mean(0))
        std = values.std(0) if len(values) > 1 else torch.ones_like(values[0])  # one sample has no deviation
        self.autoencoder.latent_std.copy_(std.clamp(min=1e-3))
        tokens, channels = values.shape[1:]
        self.shift = dimension_shift(tokens, channels)
        torch.manual_seed(config.seed)
        self.model = DiT3D(tokens=tokens, channels=channels, **SIZES[config.size])
        self.modules: dict[str, nn.Module] = {"dit3d": self.model}
        self.optimizers = {"velocity": matrix_optimizers(self.model, config, config.muon_rate)}

    def batch(
        self, step: int, share: Share = WHOLE
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch token dim"]]:
        """Normalised latents of random samples, and of one of their conditions."""
        config, generator = self.config, step_generator(self.config.seed, step, 0)
        rows = torch.randint(len(self.latents.data), (config.batch,), generator=generator)
        column = torch.randint(config.conditions, (config.batch,), generator=generator)
        blind = torch.rand(config.batch, 1, 1, generator=generator) < config.blind_probability
        rows, column, blind = share(rows), share(column), share(blind)
        known = torch.where(blind, self.latents.blind[rows], self.latents.known[rows, column])
        latents = (self.latents.data[rows], known)
        data, known = (self.autoencoder.normalize(x.float().to(self.autoencoder.device)) for x in latents)
        return data, known

    def phases(
        self, batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: the velocity at shifted uniform times."""
        data, known = (x.to(self.model.device) for x in batch)
        t = shifted(torch.rand(len(data), generator=generator), self.shift).to(data.device)
        noise = torch.randn(data.shape, generator=generator).to(data.device)
        predicted = self.model(interpolate(data, noise, t), t, known).velocity
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
        """PSNR and gradient energy of generations from the first view of held-out scenes beside RAE3D's own."""
        count = min(16, len(self.held_out))
        every = torch.linspace(0, self.held_out.views - 1, self.config.encoder_views).round().long()
        views = self.held_out.batch(torch.arange(count), every.expand(count, -1))
        pipeline = self.pipeline()
        items = views.apart()
        paths: list[Cameras] = [item.cameras for item in items]  # type: ignore[misc]
        made = pipeline.generate([Condition(item[:1], (0,)) for item in items], paths, steps=20)
        plain = pipeline.reconstruct([item[:1] for item in items], paths)
        self.model.train()
        true = views.images[:, 1:]
        values, rows = {}, [views.images[:8, self.config.encoder_views // 2]]
        for name, scenes in (("generated", made), ("regressed", plain)):
            images = torch.stack([scene.views.images for scene in scenes])
            values[f"psnr_{name}"] = float(psnr(images[:, 1:], true).mean())
            values[f"sharpness_{name}"] = float(gradient_energy(images[:, 1:]).mean() / gradient_energy(true).mean())
            rows.append(images[:8, self.config.encoder_views // 2])
        return values, torch.cat(list(torch.cat(rows, -2)), -1)

    def save(self, folder: Path) -> None:
        """Write the pipeline: autoencoder with its statistics, denoiser and schedule."""
        self.pipeline().save_pretrained(folder)
