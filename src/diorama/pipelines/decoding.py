"""Latent tokens to views: RAE3D's decoders, and the memory that looks at the known views again."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.models.observed_memory import Memory, ObservedMemory
from diorama.models.rae3d import RAE3D, Decoded, LatentCache
from diorama.scene import Views

VIEWS_AT_ONCE = 32  # decoded together, which bounds the memory that a long path needs
MIN_DEPTH = 1e-4  # of decoded points, in the latent frame: in front of the camera by contract


def decoded_depth(
    points: Float[Tensor, "batch view height width 3"], cameras: Cameras
) -> Float[Tensor, "batch view height width"]:
    """z-depth of decoded points in the latent frame."""
    forward = cameras.camera_to_world[..., None, None, :3, 2]
    return ((points - cameras.centers[..., None, None, :]) * forward).sum(-1).clamp(min=MIN_DEPTH)


def in_frames(paths: Sequence[Cameras], frames: Sequence[Similarity]) -> Cameras:
    """Paths as one batch, each in its latent frame: moved in doubles, as far from the origin singles are too coarse."""
    moved = [path.to(torch.float64).transformed(frame) for path, frame in zip(paths, frames, strict=True)]
    return Cameras.stacked(moved).to(torch.float32)


def kept(images: Float[Tensor, "view 3 height width"], cameras: Cameras) -> Views:
    """Known views as a scene keeps them for its memory: to 8 bits, so that a saved scene renders the same."""
    return Views(images.cpu().float().mul(255).round() / 255, cameras)


def decode_views(
    models: tuple[RAE3D, ObservedMemory | None],
    latents: Float[Tensor, "batch token dim"],
    paths: Sequence[Cameras],
    frames: Sequence[Similarity],
    observed: Sequence[Views | None] | None,
    *,
    raw: bool = False,
) -> list[Views]:
    """The views of each path, in its own world; `raw` leaves points where RAE3D regressed them."""
    autoencoder, memory = models
    scene, local = autoencoder.cache(latents), in_frames(paths, frames)
    recalled = None
    if memory is not None and observed is not None and any(views is not None for views in observed):
        recalled = _recalled(autoencoder, memory, scene, observed, frames)
    size = max(1, VIEWS_AT_ONCE // len(latents))
    parts = []
    for start in range(0, local.views, size):
        cameras = local[start : start + size].to(latents.device)
        decoded = autoencoder.decode(scene, cameras.plucker())
        if recalled is not None:
            decoded = _sharpened(memory, recalled, decoded, cameras, raw)  # type: ignore[arg-type]
        parts.append([None if x is None else x.float().cpu() for x in decoded])
    images, points, confidence = (
        None if values[0] is None else torch.cat(values, 1) for values in zip(*parts, strict=True)
    )
    views = Views(images.clamp(0, 1), local, points, confidence)  # type: ignore[union-attr]
    return [_in_world(*row, raw=raw) for row in zip(views.apart(), paths, frames, strict=True)]


def _recalled(
    autoencoder: RAE3D,
    memory: ObservedMemory,
    scene: LatentCache,
    observed: Sequence[Views | None],
    frames: Sequence[Similarity],
) -> Memory:
    """What a batch of scenes remembers; those that know fewer views than others are filled up with hidden ones."""
    most = max(len(views) for views in observed if views is not None)
    example = next(views for views in observed if views is not None)
    rows, visible = [], torch.zeros(len(observed), most, dtype=torch.bool)
    for row, views in enumerate(observed):
        visible[row, : 0 if views is None else len(views)] = True
        places = [min(place, len(views or example) - 1) for place in range(most)]
        rows.append((views or example)[places])
    cameras = in_frames([views.cameras for views in rows], frames).to(scene.latents.device)  # type: ignore[misc]
    images = torch.stack([views.images for views in rows]).to(scene.latents.device)
    points, _ = autoencoder.decode_points(scene, cameras.plucker())
    return memory.read(images, decoded_depth(points.float(), cameras), cameras, visible.to(images.device))


def _sharpened(memory: ObservedMemory, recalled: Memory, decoded: Decoded, cameras: Cameras, raw: bool) -> Decoded:
    """Decoded views after a look at the known ones; scenes that know none stay as they are."""
    assert decoded.points is not None
    depth = decoded_depth(decoded.points.float(), cameras)
    made = memory(recalled, decoded.images.float().clamp(0, 1), depth, cameras)
    known: Bool[Tensor, " batch"] = recalled.visible.any(1)
    images = torch.where(known[:, None, None, None, None], made.images, decoded.images.float())
    points = decoded.points
    if not raw:
        points = torch.where(known[:, None, None, None, None], cameras.unproject(made.depth), decoded.points.float())
    return decoded._replace(images=images, points=points)


def _in_world(views: Views, path: Cameras, frame: Similarity, *, raw: bool) -> Views:
    """Decoded views with the cameras that were asked for, and with their points in the same world."""
    if views.points is None:
        return replace(views, cameras=path)
    if raw:
        points = frame.inverse().apply(views.points.to(frame.scale)).to(path.camera_to_world)
    else:  # the regressed point keeps its depth and moves onto its pixel's ray
        points = path.unproject(views.depth.clamp(min=MIN_DEPTH) / frame.scale)  # type: ignore[union-attr]
    return replace(views, cameras=path, points=points)
