"""Changes of views in which images, cameras and points stay in step."""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from diorama.scene import Views


def mirrored(views: Views, which: Bool[Tensor, " batch"]) -> Views:
    """The chosen scenes of a batch as their mirror image (x -> -x in the world and in every image)."""
    if views.cameras is None:
        raise ValueError("views without cameras: mirroring changes both")
    flip = torch.tensor([-1.0, 1, 1, 1], dtype=views.cameras.camera_to_world.dtype, device=which.device)
    poses, intrinsics = views.cameras.camera_to_world, views.cameras.intrinsics
    other = intrinsics.clone()
    other[..., 0, 2] = views.cameras.width - intrinsics[..., 0, 2]
    cameras = replace(
        views.cameras,
        camera_to_world=_where(which, flip[:, None] * poses * flip, poses),
        intrinsics=_where(which, other, intrinsics),
    )
    points, confidence = views.points, views.confidence
    return Views(
        _where(which, views.images.flip(-1), views.images),
        cameras,
        None if points is None else _where(which, points.flip(-2) * flip[:3], points),
        None if confidence is None else _where(which, confidence.flip(-1), confidence),
    )


def fitted(views: Views, height: int, width: int, place: tuple[float, float] = (0.5, 0.5)) -> Views:
    """The largest part of a wanted shape, resized; whole pixels are cut, with the cameras kept in step.

    `place` says where the part lies: (0, 0) at the top left of what there is, (1, 1) at the bottom right.
    """
    tall, wide = views.images.shape[-2:]
    scale = min(tall / height, wide / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = int(place[0] * (tall - rows)), int(place[1] * (wide - columns))
    window = (..., slice(top, top + rows), slice(left, left + columns))
    part = Views(
        views.images[window],
        None if views.cameras is None else views.cameras.cropped(top, left, rows, columns),
        None if views.points is None else views.points[(*window, slice(None))],
        None if views.confidence is None else views.confidence[window],
    )
    return part.resized(height, width)


def _where(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(which.reshape(-1, *(1,) * (no.ndim - 1)), yes, no)
