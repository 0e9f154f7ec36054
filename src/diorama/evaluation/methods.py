"""What a benchmark puts to the test, behind one interface: our models, simple baselines, bounds, and other programs."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diorama.evaluation.baselines import blurred, copy_nearest, depth_warp, mean_of_known, plane_warp
from diorama.geometry.cameras import Cameras
from diorama.models.downloads import DOWNLOADS
from diorama.pipelines.base import ScenePipeline, embedded_models, find_model, load
from diorama.pipelines.vggt import VGGTPipeline
from diorama.scene import Condition, Provenance, Scene, Shot, Views

REGRESSION = "-regression"
PARTS = ("-vae", "-vggt", "-two-stage")  # of Gen3R, as its tables 3 and 4 tell them apart: see `parts.py`
BLUR = 8.0  # pixels at 64 for one known view, halved as these double: best on validation worlds (benchmarks/quality.py)
PIXELS_AT_ONCE = 2**20  # of all wanted views of one call of a model
WANTED = 16  # views that this is counted in


class Failure(NamedTuple):
    """What a method gives where it has no scene to give."""

    reason: str  # one line


class Lazy(Sequence):
    """A sequence whose entries are made when they are asked for: not all scenes of a benchmark fit into memory."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self.length, self.make = count, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.make(index)


@runtime_checkable
class Method(Protocol):
    """A way to make the wanted views from the known ones."""

    name: str
    licence: str  # of its weights
    settings: dict[str, Any]  # JSON: what else decides its pictures
    batch: int | None  # requests that it answers at once; None: all there are

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """A scene of the wanted views for each request, or why there is none. A Shot asks to predict the cameras.

        ValueError where the requests cannot be answered together; each is then asked for alone.
        """
        ...


@runtime_checkable
class Oracle(Protocol):
    """A bound: it may see what others are asked for."""

    def told(self, truths: Sequence[Views]) -> Method:
        """The method for requests of which these are the true views; ValueError where these lack what it needs."""
        ...


@dataclass
class Generation:
    """A pipeline that samples; `steps` and `guidance` are its own unless given."""

    pipeline: ScenePipeline
    name: str
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        config = self.pipeline.config
        self.licence: str = config.licence
        self.settings: dict[str, Any] = described(self.pipeline) | {
            "steps": config.steps if self.steps is None else self.steps,
            "guidance": config.guidance if self.guidance is None else self.guidance,
        }
        self.batch: int | None = batch_of(self.pipeline)

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """Sampled scenes."""
        options: dict[str, Any] = dict(steps=self.steps, guidance=self.guidance)
        return [*self.pipeline.generate(list(requests), list(cameras), seed=list(seeds), **options)]


@dataclass
class Regression:
    """A pipeline's autoencoder alone: known views to latents to wanted views, nothing drawn."""

    pipeline: ScenePipeline
    name: str

    def __post_init__(self) -> None:
        self.licence: str = self.pipeline.config.licence
        self.settings: dict[str, Any] = described(self.pipeline)
        self.batch: int | None = batch_of(self.pipeline)

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """Reconstructed scenes; requests of one shape are decoded together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, (request, path) in enumerate(zip(requests, cameras, strict=True)):
            if isinstance(path, Shot):
                raise ValueError(f"{self.name} needs the wanted cameras and cannot predict them")
            groups.setdefault((len(request.at), path.views, path.height, path.width), []).append(row)
        made: dict[int, Scene | Failure] = {}
        for rows in groups.values():
            known = [requests[row].views for row in rows]
            found = self.pipeline.reconstruct(known, [cameras[row] for row in rows])  # type: ignore[arg-type]
            made |= dict(zip(rows, found, strict=True))  # type: ignore[arg-type]
        return [made[row] for row in range(len(requests))]


@dataclass
class Prediction:
    """VGGT: the cameras and the depth of views that are all known, and no pictures of its own."""

    pipeline: VGGTPipeline
    name: str
    batch: int | None = 1

    def __post_init__(self) -> None:
        self.licence: str = self.pipeline.config.licence
        self.settings: dict[str, Any] = described(self.pipeline)

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """Scenes of the given views; a failure where others are wanted, or where cameras are told."""
        return [self._answer(request, path) for request, path in zip(requests, cameras, strict=True)]

    def _answer(self, request: Condition, path: Cameras | Shot) -> Scene | Failure:
        if request.views is None or not isinstance(path, Shot) or path.views != len(request.at):
            return Failure(f"{self.name} answers where all views are known and their cameras are not told")
        ordered = request.views[sorted(range(path.views), key=request.at.__getitem__)]
        return replace(self.pipeline.reconstruct(ordered), condition=request)


@dataclass(frozen=True)
class Baseline:
    """Pictures made from the known ones without any model."""

    name: str
    paint: Callable[[Views, Cameras], Float[Tensor, "1 view 3 height width"]]
    licence: str = "none"
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int | None = 16

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """The pictures of each request; a failure where cameras are to be predicted."""
        return [self._answer(request, path) for request, path in zip(requests, cameras, strict=True)]

    def _answer(self, request: Condition, path: Cameras | Shot) -> Scene | Failure:
        if isinstance(path, Shot) or request.views is None:
            return Failure(f"{self.name} needs known views and the wanted cameras")
        views = Views(self.paint(_one(request.views), _one_path(path))[0], path)
        return Scene(views, request, provenance=Provenance(self.name, self.licence))


@dataclass(frozen=True)
class Bound:
    """An `Oracle` that paints from the true views and the places of the known ones among them."""

    name: str
    paint: Callable[[Views, tuple[int, ...]], Views]
    settings: dict[str, Any] = field(default_factory=dict)
    depth: bool = True  # whether it needs the true one
    truths: tuple[Views, ...] = ()
    licence: str = "none"
    batch: int | None = 16

    def told(self, truths: Sequence[Views]) -> "Bound":
        """The method for requests of which these are the true views; ValueError where they lack the depth it needs."""
        if self.depth and any(truth.depth is None or truth.mask is None for truth in truths):
            raise ValueError(f"{self.name} needs the true depth, points and confidence, which these scenes lack")
        return replace(self, truths=tuple(truths))

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """What the truth lets it paint."""
        provenance = Provenance(self.name, self.licence)
        pairs = zip(requests, self.truths, strict=True)
        return [Scene(self.paint(truth, request.at), request, provenance=provenance) for request, truth in pairs]


def _nearest_blurred(known: Views, path: Cameras) -> Tensor:
    return blurred(copy_nearest(known, path), BLUR * path.width / 64 / len(known))


def _plane_warp(truth: Views, at: tuple[int, ...]) -> Views:
    return Views(plane_warp(_one(truth[at]), _one(truth).cameras)[0], truth.cameras)  # type: ignore[arg-type]


def _depth_warp(truth: Views, at: tuple[int, ...]) -> Views:
    return Views(depth_warp(_one(truth[at]), _one(truth))[0], truth.cameras)


SIMPLE: dict[str, Method] = {
    method.name: method  # type: ignore[misc]
    for method in (
        Baseline("nearest", copy_nearest),
        Baseline("nearest-blurred", _nearest_blurred, settings={"blur": BLUR}),
        Baseline("mean", mean_of_known),
        Bound("plane-warp", _plane_warp, settings={"told": "the known views' true median depth"}),
        Bound("depth-warp", _depth_warp, settings={"told": "the true depth of every view"}),
        Bound("truth", lambda truth, at: truth, settings={"told": "everything"}, depth=False),
    )
}


def names() -> list[str]:
    """All that `find` knows beside folders."""
    models = embedded_models()
    parts = [model + part for model in models for part in (PARTS if find_model(model)[0].staged else (REGRESSION,))]
    return [*models, *parts, *SIMPLE]


def split(name: str) -> tuple[str, str]:
    """A model's name or folder, and which of its ways: "" where it generates."""
    endings = [part for part in (REGRESSION, *PARTS) if name.endswith(part) and not Path(name).exists()]
    return (name.removesuffix(endings[0]), endings[0]) if endings else (name, "")


def samples(name: str) -> bool:
    """Whether steps and guidance mean anything to the method of that name."""
    return name not in SIMPLE and split(name)[1] in ("", "-two-stage")


def find(name: str, *, device: str = "auto", steps: int | None = None, guidance: float | None = None) -> Method:
    """The method of that name: one of `SIMPLE`, an embedded model or a saved one's folder, these with a way's ending.

    "-regression" of 3DRAE; "-vae", "-vggt" and "-two-stage" of Gen3R. ValueError in one line for anything else. What
    runs as a command is `diorama.evaluation.outside.Outside`.
    """
    sampler = dict(steps=steps, guidance=guidance)
    if not samples(name) and any(value is not None for value in sampler.values()):
        raise ValueError(f"{name} samples nothing: leave --steps and --guidance out")
    if name in SIMPLE:
        return SIMPLE[name]
    model, way = split(name)
    if model not in {*embedded_models(), *DOWNLOADS} and not Path(model).exists():
        others = "a saved model's folder, or a command with {folder} in it"
        raise ValueError(f"method {name!r}: accepted are {', '.join(names())}, {others}")
    pipeline, short = load(model, device), Path(model).name + way
    if way in PARTS:
        from diorama.evaluation.parts import method_of  # which builds on this file

        return method_of(pipeline, short, way, **sampler)
    if way == REGRESSION:
        if not hasattr(pipeline, "autoencoder"):
            raise ValueError(f"{name}: {pipeline.config.title} has no regression of given views")
        return Regression(pipeline, short)
    if isinstance(pipeline, VGGTPipeline):
        if any(value is not None for value in sampler.values()):
            raise ValueError(f"{name} samples nothing: accepted are benchmarks without steps, as gen3r, and no --steps")
        return Prediction(pipeline, short)
    return Generation(pipeline, short, **sampler)  # type: ignore[arg-type]


def weights_sha256(pipeline: ScenePipeline) -> str:
    """Which weights these are: another training of the same model must not continue its results."""
    digest = hashlib.sha256()
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, nn.Module):
            for key, value in sorted(part.state_dict().items()):
                digest.update(f"{name}.{key}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def described(pipeline: ScenePipeline) -> dict[str, Any]:
    """Settings that tell a pipeline from others."""
    return {"model": pipeline.config.title, "weights_sha256": weights_sha256(pipeline)}


def batch_of(pipeline: ScenePipeline) -> int:
    """How many requests a pipeline answers at once."""
    return max(1, PIXELS_AT_ONCE // (WANTED * pipeline.config.pixels))


def _one(views: Views) -> Views:
    """Views of a scene as a batch of one."""

    def more(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[None]

    cameras = None if views.cameras is None else _one_path(views.cameras)
    return Views(views.images[None], cameras, more(views.points), more(views.confidence))


def _one_path(path: Cameras) -> Cameras:
    return replace(path, camera_to_world=path.camera_to_world[None], intrinsics=path.intrinsics[None])
