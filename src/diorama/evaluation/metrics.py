"""Numbers that compare predicted images and depths with true ones; every one per image, never pooled.

Average over the views of a scene first, then over scenes, then over data sets: the PSNR of a mean error is not the
mean PSNR. Leave known views out or cap them, since equal pictures have an infinite PSNR. NaN means that nothing could
be measured: count and report it.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03
DELTA = 1.25  # ratio of depths
Better = Literal["higher", "lower"]
# Every number that an evaluation reports. A longer name, `lpips_vgg` or `ate_r_rot_avg`, says how it was measured.
METRICS: dict[str, Better] = {
    "psnr": "higher",
    "ssim": "higher",
    "gradient_correlation": "higher",
    "lpips": "lower",
    "fd": "lower",
    "kd": "lower",
    "abs_rel": "lower",
    "delta_1": "higher",
    "delta_2": "higher",
    "delta_3": "higher",
    "ate_r": "lower",
    "ate_t": "lower",
    "rra": "higher",
    "rta": "higher",
    "auc": "higher",
    "accuracy": "lower",
    "completeness": "lower",
    "chamfer": "lower",
    "chamfer_percent": "lower",
    "consistency_psnr": "higher",
    "consistency_share": "higher",
    "seconds_per_16_views": "lower",
    "peak_memory_mib": "lower",
}


def better(name: str) -> Better:
    """Whether higher or lower is better: that of the longest entry of METRICS that `name` is or goes on from with "_".

    Raises ValueError for a name that no entry begins.
    """
    parts = name.split("_")
    for count in range(len(parts), 0, -1):
        if found := METRICS.get("_".join(parts[:count])):
            return found
    raise ValueError(f"metric {name!r}: accepted are {', '.join(METRICS)} and these with more after an underscore")


class Interval(NamedTuple):
    """A mean difference with its 95 % interval."""

    mean: float
    low: float
    high: float


def psnr(
    predicted: Float[Tensor, "*batch 3 height width"], true: Float[Tensor, "*batch 3 height width"]
) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio in dB of images clamped to [0, 1]; infinite where they are equal; higher is better."""
    return -10 * (predicted.clamp(0, 1) - true.clamp(0, 1)).square().mean((-1, -2, -3)).log10()


def ssim(
    predicted: Float[Tensor, "*batch 3 height width"], true: Float[Tensor, "*batch 3 height width"]
) -> Float[Tensor, "*batch"]:
    """Structural similarity (Wang et al. 2004: 11x11 Gaussian, valid border, mean over channels) of images in [0, 1].

    Raises ValueError for images smaller than the window.
    """
    if min(predicted.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images of {predicted.shape[-2]}x{predicted.shape[-1]}: SSIM needs at least {SSIM_WINDOW} pixels a side"
        )
    x, y = predicted.clamp(0, 1), true.clamp(0, 1)
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offsets / SSIM_SIGMA).square())
    window = window / window.sum()
    moments = torch.stack([x, y, x * x, y * y, x * y])
    flat = moments.reshape(-1, 1, *x.shape[-2:])
    smooth = F.conv2d(F.conv2d(flat, window[None, None, None, :]), window[None, None, :, None])
    mean_x, mean_y, square_x, square_y, product = smooth.unflatten(0, moments.shape[:-2]).squeeze(-3)
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    variance_x, variance_y, covariance = square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.mean((-1, -2, -3))


def gradient_correlation(
    predicted: Float[Tensor, "*batch 3 height width"], true: Float[Tensor, "*batch 3 height width"]
) -> Float[Tensor, "*batch"]:
    """Pearson correlation in [-1, 1] of the luminance's differences along both axes; 0 where an image has none.

    Blind to brightness and contrast: it asks whether edges stand in the right places.
    """
    a, b = (torch.cat([part.flatten(-2) for part in luminance_gradients(images)], -1) for images in (predicted, true))
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(norms > 1e-12, (a * b).sum(-1) / norms.clamp(min=1e-12), 0.0)


def gradient_energy(images: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch"]:
    """Mean squared gradient magnitude of the luminance, per pixel: a blurred picture has less than a sharp one."""
    horizontal, vertical = luminance_gradients(images)
    return horizontal.square().mean((-1, -2)) + vertical.square().mean((-1, -2))


def luminance_gradients(
    images: Float[Tensor, "*batch 3 height width"],
) -> tuple[Float[Tensor, "*batch height width_1"], Float[Tensor, "*batch height_1 width"]]:
    """Differences of neighbouring pixels' luminance along rows and along columns."""
    luminance = (images.clamp(0, 1) * images.new_tensor(LUMINANCE)[:, None, None]).sum(-3)
    return luminance.diff(dim=-1), luminance.diff(dim=-2)


def depth_abs_rel(
    predicted: Float[Tensor, "*batch height width"],
    true: Float[Tensor, "*batch height width"],
    mask: Bool[Tensor, "*batch height width"],
    *,
    alignment: str = "none",
) -> Float[Tensor, "*batch"]:
    """Mean of |predicted - true| / true over valid pixels, per view; NaN for a view with none; lower is better.

    `alignment` is "none" or "median" (predictions scaled so that the two medians agree, per view).
    """
    predicted = _aligned(predicted, true, mask, alignment)
    error = torch.where(mask, (predicted - true).abs() / true, 0.0)
    return error.sum((-1, -2)) / mask.sum((-1, -2))


def depth_delta(
    predicted: Float[Tensor, "*batch height width"],
    true: Float[Tensor, "*batch height width"],
    mask: Bool[Tensor, "*batch height width"],
    *,
    power: int = 1,
    alignment: str = "none",
) -> Float[Tensor, "*batch"]:
    """Share of valid pixels with max(predicted / true, true / predicted) < 1.25 ** power, per view; higher is better.

    Powers 1, 2 and 3 are reported as delta_1, delta_2 and delta_3; alignment as in `depth_abs_rel`. A depth that is not
    positive or not a number misses; NaN for a view without a valid pixel.
    """
    ratio = _aligned(predicted, true, mask, alignment) / true
    near = (ratio < DELTA**power) & (ratio > DELTA**-power)
    return (near & mask).sum((-1, -2)) / mask.sum((-1, -2))


def _aligned(
    predicted: Float[Tensor, "*batch height width"],
    true: Float[Tensor, "*batch height width"],
    mask: Bool[Tensor, "*batch height width"],
    alignment: str,
) -> Float[Tensor, "*batch height width"]:
    """Predicted depth, scaled view by view to the true median where `alignment` is "median"."""
    if alignment not in ("none", "median"):
        raise ValueError(f"alignment {alignment!r}: accepted are 'none' and 'median'")
    if alignment == "none":
        return predicted
    medians = [torch.where(mask, depth, torch.nan).flatten(-2).nanmedian(-1).values for depth in (true, predicted)]
    return predicted * (medians[0] / medians[1])[..., None, None]


def constant_depth_abs_rel(
    true: Float[Tensor, "*batch height width"], mask: Bool[Tensor, "*batch height width"]
) -> Float[Tensor, "*batch"]:
    """`depth_abs_rel` of the best constant depth of each view, which no depth network may fall behind.

    The best constant is the median of the true depths weighted by 1 / depth, an exact minimiser.
    """
    depth = torch.where(mask, true, torch.inf).flatten(-2).sort(-1).values
    weight = torch.where(depth.isfinite(), 1 / depth, 0.0)
    total = weight.cumsum(-1)
    middle = (total < total[..., -1:] / 2).sum(-1, keepdim=True).clamp(max=depth.shape[-1] - 1)
    best = depth.gather(-1, middle)[..., None]
    return depth_abs_rel(best.expand_as(true), true, mask)


def paired_bootstrap(
    a: Float[Tensor, " scene"], b: Float[Tensor, " scene"], *, samples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of a - b over scenes with the 2.5 and 97.5 percentiles of its bootstrap: scenes are drawn, never views."""
    difference = (a - b).double().cpu()
    drawn = torch.randint(len(difference), (samples, len(difference)), generator=torch.Generator().manual_seed(seed))
    means = difference[drawn].mean(-1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(difference.mean()), low, high)
