"""Gaussians fitted to views: those that a scene's points begin as, moved until they look like its pictures.

The loss and the rates are those of 3D Gaussian Splatting (Kerbl et al. 2023, equation 7 and its published settings).
Nothing is split or added: a Gaussian for each pixel of each view is dense to begin with. What has become invisible is
left out at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.evaluation.metrics import psnr, ssim
from diorama.export.splat import Gaussians
from diorama.geometry.cameras import Cameras
from diorama.scene import Views

# Gaussians as cameras see them: RGB before black, "view 3 height width", with gradients for the Gaussians.
Rasterise = Callable[[Gaussians, Cameras], Tensor]
OnStep = Callable[[int, int], object]
RATES = {"means": 1.6e-4, "scales": 5e-3, "quaternions": 1e-3, "opacities": 5e-2, "base": 2.5e-3, "rest": 1.25e-4}
SLOWER = 0.01  # rate of the means at the last step, as a share of that at the first


@dataclass(frozen=True)
class Config:
    """How Gaussians are fitted; the defaults are those of the paper, but for the steps."""

    steps: int = 3000  # one view each
    seed: int = 0  # of the order of the views
    structure: float = 0.2  # share of 1 - SSIM in the loss; the rest is the mean absolute difference
    invisible: float = 0.005  # opacity below which a Gaussian is left out at the end

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.structure <= 1 or not 0 <= self.invisible < 1:
            raise ValueError(f"{self}: accepted are 1 step or more, and shares in [0, 1]")


def fit(
    gaussians: Gaussians,
    views: Views,
    rasterise: Rasterise,
    config: Config = Config(),
    on_step: OnStep = lambda done, total: None,
) -> tuple[Gaussians, list[float]]:
    """Gaussians that look more like the views, and the loss of every step; on the device where they are.

    ValueError for views without cameras or smaller than the window of SSIM, and where nothing visible is left.
    """
    if views.cameras is None:
        raise ValueError("the views have no cameras; accepted for fitting are views with cameras")
    moved = {name: tensor.detach().clone().requires_grad_() for name, tensor in vars(gaussians).items()}
    device = gaussians.means.device
    reach = _reach(views.cameras, gaussians)
    groups = [{"params": [tensor], "lr": RATES[name]} for name, tensor in moved.items()]
    optimiser = torch.optim.Adam(groups, eps=1e-15)
    generator = torch.Generator().manual_seed(config.seed)
    losses, order = [], []
    for step in range(config.steps):
        order = order or torch.randperm(len(views), generator=generator).tolist()
        place = order.pop()
        optimiser.param_groups[0]["lr"] = RATES["means"] * reach * SLOWER ** (step / config.steps)
        made = rasterise(Gaussians(**moved), views.cameras[place].to(device))
        true = views.images[place : place + 1].to(device)
        similar = ssim(made, true).mean()
        loss = (1 - config.structure) * (made - true).abs().mean() + config.structure * (1 - similar)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        on_step(step + 1, config.steps)
    return _visible(Gaussians(**{name: tensor.detach() for name, tensor in moved.items()}), config.invisible), losses


class Fitted(NamedTuple):
    """Fitted Gaussians, and how well they are met by views: those held out, or all where none is."""

    gaussians: Gaussians
    losses: list[float]  # of every step
    before: float  # mean PSNR in dB
    after: float
    tested: int  # views that these two are of
    held_out: bool


def fit_tested(
    gaussians: Gaussians,
    views: Views,
    config: Config = Config(),
    *,
    every: int = 8,
    on_step: OnStep = lambda done, total: None,
) -> Fitted:
    """`fit` by gsplat to all but one of each `every` views, from the middle of the first on; 0 holds none out."""
    if views.cameras is None:
        raise ValueError("the views have no cameras; accepted for fitting are views with cameras")
    rasterise = gsplat_rasteriser(gaussians, views.cameras)
    kept = list(range(every // 2, len(views), every)) if every else []
    seen = views[[place for place in range(len(views)) if place not in kept]]
    test = views[kept] if kept else seen
    before = likeness(gaussians, test, rasterise)
    made, losses = fit(gaussians, seen, rasterise, config, on_step)
    return Fitted(made, losses, before, likeness(made, test, rasterise), len(test), bool(kept))


@torch.no_grad()
def likeness(gaussians: Gaussians, views: Views, rasterise: Rasterise) -> float:
    """Mean PSNR in dB of the Gaussians against the views; higher is better."""
    assert views.cameras is not None
    device = gaussians.means.device
    found = [
        psnr(rasterise(gaussians, views.cameras[place].to(device)).cpu(), views.images[place : place + 1].cpu())
        for place in range(len(views))
    ]
    return float(torch.cat(found).mean())


def gsplat_rasteriser(gaussians: Gaussians, cameras: Cameras) -> Rasterise:
    """gsplat's rasteriser for Gaussians about there, as these cameras see them; ModuleNotFoundError without gsplat."""
    from gsplat import rasterization  # type: ignore[import-not-found]

    # gsplat's own plane, a hundredth of a unit, would cut into a scene whose unit is large.
    near = 0.01 * _distance(cameras, gaussians)

    def rasterise(shown: Gaussians, seen: Cameras) -> Float[Tensor, "view 3 height width"]:
        images, _, _ = rasterization(
            means=shown.means,
            quats=shown.quaternions,
            scales=shown.scales.exp(),
            opacities=shown.opacities.sigmoid(),
            colors=torch.cat([shown.base[:, None], shown.rest], 1),
            viewmats=seen.world_to_camera.to(shown.means),
            Ks=seen.intrinsics.to(shown.means),
            width=seen.width,
            height=seen.height,
            near_plane=near,
            sh_degree=shown.degree,
        )
        return images.movedim(-1, 1)

    return rasterise


def _distance(cameras: Cameras, gaussians: Gaussians) -> float:
    """How far the Gaussians are from the mean camera, scene units."""
    centre = cameras.centers.mean(0).to(gaussians.means)
    return float((gaussians.means - centre).norm(dim=-1).median())


def _reach(cameras: Cameras, gaussians: Gaussians) -> float:
    """What the rate of the means counts in: the radius of the path as the paper has it, but that of no still camera."""
    centers = cameras.centers
    radius = 1.1 * float((centers - centers.mean(0)).norm(dim=-1).max())
    return max(radius, 0.1 * _distance(cameras, gaussians))


def _visible(gaussians: Gaussians, least: float) -> Gaussians:
    kept = gaussians.opacities.sigmoid() >= least
    for tensor in vars(gaussians).values():
        kept = kept & tensor.reshape(len(gaussians), -1).isfinite().all(1)
    if not kept.any():
        raise ValueError("no visible Gaussian is left: the views do not show what the points are of")
    return Gaussians(**{name: tensor[kept] for name, tensor in vars(gaussians).items()})
