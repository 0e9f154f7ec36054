"""A trained DiT3D becomes one of few steps that needs no guidance: piecewise distillation along its own trajectories.

One Euler step of the student is regressed to each piece of the guided teacher's path, as in PeRFlow (arXiv 2405.07510),
whose fault is that its pieces start where no sampler comes by (FlowSteer, arXiv 2511.18834): here they start where the
student itself comes to from the same noise. Paths are deterministic, so there is one right answer, and no derivative
after time, which is what explodes in such latents (MF-RAE, arXiv 2511.13019).
"""

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diorama.data.cache import WorldsCache
from diorama.data.sources import is_worlds
from diorama.evaluation.quality import capped
from diorama.pipelines.base import Context, find_model, pick_device
from diorama.pipelines.tokens import OPTIONS, TokenPipeline, Told
from diorama.scene import Condition, Views
from diorama.training import dit3d
from diorama.training.data import Data, open_held_out
from diorama.training.latents import Draw, encoded, kept_of, weights_of
from diorama.training.online import Online
from diorama.training.trainer import WHOLE, Share, matrix_optimizers, step_generator
from diorama.training.trajectories import Kept, Trajectories, knots, mean_velocities

SCENES = 16  # validated on


@dataclass(frozen=True)
class Config(Data):
    """Distillation; the defaults are for the paper's sizes."""

    model: str = field(kw_only=True)
    """The teacher: an embedded model's name, or the folder of a trained 3DRAE + 3DDiT pipeline."""
    sampling_steps: int = 4
    """Steps of the student."""
    teacher_steps: int = 48
    """Steps of the teacher along each trajectory, a multiple of the student's."""
    guidance: float | None = None
    """The teacher's guidance, which the student takes in; by default the teacher's own."""
    teacher_batches: int = 2_000
    """Batches of trajectories that the teacher makes before the first step."""
    encoder_views: int | None = None
    """Views of each sample; by default as many as the teacher reads."""
    visible: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Numbers of views that may be known, of which one is drawn for each sample."""
    hidden: tuple[float, float] = (0.6, 0.9)
    """With --dynamic, range of the share of views that are not known, in place of --visible."""
    window: int = 0
    """Take a sample's views from so many neighbouring ones of its capture; 0: all."""
    blind_probability: float = 0.1
    """Share of samples with nothing known."""
    scale_dropout: float = 0.5
    """Share of samples of which a teacher with a scale is not told it."""
    muon_rate: float = 0.0
    """Peak rate of Muon for the blocks' matrices; 0 leaves everything to AdamW."""
    title: str | None = None
    """Name of the saved pipeline; by default the teacher's own with the number of steps."""
    steps: int = 20_000
    learning_rate: float = 1e-4
    warmup: int = 500
    ema: float = 0.999


class DistillStage:
    """The student begins as the teacher's denoiser; all else of the teacher's pipeline it shares."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.teacher = _teacher(config)
        self.guidance = float(self.teacher.config.guidance if config.guidance is None else config.guidance)
        self.views = config.encoder_views or self.teacher.config.encoder_views
        self.held_out = open_held_out(config)
        self.times = knots(self.teacher.scheduler, config.sampling_steps)
        self._check()
        self.model = copy.deepcopy(self.teacher.denoiser).train().requires_grad_(True)
        self.teacher.denoiser.requires_grad_(False)
        self.autoencoder = self.teacher.autoencoder.requires_grad_(False)
        self.autoencoder.load_encoder()
        self.kept = Kept(config.out / "trajectories", config.teacher_batches, self._made_of())
        self._make()
        self.modules: dict[str, nn.Module] = {"student": self.model}
        self.optimizers = {"pieces": matrix_optimizers(self.model, config, config.muon_rate)}

    def _check(self) -> None:
        """ValueError for what cannot be used, before any work."""
        config = self.config
        if config.teacher_steps % config.sampling_steps or config.teacher_steps < config.sampling_steps:
            found = f"--teacher-steps {config.teacher_steps} with --sampling-steps {config.sampling_steps}"
            raise ValueError(f"{found}: accepted is a multiple of it")
        if config.teacher_batches < 1:
            raise ValueError(f"--teacher-batches {config.teacher_batches}: accepted is 1 or more")
        folders = config.data if isinstance(config.data, tuple) else (config.data,)
        for folder in folders:
            most = WorldsCache(folder).views if is_worlds(folder) else max(2, self.views)  # captures: once opened
            if not (config.dynamic or 2 <= self.views <= most):
                found = f"{folder}: encoder_views of {self.views} with scenes of {most} views"
                raise ValueError(f"{found}; accepted are 2 to {most}")

    def _made_of(self) -> dict[str, str]:
        """Everything that trajectories depend on, by a name that a user knows."""
        names = ("data", "weights", "profiles", "seed", "batch", "dynamic", "token_budget", "pixels", "aspects",
                 "sample_views", "image_size", "teacher_steps", "sampling_steps", "visible", "hidden", "window",
                 "blind_probability", "scale_dropout")  # fmt: skip
        found = {name: str(getattr(self.config, name)) for name in names}
        teacher = f"{weights_of(self.teacher.autoencoder)} {weights_of(self.teacher.denoiser)}"
        return found | {"teacher": teacher, "guidance": str(self.guidance), "encoder_views": str(self.views)}

    def _make(self) -> None:
        """The teacher's part: its trajectories, and its scenes from what validation knows."""
        device = pick_device(self.config.device)
        if device.type == "cuda" and device.index is None:  # under torchrun each process has its own
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        self.teacher.to(device)
        online = Online(_drawing(self.config, self.teacher, self.views), self.autoencoder, None)
        try:
            self.kept.make(lambda number: self._trajectories(online, number))
        finally:
            online.batches.close()
        self._reference = self._referred()
        nn.Module.to(self.teacher.denoiser, "cpu")  # its part is done

    def _trajectories(self, online: Online, number: int) -> Trajectories:
        """One batch of the teacher's; what is kept in half precision is what it was asked with."""
        sample, device = online.batch(number), self.autoencoder.device
        visible = sample.draw.masks[1]
        draw = Draw(sample.draw.views, torch.stack([visible, torch.zeros_like(visible)]))
        known, blind = (self.autoencoder.normalize(x).half().float() for x in encoded(self.autoencoder, draw))
        noise = torch.randn(known.shape, generator=step_generator(self.config.seed, number, 4)).half()
        log_scale = None if sample.log_scale is None else sample.log_scale.to(device)
        context, null = (Context(Told(x, None, log_scale), (), ()) for x in (known, blind))

        def velocity(latents: Tensor, t: float) -> Tensor:
            return self.teacher.velocity(latents, t, context, None if self.guidance == 1 else null, self.guidance)

        times = knots(self.teacher.scheduler, self.config.teacher_steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision.startswith("bf16")):
            pieces = mean_velocities(velocity, noise.float().to(device), times, self.config.sampling_steps)
        return Trajectories(noise, pieces.half(), known.half(), log_scale)

    def batch(self, step: int, share: Share = WHOLE) -> Trajectories:
        """A step's share of random trajectories."""
        generator = step_generator(self.config.seed, step, 0)
        return self.kept[share(torch.randint(len(self.kept), (self.config.batch,), generator=generator))]

    def phases(self, batch: Trajectories, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: from where the student is, to where the teacher's piece ends, piece by piece."""
        device, losses = self.model.device, {}
        noise, pieces, known = (x.to(device) for x in batch[:3])
        log_scale = None if batch.log_scale is None else batch.log_scale.to(device)
        own = there = noise
        for number, (start, end) in enumerate(zip(self.times[:-1], self.times[1:], strict=True)):
            there = there - (start - end) * pieces[:, number]
            t = torch.full((len(own),), start, device=device)
            predicted = self.model(own, t, known, log_scale=log_scale).velocity.float()
            wanted = (own - there) / (start - end)
            losses[f"piece_{number}"] = F.mse_loss(predicted, wanted) / len(self.times[1:])
            own = (own - (start - end) * predicted).detach()
        yield "pieces", losses

    def pipeline(self) -> TokenPipeline:
        """The teacher's with the student in its denoiser's place, which samples in few steps without guidance."""
        teacher, config = self.teacher, self.config
        for part in (self.autoencoder, teacher.memory):
            if part is not None:
                nn.Module.to(part, self.model.device)
        options = {name: value for name, value in dict(teacher.config).items() if name in OPTIONS}
        title = config.title or f"{teacher.config.title}, {config.sampling_steps} steps"
        options |= dict(title=title, steps=config.sampling_steps, guidance=1.0)
        return TokenPipeline(self.autoencoder, self.model, teacher.scheduler, teacher.memory, **options)

    def _requests(self) -> tuple[list[Condition], list[Any], Views]:
        """The first view of held-out scenes, their paths, and all their views."""
        count, views = min(SCENES, len(self.held_out)), min(self.views, self.held_out.views)
        every = torch.linspace(0, self.held_out.views - 1, views).round().long()
        found = self.held_out.batch(torch.arange(count), every.expand(count, -1))
        items = found.apart()
        return [Condition(item[:1], (0,)) for item in items], [item.cameras for item in items], found

    def _made(self, pipeline: TokenPipeline, **how: Any) -> tuple[Tensor, Tensor]:
        """Normalised latents and images of the held-out requests, each from the noise of its own seed."""
        conditions, paths, _ = self._requests()
        scenes = pipeline.generate(conditions, paths, seed=list(range(len(paths))), **how)
        raw = torch.stack([scene.latents for scene in scenes]).to(self.autoencoder.device)  # type: ignore[misc]
        return self.autoencoder.normalize(raw).cpu(), torch.stack([scene.views.images for scene in scenes])

    def _referred(self) -> dict[str, Tensor]:
        """The teacher's own scenes from the held-out requests at its own steps, and at as few as the student has."""
        steps, file = self.teacher.config.steps, self.config.out / "teacher.safetensors"
        made_of = self._made_of() | {"validation": str(self.config.validation), "steps": str(steps)}
        if not kept_of(file, made_of):
            found = {}
            for name, count in (("many", steps), ("few", self.config.sampling_steps)):
                found[f"{name}_latents"], found[f"{name}_images"] = self._made(
                    self.teacher, steps=count, guidance=self.guidance
                )
            draft = file.with_suffix(f".part{os.environ.get('RANK', '0')}")
            save_file(found, draft, made_of)
            draft.replace(file)
        return load_file(file)

    def validate(self) -> tuple[dict[str, float], Float[Tensor, "3 height width"]]:
        """How far the student's samples are from the teacher's of the same noise, beside the teacher's at as few steps.

        `distance` is the root mean square of normalised latents; of unseen views `agreement` is the PSNR to the
        teacher's, `psnr` that to the truth. The picture's rows: truth, teacher, teacher in few steps, student.
        """
        true, reference = self._requests()[2].images, self._reference
        latents, images = self._made(self.pipeline())
        self.model.train()
        teacher = reference["many_images"]
        few = reference["few_latents"], reference["few_images"]
        values = {"psnr_teacher": float(capped(teacher[:, 1:], true[:, 1:]).mean())}
        for name, (found, made) in {"student": (latents, images), "teacher_in_few_steps": few}.items():
            values[f"distance_{name}"] = float((found - reference["many_latents"]).square().mean().sqrt())
            values[f"agreement_{name}"] = float(capped(made[:, 1:], teacher[:, 1:]).mean())
            values[f"psnr_{name}"] = float(capped(made[:, 1:], true[:, 1:]).mean())
        shown = (true, teacher, reference["few_images"], images)
        return values, torch.cat(list(torch.cat([x[:8, x.shape[1] // 2] for x in shown], -2)), -1)

    def save(self, folder: Path) -> None:
        """Write the whole pipeline; its index says how few steps it takes, and that it takes no guidance."""
        self.pipeline().save_pretrained(folder)
        self.autoencoder.save_encoder(folder / "autoencoder")


def _teacher(config: Config) -> TokenPipeline:
    """The pipeline that is learnt from; ValueError for one that this cannot distil."""
    kind, folder = find_model(config.model)
    if kind is not TokenPipeline:
        found = f"--model {config.model}: found a {kind.__name__}"
        raise ValueError(f"{found}; accepted are embedded models and folders of 3DRAE + 3DDiT")
    teacher = TokenPipeline.load_folder(folder)
    if teacher.denoiser.config.classes:
        raise ValueError(f"--model {config.model}: made for single images by class; accepted is one of many views")
    return teacher


def _drawing(config: Config, teacher: TokenPipeline, views: int) -> dit3d.Config:
    """How samples are drawn, as DiT3D's own stage is told it; ValueError for known views that leave none to make."""
    visible = tuple(count for count in config.visible if 1 <= count < views)
    if not visible and not config.dynamic:
        found = f"--visible {' '.join(map(str, config.visible))} with samples of {views} views"
        raise ValueError(f"{found}: accepted are numbers from 1 to {views - 1}")
    same = {*(one.name for one in fields(Data)), "hidden", "window", "blind_probability", "scale_dropout"}
    return dit3d.Config(
        **{name: getattr(config, name) for name in same},
        autoencoder=find_model(config.model)[1] / "autoencoder",
        online=True,
        scale_token=bool(teacher.denoiser.config.get("scale")),
        encoder_views=views,
        visible=visible,
    )
