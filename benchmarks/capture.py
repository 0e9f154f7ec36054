"""How close do views of a real capture come, of which some are known? capture.py SCENE [--every 3] [--size 64].

Prints a model's PSNR at the views between beside what copying, averaging and warping reach, as the mean over those
views, at a centred square of `--size` pixels. The warps are told depth, the model is not. `--out FILE.json` keeps it.
"""

import argparse
import sys
from pathlib import Path

import torch
from machine import write_numbers
from rich import box
from rich.console import Console
from rich.table import Table

from diorama.data.open import open_scene
from diorama.evaluation.methods import Failure, Method, Oracle, find
from diorama.evaluation.metrics import psnr
from diorama.scene import Condition, Views

MODEL = "tiny-regression"  # what `diorama reconstruct` shows
BASELINES = ("nearest", "nearest-blurred", "mean", "plane-warp", "depth-warp")
TOLD = {"plane-warp": "known views' median depth", "depth-warp": "every view's depth"}


def captured(folder: Path, profile: str | None, size: int) -> Views:
    """All views of a capture, cropped and resized; ValueError for photos without cameras."""
    scene = open_scene(folder, profile)
    if scene is None or scene.cameras is None:
        raise ValueError(
            f"{folder}: found no photos with cameras; accepted is a capture that `diorama data check` reads"
        )
    return scene.views(None, size, size).to(torch.float32)


def scored(method: Method, truth: Views, known: tuple[int, ...]) -> float | None:
    """Mean PSNR in dB at the views that are not known; None where the method cannot answer."""
    if isinstance(method, Oracle):
        try:
            method = method.told([truth])
        except ValueError:
            return None  # it asks for depth that the capture lacks
    assert truth.cameras is not None
    (answer,) = method.generate([Condition(truth[list(known)], known, None, None)], [truth.cameras], [0])
    if isinstance(answer, Failure):
        return None
    rest = [place for place in range(len(truth)) if place not in known]
    return float(psnr(answer.views.images[rest].float(), truth.images[rest]).mean())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scene", type=Path)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--profile")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    truth = captured(chosen.scene, chosen.profile, chosen.size)
    known = tuple(range(0, len(truth), max(1, chosen.every)))
    if len(known) == len(truth):
        sys.exit(f"--every {chosen.every}: leaves no view to score of {len(truth)}; accepted is 2 or more")
    title = f"{chosen.scene.name}: {len(known)} of {len(truth)} views known, {chosen.size}x{chosen.size} pixels"
    table, numbers = Table("method", "PSNR (dB)", "told", box=box.SIMPLE_HEAD, title=title), {}
    for name in (chosen.model, *BASELINES):
        value = scored(find(name, device="cpu"), truth, known)
        if value is not None:
            numbers[f"{name} psnr"] = value
        table.add_row(name, "-" if value is None else f"{value:.2f}", TOLD.get(name, ""))
    Console().print(table)
    if chosen.out is not None:
        settings = {"scene": chosen.scene.name, "every": chosen.every, "size": chosen.size, "model": chosen.model}
        write_numbers(chosen.out, numbers, settings, "cpu")


if __name__ == "__main__":
    main()
