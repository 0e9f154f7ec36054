"""Gen3R's reconstruction without diffusion: by its autoencoders, or by VGGT alone (table 3 of arXiv 2601.04090)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.models.geometry_adapter import pack_tokens
from diorama.pipelines.base import Context
from diorama.pipelines.gen3r_conditions import clip_frames
from diorama.pipelines.gen3r_world import control_frame, of_clip, photos_for
from diorama.scene import Condition, Scene, Shot, Views

WAYS = ("diffusion", "vae", "vggt")
CHUNK = 4  # latent frames in the adapter at once


def check_way(by: str, steps: int | None) -> None:
    """ValueError for a way that there is not, and for steps that it does not take."""
    if by not in WAYS:
        raise ValueError(f"by {by!r}: accepted are {', '.join(WAYS)}")
    if by != "diffusion" and steps:
        raise ValueError(f"{steps} steps by {by!r}: it leaves diffusion out; accepted is no number of steps")


def rebuilt(pipeline: Any, condition: Condition, wanted: Cameras | Shot, settings: Mapping[str, Any], by: str) -> Scene:
    """A scene of views that are all known, by "vae" or "vggt"; ValueError where some are not known."""
    if len(condition.at) != wanted.views:
        raise ValueError(f"{len(condition.at)} known of {wanted.views} views: without diffusion accepted are all")
    images = photos_for(condition, wanted)
    images = images[[condition.at.index(view) for view in range(wanted.views)]]
    frame = control_frame(wanted.to(torch.float64), 1.0) if isinstance(wanted, Cameras) else None
    told = pipeline.provenance(None, {"steps": 0, "by": by, **settings})
    if by == "vggt":
        made = surveyed(pipeline, images, (condition, wanted), frame, settings)
        return Scene(made, condition, None, frame, told)
    latents = autoencoded(pipeline, images, settings["tiling"])
    context = Context(None, [(condition, wanted)], [frame], settings=settings)
    views, latents = pipeline.decode(latents, context)
    return Scene(views[0], condition, latents[0].cpu(), frame, told)


def autoencoded(
    pipeline: Any, images: Float[Tensor, "view 3 height width"], tiling: bool
) -> Float[Tensor, "1 channel latent_frame latent_height both"]:
    """Latents of pictures: of the video by its VAE, of VGGT's tokens by the adapter, both posteriors' modes."""
    views, (height, width) = len(images), images.shape[-2:]
    pipeline.vae.use_tiling = tiling
    known = Condition(Views(images), tuple(range(views)))
    video, _ = pipeline._appearance([images], [known], views)
    clip = images[clip_frames(views)][None].to(pipeline.place)
    with pipeline.visiting(pipeline.vggt):
        layers = pipeline.vggt.encode(clip.to(pipeline.vggt.dtype))
    tokens = pack_tokens(layers, height // 14, width // 14).to(pipeline.adapter.dtype)
    with pipeline.visiting(pipeline.adapter):
        shape = pipeline.adapter.encode(tokens, chunk=CHUNK).mode().to(video)
    return torch.cat([video, shape], -1)


def surveyed(
    pipeline: Any,
    images: Float[Tensor, "view 3 height width"],
    request: tuple[Condition, Cameras | Shot],
    frame: Similarity | None,
    settings: Mapping[str, Any],
) -> Views:
    """Pictures as they are, known or made, with the geometry that VGGT alone sees in them."""
    clip = images[clip_frames(len(images))]
    return of_clip(clip, pipeline.seen(clip[None]), request, frame, settings, pipeline.config.parity)


@torch.no_grad()
def two_stage(pipeline: Any, scene: Scene) -> Scene:
    """A generated scene whose geometry VGGT tells from the generated pictures: what table 4 calls 2-Stage."""
    images, cameras = scene.views.images, scene.views.cameras
    wanted: Cameras | Shot = Shot(len(images), *images.shape[-2:])
    if scene.latent_frame is not None and cameras is not None:  # a shot's scene has no such frame
        wanted = cameras
    made = surveyed(pipeline, images, (scene.condition, wanted), scene.latent_frame, pipeline.options())
    return replace(scene, views=made)
