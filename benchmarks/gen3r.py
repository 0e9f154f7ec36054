"""How much cheaper is the geometry adapter than a plain loop over chunks? Writes results/gen3r.json.

    python benchmarks/gen3r.py                          # one thread, 13 frames of 8x8 patches, a narrow adapter
    python benchmarks/gen3r.py --device cuda --frames 49 --patches 40 --channels 10240 --dim 128

The reference enlarges the token maps before it convolves them, takes one latent frame after the other, and appends each
result to what there is. Both run in turns; times are the best of some rounds, on a CPU in seconds of its own clock,
which a busy machine disturbs less. Operations are counted at the published size, whatever is timed.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diorama.models.geometry_adapter import GeometryAdapter, Stem


@dataclass(frozen=True)
class Config:
    """What is timed."""

    frames: int = 13
    patches: int = 8
    channels: int = 1280
    dim: int = 16
    rounds: int = 3
    threads: int = 1
    device: str = "cpu"
    out: Path = Path(__file__).parent / "results" / "gen3r.json"


def plain_stem() -> AbstractContextManager[object]:
    """Within it, the encoder's first convolution sees enlarged maps."""

    def forward(stem: Stem, maps: Tensor) -> Tensor:
        large = F.interpolate(maps, scale_factor=1.75, mode="nearest-exact")
        return F.conv2d(large, stem.weight, stem.bias, padding=1)

    return mock.patch.object(Stem, "forward", forward)


def encode(model: GeometryAdapter, tokens: Tensor) -> Tensor:
    """The posterior's mean and logarithmic variance."""
    return model.encode(tokens).parameters


def plain_encode(model: GeometryAdapter, tokens: Tensor) -> Tensor:
    """The same by frames 1, 4, 4, ..."""
    past, moments = {}, None
    with plain_stem():
        for start in range(-3, tokens.shape[2], 4):
            piece = model.encoder(tokens[:, :, max(0, start) : start + 4], past)
            moments = piece if moments is None else torch.cat([moments, piece], 2)
    mean, log_variance = model.quant_conv(moments).chunk(2, 1)
    center, scale = model._statistics(mean)
    return torch.cat([(mean - center) / scale, log_variance], 1)


def decode(model: GeometryAdapter, latents: Tensor) -> Tensor:
    """Tokens."""
    return model.decode(latents)


def plain_decode(model: GeometryAdapter, latents: Tensor) -> Tensor:
    """The same by one latent frame after the other."""
    center, scale = model._statistics(latents)
    latents = model.post_quant_conv(latents * scale + center)
    past, tokens = {}, None
    for index in range(latents.shape[2]):
        piece = model.decoder(latents[:, :, index : index + 1], past)
        tokens = piece if tokens is None else torch.cat([tokens, piece], 2)
    return tokens


PAIRS: dict[str, tuple[Callable, Callable]] = {"encode": (encode, plain_encode), "decode": (decode, plain_decode)}


def seconds(function: Callable, *arguments: object) -> tuple[float, Tensor]:
    """Of this process's CPU, or by the wall once a GPU has finished; and what came out."""
    result = arguments[1]
    clock = time.perf_counter if result.is_cuda else time.process_time  # type: ignore[attr-defined]
    if result.is_cuda:  # type: ignore[attr-defined]
        torch.cuda.synchronize()
    start = clock()
    result = function(*arguments)
    if result.is_cuda:
        torch.cuda.synchronize()
    return clock() - start, result


@torch.no_grad()
def measured(config: Config) -> dict[str, float]:
    """All numbers of the table by name."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    model = GeometryAdapter(channels=config.channels, dim=config.dim).eval().to(config.device)
    tokens = torch.randn(1, config.channels, config.frames, config.patches, config.patches, device=config.device)
    inputs = {"encode": tokens, "decode": model.encode(tokens).mode()}
    numbers = {}
    for name, pair in PAIRS.items():
        best, results = [float("inf")] * 2, [tokens] * 2
        for _ in range(config.rounds + 1):  # the first round warms up
            for index, function in enumerate(pair):
                spent, results[index] = seconds(function, model, inputs[name])
                best[index] = min(best[index], spent)
        numbers |= {f"{name}_seconds": best[0], f"plain_{name}_seconds": best[1], f"{name}_ratio": best[1] / best[0]}
        numbers[f"{name}_difference"] = float((results[0] - results[1]).abs().max() / results[1].abs().max())
    return numbers | counted()


@torch.no_grad()
def counted() -> dict[str, float]:
    """Teraflops of the published size, 49 frames of 560x560, with and without the enlarged maps."""
    with torch.device("meta"):
        model, numbers = GeometryAdapter(), {}
        inputs = {"encode": torch.empty(1, 10240, 49, 40, 40), "decode": torch.empty(1, 16, 13, 70, 70)}
        for name, pair in PAIRS.items():
            for word, function in zip((name, f"plain_{name}"), pair, strict=True):
                with FlopCounterMode(display=False) as counter:
                    function(model, inputs[name])
                numbers[f"{word}_teraflops"] = counter.get_total_flops() / 1e12
    return numbers


def main(config: Config) -> None:
    """Measure, print the table and write the numbers."""
    numbers = measured(config)
    for name, value in numbers.items():
        print(f"{name:>24} {value:10.2g}" if value < 0.01 else f"{name:>24} {value:10.2f}")
    settings = {k: v for k, v in vars(config).items() if k != "out"}
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": metadata.version("torch"),
    }
    if config.device != "cpu":
        machine["gpu"] = torch.cuda.get_device_name()
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps({"numbers": numbers, "settings": settings, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
