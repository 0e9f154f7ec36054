"""Losses of VGGT, and of Gen3R's adapter: tokens and what VGGT's heads make of them, and latents beside a video VAE's.

Forms and weights are those of Gen3R's released code, or the forms that its paper names (arXiv 2601.04090).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.models.vggt import VGGTOutput

Form = Literal["released", "paper"]
Tokens = Float[Tensor, "batch channel frame height width"]
Moments = tuple[Tensor, Tensor]  # mean and logarithmic variance, "batch channel frame height width"

# The paper gives no weights: with its forms these are a guess.
RECONSTRUCTION = {"tokens": 0.5, "camera_token": 0.5, "camera": 5.0, "depth": 1.0, "points": 0.5}
SIMILARITY, ALIGNMENT = 0.1, 0.2
FARTHEST = 100.0  # in VGGT's units: what is wrong by more counts as much
DECAY = 0.6  # of a refinement's weight against the next one's


def camera_code_loss(
    made: Float[Tensor, "iteration batch view 9"], true: Float[Tensor, "#iteration batch view 9"]
) -> Float[Tensor, ""]:
    """Mean distance of translations, quaternions and, half, angles of view, over refinements: later ones weigh more."""
    error = (made - true).abs()
    parts = error[..., :3].clamp(max=FARTHEST), error[..., 3:7], 0.5 * error[..., 7:]
    each = torch.stack([part.flatten(1).mean(1) for part in parts]).sum(0)
    weights = DECAY ** torch.arange(len(made) - 1, -1, -1, device=made.device)
    return (weights * each).mean()


def depth_edge_loss(
    made: Float[Tensor, "*batch height width"],
    true: Float[Tensor, "*batch height width"],
    mask: Bool[Tensor, "*batch height width"],
    scales: int = 4,
) -> Float[Tensor, ""]:
    """Mean distance of depth's differences between valid neighbours, over scales (VGGT, by every second pixel)."""
    error, total = torch.where(mask, made - true, 0.0), made.new_zeros(())
    for scale in range(scales):
        step = 2**scale
        part, valid = error[..., ::step, ::step], mask[..., ::step, ::step]
        for axis in (-1, -2):
            length = part.shape[axis] - 1
            both = valid.narrow(axis, 0, length) & valid.narrow(axis, 1, length)
            change = part.diff(dim=axis).abs().clamp(max=FARTHEST).where(both, 0.0)
            total = total + change.sum() / both.sum().clamp(min=1)
    return total / scales


def token_terms(made: Tokens, true: Tokens, form: Form = "released") -> dict[str, Float[Tensor, ""]]:
    """Distances of patch tokens and of the camera token, which is its channels' mean over places, and 1 - cosines."""
    patches = 4 * made.shape[1] // 5
    pairs = {
        "tokens": (made[:, :patches], true[:, :patches]),
        "camera_token": (made[:, patches:].mean((-1, -2)), true[:, patches:].mean((-1, -2))),
    }
    if form == "paper":
        distances = {name: F.mse_loss(*pair) for name, pair in pairs.items()}
    else:
        beta = {"tokens": 0.15, "camera_token": 0.1}
        distances = {name: F.smooth_l1_loss(*pair, beta=beta[name]) for name, pair in pairs.items()}
    cosines = {f"{name}_direction": 1 - F.cosine_similarity(*pair, dim=1).mean() for name, pair in pairs.items()}
    return distances | cosines


def geometry_terms(made: VGGTOutput, true: VGGTOutput, form: Form = "released") -> dict[str, Float[Tensor, ""]]:
    """Distances between what VGGT's heads say of rebuilt tokens and of true ones; confidences do not count."""
    depth, points = made.depth - true.depth, made.points - true.points
    if form == "paper":
        dense = {"depth": depth.square().mean(), "points": points.square().mean()}
    else:
        far = depth.abs(), points.norm(dim=-1)
        dense = {name: x.clamp(max=FARTHEST).mean() for name, x in zip(("depth", "points"), far, strict=True)}
    return {"camera": camera_code_loss(made.camera_codes, true.camera_codes)} | dense


def pointwise_kl(first: Moments, second: Moments) -> Float[Tensor, "batch latent_width"]:
    """KL divergence of two fields of normal numbers, summed over channels, frames and rows, as released."""
    (mean, log_variance), (other, other_log) = first, second
    log_variance, other_log = log_variance.clamp(-30, 20), other_log.clamp(-30, 20)
    # As a difference of logarithms: where both variances are tiny their quotient would be 0 / 0.
    moved = (mean - other).square() * (-other_log).exp()
    return 0.5 * (moved + (log_variance - other_log).exp() - 1 - log_variance + other_log).sum((1, 2, 3))


def decade_weight(divergence: Float[Tensor, ""], reconstruction: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The power of ten that brings a greater divergence down to the reconstruction's order, below it; else 1."""
    ratio = (reconstruction / divergence.clamp(min=1e-30)).detach()
    return torch.where(ratio < 1, 10 ** ratio.log10().floor(), 1.0)


def adapter_losses(
    tokens: tuple[Tokens, Tokens],
    geometry: tuple[VGGTOutput, VGGTOutput],
    divergence: Float[Tensor, "batch latent_width"] | None,
    form: Form = "released",
) -> dict[str, Float[Tensor, ""]]:
    """All terms, weighted; pairs are (rebuilt, true). Without a divergence there is no alignment."""
    terms = token_terms(*tokens, form) | geometry_terms(*geometry, form)
    losses = {name: weight * terms[name] for name, weight in RECONSTRUCTION.items()}
    reconstruction = torch.stack(list(losses.values())).sum()
    losses |= {name: SIMILARITY * terms[name] for name in ("tokens_direction", "camera_token_direction")}
    if divergence is not None:
        mean = divergence.mean()
        losses["alignment"] = ALIGNMENT * decade_weight(mean, reconstruction) * mean
    return losses


def clipped_velocity_loss(
    predicted: Float[Tensor, "batch *rest"], data: Float[Tensor, "batch *rest"], noise: Float[Tensor, "batch *rest"]
) -> Float[Tensor, ""]:
    """Mean squared error to noise - data, to which numbers wrong by more than 50 add nothing (Gen3R's code)."""
    error = predicted - (noise - data)
    return torch.where(error.abs() > 50, 0.0, error).square().mean()
