"""The one interface: a condition and wanted cameras go in, a scene comes out, whatever the models inside."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from diorama.flow import guidance_at, guided, uniform_sigmas
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.scene import Condition, Provenance, Scene, Shot, Views

PIPELINES = {  # class name in model_index.json -> module
    "TokenPipeline": "diorama.pipelines.tokens",
    "VGGTPipeline": "diorama.pipelines.vggt",
}
PUBLISHED_VGGT = ("model.safetensors", "model.pt")  # of facebook/VGGT-1B, which has no model_index.json
OnStep = Callable[[int, int], None]


class Cancelled(Exception):
    """Raised by an `on_step` callback to stop a generation."""


class Context(NamedTuple):
    """What denoising and decoding need to know of a batch of requests."""

    known: Tensor  # the conditions as the denoiser reads them, batch first
    wanted: Sequence[Any]  # what was asked for, in the callers' worlds
    frames: Sequence[Similarity | None]  # world -> latent frame of each


class ScenePipeline(DiffusionPipeline, ABC):
    """What all families share: batching, the sampling loop, guidance, seeds, progress and provenance."""

    config: Any  # what __init__ registered, by attribute

    @overload
    def generate(
        self,
        condition: Condition,
        wanted: Cameras | Shot,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        on_step: OnStep | None = None,
    ) -> Scene: ...

    @overload
    def generate(
        self,
        condition: Sequence[Condition],
        wanted: Cameras | Shot | Sequence[Cameras | Shot],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        on_step: OnStep | None = None,
    ) -> list[Scene]: ...

    def generate(
        self,
        condition: Condition | Sequence[Condition],
        wanted: Cameras | Shot | Sequence[Cameras | Shot],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        on_step: OnStep | None = None,
    ) -> Scene | list[Scene]:
        """A scene with the wanted views; a sequence of conditions gives a list, each as if asked for alone.

        Wanted sizes that the model cannot make are changed to near ones of its own resolution. Guidance acts at times
        t inside `interval` (1 = noise). `on_step(done, all)` may raise `Cancelled`. ValueError on unusable input.
        """
        conditions = [condition] if isinstance(condition, Condition) else list(condition)
        count = len(conditions)
        paths = list(wanted) if isinstance(wanted, Sequence) else [wanted] * count
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * count
        if not len(paths) == len(seeds) == count:
            raise ValueError(
                f"{count} conditions, {len(paths)} camera paths and {len(seeds)} seeds: accepted is one each"
            )
        settings = {
            "steps": self.config.steps if steps is None else steps,
            "guidance": self.config.guidance if guidance is None else guidance,
            "interval": interval,
        }
        uniform_sigmas(settings["steps"])  # refuses what it cannot use, as does the next, before any heavy work
        guidance_at(1.0, settings["guidance"], interval)
        requests = [self.prepared(c, path) for c, path in zip(conditions, paths, strict=True)]
        scenes: dict[int, Scene] = {}
        groups: dict[Any, list[int]] = {}
        for index, (known, path) in enumerate(requests):
            # Of one shape in all that the encoder reads; and without what is known, guidance has nothing to compare.
            shape = (path.views, path.height, path.width, len({0, *known.at}), known.views is None)
            groups.setdefault(shape, []).append(index)
        for number, members in enumerate(groups.values()):
            report = _part_of(on_step, number, len(groups))
            made = self._generate_batch([requests[i] for i in members], [seeds[i] for i in members], settings, report)
            scenes |= dict(zip(members, made, strict=True))
        return scenes[0] if isinstance(condition, Condition) else [scenes[index] for index in range(count)]

    @torch.no_grad()
    def _generate_batch(
        self, requests: list[tuple[Condition, Any]], seeds: list[int], settings: dict[str, Any], on_step: OnStep | None
    ) -> list[Scene]:
        conditions, wanted = [c for c, _ in requests], [path for _, path in requests]
        context = self.encode(conditions, wanted)
        null = None if settings["guidance"] == 1 else self.null(conditions, wanted)
        latents = self.noise(wanted, seeds)
        self.scheduler.set_timesteps(sigmas=uniform_sigmas(settings["steps"]), device=latents.device)
        for index, time in enumerate(self.scheduler.timesteps):
            t = float(time) / self.scheduler.config.num_train_timesteps
            scale = guidance_at(t, settings["guidance"], settings["interval"])
            if null is None or scale == 1:
                velocity = self.denoise(latents, t, context.known)
            else:  # both passes as one batch
                both = self.denoise(torch.cat([latents, latents]), t, torch.cat([context.known, null.known]))
                velocity = guided(*both.chunk(2), scale)
            latents = self.scheduler.step(velocity, time, latents, return_dict=False)[0]
            if on_step:
                on_step(index + 1, settings["steps"])
        views, latents = self.decode(latents, context)
        return [
            Scene(
                views=views[i],
                condition=conditions[i],
                latents=latents[i].cpu(),
                latent_frame=context.frames[i],
                provenance=self.provenance(seeds[i], settings),
            )
            for i in range(len(requests))
        ]

    def provenance(self, seed: int | None, settings: dict[str, Any]) -> Provenance:
        """Where a scene of this pipeline comes from."""
        versions = {name: metadata.version(name) for name in ("torch", "diffusers")}
        versions["diorama"] = metadata.version("diorama")
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        return Provenance(self.config.title, self.config.licence, seed, plain, versions)

    @abstractmethod
    def size_near(self, height: int | float, width: int | float) -> tuple[int, int]:
        """The height and width in pixels that the model makes where these are asked for."""

    @abstractmethod
    def prepared(self, condition: Condition, wanted: Cameras | Shot) -> tuple[Condition, Any]:
        """The request at a size the model can make, checked: ValueError before any heavy work."""

    @abstractmethod
    def encode(self, conditions: Sequence[Condition], wanted: Sequence[Any]) -> Context:
        """What the denoiser and the decoder need to know of requests of equal shape."""

    @abstractmethod
    def null(self, conditions: Sequence[Condition], wanted: Sequence[Any]) -> Context | None:
        """What guidance's other branch knows of the same requests; None where it would be the same branch again."""

    @abstractmethod
    def noise(self, wanted: Sequence[Any], seeds: Sequence[int]) -> Float[Tensor, "batch *latent"]:
        """Starting noise, one CPU generator for each request."""

    @abstractmethod
    def denoise(self, latents: Tensor, t: float, known: Tensor) -> Tensor:
        """Velocity at time t."""

    @abstractmethod
    def decode(self, latents: Tensor, context: Context) -> tuple[list[Views], Tensor]:
        """Views in the callers' worlds, and the latents as a scene keeps them."""

    @abstractmethod
    def reconstruct(self, views: Views, wanted: Cameras | None = None) -> Scene:
        """A scene from known views without diffusion."""

    @abstractmethod
    def render(self, scene: Scene, cameras: Cameras) -> Views:
        """More views of a scene made before, without sampling again."""


def load(model: str | Path, device: str = "auto") -> ScenePipeline:
    """The pipeline of an embedded model's name or of a saved folder; never downloads.

    Raises ValueError, in one line, for unknown names, other classes and weights that do not fit.
    """
    folder = Path(str(files("diorama") / "weights" / str(model)))
    if not (folder / "model_index.json").is_file():
        folder = Path(model)
    index = folder / "model_index.json"
    published = not index.is_file() and any((folder / file).is_file() for file in PUBLISHED_VGGT)
    if not index.is_file() and not published:
        embedded = ", ".join(embedded_models()) or "none"
        raise ValueError(
            f"model {str(model)!r}: neither an embedded model ({embedded}) nor a folder with model_index.json"
        )
    try:
        name = "VGGTPipeline" if published else json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{index}: not a pipeline's index (JSON with _class_name)") from None
    if name not in PIPELINES:
        raise ValueError(f"{index}: pipeline {name!r}, accepted are {', '.join(PIPELINES)}")
    kind = getattr(import_module(PIPELINES[name]), name)
    return kind.load_folder(folder).to(pick_device(device))


def embedded_models() -> list[str]:
    """Names of the models that come with the package."""
    folder = Path(str(files("diorama") / "weights"))
    return sorted(path.parent.name for path in folder.glob("*/model_index.json"))


def pick_device(device: str) -> torch.device:
    """The torch device of `auto`, `cuda`, `mps` or `cpu`; ValueError where it is not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, there in present.items() if there)
    if not present.get(device.split(":")[0], False):
        raise ValueError(
            f"device {device!r}: accepted here are auto, {', '.join(n for n, there in present.items() if there)}"
        )
    return torch.device(device)


def _part_of(on_step: OnStep | None, number: int, groups: int) -> OnStep | None:
    if on_step is None:
        return None
    return lambda done, steps: on_step(number * steps + done, groups * steps)
