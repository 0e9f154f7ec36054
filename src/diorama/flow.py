"""Rectified flow between data (t = 0) and noise (t = 1): times, path, target, guidance."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

SHIFT_BASE = 4096  # latent numbers at which the schedule is not shifted (RAE)


def dimension_shift(tokens: int, dim: int) -> float:
    """Schedule shift for latents of tokens x dim numbers: more numbers need more noise to be hidden (RAE)."""
    return math.sqrt(tokens * dim / SHIFT_BASE)


def shifted(t: Float[Tensor, "*any"], shift: float) -> Float[Tensor, "*any"]:
    """Times moved towards noise; keeps 0 and 1."""
    return shift * t / (1 + (shift - 1) * t)


def uniform_sigmas(steps: int) -> list[float]:
    """Starting times of `steps` equal Euler steps, which the scheduler shifts once and ends at 0."""
    if steps < 1:
        raise ValueError(f"{steps} steps: at least 1 is needed")
    return torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()


def interpolate(
    data: Float[Tensor, "batch *rest"], noise: Float[Tensor, "batch *rest"], t: Float[Tensor, " batch"]
) -> Float[Tensor, "batch *rest"]:
    """Point at time t of the straight path from data to noise (3DDiT eq. 7)."""
    t = t.reshape(-1, *(1,) * (data.ndim - 1))
    return (1 - t) * data + t * noise


def velocity(data: Float[Tensor, "*any"], noise: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The path's derivative, what the denoiser learns."""
    return noise - data


def guided(
    conditional: Float[Tensor, "*any"], unconditional: Float[Tensor, "*any"], guidance: float
) -> Float[Tensor, "*any"]:
    """Classifier-free guidance; 1 gives the conditional velocity."""
    return unconditional + guidance * (conditional - unconditional)


def guidance_at(t: float, guidance: float, interval: tuple[float, float]) -> float:
    """Guidance at time t: `guidance` inside the interval of times, 1 outside."""
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"guidance interval {interval}: accepted is 0 <= low <= high <= 1")
    return guidance if low <= t <= high else 1.0
