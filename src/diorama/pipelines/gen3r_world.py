"""Gen3R's geometry, which VGGT's heads tell in a frame and scale of their own, in the caller's world."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.geometry.cameras import COINCIDENT, Cameras
from diorama.geometry.rotations import rotate
from diorama.geometry.similarity import Similarity
from diorama.models.vggt import VGGTOutput
from diorama.pipelines.gen3r_conditions import clip_frames, control_of, frame_of_view
from diorama.scene import POSE_TOLERANCE, Condition, Shot, Views

PERCENTILES, FARTHEST = (0.001, 0.98), 50.0  # of each view's depths, in VGGT's units: what is outside is no surface
LITTLE_PARALLAX = 1e-3  # of the median depth: cameras that move less tell nothing of the scale
MIN_DEPTH = 1e-4  # in VGGT's units


class Surface(NamedTuple):
    """One scene's geometry in VGGT's frame and scale."""

    cameras: Cameras
    depth: Float[Tensor, "view height width"]
    confidence: Float[Tensor, "view height width"]  # 0 outside the range of depths


def in_range(depth: Float[Tensor, "view height width"]) -> Bool[Tensor, "view height width"]:
    """Depths inside their view's percentiles and nearer than the farthest that means anything, as published."""
    low, high = depth.flatten(1).quantile(depth.new_tensor(PERCENTILES), dim=1)[..., None, None]
    return (depth > low.clamp(min=1e-8)) & (depth < high.clamp(max=FARTHEST))


def surface(output: VGGTOutput, points: str = "depth") -> Surface:
    """One scene's surface by the depth head, or by the point head: its points moved onto their pixels' rays."""
    cameras = output.cameras.apart()[0]
    if points == "head":
        forward = cameras.camera_to_world[:, None, None, :3, 2]
        depth = ((output.points[0] - cameras.centers[:, None, None]) * forward).sum(-1)
        confidence = output.points_confidence[0] * (depth > MIN_DEPTH)
        depth = depth.clamp(min=MIN_DEPTH)
    else:
        depth, confidence = output.depth[0], output.depth_confidence[0]
    return Surface(cameras, depth, confidence * in_range(depth))


def unprojected(
    cameras: Cameras, depth: Float[Tensor, "view height width"], *, whole_pixels: bool = False
) -> Float[Tensor, "view height width 3"]:
    """World point of every pixel; `whole_pixels` takes the first pixel's centre to be (0, 0), as published."""
    if whole_pixels:
        cameras = replace(cameras, intrinsics=cameras.intrinsics.clone())
        cameras.intrinsics[..., :2, 2] += 0.5
    return cameras.unproject(depth)


def in_shot(condition: Condition, wanted: Shot) -> Condition:
    """The same, once it is known to be of this shot; ValueError for what is not."""
    if min(wanted.views, wanted.height, wanted.width) < 1:
        raise ValueError(f"{wanted}: accepted are 1 or more views of 1x1 pixels or more")
    outside = [place for place in condition.at if place >= wanted.views]
    if outside:
        raise ValueError(f"known view at place {outside[0]} of {wanted.views} wanted views; places count from 0")
    if condition.views is None:
        return condition
    known = condition.views.to("cpu")
    if known.images.ndim != 4:
        shape = tuple(known.images.shape)
        raise ValueError(f"known images of shape {shape}: accepted is (views, 3, height, width)")
    cameras = None if known.cameras is None else known.cameras.path()
    return replace(condition, views=replace(known, images=known.images.float(), cameras=cameras))


def placed(views: Views, wanted: Cameras | Shot | None) -> tuple[Condition, Cameras | Shot]:
    """All views as the condition of a path through them, by default their own; ValueError where one is not on it."""
    height, width = views.images.shape[-2:]
    if wanted is None:
        own = Shot(len(views), height, width) if views.cameras is None else views.cameras.path()
        return Condition(views, tuple(range(len(views)))), own
    if isinstance(wanted, Shot) or views.cameras is None:
        if len(views) != wanted.views:
            raise ValueError(f"{len(views)} views without cameras for {wanted.views} wanted ones: accepted is one each")
        return Condition(views, tuple(range(len(views)))), wanted
    at: list[int] = []
    path, known = wanted.path(), views.cameras.path().fitted(wanted.height, wanted.width)
    for number, camera in enumerate(known):  # type: ignore[arg-type]
        far = path.deviation(camera.to(path.camera_to_world))
        far[:, 1] /= path.extent.clamp(min=1e-6)
        free = [place for place in (far.amax(-1) < POSE_TOLERANCE).nonzero().flatten().tolist() if place not in at]
        if not free:
            raise ValueError(f"view {number} is not on the wanted path: accepted are paths through all known views")
        at.append(free[0])
    return Condition(views, tuple(at)), wanted


def photos_for(condition: Condition, wanted: Cameras | Shot) -> Float[Tensor, "known 3 height width"]:
    """The known images at the wanted size: cropped around their centre, or as the wanted cameras see them."""
    known = condition.views
    assert known is not None
    if isinstance(wanted, Cameras):
        return known.images_for(wanted[condition.at])
    size, poses = known.images.shape[-2:], torch.eye(4).repeat(len(known), 1, 1)
    # Any lens: only what part of the image is taken matters.
    lens = Cameras.from_fov(60.0, *size, poses)  # type: ignore[call-arg]
    return replace(known, cameras=lens, points=None).images_for(lens.fitted(wanted.height, wanted.width))


def control_for(
    wanted: Cameras | Shot, frame: Similarity | None, device: torch.device
) -> Float[Tensor, "1 24 latent_frame height both"]:
    """The clip's cameras as the denoiser reads them; zeros for a shot, whose cameras are free."""
    shown = clip_frames(wanted.views)
    if isinstance(wanted, Shot) or frame is None:
        return control_of(torch.zeros(1, len(shown), 6, wanted.height, wanted.width, device=device))
    # Moved in doubles: far from the origin singles are too coarse.
    local = wanted.to(torch.float64).transformed(frame)
    return control_of(local[shown].to(torch.float32).to(device).plucker()[None])


def control_frame(wanted: Cameras, scale: float) -> Similarity:
    """World -> the frame that the denoiser's cameras are told in: the first camera's, in VGGT's scale."""
    pose, factor = wanted.camera_to_world[0], wanted.camera_to_world.new_tensor(scale)
    rotation = pose[:3, :3].mT
    return Similarity(rotation, -factor * rotate(rotation, pose[:3, 3]), factor)


def scale_of_scene(known: Views, seen: VGGTOutput) -> float:
    """How long one unit of the caller's world is for VGGT, which saw the known views.

    By the depths of known views that have points; by their cameras' distances; where neither is known, the scene's
    median depth is taken to be one unit, as camera movements do.
    """
    median = float(seen.depth.median())
    if known.depth is not None and known.mask is not None and known.mask.any():
        theirs = float(known.depth[known.mask].median())
        return median / theirs if theirs > 0 else median
    found = None if known.cameras is None else scale_of_paths(seen.cameras.apart()[0], known.cameras, median)
    return median if found is None else found


def scale_of_paths(predicted: Cameras, given: Cameras, depth: float) -> float | None:
    """Length in VGGT's scale of one unit of the given path's world; None where either path hardly moves."""
    far, wanted = (_spread(path) for path in (predicted, given))
    size = COINCIDENT * max(1.0, float(given.centers.abs().max()))
    ratio = far / wanted if wanted > size and far > LITTLE_PARALLAX * depth else 0.0
    return ratio if 0 < ratio < math.inf else None


def in_world(
    images: Float[Tensor, "view 3 height width"],
    found: Surface,
    condition: Condition,
    wanted: Cameras | Shot,
    scale: float,
    *,
    cameras: str = "wanted",
    whole_pixels: bool = False,
) -> Views:
    """Views of the caller's world: with the cameras asked for, or with those that were predicted in their place.

    Where the path moves, what it measures there against what VGGT says of it sets the scale; else `scale` does.
    Without cameras in the request the first view's stands at the origin, in VGGT's scale.
    """
    predicted, median = found.cameras.to(torch.float64), float(found.depth.median())
    if isinstance(wanted, Shot):
        known = None if condition.views is None else condition.views.cameras
        at = list(condition.at) if known is not None else [0]
        pose = torch.eye(4, dtype=torch.float64) if known is None else known.camera_to_world[0].double()
        scale = 1.0 if known is None else scale_of_paths(predicted[at], known.to(torch.float64), median) or 1.0
        path = _anchored(predicted, at[0], pose, scale)
    else:
        scale = scale_of_paths(predicted, wanted.to(torch.float64), median) or scale
        path = wanted if cameras == "wanted" else _anchored(predicted, 0, wanted.camera_to_world[0].double(), scale)
    path = path.to(torch.float32) if path is not wanted else path
    points = unprojected(path, (found.depth / scale).to(path.intrinsics), whole_pixels=whole_pixels)
    return Views(images, path, points.float(), found.confidence)


def of_clip(
    images: Float[Tensor, "frame 3 height width"],
    output: VGGTOutput,
    request: tuple[Condition, Cameras | Shot],
    frame: Similarity | None,
    settings: Mapping[str, Any],
    whole_pixels: bool = False,
) -> Views:
    """A clip's pictures and geometry as the wanted views of a request; `frame` is what its cameras were told in."""
    condition, wanted = request
    places, found = frame_of_view(wanted.views), surface(output, settings["points"])
    chosen = Surface(found.cameras[places], found.depth[places], found.confidence[places])
    scale = 1.0 if frame is None else float(frame.scale)
    how: dict[str, Any] = dict(cameras=settings["cameras"], whole_pixels=whole_pixels)
    return in_world(images[places], chosen, condition, wanted, scale, **how)


def _anchored(predicted: Cameras, place: int, pose: Float[Tensor, "4 4"], scale: float) -> Cameras:
    """Predicted cameras in the world where the one at `place` has this pose."""
    local = predicted.relative_to(predicted.camera_to_world[place])
    return local.transformed(Similarity(pose[:3, :3], pose[:3, 3], pose.new_tensor(1 / scale)))


def _spread(path: Cameras) -> float:
    """Root mean square distance of the centres from their mean."""
    centers = path.centers.double()
    return float((centers - centers.mean(0)).square().sum(-1).mean().sqrt())
