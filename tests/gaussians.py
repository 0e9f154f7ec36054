"""A plain rasteriser of Gaussians with gsplat's signature, for what needs its images and gradients without a GPU."""

import sys
import types

import pytest
import torch
from torch import Tensor

from diorama.geometry.rotations import matrix_from_quaternion

BLUR = 0.3  # square pixels, which gsplat adds to what a Gaussian covers


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    sh_degree: int | None = None,
) -> tuple[Tensor, Tensor, dict]:
    """Images "view height width 3" before black, by what Zwicker et al. (2001) say of each pixel and each Gaussian."""
    count = len(means)
    assert sh_degree in (0, 1)
    assert means.shape == scales.shape == (count, 3)
    assert (
        quats.shape == (count, 4) and opacities.shape == (count,) and colors.shape == (count, (sh_degree + 1) ** 2, 3)
    )
    assert (scales > 0).all() and ((opacities > 0) & (opacities < 1)).all(), "activated, not as they are stored"
    turn = matrix_from_quaternion(torch.nn.functional.normalize(quats, dim=-1))
    spread = turn @ torch.diag_embed(scales.square()) @ turn.mT
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([x, y], -1).reshape(-1, 2)
    images = []
    for view, lens in zip(viewmats, Ks, strict=True):
        local = means @ view[:3, :3].T + view[:3, 3]
        front = local[:, 2] > near_plane
        order = local[:, 2].argsort()
        order = order[front[order]]
        there, depth = local[order], local[order, 2]
        pixels = there[:, :2] / depth[:, None] * lens[(0, 1), (0, 1)] + lens[:2, 2]
        slope = torch.zeros(len(order), 2, 3)
        slope[:, 0, 0], slope[:, 1, 1] = lens[0, 0] / depth, lens[1, 1] / depth
        slope[:, :, 2] = -there[:, :2] * lens[(0, 1), (0, 1)] / depth[:, None].square()
        across = slope @ view[:3, :3]
        flat = across @ spread[order] @ across.mT + BLUR * torch.eye(2)
        away = grid[:, None] - pixels
        power = -0.5 * torch.einsum("pgi,gij,pgj->pg", away, torch.linalg.inv(flat), away)
        alpha = (opacities[order] * power.exp()).clamp(max=0.999)
        passed = torch.cat([torch.ones(len(grid), 1), (1 - alpha).cumprod(1)[:, :-1]], 1)
        seen = torch.nn.functional.normalize(means[order] - view.inverse()[:3, 3], dim=-1)
        colour = 0.28209479177387814 * colors[order, 0]
        if sh_degree:
            basis = 0.4886025119029199 * torch.stack([-seen[:, 1], seen[:, 2], -seen[:, 0]], -1)
            colour = colour + (basis[..., None] * colors[order, 1:]).sum(1)
        images.append(((alpha * passed) @ (colour + 0.5).clamp(min=0)).reshape(height, width, 3))
    return torch.stack(images), torch.ones(len(viewmats), height, width, 1), {}


@pytest.fixture
def gsplat(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The package gsplat, as far as we call it."""
    module = types.ModuleType("gsplat")
    module.rasterization = rasterization  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat", module)
    return module
