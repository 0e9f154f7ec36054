"""3DRAE + 3DDiT behind the one interface: photos to latent tokens, tokens to views."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.models.checkpoints import check_weights
from diorama.models.dit3d import DiT3D
from diorama.models.rae3d import RAE3D
from diorama.pipelines.base import Context, ScenePipeline
from diorama.scene import Condition, Scene, Shot, Views

POSE_TOLERANCE = 1e-3  # of a known camera against the wanted one: share of the path's extent, radians, image widths
VIEWS_AT_ONCE = 32  # decoded together, which bounds the memory that a long path needs
MIN_DEPTH = 1e-4  # of decoded points, in the latent frame: in front of the camera by contract


def encode_views(
    autoencoder: RAE3D, views: Views, cameras: Cameras, visible: Bool[Tensor, "batch view"]
) -> Float[Tensor, "batch token dim"]:
    """Latents of views whose `cameras` are in the latent frame; hidden views give their pose alone."""
    return autoencoder.encode(views.images, cameras.plucker(), visible)


class TokenPipeline(ScenePipeline):
    """A scene is a fixed number of latent tokens: sampled once, decoded from any camera afterwards."""

    autoencoder: RAE3D
    denoiser: DiT3D
    scheduler: FlowMatchEulerDiscreteScheduler

    def __init__(
        self,
        autoencoder: RAE3D,
        denoiser: DiT3D,
        scheduler: FlowMatchEulerDiscreteScheduler,
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
        self.register_modules(autoencoder=autoencoder, denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(
            title=title, licence=licence, pixels=pixels, encoder_views=encoder_views, steps=steps, guidance=guidance
        )
        autoencoder.eval()
        denoiser.eval()

    @classmethod
    def load_folder(cls, folder: Path) -> "TokenPipeline":
        """Load a saved pipeline in float32, strictly: missing, unknown or unreadable weights raise ValueError."""
        for name, kind in (("autoencoder", RAE3D), ("denoiser", DiT3D)):
            check_weights(kind, folder / name)
        schedule = folder / "scheduler/scheduler_config.json"
        if not schedule.is_file():  # diffusers would look for it on the network
            raise ValueError(f"{schedule}: missing; a {cls.__name__} folder holds it")
        autoencoder = RAE3D.from_pretrained(folder / "autoencoder", torch_dtype=torch.float32)
        denoiser = DiT3D.from_pretrained(folder / "denoiser", torch_dtype=torch.float32)
        expected, found = autoencoder.latent_mean.shape, (denoiser.config.tokens, denoiser.config.channels)
        if tuple(expected) != found:
            raise ValueError(f"{folder}: the denoiser's latents are {found}, the autoencoder's {tuple(expected)}")
        try:
            scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
            index = json.loads((folder / "model_index.json").read_text())
            options = {key: value for key, value in index.items() if key[0] != "_" and not isinstance(value, list)}
            return cls(autoencoder, denoiser, scheduler, **options)
        except (OSError, TypeError) as error:
            raise ValueError(f"{folder}: not a {cls.__name__} ({str(error).splitlines()[0]})") from None

    def prepared(self, condition: Condition, wanted: Cameras | Shot) -> tuple[Condition, Cameras]:
        """The request at a size of this model's own resolution, once everything about it is known to be usable."""
        if isinstance(wanted, Shot):
            raise ValueError(
                f"{self.config.title} decodes given cameras and cannot predict them: pass Cameras, not a Shot"
            )
        if condition.prompt is not None:
            raise ValueError(f"{self.config.title} was trained without text: leave the prompt out")
        if condition.label is not None:
            raise ValueError(f"{self.config.title} was trained without classes: leave the label out")
        wanted = _single(wanted)
        path = self.fitted(wanted)
        if condition.views is None:
            return condition, path
        outside = [place for place in condition.at if place >= path.views]
        if outside:
            raise ValueError(f"known view at place {outside[0]} of {path.views} wanted views; places count from 0")
        known = condition.views.to("cpu", torch.float32)
        if known.images.ndim != 4:
            raise ValueError(
                f"known images of shape {tuple(known.images.shape)}: accepted is (views, 3, height, width)"
            )
        if known.cameras is None:
            known = replace(known, cameras=wanted[condition.at].resized(*known.images.shape[-2:]))
        _check_same(_single(known.cameras), path, condition.at)  # type: ignore[arg-type]
        return replace(condition, views=known), path

    def fitted(self, cameras: Cameras) -> Cameras:
        """The same views at sides this model can decode: multiples of the patch, and of the trained area or near it."""
        patch, area = self.autoencoder.config.patch, cameras.height * cameras.width
        if cameras.height % patch == cameras.width % patch == 0 and area <= 4 * self.config.pixels:
            return cameras
        scale = (self.config.pixels / area) ** 0.5
        height, width = (max(1, round(side * scale / patch)) * patch for side in (cameras.height, cameras.width))
        return cameras.resized(height, width)

    def encode(self, conditions: Sequence[Condition], wanted: Sequence[Cameras]) -> Context:
        """Normalised latents of the wanted poses, of which only the known ones show their image."""
        cameras = _stack(wanted)
        local, frame = cameras.normalized()
        chosen = [_spread(cameras.views, condition.at, self.config.encoder_views) for condition in conditions]
        images = torch.zeros(len(wanted), len(chosen[0]), 3, cameras.height, cameras.width)
        visible = torch.zeros(len(wanted), len(chosen[0]), dtype=torch.bool)
        for row, (condition, places) in enumerate(zip(conditions, chosen, strict=True)):
            if condition.views is not None:
                slots = [places.index(place) for place in condition.at]
                images[row, slots] = condition.views.resized(cameras.height, cameras.width).images
                visible[row, slots] = True
        index = torch.tensor(chosen)[..., None, None]
        poses = replace(
            local,
            camera_to_world=local.camera_to_world.gather(1, index.expand(-1, -1, 4, 4)),
            intrinsics=local.intrinsics.gather(1, index.expand(-1, -1, 3, 3)),
        ).to(self.device)
        views = Views(images.to(self.device), poses)
        latents = encode_views(self.autoencoder, views, poses, visible.to(self.device))
        return Context(self.autoencoder.normalize(latents), cameras, frame)

    def null(self, condition: Condition) -> Condition:
        """The poses without the images (3DDiT section 3.4)."""
        return Condition()

    def noise(self, wanted: Sequence[Any], seeds: Sequence[int]) -> Float[Tensor, "batch token channel"]:
        """Gaussian tokens; each request's come from its own seed on the CPU."""
        shape = tuple(self.autoencoder.latent_mean.shape)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)

    def denoise(self, latents: Tensor, t: float, known: Tensor) -> Tensor:
        """DiT3D's velocity."""
        return self.denoiser(latents, latents.new_full((latents.shape[0],), t), known).velocity

    def decode(self, latents: Tensor, context: Context) -> tuple[list[Views], Tensor]:
        """The wanted views, and the latents as the autoencoder reads them."""
        raw = self.autoencoder.denormalize(latents)
        views = self._decode(raw, context.cameras, context.frame)  # type: ignore[arg-type]
        return [_one(views, row) for row in range(latents.shape[0])], raw

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
        paths = [item.cameras for item in items if item.cameras is not None]
        if not items:
            return []
        if len(paths) != len(items):
            raise ValueError(
                f"{len(paths)} of {len(items)} sets of views have cameras; reconstruct needs them in every one"
            )
        sources = [_single(path) for path in paths]
        if wanted is not None:
            paths = [wanted] * len(items) if isinstance(wanted, Cameras) else list(wanted)
        if len(paths) != len(items):
            raise ValueError(f"{len(items)} sets of views but {len(paths)} camera paths: accepted is one each")
        targets = [self.fitted(_single(path)) for path in paths]
        poses = _stack([self.fitted(path) for path in sources])
        known = torch.stack([item.resized(poses.height, poses.width).images for item in items]).float()
        # One frame for what is known and what is wanted: the first known view's, the farthest camera of all at 1.
        together = _stack([_joined(a, b) for a, b in zip(sources, targets, strict=True)])
        _, frame = together.normalized()
        local = poses.transformed(frame).to(self.device)
        visible = torch.ones(len(items), poses.views, dtype=torch.bool, device=self.device)
        latents = encode_views(self.autoencoder, Views(known.to(self.device), local), local, visible)
        made = self._decode(latents, _stack(targets), frame)
        scenes = [
            Scene(
                views=_one(made, row),
                condition=Condition(item, tuple(range(len(item)))) if wanted is None else Condition(),
                latents=latents[row].cpu(),
                latent_frame=Similarity(frame.rotation[row], frame.translation[row], frame.scale[row]),
                provenance=self.provenance(None, {"known_views": poses.views}),
            )
            for row, item in enumerate(items)
        ]
        return scenes[0] if isinstance(views, Views) else scenes

    @torch.no_grad()
    def render(self, scene: Scene, cameras: Cameras) -> Views:
        """More views of a scene through its own latents; no sampling. ValueError for a scene without latents."""
        if scene.latents is None or scene.latent_frame is None:
            raise ValueError(
                "this scene holds no latents of 3DRAE; it can be shown and exported, but not rendered again"
            )
        expected = tuple(self.autoencoder.latent_mean.shape)
        if tuple(scene.latents.shape) != expected:
            raise ValueError(
                f"scene latents of shape {tuple(scene.latents.shape)}; {self.config.title} reads {expected}"
            )
        frame = scene.latent_frame
        batch = Similarity(frame.rotation[None], frame.translation[None], frame.scale[None])
        path = _stack([self.fitted(_single(cameras))])
        return _one(self._decode(scene.latents[None].to(self.device), path, batch), 0)

    def _decode(self, latents: Tensor, cameras: Cameras, frame: Similarity) -> Views:
        scene, local = self.autoencoder.cache(latents), cameras.transformed(frame)
        size = max(1, VIEWS_AT_ONCE // len(latents))
        parts = [
            self.autoencoder.decode(scene, local[start : start + size].plucker().to(self.device))
            for start in range(0, cameras.views, size)
        ]
        images, points, confidence = (
            None if values[0] is None else torch.cat([value.float().cpu() for value in values], 1)
            for values in zip(*parts, strict=True)
        )
        views = Views(images.clamp(0, 1), cameras)  # type: ignore[union-attr]
        if points is None or confidence is None:
            return views
        # The regressed point keeps its depth and moves onto its pixel's ray.
        depth = Views(views.images, local, points).depth.clamp(min=MIN_DEPTH)  # type: ignore[union-attr]
        depth = depth / frame.scale[:, None, None, None]
        return replace(views, points=cameras.unproject(depth), confidence=confidence - 1)


def _single(path: Cameras) -> Cameras:
    """One path of usable cameras on the CPU, where frames are computed; ValueError for what is none."""
    if path.camera_to_world.ndim != 3 or path.views == 0:
        shape = tuple(path.camera_to_world.shape)
        raise ValueError(f"cameras of shape {shape}: accepted is one path of shape (views, 4, 4)")
    return path.to("cpu", torch.float32).checked()


def _stack(paths: Sequence[Cameras]) -> Cameras:
    sizes = {(path.views, path.height, path.width) for path in paths}
    if len(sizes) > 1:
        raise ValueError(f"paths of different shapes (views, height, width) {sorted(sizes)} in one batch")
    return replace(
        paths[0],
        camera_to_world=torch.stack([path.camera_to_world for path in paths]),
        intrinsics=torch.stack([path.intrinsics for path in paths]),
    )


def _joined(first: Cameras, second: Cameras) -> Cameras:
    poses = torch.cat([first.camera_to_world, second.camera_to_world])
    return Cameras(poses, torch.cat([first.intrinsics, second.intrinsics]), first.height, first.width)


def _one(views: Views, row: int) -> Views:
    cameras: Cameras = views.cameras  # type: ignore[assignment]
    return Views(
        views.images[row],
        replace(cameras, camera_to_world=cameras.camera_to_world[row], intrinsics=cameras.intrinsics[row]),
        None if views.points is None else views.points[row],
        None if views.confidence is None else views.confidence[row],
    )


def _spread(views: int, known: tuple[int, ...], most: int) -> list[int]:
    """Places of the poses that the encoder reads: the first, the known ones, and others evenly up to `most`."""
    if views <= most:
        return list(range(views))
    places = {0, *known}
    for place in torch.linspace(0, views - 1, max(2, most)).round().int().tolist():
        if len(places) < most:
            places.add(place)
    return sorted(places)


def _check_same(known: Cameras, wanted: Cameras, at: tuple[int, ...]) -> None:
    there = wanted[at]
    angle = (known.camera_to_world[:, :3, :3] - there.camera_to_world[:, :3, :3]).abs().amax((-1, -2))
    extent = (wanted.centers - wanted.centers[:1]).norm(dim=-1).amax().clamp(min=1e-6)
    shift = (known.centers - there.centers).norm(dim=-1) / extent
    lens = (known.resized(there.height, there.width).intrinsics - there.intrinsics).abs().amax((-1, -2)) / there.width
    for place, *errors in zip(at, angle, shift, lens, strict=True):
        names = ("orientation", "position", "intrinsics")
        wrong = [name for name, error in zip(names, errors, strict=True) if error > POSE_TOLERANCE]
        if wrong:
            raise ValueError(f"the known view at place {place} has another {wrong[0]} than the wanted camera there")
