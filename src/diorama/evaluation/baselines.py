"""What no model may fall behind: novel views made by copying, averaging, blurring and warping the known ones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diorama.evaluation.metrics import psnr
from diorama.geometry.cameras import Cameras
from diorama.scene import Views

FAR = 1e4  # stands for the distance of sky, in scene units
SEEN_TOLERANCE = 0.05  # share of its distance by which a reprojected point may miss the known surface
BLURS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # pixels


def nearest_view(known: Views, target: Cameras) -> Int[Tensor, "batch target"]:
    """Which known view is nearest to each target camera: least of distance / median depth + angle in radians.

    Both terms are the image motion, in radians, that they cause; the depth is the known view's own. Without points the
    distance from the first to the farthest camera stands for it.
    """
    cameras = _cameras(known)
    if known.points is None:
        centers = torch.cat([cameras.centers, target.centers], 1)
        depth = (centers - centers[:, :1]).norm(dim=-1).amax(-1, keepdim=True).clamp(min=1e-6)
    else:
        depth = median_depth(known)
    apart = (target.centers[:, :, None] - cameras.centers[:, None]).norm(dim=-1)
    relative = cameras.camera_to_world[:, None, :, :3, :3].mT @ target.camera_to_world[:, :, None, :3, :3]
    cosine = (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return (apart / depth[:, None] + cosine.clamp(-1, 1).acos()).argmin(-1)


def median_depth(views: Views) -> Float[Tensor, "batch view"]:
    """Median z-depth of each view, sky counted as far away; ValueError without points."""
    if views.depth is None or views.mask is None:
        raise ValueError("views without cameras, points and confidence: the baselines need all three")
    return torch.where(views.mask, views.depth, FAR).flatten(-2).median(-1).values


def copy_nearest(known: Views, target: Cameras) -> Float[Tensor, "batch target 3 height width"]:
    """The nearest known view, unchanged."""
    return _pick(known.images, nearest_view(known, target))


def mean_of_known(known: Views, target: Cameras) -> Float[Tensor, "batch target 3 height width"]:
    """The mean of the known views, for every target."""
    return known.images.mean(1, keepdim=True).expand(-1, target.views, -1, -1, -1)


def plane_warp(known: Views, target: Cameras) -> Float[Tensor, "batch target 3 height width"]:
    """The nearest known view as a picture on the plane at its median depth, seen from the target (a homography).

    Beyond the picture's edge the edge repeats, which scores higher than the mean colour there.
    """
    chosen = nearest_view(known, target)
    cameras = _cameras(known)
    pose, intrinsics = _pick(cameras.camera_to_world, chosen), _pick(cameras.intrinsics, chosen)
    plane = median_depth(known).gather(1, chosen)[..., None, None]
    axis, center = pose[..., None, None, :3, 2], pose[..., None, None, :3, 3]
    origins, directions = target.rays()
    reach = (plane - ((origins - center) * axis).sum(-1)) / (directions * axis).sum(-1)
    # A ray that never meets the plane still has a place in the picture: that of its point at infinity.
    points = origins + directions * torch.where(reach > 0, reach, FAR)[..., None]
    pixels, _ = Cameras(pose, intrinsics, cameras.height, cameras.width).project(points)
    return _sample(_pick(known.images, chosen), pixels)


def depth_warp(known: Views, target: Views) -> Float[Tensor, "batch target 3 height width"]:
    """Each target pixel's true point looked up in the nearest known view where that is seen, else in any other.

    What no known view sees is copied from the nearest one. Uses the target's true depth: a bound for warping.
    """
    pixels, seen = reproject(known, target)
    colors = _sample(known.images[:, :, None].expand(-1, -1, len(target), -1, -1, -1), pixels)
    nearest = nearest_view(known, _cameras(target))
    own = F.one_hot(nearest, len(known)).mT[..., None, None]
    preference = (seen * (1 + own)).argmax(1)  # 2 where the nearest view sees it, 1 where another one does
    warped = colors.gather(1, preference[:, None, :, None].expand(-1, -1, -1, 3, -1, -1))[:, 0]
    return torch.where(seen.any(1)[:, :, None], warped, _pick(known.images, nearest))


def seen_in(known: Views, target: Views) -> Bool[Tensor, "batch target height width"]:
    """Which pixels of the target show something that at least one known view shows too."""
    return reproject(known, target)[1].any(1)


def reproject(
    known: Views, target: Views
) -> tuple[Float[Tensor, "batch known target height width 2"], Bool[Tensor, "batch known target height width"]]:
    """Where the true point of each target pixel falls in each known view, and whether that view sees it there.

    Seen: inside the picture, and at a distance that lies within those of the four pixels around it, give or take 5 %.
    Sky is seen where the known view has sky. Raises ValueError without cameras, points and confidence.
    """
    cameras = _cameras(known)
    points = _points_with_sky(target)[:, None].expand(-1, len(known), -1, -1, -1, -1)
    pixels, depth = cameras.project(points)
    distance = (points - cameras.centers[:, :, None, None, None]).norm(dim=-1)
    surface = (_points_with_sky(known) - cameras.centers[:, :, None, None]).norm(dim=-1)
    padded = F.pad(surface, (1, 1, 1, 1), mode="replicate")
    nearest, farthest = -F.max_pool2d(-padded, 2, 1), F.max_pool2d(padded, 2, 1)
    size = pixels.new_tensor([cameras.width, cameras.height])
    inside = ((pixels >= 0) & (pixels <= size)).all(-1) & (depth > 0)
    # Entry (row, column) of the pooled maps covers the four pixel centres around the corner (column, row).
    column, row = (pixels + 0.5).nan_to_num().clamp(min=0).long().clamp(max=size.long()).unbind(-1)
    index = (row * (cameras.width + 1) + column).flatten(2)
    low, high = (m.flatten(2).gather(2, index).view_as(distance) for m in (nearest, farthest))
    close = (distance > low * (1 - SEEN_TOLERANCE)) & (distance < high * (1 + SEEN_TOLERANCE))
    return pixels, inside & close


def blurred(images: Float[Tensor, "*batch 3 height width"], sigma: float) -> Float[Tensor, "*batch 3 height width"]:
    """Images after a Gaussian of `sigma` pixels, edges replicated; 0 changes nothing."""
    if sigma <= 0:
        return images
    radius = round(3 * sigma) + 1
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (offsets / sigma).square())
    window = window / window.sum()
    padded = F.pad(images.reshape(-1, 1, *images.shape[-2:]), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, window[None, None, None, :]), window[None, None, :, None]).reshape(images.shape)


def best_blur(
    images: Float[Tensor, "*batch 3 height width"],
    true: Float[Tensor, "*batch 3 height width"],
    sigmas: Sequence[float] = BLURS,
) -> float:
    """The sigma in pixels with the highest mean PSNR; to be chosen on validation scenes."""
    return max(sigmas, key=lambda sigma: float(psnr(blurred(images, sigma), true).mean()))


def _cameras(views: Views) -> Cameras:
    if views.cameras is None:
        raise ValueError("views without cameras: the baselines need them")
    return views.cameras


def _pick(values: Tensor, view: Int[Tensor, "batch target"]) -> Tensor:
    """Entries `view` along the view axis of values "batch view ..."."""
    return values[torch.arange(len(values), device=values.device)[:, None], view]


def _points_with_sky(views: Views) -> Float[Tensor, "batch view height width 3"]:
    """Points, those without a surface moved far away along their rays."""
    if views.points is None or views.mask is None:
        raise ValueError("views without points and confidence: reprojection needs both")
    origins, directions = _cameras(views).rays()
    return torch.where(views.mask[..., None], views.points, origins + FAR * directions)


def _sample(
    images: Float[Tensor, "*batch 3 height width"], pixels: Float[Tensor, "*batch rows columns 2"]
) -> Float[Tensor, "*batch 3 rows columns"]:
    """Colours between pixels (bilinear, edges repeated); pixel centres are at +0.5."""
    size = pixels.new_tensor([images.shape[-1], images.shape[-2]])
    grid = (2 * pixels / size - 1).nan_to_num().clamp(-2, 2)
    sampled = F.grid_sample(images.flatten(0, -4), grid.flatten(0, -4), padding_mode="border", align_corners=False)
    return sampled.reshape(*images.shape[:-2], *pixels.shape[-3:-1])
