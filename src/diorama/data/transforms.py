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


def _where(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(which.reshape(-1, *(1,) * (no.ndim - 1)), yes, no)
