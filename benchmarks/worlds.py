"""How fast are the Worlds? The culled, adaptive renderer against a plain loop over solids; writes results/worlds.json.

    python benchmarks/worlds.py                         # one thread, 12 worlds, 128x128, 4 samples
    python benchmarks/worlds.py --device cuda --worlds 64

The reference casts every sample of every pixel, and every shadow ray, against every solid in turn; the rest of its
work, the shading, is the same code. The table also says how far its pictures and distances are from the fast ones.
Rates are given per second by the wall and, on a CPU, per second of CPU time, which a busy machine disturbs less.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import tyro
from machine import write_numbers

from diorama.data import raycast, shading
from diorama.data.worlds import WORLDS_VERSION, World, render_batch, world
from diorama.geometry.cameras import Cameras
from diorama.scene import Views


@dataclass(frozen=True)
class Config:
    """What is measured; seeds start at 0."""

    worlds: int = 12
    views: int = 4
    size: int = 128
    samples: int = 4
    threads: int = 1
    device: str = "cpu"
    reference_worlds: int = 2
    out: Path = Path(__file__).parent / "results" / "worlds.json"


def plainly(solids: raycast.Solids, rays: raycast.Bundle, shadow: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """`raycast.cast` without culling; for shadows, solids that cast none are left out by their bound."""
    if shadow:
        bound = torch.where(solids.casts, solids.bound, -1)
        solids = raycast.Solids(**{**vars(solids), "bound": bound})
    return raycast.cast_plainly(solids, rays)


@dataclass
class Clock:
    """Seconds by the wall and of this process's CPU; the latter hardly change while other programs take turns."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Clock":
        return cls(time.perf_counter(), time.process_time())

    def since(self) -> "Clock":
        now = self.now()
        return Clock(now.wall - self.wall, now.cpu - self.cpu)


def timed(worlds: list[World], cameras: Cameras, samples: int) -> tuple[Views, Clock]:
    """A rendering and the seconds it took."""
    if cameras.camera_to_world.is_cuda:
        torch.cuda.synchronize()
    start = Clock.now()
    views = render_batch(worlds, cameras, samples=samples)
    if cameras.camera_to_world.is_cuda:
        torch.cuda.synchronize()
    return views, start.since()


def measured(config: Config) -> dict[str, float]:
    """All numbers of the table by name."""
    torch.set_num_threads(config.threads)
    world(0).path(config.views, config.size, config.size)  # the first one also draws the textures
    start = Clock.now()
    worlds = [world(seed) for seed in range(config.worlds)]
    built, start = start.since(), Clock.now()
    paths = [w.path(config.views, config.size, config.size) for w in worlds]
    drawn = start.since()
    poses, intrinsics = (torch.stack([getattr(p, n) for p in paths]) for n in ("camera_to_world", "intrinsics"))
    cameras = Cameras(poses, intrinsics, config.size, config.size).to(config.device)
    some = config.reference_worlds
    timed(worlds[:some], _first(cameras, some), config.samples)
    fast, seconds = timed(worlds, cameras, config.samples)
    _, same = timed(worlds[:some], _first(cameras, some), config.samples)
    # a contrast below zero marks every pixel as an edge, so that every pixel gets all its samples
    with mock.patch.object(shading, "cast", plainly), mock.patch.object(shading, "CONTRAST", -1.0):
        plain, slow = timed(worlds[:some], _first(cameras, some), config.samples)
    many, few = config.worlds * config.views, some * config.views
    numbers = {
        "views_per_second": many / seconds.wall,
        "plain_views_per_second": few / slow.wall,
        "milliseconds_per_world": 1e3 * built.wall / config.worlds,
        "milliseconds_per_path": 1e3 * drawn.wall / config.worlds,
        "image_difference": float((fast.images[:some] - plain.images).abs().mean()),
        "depth_difference": float((fast.depth[:some] / plain.depth - 1).abs().max()),
        "speedup": slow.wall / same.wall,
    }
    if config.device == "cpu":
        numbers |= {
            "views_per_cpu_second": many / seconds.cpu,
            "plain_views_per_cpu_second": few / slow.cpu,
            "cpu_milliseconds_per_world": 1e3 * built.cpu / config.worlds,
            "cpu_milliseconds_per_path": 1e3 * drawn.cpu / config.worlds,
            "cpu_speedup": slow.cpu / same.cpu,
        }
    return numbers


def main(config: Config) -> None:
    """Measure, print the table and write the numbers."""
    numbers = measured(config)
    for name, value in numbers.items():
        print(f"{name:>26} {value:10.5f}" if value < 0.01 else f"{name:>26} {value:10.2f}")
    settings = {k: v for k, v in vars(config).items() if k != "out"}
    write_numbers(config.out, numbers, settings, config.device, version=WORLDS_VERSION)


def _first(cameras: Cameras, count: int) -> Cameras:
    return Cameras(cameras.camera_to_world[:count], cameras.intrinsics[:count], cameras.height, cameras.width)


if __name__ == "__main__":
    main(tyro.cli(Config))
