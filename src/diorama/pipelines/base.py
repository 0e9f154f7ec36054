"""The one interface: a condition and wanted cameras go in, a scene comes out, whatever the models inside."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from diorama.flow import guidance_at, guided, uniform_sigmas
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.models.downloads import DOWNLOADS
from diorama.models.perceptual import cache_folder
from diorama.pipelines.sampling import Preset, part_of, settled, solver
from diorama.scene import Condition, Provenance, Scene, Shot, Views

PIPELINES = {  # class name in model_index.json -> module
    "TokenPipeline": "diorama.pipelines.tokens",
    "Gen3RPipeline": "diorama.pipelines.gen3r",
    "VGGTPipeline": "diorama.pipelines.vggt",
}
WEIGHTS = Path(str(files("diorama") / "weights"))  # of the models that come with the package
PUBLISHED_VGGT = ("model.safetensors", "model.pt", "vggt_1B_commercial.pt")  # in folders without model_index.json
PUBLISHED_GEN3R = "geo_adapter"  # a folder that only Gen3R's own layout has, whose index names classes of its own
TWICE = 1.9  # times the area asked for: no longer near it
OnStep = Callable[[int, int], None]


class Cancelled(Exception):
    """Raised by an `on_step` callback to stop a generation."""


class Context(NamedTuple):
    """What denoising and decoding need to know of a batch of requests."""

    known: Any  # the conditions as the denoiser reads them: a tensor, or a tuple of tensors, batch first
    wanted: Sequence[Any]  # what was asked for, in the callers' worlds
    frames: Sequence[Similarity | None]  # world -> latent frame of each
    observed: Sequence[Views | None] | None = None  # what decoding may look at again, in the callers' worlds
    settings: Mapping[str, Any] | None = None  # what was asked for, where decoding depends on it


class ScenePipeline(DiffusionPipeline, ABC):
    """What all families share: batching, the sampling loop, guidance, seeds, progress and provenance."""

    config: Any  # what __init__ registered, by attribute
    speeds: Mapping[str, Preset] = {"quality": {}}  # presets by name; the first changes nothing
    staged = False  # whether it is made of many parts, which `load` may place and shrink
    loads: tuple[str, ...] = ()  # what `load` may be told beside the device
    compilation: Any = None  # what of it is compiled: see `compiled.Compilation`

    @overload
    def generate(
        self,
        condition: Condition,
        wanted: Cameras | Shot,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
        speed: str = "quality",
        on_step: OnStep | None = None,
        **options: Any,
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
        interval: tuple[float, float] | None = None,
        speed: str = "quality",
        on_step: OnStep | None = None,
        **options: Any,
    ) -> list[Scene]: ...

    def generate(
        self,
        condition: Condition | Sequence[Condition],
        wanted: Cameras | Shot | Sequence[Cameras | Shot],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
        speed: str = "quality",
        on_step: OnStep | None = None,
        **options: Any,
    ) -> Scene | list[Scene]:
        """A scene with the wanted views; a sequence of conditions gives a list, each as if asked for alone.

        Wanted sizes that the model cannot make are changed to near ones of its own resolution. `speed` names a preset,
        before which go settings that are asked for. Guidance acts at times t inside `interval` (1 = noise).
        `on_step(done, all)` may raise `Cancelled`. What else may be asked for: a `solver` ("euler" or "unipc"), and
        what the family's `options` name. ValueError on unusable input.
        """
        conditions = [condition] if isinstance(condition, Condition) else list(condition)
        count = len(conditions)
        paths = list(wanted) if isinstance(wanted, Sequence) else [wanted] * count
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * count
        if not len(paths) == len(seeds) == count:
            raise ValueError(
                f"{count} conditions, {len(paths)} camera paths and {len(seeds)} seeds: accepted is one each"
            )
        common = dict(steps=steps, guidance=guidance, interval=interval, **options)
        shared, own = settled(self.config, self.speeds, speed, common)  # refuses before any heavy work
        settings = {**shared, **self.options(**own)}
        requests = [self.prepared(c, path) for c, path in zip(conditions, paths, strict=True)]
        scenes: dict[int, Scene] = {}
        groups: dict[Any, list[int]] = {}
        for index, (known, path) in enumerate(requests):
            # Of one shape in all that the encoder reads; and without what is known, guidance has nothing to compare.
            shape = (path.views, path.height, path.width, len({0, *known.at}), known.views is None)
            groups.setdefault(shape, []).append(index)
        for number, members in enumerate(groups.values()):
            report = part_of(on_step, number, len(groups))
            made = self._generate_batch([requests[i] for i in members], [seeds[i] for i in members], settings, report)
            scenes |= dict(zip(members, made, strict=True))
        return scenes[0] if isinstance(condition, Condition) else [scenes[index] for index in range(count)]

    @torch.no_grad()
    def _generate_batch(
        self, requests: list[tuple[Condition, Any]], seeds: list[int], settings: dict[str, Any], on_step: OnStep | None
    ) -> list[Scene]:
        conditions, wanted = [c for c, _ in requests], [path for _, path in requests]
        context, null = self.branches(conditions, wanted, seeds, settings)
        latents = self.sampled(self.noise(wanted, seeds), context, null, settings, on_step)
        views, latents = self.decode(latents, context)
        return [
            Scene(
                views=views[i],
                condition=conditions[i],
                latents=latents[i].cpu(),
                latent_frame=context.frames[i],
                observed=None if context.observed is None else context.observed[i],
                provenance=self.provenance(seeds[i], settings),
            )
            for i in range(len(requests))
        ]

    def sampled(
        self,
        latents: Tensor,
        context: Context,
        null: Context | None,
        settings: Mapping[str, Any],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Latents from noise: steps along the guided velocity."""
        self.schedule(settings["steps"], latents.device)
        scheme = solver(settings.get("solver", "euler"), self.scheduler)
        for index, time in enumerate(self.scheduler.timesteps):
            t = float(time) / self.scheduler.config.num_train_timesteps
            scale = guidance_at(t, settings["guidance"], settings["interval"])
            velocity = self.velocity(latents, t, context, null if scale != 1 else None, scale)
            latents = scheme.step(velocity, time, latents, return_dict=False)[0]
            if on_step:
                on_step(index + 1, settings["steps"])
        return latents

    def options(self, **asked: Any) -> dict[str, Any]:
        """The family's own settings, complete and checked; ValueError for one that it does not know."""
        if asked:
            raise ValueError(f"{self.config.title} knows no {', '.join(asked)}: accepted are the common settings")
        return {}

    def branches(
        self, conditions: Sequence[Condition], wanted: Sequence[Any], seeds: Sequence[int], settings: Mapping[str, Any]
    ) -> tuple[Context, Context | None]:
        """What both branches of guidance know; the second is None where there is but one."""
        context = self.encode(conditions, wanted)
        return context, None if settings["guidance"] == 1 else self.null(conditions, wanted)

    def schedule(self, steps: int, device: torch.device) -> None:
        """Set the scheduler's times."""
        self.scheduler.set_timesteps(sigmas=uniform_sigmas(steps), device=device)

    def velocity(self, latents: Tensor, t: float, context: Context, null: Context | None, scale: float) -> Tensor:
        """Velocity at time t, guided where there is another branch: both as one batch."""
        if null is None:
            return self.denoise(latents, t, context.known)
        both = self.denoise(torch.cat([latents, latents]), t, torch.cat([context.known, null.known]))
        return guided(*both.chunk(2), scale)  # type: ignore[call-arg]

    def provenance(self, seed: int | None, settings: Mapping[str, Any]) -> Provenance:
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
    def denoise(self, latents: Tensor, t: float, known: Any) -> Tensor:
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


def load(
    model: str | Path,
    device: str = "auto",
    *,
    dtype: torch.dtype | None = None,
    offload: str | None = None,
    compile: bool = False,
) -> ScenePipeline:
    """The pipeline of an embedded model's name, of a saved folder, or of a published one; never downloads.

    `gen3r` and `vggt` are what `diorama download` fetched, unless a folder of that name is here. Models of many parts
    may take turns on the device: see `Gen3RPipeline.load_folder`; `compile`: see `compile_pipeline`. Raises ValueError,
    in one line, for unknown names, other classes and weights that do not fit.
    """
    where = pick_device(device)
    kind, folder = find_model(model)
    options = {key: value for key, value in (("dtype", dtype), ("offload", offload)) if value is not None}
    if unknown := [name for name in options if name not in kind.loads]:
        raise ValueError(f"{folder}: a {kind.__name__} is loaded as it is; accepted is no {' and no '.join(unknown)}")
    if offload is not None:
        from diorama.pipelines.staging import OFFLOADS

        if offload not in OFFLOADS:
            raise ValueError(f"offload {offload!r}: accepted are {', '.join(OFFLOADS)}")
    try:
        pipeline = kind.load_folder(folder, **options).to(where)
        if compile:
            import_module("diorama.pipelines.compiled").compile_pipeline(pipeline, where)
        return pipeline
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None


def find_model(model: str | Path) -> tuple[type[Any], Path]:
    """The class of pipeline that `load` makes of a model, and the folder that it reads; nothing is read yet."""
    folder = WEIGHTS / str(model)
    if not (folder / "model_index.json").is_file():
        folder = _downloaded(str(model)) if str(model) in DOWNLOADS and not Path(model).exists() else Path(model)
    name = "Gen3RPipeline" if (folder / PUBLISHED_GEN3R).is_dir() else _class_name(folder, str(model))
    return getattr(import_module(PIPELINES[name]), name), folder


def _downloaded(name: str) -> Path:
    """Where `diorama download` puts a model by default; ValueError, with that command, where it is not."""
    if name == "vggt":
        from diorama.pipelines.vggt import located

        return located()
    if not (folder := cache_folder(name)).is_dir():
        raise ValueError(f"model {name!r}: {folder} is not there; 'diorama download {name}' fetches it, on its terms")
    if any(folder.rglob(".*.part")):
        raise ValueError(f"model {name!r}: {folder} was not fetched to the end; 'diorama download {name}' continues")
    return folder


def _class_name(folder: Path, model: str) -> str:
    """What a folder's model_index.json says it holds, once that is known here."""
    index = folder / "model_index.json"
    if not index.is_file() and any((folder / file).is_file() for file in PUBLISHED_VGGT):
        return "VGGTPipeline"
    if not index.is_file():
        embedded, published = ", ".join(embedded_models()) or "none", ", ".join(DOWNLOADS)
        accepted = f"an embedded model ({embedded}) nor a downloaded one ({published}) nor a folder"
        raise ValueError(f"model {model!r}: neither {accepted} with model_index.json")
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{index}: not a pipeline's index (JSON with _class_name)") from None
    if name not in PIPELINES:
        raise ValueError(f"{index}: pipeline {name!r}, accepted are {', '.join(PIPELINES)}")
    return name


def embedded_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/model_index.json"))


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


def size_in_units(height: int | float, width: int | float, unit: int, pixels: int) -> tuple[int, int]:
    """Height and width in whole units that a model makes where these are asked for.

    Of the four sizes beside the one asked for it is that of the nearest proportions, for which least is cropped, unless
    it has about twice the area, as where that is but one unit. What has more than four times the `pixels` that the
    model was trained at comes down to that area first.
    """
    scale = (pixels / (height * width)) ** 0.5 if height * width > 4 * pixels else 1.0
    exact = [scale * side / unit for side in (height, width)]
    near = list(product(*({max(1, math.floor(count)), math.ceil(count)} for count in exact)))
    near = [counts for counts in near if math.prod(counts) < TWICE * math.prod(exact)] or near

    def unlike(counts: tuple[int, int]) -> tuple[float, float]:
        tall, wide = (math.log(count / wish) for count, wish in zip(counts, exact, strict=True))
        return round(abs(tall - wide), 6), abs(tall + wide)  # proportions first, then area

    rows, columns = min(near, key=unlike)  # type: ignore[arg-type, call-arg]
    return rows * unit, columns * unit
