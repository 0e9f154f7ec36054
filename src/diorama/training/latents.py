"""Latents of a frozen RAE3D that a denoiser learns from: of samples drawn from a cache, and of their conditions."""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diorama.data.cache import WorldsCache
from diorama.data.sources import is_worlds
from diorama.data.transforms import mirrored
from diorama.models.dit3d import DiT3D
from diorama.models.rae3d import RAE3D
from diorama.pipelines.tokens import encode_views
from diorama.scene import Views
from diorama.training.trainer import step_generator

if TYPE_CHECKING:
    from diorama.training.dit3d import Config


STILL = 1e-4  # of the first view's median depth: cameras nearer than this to the first stand where it does


class Draw(NamedTuple):
    """Samples before they are encoded."""

    views: Views  # one row a sample
    masks: Bool[Tensor, "encoding batch view"]  # which views show their image: all first, then as each condition does


def draw(
    cache: WorldsCache,
    scenes: Int[Tensor, " batch"],
    config: "Config",
    generator: torch.Generator,
    *,
    turn: Int[Tensor, " batch"] | None = None,
) -> Draw:
    """Some views of each scene, mirrored half of the time, and which of them are known in each condition.

    A single image of the same scene is another one every `turn`, until all have been shown.
    """
    count = len(scenes)
    order = torch.rand(count, cache.views, generator=generator).argsort(1)[:, : config.encoder_views]
    if config.single_images and turn is not None:
        order = ((scenes + turn) % cache.views)[:, None]
    keep = torch.rand(count, 1, generator=generator) < 0.5  # time's order, else any, so that every view may be first
    mirror = torch.rand(count, generator=generator) < 0.5
    masks = [torch.ones(count, config.encoder_views, dtype=torch.bool)]
    if config.conditions:
        known = torch.tensor(config.visible)[
            torch.randint(len(config.visible), (config.conditions, count), generator=generator)
        ]
        masks += [known_places(row, config.encoder_views, generator) for row in known]
    masks += [torch.zeros(count, config.encoder_views, dtype=torch.bool)]
    views = cache.batch(scenes, torch.where(keep, order.sort(1).values, order))
    return Draw(mirrored(views, mirror), torch.stack(masks))


def known_places(count: Int[Tensor, " batch"], views: int, generator: torch.Generator) -> Bool[Tensor, "batch view"]:
    """`count` known views a row; the first view is among them half of the time."""
    rank = torch.rand(len(count), views, generator=generator)
    rank[:, 0] -= (torch.rand(len(count), generator=generator) < 0.5).float()
    return rank.argsort(1).argsort(1) < count[:, None]


@torch.no_grad()
def encoded(model: RAE3D, sample: Draw) -> Float[Tensor, "encoding batch token dim"]:
    """Latents of every encoding of the samples, on the model's device; their images are looked at once."""
    views = sample.views.to(model.device)
    cameras = views.cameras.normalized()[0]  # type: ignore[union-attr]
    looked = model.look(views.images.to(model.dtype))
    return torch.stack([encode_views(model, views, cameras, mask.to(model.device), looked) for mask in sample.masks])


def log_scales(views: Views) -> Float[Tensor, " batch"]:
    """Logarithm of the farthest camera's distance from the first, in median depths of the first view.

    NaN where that view has no depth, or where all cameras stand in one place.
    """
    first, extent = views[:1], views.cameras.extent.float()  # type: ignore[union-attr]
    if first.depth is None or first.mask is None:
        return torch.full_like(extent, math.nan)
    depth = first.depth.where(first.mask, math.nan).flatten(1).nanmedian(1).values.float()
    return (extent / depth).log().where(extent > STILL * depth, math.nan)


class Latents:
    """Latents of every sample and of its conditions, encoded once and kept on disk."""

    def __init__(self, data: Tensor, known: Tensor, blind: Tensor, log_scale: Tensor | None = None) -> None:
        self.data, self.known, self.blind, self.log_scale = data, known, blind, log_scale

    @classmethod
    def encoded(cls, file: Path, model: RAE3D, cache: WorldsCache, config: "Config") -> "Latents":
        """Read them from `file`, or encode the cache's scenes and write it; of several processes only the first does.

        Raises ValueError if the file was made with other settings, another autoencoder or other data. One that does
        not say what it was made of is made again.
        """
        made_of = fingerprint(model, cache, config)
        while not kept_of(file, made_of):
            if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
                return cls._made(file, made_of, model, cache, config)
            time.sleep(0.1)
        return cls(**load_file(file))

    @classmethod
    def _made(
        cls, file: Path, made_of: dict[str, str], model: RAE3D, cache: WorldsCache, config: "Config"
    ) -> "Latents":
        parts: list[Tensor] = []
        scales: list[Tensor] = []
        rows = torch.arange(len(cache) * config.samples)
        for number, part in enumerate(track(rows.split(16), description="encoding latents", transient=True)):
            generator, scenes, turn = step_generator(config.seed, number, 2), part % len(cache), part // len(cache)
            sample = draw(cache, scenes, config, generator, turn=turn)
            scales.append(log_scales(sample.views))
            with torch.autocast(model.device.type, torch.bfloat16):
                parts.append(encoded(model, sample).half().cpu())
        data, *known, blind = torch.cat(parts, 1)
        none = data.new_zeros(len(data), 0, *data.shape[1:])
        tensors = {"data": data.clone(), "known": torch.stack(known, 1) if known else none, "blind": blind.clone()}
        if config.scale_token:
            tensors["log_scale"] = torch.cat(scales)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file.with_suffix(".part"), made_of)
        file.with_suffix(".part").replace(file)
        return cls(**tensors)


def weights_of(model: RAE3D | DiT3D) -> str:
    """A name for what an autoencoder encodes to, or a denoiser says."""
    architecture = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
    weights = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, parameter in sorted(model.named_parameters()):  # and no buffers: encoding does not use the statistics
        weights.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
    return weights.hexdigest()[:16]


def fingerprint(model: RAE3D, cache: WorldsCache, config: "Config") -> dict[str, str]:
    """Everything that latents depend on, by a name that a user knows."""
    names = ("version", "views", "height", "width", "samples", "seeds")
    data = hashlib.sha256(json.dumps([cache.meta[name] for name in names]).encode())
    settings = {name: asdict(config)[name] for name in ("seed", "encoder_views", "visible", "samples", "conditions")}
    if config.scale_token:  # else nobody asks, and files made before there was one are still read
        settings["scale_token"] = True
    found = {name: json.dumps(value) for name, value in settings.items()}
    return found | {"autoencoder": weights_of(model), "data": data.hexdigest()[:16]}


def kept_of(file: Path, wanted: dict[str, str]) -> bool:
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


class Classes:
    """Which class a single image is of: the value of an attribute of its world, or the name of its folder."""

    def __init__(self, folders: Sequence[Path], attribute: str) -> None:
        """ValueError where no image has a class."""
        self._worlds: dict[str, str] = {}
        names, told = set[str](), set[str]()
        for folder in folders:
            if not is_worlds(folder):
                names |= {file.name for file in folder.iterdir() if file.is_dir()} if folder.is_dir() else set()
                continue
            cache = WorldsCache(folder)
            for seed, row in zip(cache.seeds, cache.attributes, strict=True):
                told |= {name for name in row if isinstance(row[name], str)}
                if isinstance(row.get(attribute), str | int):
                    self._worlds[f"world {seed}"] = str(row[attribute])
        self.names = sorted(names | set(self._worlds.values()))
        if not self.names:
            found = f"{folders[0]}: no scene has a --label {attribute}"
            raise ValueError(f"{found}; accepted are {', '.join(sorted(told)) or 'folders of photos'}")
        self._places = {name: place for place, name in enumerate(self.names)}

    def of(self, scenes: Iterable[str]) -> Int[Tensor, " scene"]:
        """The place in `names` of each scene's class, by the scene's name; one past the last where there is none."""
        return self.places(self._worlds.get(name, name.partition("/")[0]) for name in scenes)

    def places(self, words: Iterable[str]) -> Int[Tensor, " word"]:
        """The same for classes by their name."""
        return torch.tensor([self._places.get(word, len(self.names)) for word in words])
