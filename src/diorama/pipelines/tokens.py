"""3DRAE + 3DDiT behind the one interface: photos to latent tokens, tokens to views."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
        models = {"autoencoder": RAE3D, "denoiser": DiT3D}
        for name, kind in models.items():
            check_weights(kind, folder / name)
        loaded = {name: kind.from_pretrained(folder / name, torch_dtype=torch.float32) for name, kind in models.items()}
        return cls.from_pretrained(folder, **loaded)

    def prepared(self, condition: Condition, wanted: Cameras | Shot) -> tuple[Condition, Cameras]:
        """The request at a size of this model's own resolution, once everything about it is known to be usable."""
        if isinstance(wanted, Shot):
            raise ValueError(
                f"{self.config.title} decodes given cameras and cannot predict them: pass Cameras, not a Shot"
            )
        if condition.prompt is not None:
            raise ValueError(f"{self.config.title} was trained without text: leave the prompt out")
        path = self.fitted(wanted.to(torch.float32).checked())
        if condition.views is None:
            return condition, path
        outside = [place for place in condition.at if place >= path.views]
        if outside:
            raise ValueError(f"known view at place {outside[0]} of {path.views} wanted views; places count from 0")
        known = condition.views
        if known.cameras is None:
            known = replace(known, cameras=wanted[condition.at].resized(*known.images.shape[-2:]))
        known = known.to(torch.float32)
        _check_same(known.cameras.checked(), path, condition.at)  # type: ignore[union-attr]
        return replace(condition, views=known), path

    def fitted(self, cameras: Cameras) -> Cameras:
        """The same views at sides this model can decode: multiples of the patch, about the trained area if larger."""
        patch, area = self.autoencoder.config.patch, cameras.height * cameras.width
        if cameras.height % patch == cameras.width % patch == 0 and area <= 4 * self.config.pixels:
            return cameras
        scale = (self.config.pixels / area) ** 0.5
        height, width = (max(1, round(side * scale / patch)) * patch for side in (cameras.height, cameras.width))
        return cameras.resized(height, width)

    def encode(self, conditions: Sequence[Condition], wanted: Sequence[Cameras]) -> Context:
        """Normalised latents of the wanted poses, of which only the known ones show their image."""
        device, count = self.device, len(wanted)
        cameras = replace(
            wanted[0],
            camera_to_world=torch.stack([path.camera_to_world for path in wanted]),
            intrinsics=torch.stack([path.intrinsics for path in wanted]),
        )
        local, frame = cameras.normalized()
        chosen = [_spread(cameras.views, condition.at, self.config.encoder_views) for condition in conditions]
        read = max(map(len, chosen))
        images = torch.zeros(count, read, 3, cameras.height, cameras.width)
        visible = torch.zeros(count, read, dtype=torch.bool)
        for row, (condition, places) in enumerate(zip(conditions, chosen, strict=True)):
            if condition.views is not None:
                slots = [places.index(place) for place in condition.at]
                images[row, slots] = condition.views.resized(cameras.height, cameras.width).images.cpu()
                visible[row, slots] = True
        index = torch.tensor([places + places[-1:] * (read - len(places)) for places in chosen])[..., None, None]
        poses = replace(
            local,
            camera_to_world=local.camera_to_world.gather(1, index.expand(-1, -1, 4, 4)),
            intrinsics=local.intrinsics.gather(1, index.expand(-1, -1, 3, 3)),
        ).to(device)
        latents = encode_views(self.autoencoder, Views(images.to(device), poses), poses, visible.to(device))
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

    @torch.no_grad()
    def reconstruct(self, views: Views | Sequence[Views], wanted: Cameras | Sequence[Cameras] | None = None) -> Any:
        """Known views to latents to wanted views (by default the known ones), without diffusion.

        A sequence of equally shaped views gives a list of scenes, encoded and decoded as one batch.
        """
        if isinstance(views, Views):
            return self.reconstruct([views], None if wanted is None else [wanted])[0]  # type: ignore[list-item]
        if any(item.cameras is None for item in views):
            raise ValueError("reconstruct needs a camera for every view; give cameras or a single photo")
        targets = [item.cameras for item in views] if wanted is None else list(wanted)  # type: ignore[arg-type]
        targets = [self.fitted(path.to(torch.float32).checked()) for path in targets]  # type: ignore[union-attr]
        sources = [item.cameras.to(torch.float32).checked() for item in views]  # type: ignore[union-attr]
        size = self.fitted(sources[0])
        known = torch.stack([item.resized(size.height, size.width).images for item in views]).float()
        poses = _stack([path.resized(size.height, size.width) for path in sources])
        # One frame for what is known and what is wanted: the first known view's, the farthest camera of all at 1.
        count = poses.views
        together = _stack([_joined(a, b) for a, b in zip(sources, targets, strict=True)])
        _, frame = together.normalized()
        local = poses.transformed(frame).to(self.device)
        visible = torch.ones(len(views), count, dtype=torch.bool, device=self.device)
        latents = encode_views(self.autoencoder, Views(known.to(self.device), local), local, visible)
        made = self._decode(latents, _stack(targets), frame)
        return [
            Scene(
                views=_one(made, row),
                condition=Condition(item, tuple(range(len(item))) if wanted is None else ())
                if wanted is None
                else Condition(),
                latents=latents[row].cpu(),
                latent_frame=Similarity(frame.rotation[row], frame.translation[row], frame.scale[row]),
                provenance=self.provenance(None, {"known_views": count}),
            )
            for row, item in enumerate(views)
        ]

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
        path = _stack([self.fitted(cameras.to(torch.float32).checked())])
        return _one(self._decode(scene.latents[None].to(self.device), path, batch), 0)

    def _decode(self, latents: Tensor, cameras: Cameras, frame: Similarity) -> Views:
        rays = cameras.transformed(frame).plucker().to(self.device)
        images, points, confidence = self.autoencoder.decode(latents, rays)
        views = Views(images.float().clamp(0, 1).cpu(), cameras)
        if points is None or confidence is None:
            return views
        world = frame.inverse().apply(points.cpu())
        # The regressed point keeps its depth and moves onto its pixel's ray; depth in front of the camera by contract.
        depth = Views(views.images, cameras, world).depth.clamp(min=1e-4)  # type: ignore[union-attr]
        return replace(views, points=cameras.unproject(depth), confidence=confidence.cpu() - 1)


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
