"""How long does each format take for a million points? A wall that two cameras see, so that each point is a track.

python benchmarks/export.py                # about a minute on two cores
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from machine import write_numbers

from diorama.export.formats import Choices, export
from diorama.geometry.cameras import Cameras
from diorama.scene import Condition, Scene, Views


@dataclass(frozen=True)
class Config:
    """What is measured."""

    side: int = 1024  # pixels of each view
    repeats: int = 2
    threads: int = 2
    out: Path = Path(__file__).parent / "results" / "export.json"


def wall(side: int, views: int) -> Scene:
    """`views` pictures of a slanted wall from cameras a thousandth of its distance apart."""
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, 0, 3] = 0.003 * torch.arange(views)
    cameras = Cameras.from_fov(60.0, side, side, poses)
    rays = cameras.directions()
    depth = (3 + 0.2 * cameras.centers[:, None, None, 0]) / (1 - 0.2 * rays[..., 0])
    points = cameras.unproject(depth)
    images = (0.5 + 0.5 * (7 * points).sin()).movedim(-1, 1)
    return Scene(Views(images, cameras, points, torch.ones(views, side, side)), Condition())


def seconds(name: str, scene: Scene, choices: Choices, repeats: int) -> tuple[float, float, int]:
    """Median time of writing one format to a folder, that of the processor alone, and the bytes written."""
    times, busy, size = [], [], 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            start, work = time.perf_counter(), time.process_time()
            export(scene, Path(folder) / "out", [name], choices)
            times.append(time.perf_counter() - start)
            busy.append(time.process_time() - work)
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return statistics.median(times), statistics.median(busy), size


def main(config: Config) -> None:
    """Measure, print a table and write the results."""
    torch.set_num_threads(config.threads)
    one, two = wall(config.side, 1), wall(config.side, 2)
    numbers = {}
    for name in ("ply", "glb", "mesh", "depth", "splat", "html", "colmap"):
        scene = two if name == "colmap" else one
        choices = Choices(mesh=name == "mesh", tracks=2 * config.side**2)
        taken, busy, size = seconds("glb" if name == "mesh" else name, scene, choices, config.repeats)
        numbers |= {f"{name}, seconds": round(taken, 2), f"{name}, seconds of CPU": round(busy, 2)}
        numbers[f"{name}, megabytes"] = round(size / 1e6, 1)
        print(f"{name:<8} {taken:6.2f} s, {busy:6.2f} s of CPU {size / 1e6:8.1f} MB", flush=True)
    settings = {"points": config.side**2, "repeats": config.repeats, "threads": config.threads}
    write_numbers(config.out, numbers, settings, "cpu")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
