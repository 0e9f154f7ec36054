"""Losses of the autoencoder and the denoiser."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def gradient_loss(
    predicted: Float[Tensor, "*batch height width"], true: Float[Tensor, "*batch height width"], scales: int = 2
) -> Float[Tensor, ""]:
    """Mean squared error of image gradients over `scales` halvings: weighs edges that plain MSE lets blur."""
    error = (predicted - true).flatten(0, -3)[:, None]
    total = error.new_zeros(())
    for scale in range(scales):
        if scale:
            error = F.avg_pool2d(error, 2)
        total = total + error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
    return total / scales


def point_loss(
    predicted: Float[Tensor, "*batch 3"],
    confidence: Float[Tensor, "*batch"],
    true: Float[Tensor, "*batch 3"],
    mask: Bool[Tensor, "*batch"],
    *,
    alpha: float = 0.2,
    quantile: float = 1.0,
) -> dict[str, Float[Tensor, ""]]:
    """Aleatoric point-map loss, its plain distance (VGGT) and a pull of confidence to 1 where there is no surface.

    `confidence` is at least 1; per valid point the first term is least at confidence = alpha / distance. A `quantile`
    below 1 leaves out each term's greatest values (VGGT: 0.98).
    """
    count = mask.sum().clamp(min=1)
    # Emptied before the root as well: a NaN outside the mask would pass its gradient back as 0 times NaN.
    error = torch.where(mask[..., None], predicted - true, 0.0)
    # The square root has no gradient at a perfect prediction; the epsilon is far below any scene's detail.
    distance = error.square().sum(-1).add(1e-12).sqrt().clamp(max=100).where(mask, 0.0)
    log_confidence = confidence.log()
    confident = (distance * confidence - alpha * log_confidence).where(mask, 0.0)
    return {
        "confident": confident.sum() / count if quantile == 1 else _mean_below(confident[mask], quantile),
        "distance": distance.sum() / count if quantile == 1 else _mean_below(distance[mask], quantile),
        "empty": alpha * log_confidence.where(~mask, 0.0).sum() / (~mask).sum().clamp(min=1),
    }


def _mean_below(values: Float[Tensor, " value"], quantile: float) -> Float[Tensor, ""]:
    """Mean of what is below a quantile (nearest rank), where more than 1000 values are."""
    if len(values) > 1000:
        limit = values.detach().kthvalue(1 + round(quantile * (len(values) - 1))).values
        kept = values[values < limit]
        values = kept if len(kept) > 1000 else values
    return values.sum() / max(1, len(values))


def hinge_loss(real: Float[Tensor, "*any"], made: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """The discriminator's: logits of what is real should be above 1, of what is made below -1."""
    return 0.5 * ((1 - real).relu().mean() + (1 + made).relu().mean())


def gradient_ratio(
    reconstruction: Float[Tensor, "*any"], adversarial: Float[Tensor, "*any"], *, limit: float = 1e4
) -> Float[Tensor, ""]:
    """How much the adversarial loss has to count to weigh as much as reconstruction does, by both losses' gradients.

    Gradients are those of the last layer's weights (VQGAN, RAE).
    """
    return (reconstruction.norm() / (adversarial.norm() + 1e-6)).clamp(max=limit).detach()


def velocity_loss(
    predicted: Float[Tensor, "batch *rest"], data: Float[Tensor, "batch *rest"], noise: Float[Tensor, "batch *rest"]
) -> Float[Tensor, ""]:
    """Mean squared error to the path's velocity (3DDiT eq. 7)."""
    return F.mse_loss(predicted, noise - data)


def direction_loss(
    predicted: Float[Tensor, "*batch channel"],
    data: Float[Tensor, "*batch channel"],
    noise: Float[Tensor, "*batch channel"],
) -> Float[Tensor, ""]:
    """One minus the cosine between each token's velocity and the path's (LightningDiT): 0 to 2."""
    return 1 - F.cosine_similarity(predicted, noise - data, dim=-1).mean()


def log_depth_loss(
    predicted: Float[Tensor, "*batch height width"],
    true: Float[Tensor, "*batch height width"],
    mask: Bool[Tensor, "*batch height width"],
) -> Float[Tensor, ""]:
    """Mean distance of log depths over valid pixels, at most a factor of 20 each: weighs near and far alike."""
    # Emptied before the logarithm as well: what is not finite outside the mask would pass its gradient back as NaN.
    error = (predicted.where(mask, 1.0).log() - true.where(mask, 1.0).log()).abs().clamp(max=3.0)
    return error.sum() / mask.sum().clamp(min=1)
