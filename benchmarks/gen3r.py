"""How much cheaper are Gen3R's adapter and decode of geometry than a plain loop over chunks? Writes results/gen3r.json.

    python benchmarks/gen3r.py                          # one thread, 13 frames of 12x12 patches, narrow networks
    python benchmarks/gen3r.py --device cuda --frames 49 --patches 40 --channels 10240 --dim 128

The reference does what the published code does, with the same weights: it enlarges token maps before it convolves them,
takes one latent frame after the other with the last two frames of every layer kept, appends each result to what there
is, and gives the dense heads eight frames at a time. Both run in turns; times are the best of some rounds, on a CPU in
seconds of its own clock, which a busy machine disturbs less. Operations are counted at the published size, whatever is
timed. A ratio is our time divided by the reference's.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
import tyro
from machine import write_numbers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diorama.models.geometry_adapter import CausalConv3d, GeometryAdapter, Norm, Past, Stem, unpack_tokens
from diorama.models.vggt import Layer, Readout
from diorama.nn.dpt import DPTHead, Fusion, ResidualUnit


@dataclass(frozen=True)
class Config:
    """What is timed."""

    frames: int = 13
    patches: int = 12
    channels: int = 1280
    dim: int = 16
    rounds: int = 5
    threads: int = 1
    device: str = "cpu"
    out: Path = Path(__file__).parent / "results" / "gen3r.json"


def plain_stem(stem: Stem, maps: Tensor) -> Tensor:
    """The encoder's first convolution of enlarged maps."""
    large = F.interpolate(maps, scale_factor=1.75, mode="nearest-exact")
    return F.conv2d(large, stem.weight, stem.bias, padding=1)


def plain_norm(norm: Norm, x: Tensor) -> Tensor:
    """RMS norm over channels."""
    return F.normalize(x, dim=1) * norm.scale * norm.gamma


def plain_causal(conv: CausalConv3d, x: Tensor, past: Past | None = None) -> Tensor:
    """A 3D convolution of a chunk behind the last two frames before it."""
    before = (past or {}).get(conv)
    x = F.pad(x, (0, 0, 0, 0, 2, 0)) if before is None else torch.cat([before, x], 2)
    if past is not None:
        past[conv] = x[:, :, -2:].clone()
    return F.conv3d(x, conv.weight, conv.bias, padding=conv.padding)


def plain_unit(unit: ResidualUnit, x: Tensor) -> Tensor:
    """Two convolutions beside relu(x)."""
    positive = F.relu(x)
    return unit.conv2(F.relu(unit.conv1(positive))) + positive


def plain_fusion(fusion: Fusion, x: Tensor, finer: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Levels are added, enlarged and then mixed."""
    x = x if finer is None else x + plain_unit(fusion.lateral, finer)
    return fusion.out(F.interpolate(plain_unit(fusion.unit, x), size, mode="bilinear", align_corners=True))


def plain_placed(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps plus a tenth of waves along both axes, made anew each time."""
    diagonal, count, grid = (size[0] ** 2 + size[1] ** 2) ** 0.5, x.shape[1] // 4, x.shape[2:]
    y, x_axis = (
        torch.linspace(-1 + 1 / n, 1 - 1 / n, n, device=x.device) * side / diagonal
        for n, side in zip(grid, size, strict=True)
    )
    frequencies = 100.0 ** -(torch.arange(count, device=x.device) / count)
    angles = [place[..., None] * frequencies for place in torch.meshgrid(x_axis, y, indexing="xy")]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], -1)
    return x + 0.1 * waves.permute(2, 0, 1).expand_as(x)


def plain_head(head: DPTHead, layers: list[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """One dense head of some views, from coarse to fine."""
    levels = []
    for x, project, rescale, level in zip(layers, head.project, head.rescale, head.level, strict=True):
        x = head.norm(x).transpose(1, 2).unflatten(-1, grid)
        levels.append(level(rescale(plain_placed(project(x), size))))
    x = levels[3]
    for index in (3, 2, 1, 0):
        finer, (height, width) = None if index == 3 else levels[index], levels[index].shape[-2:]
        target = levels[index - 1].shape[-2:] if index else (2 * height, 2 * width)
        x = plain_fusion(head.fuse[index], x, finer, tuple(target))
    x = F.interpolate(head.narrow(x), size, mode="bilinear", align_corners=True)
    first, _, last = head.out
    return last(F.relu(first(plain_placed(x, size))))


def plainly(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, with the layers above in place of ours."""
    plain = {Stem: plain_stem, Norm: plain_norm, CausalConv3d: plain_causal, DPTHead: plain_head}

    def wrapped(*arguments: object) -> Tensor:
        with ExitStack() as stack:
            for kind, forward in plain.items():
                stack.enter_context(mock.patch.object(kind, "forward", forward))
            return function(*arguments)

    return wrapped


class Networks(nn.Module):
    """The adapter and VGGT's heads, as wide as each other."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        width = channels // 40  # of the heads: 256 for the published 10240
        self.adapter = GeometryAdapter(channels=channels, dim=dim)
        self.heads = Readout(channels // 5, 4, 16, features=width, channels=(width, 2 * width, 4 * width, 4 * width))

    def geometry(self, layers: list[Layer], patches: int) -> Tensor:
        """Depth, points and their confidences beside each other."""
        found = self.heads(layers, (patches, patches), (14 * patches, 14 * patches))
        maps = (found.depth[..., None], found.depth_confidence[..., None], found.points)
        return torch.cat([*maps, found.points_confidence[..., None]], -1)


def encode(model: Networks, tokens: Tensor) -> Tensor:
    """The posterior's mean and logarithmic variance."""
    return model.adapter.encode(tokens).parameters


@plainly
def plain_encode(model: Networks, tokens: Tensor) -> Tensor:
    """The same by frames 1, 4, 4, ..."""
    past, moments = {}, None
    for start in range(-3, tokens.shape[2], 4):
        piece = model.adapter.encoder(tokens[:, :, max(0, start) : start + 4], past)
        moments = piece if moments is None else torch.cat([moments, piece], 2)
    mean, log_variance = model.adapter.quant_conv(moments).chunk(2, 1)
    center, scale = model.adapter._statistics(mean)
    return torch.cat([(mean - center) / scale, log_variance], 1)


def decode(model: Networks, latents: Tensor) -> Tensor:
    """Tokens."""
    return model.adapter.decode(latents)


@plainly
def plain_decode(model: Networks, latents: Tensor) -> Tensor:
    """The same by one latent frame after the other."""
    center, scale = model.adapter._statistics(latents)
    latents = model.adapter.post_quant_conv(latents * scale + center)
    past, tokens = {}, None
    for index in range(latents.shape[2]):
        piece = model.adapter.decoder(latents[:, :, index : index + 1], past)
        tokens = piece if tokens is None else torch.cat([tokens, piece], 2)
    return tokens


def geometry(model: Networks, latents: Tensor) -> Tensor:
    """Maps of all views from latents."""
    return model.geometry(unpack_tokens(decode(model, latents)), latents.shape[3] * 4 // 7)


@plainly
def plain_geometry(model: Networks, latents: Tensor) -> Tensor:
    """The same by chunks; heads take eight views at a time in both."""
    tokens = plain_decode(model, latents)
    *layers, camera = tokens.flatten(3).permute(0, 2, 3, 1).chunk(5, -1)
    camera = camera.mean(2, keepdim=True).repeat(1, 1, 5, 1)
    return model.geometry([torch.cat([camera, layer], 2) for layer in layers], tokens.shape[3])


PAIRS: dict[str, tuple[Callable, Callable]] = {
    "encode": (encode, plain_encode),
    "decode": (decode, plain_decode),
    "geometry": (geometry, plain_geometry),
}


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
    model = Networks(config.channels, config.dim).eval().to(config.device)
    tokens = torch.randn(1, config.channels, config.frames, config.patches, config.patches, device=config.device)
    latents = model.adapter.encode(tokens).mode()
    inputs, numbers = {"encode": tokens, "decode": latents, "geometry": latents}, {}
    for name, pair in PAIRS.items():
        best, results = [float("inf")] * 2, [tokens] * 2
        for _ in range(config.rounds + 1):  # the first round warms up
            for index, function in enumerate(pair):
                spent, results[index] = seconds(function, model, inputs[name])
                best[index] = min(best[index], spent)
        numbers |= {f"{name}_seconds": best[0], f"plain_{name}_seconds": best[1], f"{name}_ratio": best[0] / best[1]}
        numbers[f"{name}_difference"] = float((results[0] - results[1]).abs().max() / results[1].abs().max())
    return numbers | counted()


@torch.no_grad()
def counted() -> dict[str, float]:
    """Teraflops of the published size, 49 frames of 560x560, with and without the enlarged maps."""
    with torch.device("meta"):
        model = Networks(10240, 128).requires_grad_(False)  # or the counter looks for gradients
        numbers, latents = {}, torch.empty(1, 16, 13, 70, 70)
        inputs = {"encode": torch.empty(1, 10240, 49, 40, 40), "decode": latents, "geometry": latents}
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
    write_numbers(config.out, numbers, settings, config.device)


if __name__ == "__main__":
    main(tyro.cli(Config))
