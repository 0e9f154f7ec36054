"""Rectified flow in two dimensions: a small network learns to carry noise to a spiral.

    python examples/04_toy_flow.py

DiT3D is trained in the same way: draw a time, mix data and noise, predict their difference; to sample, walk back.
"""

from itertools import pairwise
from pathlib import Path

import torch
import tyro
from PIL import Image
from torch import Tensor, nn

from diorama.flow import interpolate, uniform_sigmas, velocity


def main(steps: int = 3_000, out: Path = Path("toy_flow.png")) -> tuple[float, float]:
    """Train for `steps`; gives the distance to the data of noise and of samples, and draws both beside the data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(steps):
        data, noise, t = spiral(512), torch.randn(512, 2), torch.rand(512)
        predicted = model(torch.cat([interpolate(data, noise, t), t[:, None]], 1))
        (predicted - velocity(data, noise)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    points = noise = torch.randn(4096, 2)
    with torch.no_grad():
        for now, then in pairwise([*uniform_sigmas(50), 0.0]):
            points = points + (then - now) * model(torch.cat([points, torch.full((4096, 1), now)], 1))

    data = spiral(4096)
    before, after = distance(noise, data), distance(points, data)
    print(f"from the data: noise {before:.3f}, samples {after:.3f}, other data {distance(spiral(4096), data):.3f}")
    Image.fromarray(torch.cat([picture(x) for x in (noise, points, data)], 1).numpy()).save(out)
    return before, after


def spiral(count: int) -> Tensor:
    turn = 3 * torch.pi * torch.rand(count, 1).sqrt()
    return torch.cat([turn.cos(), turn.sin()], 1) * turn / 6 + 0.04 * torch.randn(count, 2)


def distance(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein distance: how far sorted shadows lie apart, on average over directions."""
    axes = nn.functional.normalize(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), dim=0)
    return float(((a @ axes).sort(0).values - (b @ axes).sort(0).values).abs().mean())


def picture(points: Tensor) -> Tensor:
    return torch.histogramdd(points, [128, 128], range=[-2.5, 2.5, -2.5, 2.5]).hist.mul(64).clamp(max=255).byte()


if __name__ == "__main__":
    tyro.cli(main)
