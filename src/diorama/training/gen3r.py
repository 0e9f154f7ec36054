"""Gen3R's second stage: one denoiser of appearance and geometry latents side by side (section 3.3)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from torch import Tensor, nn

from diorama.evaluation.metrics import psnr
from diorama.flow import interpolate, shifted
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.models.gen3r_transformer import SIZES as NEW_SIZES
from diorama.models.gen3r_transformer import Gen3RTransformer
from diorama.models.geometry_adapter import pack_tokens
from diorama.pipelines.base import pick_device
from diorama.pipelines.gen3r import UNIT, Gen3RPipeline
from diorama.pipelines.gen3r_conditions import Known, appearance_moments
from diorama.pipelines.gen3r_world import scale_of_scene
from diorama.scene import Condition, Shot, Views
from diorama.training.captions import Captions
from diorama.training.clips import ClipData, Clips, check_frames, in_range
from diorama.training.gen3r_losses import clipped_velocity_loss
from diorama.training.parts import transformer_in
from diorama.training.remembered import Remembered
from diorama.training.stage import matrix_optimizers
from diorama.training.trainer import WHOLE, Share, step_generator

SIZES: dict[str, dict[str, Any]] = {"own": {}, **NEW_SIZES}
TIMES = 1000  # of which one is drawn for each sample, before the schedule's shift


@dataclass(frozen=True)
class Config(ClipData):
    """Training of Gen3R's denoiser, all of it; the defaults are the published run's."""

    model: Path = field(kw_only=True)
    """Folder of a Gen3R pipeline, published or saved, of which all but the denoiser stays as it is."""
    size: str = "own"
    """`own`: go on with that pipeline's denoiser; else a new one with this row of the table of sizes."""
    start: Path | None = None
    """Folder of a denoiser to begin from instead: Gen3R's, or Wan-Fun's, whose missing mask channels begin at zero."""
    frames: int = 49
    """Frames of a clip, 4k + 1."""
    strides: tuple[int, ...] = (1,)
    camera_dropout: float = 0.5
    """Share of samples whose cameras are kept from the model."""
    text_dropout: float = 0.2
    """Share of samples whose caption is kept from the model."""
    posterior: Literal["drawn", "mean"] = "drawn"
    """What a clip's latents are: drawn from their posteriors, with raw deviations as published, or their means."""
    scale: Literal["given", "vggt"] = "given"
    """Unit of cameras: the data's own (published), or VGGT's, which is what inference asks for by default."""
    captioner: str = ""
    """`module:function` that says what images (view, 3, height, width) show, for scenes whose files hold no caption."""
    keep_latents: bool = False
    """Keep what the frozen models say of every clip in the run's folder, and read it when the clip comes again."""
    steps: int = 8_000
    batch: int = 192
    learning_rate: float = 1e-5
    warmup: int = 50
    final_rate: float = 1e-4
    clip: float = 0.5
    ema: float = 0.0
    weight_decay: float = 3e-2
    """Of AdamW."""
    muon_rate: float = 0.0
    """Peak rate of Muon for the blocks' matrices, without any weight decay; 0 leaves all to AdamW, as published."""
    guidance: float = 5.0
    """Default guidance of the saved pipeline."""
    negative_prompt: str = "bad detailed"
    """What guidance compares with, in the saved pipeline."""
    title: str = "Gen3R"
    """Name of the saved pipeline."""


class Batch(NamedTuple):
    """A step's share of requests, each with the whole clip that answers it."""

    images: Float[Tensor, "batch view 3 height width"]
    views: list[Views]
    conditions: list[Condition]
    free: list[bool]  # whose cameras are kept from the model


class Gen3RStage:
    """Rectified flow between noise and both halves of a clip's latents, under the pipeline's own conditions."""

    kind: type[Gen3RPipeline] = Gen3RPipeline  # a variant is trained by a stage that names it

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        check_frames("frames", config.frames)
        self.config, device = config, pick_device(config.device)
        self.data, self.held_out = (Clips(x, config.image_size, unit=UNIT) for x in (config.data, config.validation))
        pipeline = self.kind.load_folder(config.model, torch.float32, offload="none")
        if (model := self._denoiser(pipeline.transformer)) is not None:
            pipeline.register_modules(transformer=model)
        self.pipeline = pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.model: Gen3RTransformer = self.pipeline.transformer.train().requires_grad_(True)
        self.captions = Captions(self.data, config.captioner, config.out)
        vae, adapter, vggt = pipeline.vae, pipeline.adapter, pipeline.vggt
        folder = config.out / "latents" if config.keep_latents else None
        models = {"appearance": (vae,), "geometry": (adapter, vggt), "scale": (vggt,)}
        self.kept = {name: Remembered(folder, which) for name, which in models.items()}
        if config.keep_latents:  # of condition clips too, which the pipeline encodes by itself
            self._keep(vae)
        self.modules: dict[str, nn.Module] = {"gen3r": self.model}
        self.optimizers = {"velocity": self._optimizers()}

    def _keep(self, vae: Any) -> None:
        """Let the video VAE read what it said of a clip before."""
        encode = vae.encode

        def kept(clip: Tensor) -> SimpleNamespace:
            numbers = self.kept["appearance"]("appearance", clip, lambda rows: encode(rows).latent_dist.parameters)
            return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(numbers))

        vae.encode = kept

    def _denoiser(self, own: Gen3RTransformer) -> Gen3RTransformer | None:
        """Another denoiser than the pipeline's, where one is asked for; ValueError where it reads something else."""
        config, widths = self.config, {name: own.config[name] for name in ("text_dim", "image_dim", "in_channels")}
        if config.start is None:
            return Gen3RTransformer(**SIZES[config.size] | widths) if SIZES[config.size] else None
        if SIZES[config.size]:
            raise ValueError(f"--size {config.size} with --start {config.start}: accepted is one of the two")
        model = transformer_in(config.start, widths["in_channels"])
        if odd := [f"{name} {model.config[name]}" for name, value in widths.items() if model.config[name] != value]:
            raise ValueError(f"{config.start}: a denoiser of {', '.join(odd)}; accepted are {widths}, as in --model")
        return model

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        config = self.config
        if config.muon_rate:
            return matrix_optimizers(self.model, config, config.muon_rate)
        rates: dict[str, Any] = dict(betas=(0.9, 0.999), weight_decay=config.weight_decay)
        return [torch.optim.AdamW(self.model.parameters(), config.learning_rate, **rates)]

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """Clips of random scenes; of each the first frame, the first and last or all are known, and perhaps more."""
        config, generator = self.config, step_generator(self.config.seed, step, 0)
        clip = self.data.drawn(config, config.batch, config.frames, generator, share)
        task = share(torch.randint(3, (config.batch,), generator=generator)).tolist()
        chances = (share(x).tolist() for x in torch.rand(3, config.batch, generator=generator))
        views, conditions, free = clip.views.apart(), [], []
        for item, scene, which, blind, silent, word in zip(views, clip.scenes, task, *chances, strict=True):
            last = config.frames - 1
            at = ((0,), (0, last), tuple(range(config.frames)))[which] if last else (0,)
            prompt = "" if silent < config.text_dropout else self.captions.of(scene, word, item.images)
            conditions.append(Condition(item[at], at, prompt))
            free.append(blind < config.camera_dropout)
        return Batch(clip.views.images, views, conditions, free)

    def phases(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: the velocity, at times of the published schedule."""
        with torch.no_grad():
            data, known = self.latents(batch.images, generator), self.known(batch)
        drawn = torch.randint(TIMES, (len(data),), generator=generator)
        shift = float(self.pipeline.scheduler.config["shift"])
        t = shifted(1 - drawn / TIMES, shift).to(data.device)
        noise = torch.randn(data.shape, generator=generator).to(data.device)
        predicted = self.pipeline.denoise(interpolate(data, noise, t), t, known)
        yield "velocity", {"velocity": clipped_velocity_loss(predicted.float(), data, noise)}

    def known(self, batch: Batch) -> Known:
        """What the pipeline makes of the requests."""
        wanted: list[Cameras | Shot] = []
        conditions, scales = [], self._scales(batch)
        for item, condition, free, scale in zip(batch.views, batch.conditions, batch.free, scales, strict=True):
            eye, cameras = torch.eye(3), item.cameras
            assert cameras is not None and condition.views is not None
            frame = Similarity(eye, torch.zeros(3), torch.tensor(scale))
            conditions.append(Condition(condition.views.transformed(frame), condition.at, condition.prompt))
            shot = Shot(len(item), cameras.height, cameras.width)
            wanted.append(shot if free else cameras.transformed(frame))
        return self.pipeline.encode(conditions, wanted).known

    def latents(
        self, images: Float[Tensor, "batch view 3 height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channel latent_frame latent_height both"]:
        """Appearance and geometry of clips, side by side: what the denoiser is to make."""
        images = images.to(self.pipeline.place)
        appearance = appearance_moments(self.pipeline.vae, in_range(images))
        posterior = DiagonalGaussianDistribution(self.kept["geometry"]("geometry", images, self._geometry))
        data = [mean.float() for mean in (appearance[0], posterior.mean)]
        if self.config.posterior == "drawn" and generator is not None:
            spreads = [(0.5 * x.float()).exp() for x in (appearance[1], posterior.logvar)]
            noise = [torch.randn(x.shape, generator=generator).to(x) for x in data]
            data = [x + spread * more for x, spread, more in zip(data, spreads, noise, strict=True)]
        return torch.cat(data, -1)

    def _geometry(self, images: Float[Tensor, "batch view 3 height width"]) -> Tensor:
        """Mean and logarithmic variance of the adapter's latents."""
        vggt, height, width = self.pipeline.vggt, *images.shape[-2:]
        patch = vggt.config.patch
        tokens = pack_tokens(vggt.encode(images), height // patch, width // patch)
        return self.pipeline.adapter.encode(tokens).parameters

    def _scales(self, batch: Batch) -> list[float]:
        """How long one unit of each clip's world is for the model."""
        if self.config.scale == "given":
            return [1.0] * len(batch.views)
        found = []
        for item in batch.views:

            def measured(images: Tensor, item: Views = item) -> Tensor:
                seen = self.pipeline.vggt(images)
                seen = seen._replace(depth=seen.depth.cpu(), cameras=seen.cameras.to("cpu"))
                return torch.tensor([scale_of_scene(item, seen)])

            found.append(float(self.kept["scale"]("scale", item.images[None].to(self.pipeline.place), measured)))
        return found

    def validate(self) -> tuple[dict[str, float], Float[Tensor, "3 height width"]]:
        """PSNR of clips from their first frame and cameras, beside that of the first frame repeated, and pictures."""
        clips = self.held_out.first(self.config, 4, self.config.frames)
        items, captions = clips.views.apart(), [(*self.held_out.captions(x), "")[0] for x in clips.scenes]
        conditions = [Condition(item[:1], (0,), text) for item, text in zip(items, captions, strict=True)]
        paths: list[Any] = [item.cameras for item in items]
        scale = {"scale": 1.0} if self.config.scale == "given" else {}
        self.model.eval()
        scenes = self.pipeline.generate(conditions, paths, steps=20, guidance=1.0, **scale)
        self.model.train()
        true, made = (torch.stack([views.images for views in x]) for x in (items, [s.views for s in scenes]))
        pairs = {"psnr": made, "psnr_still": true[:, :1].expand_as(true)}
        values = {name: float(psnr(images[:, 1:], true[:, 1:]).mean()) for name, images in pairs.items()}
        return values, torch.cat(list(torch.cat([true[:, -1], made[:, -1]], -2)), -1)

    def save(self, folder: Path) -> None:
        """Write the whole pipeline."""
        config, told = self.config, self.pipeline
        pixels = self.data.height * self.data.width
        names = {name: getattr(config, name) for name in ("guidance", "negative_prompt", "title")}
        told.register_to_config(pixels=pixels, views=config.frames, **names)
        told.save_pretrained(folder)
