"""Whether the views of a scene agree with each other, by the scene's own depth and cameras; no truth is needed."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.evaluation.baselines import _sample, reproject
from diorama.scene import Views

BEND = 0.05  # share by which the inverse depth may leave the straight line through two neighbours: more is an edge
LEAST_SHARE = 0.01  # of a view's pixels: pairs that compare fewer have no PSNR
CEILING = 60.0  # dB; beyond the 58.9 dB of rounding to 8 bit nothing is seen


@dataclass(frozen=True, eq=False)
class Consistency:
    """What the warps of every view into every other one show; the diagonal is NaN. Higher is better in both.

    Read both: a scene whose depths contradict each other has few pixels left to compare, and those by luck.
    """

    psnr: Float[Tensor, "source target"]  # dB over the compared pixels, at most CEILING; NaN where too few are
    share: Float[Tensor, "source target"]  # compared pixels among those of the target view that show a surface

    @property
    def mean_psnr(self) -> Float[Tensor, ""]:
        """Mean PSNR in dB over the pairs that have one; NaN if none has."""
        return self.psnr.nanmean()

    @property
    def mean_share(self) -> Float[Tensor, ""]:
        """Mean share in [0, 1] of compared pixels over the pairs whose target shows a surface; NaN if none does."""
        return self.share.nanmean()


def warp_consistency(views: Views) -> Consistency:
    """Each view warped into each other one by the views' own points, compared where both see the same surface.

    Compared are pixels whose point lies within 5 % of the surface that the source view has there. Left out are sky, and
    depth edges in either view, where colours of two surfaces mix. Gloss and fine texture keep even true depth from a
    perfect score: compare methods on the same paths. Takes the views of one scene, without batch axis; without
    confidence every point counts. Raises ValueError without cameras or points, and for fewer than two views.
    """
    if views.cameras is None or views.points is None or views.images.ndim != 4 or len(views) < 2:
        raise ValueError(
            f"images of shape {tuple(views.images.shape)}, cameras {views.cameras is not None}, points "
            f"{views.points is not None}: accepted are 2 or more views of one scene with cameras and points"
        )
    confidence = torch.ones_like(views.points[..., 0]) if views.confidence is None else views.confidence
    scene = _one_batch(replace(views, confidence=confidence))
    calm, surface = _away_from_edges(scene)[0], confidence > 0
    psnrs, shares = [], []
    for target in range(len(views)):  # not all pairs at once: they would need the memory of views x views pictures
        pixels, seen = reproject(scene, scene[target])
        warped = _sample(views.images[:, None], pixels[0])[:, 0]
        clear = _sample(calm[:, None, None].expand(-1, -1, 3, -1, -1).to(views.images), pixels[0])[:, 0, 0] > 0.999
        compared = seen[0, :, 0] & clear & calm[target]
        count = compared.sum((-1, -2))
        squared = (warped.clamp(0, 1) - views.images[target].clamp(0, 1)).square().mean(1)
        error = torch.where(compared, squared, 0.0).sum((-1, -2)) / count
        enough = count >= LEAST_SHARE * compared[0].numel()
        psnrs.append(torch.where(enough, (-10 * error.log10()).clamp(max=CEILING), torch.nan))
        shares.append(count / surface[target].sum())
    itself = torch.eye(len(views), dtype=torch.bool, device=views.images.device)
    return Consistency(*(torch.stack(rows, 1).masked_fill(itself, torch.nan) for rows in (psnrs, shares)))


def _one_batch(views: Views) -> Views:
    """The same views with a batch axis of one scene."""
    cameras = views.cameras
    if cameras is not None:
        cameras = replace(cameras, camera_to_world=cameras.camera_to_world[None], intrinsics=cameras.intrinsics[None])
    points, confidence = (None if value is None else value[None] for value in (views.points, views.confidence))
    return Views(views.images[None], cameras, points, confidence)


def _away_from_edges(views: Views) -> Bool[Tensor, "*batch view height width"]:
    """Pixels whose surface goes on smoothly to the four neighbours, however steep: 1 / depth is linear on a plane."""
    inverse = torch.where(views.mask, 1 / views.depth, 0.0)  # type: ignore[arg-type, operator]
    bends = torch.zeros_like(inverse)
    bends[..., 1:-1] = inverse.diff(n=2, dim=-1).abs()
    bends[..., 1:-1, :] = torch.maximum(bends[..., 1:-1, :], inverse.diff(n=2, dim=-2).abs())
    return views.mask & (bends < BEND * inverse)  # type: ignore[operator]
