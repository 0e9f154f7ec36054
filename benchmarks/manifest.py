"""Do 200 requests come out right when workers are killed? A manifest on a local Ray cluster, against one plain loop.

python benchmarks/manifest.py                # 200 requests of `tiny`; a few minutes on two cores
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from machine import write_numbers

import diorama
from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import orbit
from diorama.scene import Condition, Scene

COMMAND = "import sys; from diorama.cli.main import main; sys.exit(main())"


@dataclass(frozen=True)
class Config:
    """What is measured."""

    count: int = 200
    views: int = 4
    steps: int = 4
    batch: int = 8
    workers: int = 2
    kills: int = 2
    out: Path = Path(__file__).parent / "results" / "manifest.json"


def killed_run(config: Config, folder: Path) -> tuple[float, int]:
    """Seconds of the command in `folder`, and how many of its workers were killed, evenly over its work."""
    words = ["generate", "--manifest", "requests.jsonl", "--views", config.views, "--steps", config.steps]
    words += [
        "--batch",
        config.batch,
        "--ray",
        "local",
        "--workers",
        config.workers,
        "--out",
        "made",
        "--device",
        "cpu",
    ]
    began, kills = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *map(str, words)], cwd=folder)
    while process.poll() is None:
        made = sum(path.name[0] != "." for path in (folder / "made").glob("scene-*"))
        if (
            kills < config.kills
            and made >= config.count * (kills + 1) / (config.kills + 1)
            and (at := workers(process))
        ):
            os.kill(at[0], signal.SIGKILL)
            kills += 1
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}")
    return time.monotonic() - began, kills


def workers(process: subprocess.Popen) -> list[int]:
    """The cluster's processes below this one that make scenes."""
    below, found = [process.pid], []
    while below:
        pid = below.pop()
        try:
            below += [int(x) for file in Path(f"/proc/{pid}/task").glob("*/children") for x in file.read_text().split()]
            found += [pid] if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker") else []
        except OSError:  # it ended meanwhile
            continue
    return found


@torch.no_grad()
def main(config: Config) -> None:
    """Run, compare, print and write the results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps({"out": f"scene-{seed}", "seed": seed}) + "\n" for seed in range(config.count)]
        (folder / "requests.jsonl").write_text("".join(lines))
        seconds, kills = killed_run(config, folder)
        model = diorama.load("tiny", "cpu")
        start = Cameras.from_fov(60.0, 64, 64)
        path, worst, began = orbit(start, config.views), 0.0, time.monotonic()
        for seed in range(config.count):
            expected = model.generate(Condition(), path, seed=seed, steps=config.steps)
            found = diorama.open(folder / "made" / f"scene-{seed}")
            assert isinstance(found, Scene) and found.latents is not None and expected.latents is not None
            worst = max(worst, float((found.latents - expected.latents).abs().max()))
        alone = time.monotonic() - began
    numbers = {"scenes": config.count, "killed": kills, "seconds": round(seconds, 1), "plain_loop": round(alone, 1)}
    numbers["largest_difference_of_latents"] = worst
    settings = {key: value for key, value in asdict(config).items() if key != "out"}
    write_numbers(config.out, numbers, settings, "cpu", load=os.getloadavg()[0])
    print(f"{config.count} scenes, {kills} workers killed: {seconds:.0f} s; one by one, unwritten: {alone:.0f} s")
    print(f"latents differ by {worst:.1e} at most")


if __name__ == "__main__":
    main(tyro.cli(Config))
