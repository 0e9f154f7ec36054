"""What training draws its batches from: pre-rendered worlds, or captures decoded in the background."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diorama.data.cache import WorldsCache
from diorama.data.decoding import Skipped, decoded
from diorama.data.sampling import Sampling, Shape, choose_frames
from diorama.data.scenes import CapturedScene, SceneSource
from diorama.data.sources import NoCameras, OpenScenes
from diorama.data.transforms import mirrored
from diorama.geometry.cameras import Cameras
from diorama.scene import Views

Generators = Callable[[int], torch.Generator]  # of a step's random numbers, the same on every device

AHEAD = 2  # steps that are decoded before they are asked for: what bounds the memory
PROBED = 8  # scenes of each source that are opened before training, to refuse what cannot work
TRIES = 64  # scenes drawn for one place in a batch before a source counts as unusable


class Batch(NamedTuple):
    """One device's share of a step: scenes of one size and number of views."""

    views: Views  # "batch view", float32; points where a scene has no depth have confidence 0
    known: int  # so many first views are the encoder's, the rest is to be predicted
    names: tuple[str, ...]  # of the scenes
    metric: Bool[Tensor, " batch"]  # whose unit is the metre
    complete: Bool[Tensor, " batch"]  # whose pixels without depth have no surface, as in worlds


@runtime_checkable
class Batches(Protocol):
    """Where a stage's batches come from. Nothing is kept from one step to the next, so any step may be asked for."""

    def batch(self, step: int, share: tuple[int, int] = (0, 1)) -> Batch:
        """The scenes `index, index + of, ...` of a step, where `share` is (index, of).

        The step's number decides everything: shapes are the same for every share, and shares make up the whole.
        """
        ...

    def counts(self) -> dict[str, int]:
        """What this process skipped so far: `bad_frames` and `bad_scenes`, each once, and `short_scenes`."""
        ...

    def close(self) -> None:
        """End the threads that read ahead."""
        ...


class WorldsBatches:
    """Views of worlds as they were rendered: of one size, read without waiting."""

    def __init__(
        self,
        cache: WorldsCache,
        scenes: int,
        known: tuple[int, ...],
        targets: int,
        generators: Generators,
        *,
        window: int = 0,
        known_targets: int = 0,
        mirror: bool = False,
    ) -> None:
        """Views come from `window` neighbouring ones (0: all); `known_targets` targets are known views again."""
        self.cache, self.scenes, self.known, self.targets = cache, scenes, known, targets
        self.generators, self.window, self.known_targets, self.mirror = generators, window, known_targets, mirror

    def batch(self, step: int, share: tuple[int, int] = (0, 1)) -> Batch:
        """Views of random scenes, the first `known` for the encoder, the rest to be predicted."""
        generator, cache, mine = self.generators(step), self.cache, slice(share[0], None, share[1])
        window = min(self.window or cache.views, cache.views)
        known = self.known[int(torch.randint(len(self.known), (), generator=generator))]
        total = min(known + self.targets, window)
        scenes = torch.randint(len(cache), (self.scenes,), generator=generator)
        begin = torch.randint(cache.views - window + 1, (self.scenes, 1), generator=generator)
        order = begin + torch.rand(self.scenes, window, generator=generator).argsort(1)[:, :total]
        again = min(known, self.known_targets)
        order[:, total - again :] = order[:, :again]
        # Half of the samples keep time's order among the known views, so that both kinds of first view are learnt.
        sorted_known = torch.cat([order[:, :known].sort(1).values, order[:, known:]], 1)
        keep = torch.rand(self.scenes, 1, generator=generator) < 0.5
        scenes, order = scenes[mine], torch.where(keep, sorted_known, order)[mine]
        views = cache.batch(scenes, order)
        if self.mirror:
            views = mirrored(views, (torch.rand(self.scenes, generator=generator) < 0.5)[mine])
        every = torch.ones(len(scenes), dtype=torch.bool)
        return Batch(views, known, tuple(f"world {cache.seeds[scene]}" for scene in scenes), every, every)

    def counts(self) -> dict[str, int]:
        """Nothing is ever skipped."""
        return {}

    def close(self) -> None:
        """Nothing to end."""


class Sample(NamedTuple):
    """One place in a batch."""

    views: Views
    mirror: bool
    scene: CapturedScene


class Short(ValueError):
    """A scene of too few frames."""


class CaptureBatches:
    """Frames of captures, decoded at the size of their step by threads that are a few steps ahead.

    A source whose scenes have one frame (ImageNet) is shown in steps of its own, as often as its share says and with as
    many scenes as others; its photo is known and the target. Frames that cannot be read give their place to the nearest
    that can. ValueError for captures without cameras, and where no scene has as many frames as a step may want.
    """

    def __init__(
        self,
        sources: Sequence[SceneSource],
        shares: Sequence[float],
        sampling: Sampling,
        generators: Generators,
        *,
        window: int = 0,
        known_targets: int = 0,
        mirror: bool = False,
        threads: int = 4,
    ) -> None:
        self.sources, self.sampling, self.generators = [OpenScenes(source) for source in sources], sampling, generators
        self.window, self.known_targets, self.mirror, self.threads = window, known_targets, mirror, threads
        weights = torch.tensor(shares, dtype=torch.float64)
        single = torch.tensor([self._longest(source) == 1 for source in self.sources])
        self.single = float(weights[single].sum() / weights.sum())
        self._weights = {True: weights * single, False: weights * ~single}
        self._skipped = Skipped()
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[tuple[int, tuple[int, int]], tuple[Shape, list[Future[Sample]]]] = {}

    def batch(self, step: int, share: tuple[int, int] = (0, 1)) -> Batch:
        """One device's scenes of a step; those of the next steps begin to be decoded."""
        share = share[0], share[1]
        for key in [key for key in self._begun if not step <= key[0] <= step + AHEAD]:  # after a jump
            for future in self._begun.pop(key)[1]:
                future.cancel()
        for near in range(step, step + 1 + AHEAD):
            if (near, share) not in self._begun:
                self._begun[near, share] = self._begin(near, share)
        shape, futures = self._begun.pop((step, share))
        samples = [future.result() for future in futures]
        views = stacked([sample.views for sample in samples])
        if self.mirror:
            views = mirrored(views, torch.tensor([sample.mirror for sample in samples]))
        scenes = [sample.scene for sample in samples]
        metric = torch.tensor([scene.metric for scene in scenes])
        complete = torch.tensor([scene.layout == "worlds" for scene in scenes])
        return Batch(views, shape.known, tuple(scene.name for scene in scenes), metric, complete)

    def counts(self) -> dict[str, int]:
        """What this process skipped so far: `bad_frames` and `bad_scenes`, each once, and `short_scenes`."""
        return self._skipped.counts()

    def close(self) -> None:
        """End the threads that read ahead."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._begun.clear()

    def shape(self, step: int, devices: int = 1) -> Shape:
        """What the scenes of a step have in common."""
        return self._drawn(step, devices)[0]

    def _drawn(self, step: int, devices: int) -> tuple[Shape, bool, torch.Generator]:
        """A step's shape, whether it shows single images, and the rest of its random numbers."""
        generator = self.generators(step)
        shape = self.sampling.shape(generator, devices)
        single = bool(torch.rand((), generator=generator, dtype=torch.float64) < self.single)
        return shape._replace(known=1, targets=min(1, shape.targets)) if single else shape, single, generator

    def _begin(self, step: int, share: tuple[int, int]) -> tuple[Shape, list[Future[Sample]]]:
        """Have the share's scenes of a step decoded, each from a seed of its own, so that shares make up the whole."""
        self._pool = self._pool or ThreadPoolExecutor(self.threads, "decoding")
        shape, single, generator = self._drawn(step, share[1])
        places = torch.multinomial(self._weights[single], shape.scenes, replacement=True, generator=generator).tolist()
        seeds = torch.randint(2**62, (shape.scenes,), generator=generator).tolist()
        mine = range(share[0], shape.scenes, share[1])
        return shape, [self._pool.submit(self._sample, self.sources[places[i]], seeds[i], shape, single) for i in mine]

    def _sample(self, source: OpenScenes, seed: int, shape: Shape, single: bool) -> Sample:
        """Views of a random scene; of another one where it cannot be used."""
        generator = torch.Generator().manual_seed(seed)
        reason = None
        for _ in range(TRIES):
            index = int(torch.randint(len(source), (), generator=generator))
            try:
                scene = source[index]
                return Sample(self._shown(scene, shape, single, generator), bool(seed % 2), scene)
            except NoCameras:
                raise
            except (ValueError, OSError) as error:
                kind, reason = "short_scenes" if isinstance(error, Short) else "bad_scenes", error
                self._skipped.add(kind, f"{source.name} {index}", error)
        raise ValueError(f"{source.name}: {TRIES} scenes drawn, none of use; the last: {reason}")

    def _shown(self, scene: CapturedScene, shape: Shape, single: bool, generator: torch.Generator) -> Views:
        """Some frames of a scene."""
        known, targets = (1, 0) if single else (shape.known, shape.targets)
        again = min(known, targets, self.known_targets)
        if len(scene) < known + targets - again:
            raise Short(f"{scene.name}: found {len(scene)} frames; accepted are {known + targets - again} or more")
        poses = torch.cat([frame.camera.camera_to_world for frame in scene.frames])  # type: ignore[union-attr]
        at = choose_frames(poses, known, targets - again, generator, ordered=scene.ordered, window=self.window)
        top, left = torch.rand(2, generator=generator).tolist()
        views = decoded(scene, at, shape.height, shape.width, place=(top, left), skipped=self._skipped)
        return views[[0] * shape.views] if single else views[[*range(len(at)), *range(again)]]

    def _longest(self, source: OpenScenes) -> int:
        """Frames of the longest of a source's first scenes."""
        longest, reason, probed = 0, None, min(PROBED, len(source))
        for index in range(probed):
            try:
                longest = max(longest, len(source[index]))
            except NoCameras:
                raise
            except (ValueError, OSError) as error:
                reason = error
        if not longest:
            raise ValueError(f"{source.name}: none of its first {probed} scenes can be opened; the last: {reason}")
        if 1 < longest < self.sampling.most and probed == len(source):
            found = f"{source.name}: found scenes of at most {longest} frames where a step takes {self.sampling.most}"
            raise ValueError(f"{found}; accepted are longer ones or fewer views (--known-views, --sample-views)")
        return longest


class HeldOut:
    """Evenly spread views of the first scenes of a source, cut around their centre: what validation measures on.

    Asked as a WorldsCache is. Each has `views`, or as many as the longest scene; shorter scenes, and those of which a
    view cannot be read, are left out. ValueError where none is left.
    """

    def __init__(self, source: SceneSource, height: int, width: int, *, views: int = 8, scenes: int = 16) -> None:
        opened = OpenScenes(source)
        found = [opened[index] for index in range(min(len(opened), 2 * scenes))]
        self.height, self.width, self.views = height, width, min(views, max(map(len, found)))
        self._scenes: list[CapturedScene] = []
        skipped = Skipped()
        for scene in found:
            try:
                if len(scene) >= self.views and len(self) < scenes:
                    self._decoded(scene, range(self.views))
                    self._scenes.append(scene)
            except (ValueError, OSError) as error:
                skipped.add("bad_scenes", scene.name, error)
        if not self._scenes:
            raise ValueError(
                f"{source.name}: {len(found)} scenes, each with photos that cannot be read; accepted is one"
            )

    def __len__(self) -> int:
        return len(self._scenes)

    def batch(self, scenes: Int[Tensor, " batch"], views: Int[Tensor, "batch view"]) -> Views:
        """Chosen views of chosen scenes."""
        rows = zip(scenes.tolist(), views.tolist(), strict=True)
        return stacked([self._decoded(self._scenes[scene], places) for scene, places in rows])

    def _decoded(self, scene: CapturedScene, places: Sequence[int]) -> Views:
        at = [round(place * (len(scene) - 1) / max(1, self.views - 1)) for place in places]
        return decoded(scene, at, self.height, self.width)


def stacked(rows: Sequence[Views]) -> Views:
    """Scenes of one shape as the rows of a batch."""
    assert all(row.cameras is not None and row.points is not None and row.confidence is not None for row in rows)
    return Views(
        torch.stack([row.images for row in rows]),
        Cameras.stacked([row.cameras for row in rows]),  # type: ignore[misc]
        torch.stack([row.points for row in rows]),  # type: ignore[misc]
        torch.stack([row.confidence for row in rows]),  # type: ignore[misc]
    )
