"""How long do a scene and its views take? Sampling and decoding, each against a plain reference in the same run.

    python benchmarks/speed.py                 # the embedded model, 16 views, 50 guided steps

References: guidance as two passes instead of one batch; decoding that computes the latents' keys and values again for
every view instead of once; and, counted and not timed, the paper's mutual decoder at m = 1024 tokens and 252x252.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from machine import operations, write_numbers

from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import orbit
from diorama.models.rae3d import RAE3D, SIZES
from diorama.pipelines.base import load
from diorama.scene import Condition, Views


@dataclass(frozen=True)
class Config:
    """What is measured."""

    model: str = "tiny"
    views: int = 16
    steps: int = 50
    guidance: float = 2.0
    repeats: int = 5
    threads: int = 2
    out: Path = Path(__file__).parent / "results" / "speed.json"


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median over `repeats` runs after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def decoding_flops(attention: str) -> int:
    """Operations of the paper's 1024-token RGB decoder for 16 views of 252x252, counted without computing them."""
    with torch.device("meta"):
        model = RAE3D(**SIZES["base-1024"] | {"attention": attention, "point_layers": 0})
        latents, rays = torch.empty(1, 1024, 768), torch.empty(1, 16, 6, 252, 252)
        return operations(lambda: model.decode_images(model.cache(latents), rays))


@torch.no_grad()
def main(config: Config) -> None:
    """Measure, print a table and write the JSON."""
    torch.set_num_threads(config.threads)
    pipeline = load(config.model, "cpu")
    side = int(pipeline.config["pixels"] ** 0.5)
    camera = Cameras.from_fov(60.0, side, side)
    path = orbit(camera, config.views)
    condition = Condition(Views(torch.rand(1, 3, side, side), camera), (0,))

    def sample(guidance: float) -> object:
        return pipeline.generate(condition, path, steps=config.steps, guidance=guidance)

    scene = sample(config.guidance)
    latents, rays = scene.latents[None], path.transformed(scene.latent_frame).plucker()[None]  # type: ignore[attr-defined]
    decode = pipeline.autoencoder.decode
    seconds = {
        "generate": median_seconds(lambda: sample(config.guidance), config.repeats),
        "generate, two passes": 2 * median_seconds(lambda: sample(1.0), config.repeats),
        "render": median_seconds(lambda: pipeline.render(scene, path), config.repeats),
        "decode, cached": median_seconds(lambda: decode(latents, rays), config.repeats),
        "decode, one view at a time": median_seconds(
            lambda: [decode(latents, rays[:, view : view + 1]) for view in range(config.views)], config.repeats
        ),
    }
    flops = {name: decoding_flops(name) for name in ("one_way", "mutual")}
    numbers = {f"{name}, seconds": value for name, value in seconds.items()} | {
        "two passes / one batch": seconds["generate, two passes"] / seconds["generate"],
        "one view at a time / cached": seconds["decode, one view at a time"] / seconds["decode, cached"],
        "decode at the paper's size, cached one-way, teraflops": flops["one_way"] / 1e12,
        "decode at the paper's size, mutual, teraflops": flops["mutual"] / 1e12,
        "mutual / cached one-way, operations": flops["mutual"] / flops["one_way"],
    }
    write_numbers(config.out, numbers, {key: value for key, value in vars(config).items() if key != "out"}, "cpu")
    for name, value in numbers.items():
        print(f"{name:56} {value:8.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
