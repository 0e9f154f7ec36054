"""3DRAE + 3DDiT behind the one interface: photos to latent tokens, tokens to views."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, overload

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.flow import guided
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.models.checkpoints import check_weights
from diorama.models.dit3d import DiT3D
from diorama.models.observed_memory import ObservedMemory
from diorama.models.rae3d import RAE3D
from diorama.pipelines.base import Context, ScenePipeline
from diorama.pipelines.decoding import decode_views, in_frames, kept
from diorama.pipelines.sampling import TOKEN_SPEEDS, Kept, Told, checked_times, kept_over_steps
from diorama.scene import Condition, Scene, Shot, Views


def encode_views(
    autoencoder: RAE3D,
    views: Views,
    cameras: Cameras,
    visible: Bool[Tensor, "batch view"],
    looked: Float[Tensor, "batch view patch dim"] | None = None,
) -> Float[Tensor, "batch token dim"]:
    """Latents of views whose `cameras` are in the latent frame; hidden views give their pose alone.

    `looked` is what the autoencoder's `look` said of the same images.
    """
    return autoencoder.encode(views.images.to(autoencoder.dtype), cameras.plucker(), visible, looked)


OPTIONS = ("title", "licence", "pixels", "encoder_views", "steps", "guidance")  # of TokenPipeline, kept with it


class TokenPipeline(ScenePipeline):
    """A scene is a fixed number of latent tokens: sampled once, decoded from any camera afterwards.

    With a `memory`, decoding also looks at the known views again, so that what was photographed stays sharp.
    """

    _optional_components = ["memory"]  # noqa: RUF012 - diffusers reads this list
    speeds = TOKEN_SPEEDS
    loads = ("dtype",)
    autoencoder: RAE3D
    denoiser: DiT3D
    scheduler: FlowMatchEulerDiscreteScheduler
    memory: ObservedMemory | None

    def __init__(
        self,
        autoencoder: RAE3D,
        denoiser: DiT3D,
        scheduler: FlowMatchEulerDiscreteScheduler,
        memory: ObservedMemory | None = None,
        *,
        title: str = "3DRAE + 3DDiT",
        licence: str = "unknown",
        pixels: int = 63_504,
        encoder_views: int = 16,
        steps: int = 50,
        guidance: float = 2.0,
    ) -> None:
        """`pixels`: the area trained at; `encoder_views`: how many poses the encoder was trained to read at most."""
        super().__init__()
        self.register_modules(autoencoder=autoencoder, denoiser=denoiser, scheduler=scheduler, memory=memory)
        self.register_to_config(
            title=title, licence=licence, pixels=pixels, encoder_views=encoder_views, steps=steps, guidance=guidance
        )
        for model in (autoencoder, denoiser, memory):
            if model is not None:
                model.eval()

    @classmethod
    def load_folder(cls, folder: Path, dtype: torch.dtype | None = None) -> "TokenPipeline":
        """Load a saved pipeline strictly: missing, unknown or unreadable weights raise ValueError.

        Weights go to `dtype`, by default float32, which rays, latents between the models and the memory keep.
        """
        remembers = (folder / "memory").is_dir()
        for name, kind in (("autoencoder", RAE3D), ("denoiser", DiT3D), *((("memory", ObservedMemory),) * remembers)):
            check_weights(kind, folder / name)
        schedule = folder / "scheduler/scheduler_config.json"
        if not schedule.is_file():  # diffusers would look for it on the network
            raise ValueError(f"{schedule}: missing; a {cls.__name__} folder holds it")
        autoencoder = RAE3D.from_pretrained(folder / "autoencoder", torch_dtype=torch.float32)
        denoiser = DiT3D.from_pretrained(folder / "denoiser", torch_dtype=torch.float32)
        memory = ObservedMemory.from_pretrained(folder / "memory", torch_dtype=torch.float32) if remembers else None
        expected, found = autoencoder.latent_mean.shape, (denoiser.config.tokens, denoiser.config.channels)
        if tuple(expected) != found:
            raise ValueError(f"{folder}: the denoiser's latents are {found}, the autoencoder's {tuple(expected)}")
        try:
            scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
            index = json.loads((folder / "model_index.json").read_text())
            options = {key: value for key, value in index.items() if key[0] != "_" and not isinstance(value, list)}
            for parameter in (*autoencoder.parameters(), *denoiser.parameters()):  # buffers keep all their digits
                parameter.data = parameter.data.to(dtype or torch.float32)
            return cls(autoencoder, denoiser, scheduler, memory, **options)
        except (OSError, TypeError) as error:
            raise ValueError(f"{folder}: not a {cls.__name__} ({str(error).splitlines()[0]})") from None

    def forgetful(self) -> "TokenPipeline":
        """The same models without the memory: views come from the latents alone, as in the paper."""
        options = {name: value for name, value in dict(self.config).items() if name in OPTIONS}
        return TokenPipeline(self.autoencoder, self.denoiser, self.scheduler, **options)

    def prepared(self, condition: Condition, wanted: Cameras | Shot) -> tuple[Condition, Cameras]:
        """The request at a size of this model's own resolution, once everything about it is known to be usable."""
        if isinstance(wanted, Shot):
            raise ValueError(
                f"{self.config.title} decodes given cameras and cannot predict them: pass Cameras, not a Shot"
            )
        if condition.prompt is not None:
            raise ValueError(f"{self.config.title} was trained without text: leave the prompt out")
        classes = self.denoiser.config.classes
        if condition.label is not None and not classes:
            raise ValueError(f"{self.config.title} was trained without classes: leave the label out")
        if condition.label is not None and not 0 <= condition.label < classes:
            raise ValueError(f"label {condition.label}: accepted by {self.config.title} are 0 to {classes - 1}")
        wanted = wanted.path()
        return condition.along(wanted), self.fitted(wanted)

    def size_near(self, height: int | float, width: int | float) -> tuple[int, int]:
        """The height and width that this model makes where these are asked for: whole patches, about the trained area.

        Whole patches are kept up to four times that area. In place of another size comes, of the four next to it, the
        one of the nearest proportions, for which least is cropped.
        """
        patch, area = self.autoencoder.config.patch, height * width
        if height % patch == width % patch == 0 and area <= 4 * self.config.pixels:
            return int(height), int(width)
        exact = [side * (self.config.pixels / area) ** 0.5 / patch for side in (height, width)]
        near = product(*({max(1, math.floor(count)), math.ceil(count)} for count in exact))

        def unlike(counts: tuple[int, int]) -> tuple[float, float]:
            tall, wide = (math.log(count / wish) for count, wish in zip(counts, exact, strict=True))
            return round(abs(tall - wide), 6), abs(tall + wide)  # proportions first, then area

        rows, columns = min(near, key=unlike)
        return rows * patch, columns * patch

    def fitted(self, cameras: Cameras) -> Cameras:
        """The same views at a size that this model makes, cropped around their centre if it has other proportions."""
        return cameras.fitted(*self.size_near(cameras.height, cameras.width))

    def options(
        self, *, scale: float | None = None, backbone: Sequence[float] = (), memory: bool = True, **asked: Any
    ) -> dict[str, Any]:
        """`scale`: what camera movements are multiplied with to be in median depths of the first view, where known.

        `backbone`: times at which the denoiser's backbone is asked anew, between which steps share its answer; every
        step asks without. `memory`: whether the known views are looked at again, if the pipeline can. ValueError for a
        scale where the model was not trained to be told.
        """
        if scale is not None and not self.denoiser.config.get("scale"):
            raise ValueError(f"scale {scale}: {self.config.title} was trained without; leave it out")
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale {scale}: accepted is more than 0")
        told = {"scale": scale, "backbone": checked_times(backbone) or None, "memory": False if not memory else None}
        return super().options(**asked) | {name: value for name, value in told.items() if value is not None}

    def branches(
        self, conditions: Sequence[Condition], wanted: Sequence[Any], seeds: Sequence[int], settings: Mapping[str, Any]
    ) -> tuple[Context, Context | None]:
        """What both branches of guidance know; both know the scale, which belongs to the poses."""
        context, null = super().branches(conditions, wanted, seeds, settings)
        if not settings.get("memory", True):
            context = context._replace(observed=None)
        if not self.denoiser.config.get("scale"):
            return context, null
        lengths = torch.stack([path.extent for path in wanted]).to(self.device, torch.float32)
        log_scale = (lengths * settings.get("scale", math.nan)).log()
        told = [c and c._replace(known=c.known._replace(log_scale=log_scale)) for c in (context, null)]
        return told[0], told[1]  # type: ignore[return-value]

    def encode(self, conditions: Sequence[Condition], wanted: Sequence[Cameras]) -> Context:
        """Normalised latents of the wanted poses, of which only the known ones show their image."""
        return self._encode(conditions, wanted, shown=True)

    def null(self, conditions: Sequence[Condition], wanted: Sequence[Cameras]) -> Context | None:
        """The same poses without the images, and without the class (3DDiT section 3.4)."""
        if all(condition.views is None and condition.label is None for condition in conditions):
            return None
        return self._encode(conditions, wanted, shown=False)

    def _encode(self, conditions: Sequence[Condition], wanted: Sequence[Cameras], *, shown: bool) -> Context:
        frames = [path.to(torch.float64).normalized()[1] for path in wanted]
        places = [
            _spread(path.views, c.at, self.config.encoder_views) for c, path in zip(conditions, wanted, strict=True)
        ]
        read = [path[at] for path, at in zip(wanted, places, strict=True)]
        local = in_frames(read, frames)
        images = torch.zeros(*local.camera_to_world.shape[:2], 3, local.height, local.width)
        visible = torch.zeros(images.shape[:2], dtype=torch.bool)
        observed: list[Views | None] = [None] * len(wanted)
        for row, condition in enumerate(conditions):
            if condition.views is not None and shown:
                slots = [places[row].index(place) for place in condition.at]
                there = wanted[row][condition.at]
                images[row, slots] = seen = condition.views.images_for(there)
                visible[row, slots] = True
                observed[row] = None if self.memory is None else kept(seen, there)
        local = local.to(self.device)
        latents = encode_views(self.autoencoder, Views(images.to(self.device), local), local, visible.to(self.device))
        label, classes = None, self.denoiser.config.classes
        if classes:
            rows = [classes if c.label is None or not shown else c.label for c in conditions]
            label = torch.tensor(rows, device=self.device)
        return Context(Told(self.autoencoder.normalize(latents), label), wanted, frames, observed)

    def noise(self, wanted: Sequence[Any], seeds: Sequence[int]) -> Float[Tensor, "batch token channel"]:
        """Gaussian tokens; each request's come from its own seed on the CPU."""
        shape = tuple(self.autoencoder.latent_mean.shape)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)

    def velocity(self, latents: Tensor, t: float, context: Context, null: Context | None, scale: float) -> Tensor:
        """Velocity at time t, guided where there is another branch: both as one batch."""
        if null is None:
            return self.denoise(latents, t, context.known)
        both = self.denoise(torch.cat([latents, latents]), t, context.known.beside(null.known))
        return guided(*both.chunk(2), scale)  # type: ignore[call-arg]

    def denoise(self, latents: Tensor, t: float, known: Told) -> Tensor:
        """DiT3D's velocity, in single precision as is all between the models."""
        times, kept = torch.full((len(latents),), t, device=latents.device), known.kept or Kept()
        kind, state = self.denoiser.dtype, kept.state_at(t, len(latents))
        told = dict(log_scale=known.log_scale, state=state, prefix=kept.prefix_of(len(latents)))
        output = self.denoiser(latents.to(kind), times, known.tokens.to(kind), known.label, **told)
        if state is None:
            kept.state = output.state
        return output.velocity.float()

    def sampled(
        self, latents: Tensor, context: Context, null: Context | None, settings: Mapping[str, Any], *rest: Any
    ) -> Tensor:
        """Latents from noise; what is the same at all steps is computed once."""
        known = context.known if null is None else context.known.beside(null.known)
        kept = kept_over_steps(self.denoiser, known, settings)
        told = [c and c._replace(known=c.known._replace(kept=kept)) for c in (context, null)]
        return super().sampled(latents, *told, settings, *rest)  # type: ignore[arg-type]

    def decode(self, latents: Tensor, context: Context) -> tuple[list[Views], Tensor]:
        """The wanted views, and the latents as the autoencoder reads them."""
        raw = self.autoencoder.denormalize(latents)
        return self._decode(raw, context.wanted, context.frames, context.observed), raw  # type: ignore[arg-type]

    @overload
    def reconstruct(self, views: Views, wanted: Cameras | None = None) -> Scene: ...

    @overload
    def reconstruct(self, views: Sequence[Views], wanted: Cameras | Sequence[Cameras] | None = None) -> list[Scene]: ...

    @torch.no_grad()
    def reconstruct(
        self, views: Views | Sequence[Views], wanted: Cameras | Sequence[Cameras] | None = None
    ) -> Scene | list[Scene]:
        """Known views to latents to wanted views (by default the known ones), without diffusion.

        A sequence of equally shaped views gives a list of scenes, encoded and decoded as one batch.
        """
        items = [views] if isinstance(views, Views) else list(views)
        if not items:
            return []
        posed = [item.cameras.path() for item in items if item.cameras is not None]
        if len(posed) != len(items):
            raise ValueError(
                f"{len(posed)} of {len(items)} sets of views have cameras; reconstruct needs them in every one"
            )
        paths = posed if wanted is None else [wanted] * len(items) if isinstance(wanted, Cameras) else list(wanted)
        if len(paths) != len(items):
            raise ValueError(f"{len(items)} sets of views but {len(paths)} camera paths: accepted is one each")
        targets = [self.fitted(path.path()) for path in paths]
        # One frame for what is known and what is wanted: the first known view's, the farthest camera of all at 1.
        frames = [a.joined(b).to(torch.float64).normalized()[1] for a, b in zip(posed, targets, strict=True)]
        read = [self.fitted(path) for path in posed]
        local = in_frames(read, frames).to(self.device)
        known = [Views(item.images.cpu().float(), cameras) for item, cameras in zip(items, posed, strict=True)]
        images = torch.stack([item.images_for(path) for item, path in zip(known, read, strict=True)])
        shown = Views(images.to(self.device), local)
        visible = torch.ones(shown.images.shape[:2], dtype=torch.bool, device=self.device)
        latents = encode_views(self.autoencoder, shown, local, visible)
        observed = [None if self.memory is None else kept(*pair) for pair in zip(images, read, strict=True)]
        made = self._decode(latents, targets, frames, observed)
        scenes = [
            Scene(
                views=made[row],
                condition=Condition(item, tuple(range(len(item)))) if wanted is None else Condition(),
                latents=latents[row].cpu(),
                latent_frame=frames[row],
                provenance=self.provenance(None, {"known_views": len(item)}),
                observed=observed[row],
            )
            for row, item in enumerate(items)
        ]
        return scenes[0] if isinstance(views, Views) else scenes

    @torch.no_grad()
    def render(self, scene: Scene, cameras: Cameras, *, points: str = "rays") -> Views:
        """More views of a scene through its own latents; no sampling. ValueError for a scene without latents.

        Points are moved onto their pixels' rays; "raw" leaves them where they were regressed, as the paper does.
        """
        if points not in ("rays", "raw"):
            raise ValueError(f"points {points!r}: accepted are 'rays' and 'raw'")
        if scene.latents is None or scene.latent_frame is None:
            raise ValueError(
                "this scene holds no latents of 3DRAE; it can be shown and exported, but not rendered again"
            )
        expected = tuple(self.autoencoder.latent_mean.shape)
        if tuple(scene.latents.shape) != expected:
            raise ValueError(
                f"scene latents of shape {tuple(scene.latents.shape)}; {self.config.title} reads {expected}"
            )
        path, latents = self.fitted(cameras.path()), scene.latents[None].to(self.device)
        frame = scene.latent_frame.to(torch.float64)
        return self._decode(latents, [path], [frame], [scene.observed], raw=points == "raw")[0]

    def _decode(
        self,
        latents: Tensor,
        paths: Sequence[Cameras],
        frames: Sequence[Similarity],
        observed: Sequence[Views | None] | None,
        *,
        raw: bool = False,
    ) -> list[Views]:
        return decode_views((self.autoencoder, self.memory), latents, paths, frames, observed, raw=raw)


def _spread(views: int, known: tuple[int, ...], most: int) -> list[int]:
    """Places of the poses that the encoder reads: the first, the known ones, and others evenly up to `most`."""
    if views <= most:
        return list(range(views))
    places = {0, *known}
    for place in torch.linspace(0, views - 1, max(2, most)).round().int().tolist():
        if len(places) < most:
            places.add(place)
    return sorted(places)
