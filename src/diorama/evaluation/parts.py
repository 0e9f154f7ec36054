"""Gen3R's parts as methods: by its autoencoders, by its VGGT, and two-stage (tables 3 and 4 of arXiv 2601.04090)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from diorama.evaluation.methods import Failure, Generation, Method, batch_of, described
from diorama.geometry.cameras import Cameras
from diorama.pipelines.base import ScenePipeline
from diorama.pipelines.gen3r import Gen3RPipeline
from diorama.pipelines.gen3r_reconstruction import two_stage
from diorama.scene import Condition, Scene, Shot


@dataclass
class Reconstruction:
    """Gen3R without diffusion, by "vae" or "vggt": its table 3 beside `Generation` where all views are known."""

    pipeline: Gen3RPipeline
    name: str
    by: str

    def __post_init__(self) -> None:
        self.licence: str = self.pipeline.config.licence
        self.settings: dict[str, Any] = described(self.pipeline) | {"by": self.by}
        self.batch: int | None = batch_of(self.pipeline)

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """Scenes of the given views; a failure where others are wanted."""
        return [self._answer(request, path) for request, path in zip(requests, cameras, strict=True)]

    def _answer(self, request: Condition, path: Cameras | Shot) -> Scene | Failure:
        if request.views is None or path.views != len(request.at):
            return Failure(f"{self.name} answers where all views are known")
        ordered = request.views[sorted(range(path.views), key=request.at.__getitem__)]
        return replace(self.pipeline.reconstruct(ordered, path, by=self.by), condition=request)


@dataclass
class TwoStage:
    """Gen3R's generated pictures with the geometry that VGGT sees in them: its table 4's 2-Stage."""

    made: Method  # gives scenes of the pipeline
    pipeline: Gen3RPipeline
    name: str

    def __post_init__(self) -> None:
        self.licence, self.batch = self.made.licence, self.made.batch
        self.settings: dict[str, Any] = self.made.settings | {"geometry": "VGGT of the generated pictures"}

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """Sampled scenes with another geometry."""
        made = self.made.generate(requests, cameras, seeds)
        return [two_stage(self.pipeline, scene) if isinstance(scene, Scene) else scene for scene in made]


def method_of(pipeline: ScenePipeline, name: str, way: str, **sampler: Any) -> Method:
    """The method of one of `methods.PARTS`; ValueError for a pipeline without such parts."""
    if not isinstance(pipeline, Gen3RPipeline):
        raise ValueError(f"{name}: {pipeline.config.title} has no such parts; accepted is Gen3R with {way}")
    if way == "-two-stage":
        return TwoStage(Generation(pipeline, name, **sampler), pipeline, name)
    return Reconstruction(pipeline, name, by=way[1:])
