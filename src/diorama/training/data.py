"""What stages train on: the flags that say it, and the batches these describe."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from diorama.data.cache import WorldsCache
from diorama.data.loading import Batches, CaptureBatches, HeldOut, WorldsBatches
from diorama.data.open import open_scenes
from diorama.data.sampling import Dynamic, Fixed, Sampling, shares
from diorama.data.sources import is_worlds
from diorama.training.trainer import Run, step_generator


@dataclass(frozen=True)
class Data(Run):
    """A training run on worlds or captures."""

    data: Path | tuple[Path, ...] = field(kw_only=True)
    """What to learn from: worlds (`diorama data worlds`), captures with cameras, data sets, shards; one or several."""
    validation: Path = field(kw_only=True)
    """Worlds of the validation split, or captures that are not learnt from."""
    weights: tuple[str, ...] = ()
    """How often each of several is drawn, whatever its size: numbers or names of the paper's table 7, such as RE10K."""
    profiles: tuple[str, ...] = ()
    """Layout of each: a profile's name or file, or `auto` where the files tell it."""
    dynamic: bool = False
    """Draw size, aspect and views of every step, and fill --token-budget with scenes: the paper's sampling."""
    token_budget: int = 60_000
    """With --dynamic, tokens that a step may take on each device; it says how many scenes, and --batch nothing."""
    pixels: tuple[int, int] = (37_000, 75_500)
    """With --dynamic, range of an image's pixels."""
    aspects: tuple[float, float] = (0.7, 1.8)
    """With --dynamic, range of width / height."""
    sample_views: tuple[int, int] = (6, 18)
    """With --dynamic, range of a scene's views, known and to be predicted."""
    image_size: tuple[int, int] = (252, 252)
    """Height and width of captures without --dynamic, and of those validated on; worlds alone keep their own."""
    decoders: int = 4
    """Threads of each process that decode captures."""


def sampling(config: Data, *, patch: int, tokens: int, known: tuple[int, ...], targets: int) -> Sampling:
    """How the flags say that steps are drawn, for a model of this patch and so many latent tokens."""
    if not config.dynamic:
        return Fixed(*config.image_size, config.batch, known, targets)
    ranges = (config.pixels, config.aspects, config.sample_views)
    return Dynamic(patch, tokens, config.token_budget, *ranges, targets)


def open_batches(
    config: Data, drawn: Sampling, *, window: int = 0, known_targets: int = 0, mirror: bool = False
) -> Batches:
    """What --data gives: worlds alone as they were rendered, all else decoded in the background."""
    folders = config.data if isinstance(config.data, tuple) else (config.data,)
    parts = shares(config.weights, len(folders))
    names = config.profiles or ("auto",) * len(folders)
    if len(names) != len(folders):
        raise ValueError(f"--profiles: found {len(names)} for {len(folders)} of --data; accepted is one each, or none")
    generators = partial(_generator, config.seed)
    options = {"window": window, "known_targets": known_targets, "mirror": mirror}
    if isinstance(drawn, Fixed) and len(folders) == 1 and names == ("auto",) and is_worlds(folders[0]):
        return WorldsBatches(WorldsCache(folders[0]), drawn.scenes, drawn.known, drawn.targets, generators, **options)
    sources = [
        open_scenes(folder, None if name == "auto" else name) for folder, name in zip(folders, names, strict=True)
    ]
    return CaptureBatches(sources, parts, drawn, generators, threads=config.decoders, **options)


def open_held_out(config: Data) -> WorldsCache | HeldOut:
    """What --validation gives, at --image-size unless it is worlds."""
    if is_worlds(config.validation):
        return WorldsCache(config.validation)
    return HeldOut(open_scenes(config.validation), *config.image_size)


def _generator(seed: int, step: int) -> torch.Generator:
    return step_generator(seed, step, 0)
