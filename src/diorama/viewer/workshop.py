"""What all visitors of the studio share: the models, the one worker, the last scene, the shelf."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diorama.pipelines.base import ScenePipeline, embedded_models, find_model, load, pick_device
from diorama.pipelines.prompts import PromptedPipeline
from diorama.scene import Scene
from diorama.viewer.job import Job, Outcome, Worker
from diorama.viewer.live import LiveDecoder
from diorama.viewer.shelf import Shelf
from diorama.viewer.stage import Stage, stage_of
from diorama.viewer.wish import Wish

STEPS = 50  # where a model's folder does not say


@dataclass(frozen=True)
class Offer:
    """A model that visitors may choose, as far as its folder tells without reading weights."""

    source: str  # what `load` is asked for
    steps: int
    prompted: bool  # as Gen3R: reads a text, starts from photos, and may find the cameras itself


@dataclass(frozen=True, eq=False)
class Result:
    """A scene that was made here, ready to be flown through."""

    scene: Scene
    stage: Stage
    wish: Wish


class Workshop:
    """Makes one scene at a time, for whoever came first."""

    def __init__(
        self, models: Sequence[str], out: str | Path, device: str, changed: Callable[[Job | None], None]
    ) -> None:
        """`models` are offered before the embedded ones; `changed` as in `Worker`. ValueError for what there is not."""
        self.offers: dict[
            str, Offer
        ] = {}  # by what visitors read: a folder's own name, its whole path where it is taken
        for source in dict.fromkeys([*models, *embedded_models()]):
            label = Path(source).name or source
            self.offers[source if label in self.offers else label] = offer_of(source)
        if not self.offers:
            raise ValueError("no model: none is embedded; give the folder of one")
        self.device, self.shelf, self.worker = str(pick_device(device)), Shelf(out), Worker(changed)
        self.last: Result | None = None
        self._loaded: tuple[str, ScenePipeline] | None = None

    def begin(self, model: str, wish: Wish, ended: Callable[[Outcome], None], owner: Any) -> Job:
        """Begin to make a scene: its `Result` goes to `ended`. ValueError, in one line, for what cannot be begun."""
        if model not in self.offers:
            raise ValueError(f"model {model[:60]!r}: accepted are {', '.join(self.offers)}")
        wish = wish.checked()
        return self.worker.start(lambda job: self.make(model, wish, job), ended, owner)

    def make(self, model: str, wish: Wish, job: Job) -> Result:
        """The scene that was wished for; ValueError, in one line, for what cannot be, `Cancelled` where it was."""
        pipeline = self._pipeline(model, job)
        job.tell("reading the request")
        condition, wanted = wish.request(pipeline)

        def step(done: int, total: int) -> None:
            job.tell("sampling", done, total)
            if done == total:
                job.tell("decoding the views")

        job.tell("encoding what is known")
        scene = pipeline.generate(condition, wanted, seed=wish.seed, steps=wish.steps, on_step=step)
        settings = {**scene.provenance.settings, "trajectory": wish.path}
        scene = replace(scene, provenance=replace(scene.provenance, settings=settings))
        job.tell("preparing the window")
        result = Result(scene, _stage(pipeline, scene), wish)
        job.check()
        self.last = result
        return result

    def _pipeline(self, name: str, job: Job) -> ScenePipeline:
        """One model at a time is in memory; only the worker's thread comes here."""
        if self._loaded is None or self._loaded[0] != name:
            job.tell(f"loading the model {name}")
            self._loaded = None
            self._loaded = (name, load(self.offers[name].source, self.device))
        return self._loaded[1]


def offer_of(name: str) -> Offer:
    """What a model can be asked for; ValueError, in one line, for one that makes no scenes along a path."""
    kind, folder = find_model(name)
    if kind.__name__ == "VGGTPipeline":
        raise ValueError(f"model {name}: VGGT makes no views but the photos' own; 'diorama reconstruct' takes it")
    index = folder / "model_index.json"
    told = json.loads(index.read_text()) if index.is_file() else {}
    return Offer(name, int(told.get("steps", STEPS)), issubclass(kind, PromptedPipeline))


def _stage(pipeline: ScenePipeline, scene: Scene) -> Stage:
    try:
        return stage_of(scene, LiveDecoder(pipeline, scene))
    except ValueError as error:
        return stage_of(scene, no_live=f"no live view: {error}")
