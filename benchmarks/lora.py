"""Does fine-tuning on some photos of a place help at the others? lora.py CAPTURE [--every 2] [--steps 60] [--batch 4].

Every `--every`-th photo is learnt from, the others are kept back. Before and after, each of `--asked` learnt photos is
the one known view that all kept back are generated from, and then all learnt photos are known together. Prints the mean
PSNR at the views kept back, at a centred square of `--size` pixels. `--out FILE.json` keeps it, `--runs` the model.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from capture import captured
from machine import write_numbers
from rich import box
from rich.console import Console
from rich.table import Table

from diorama.evaluation.metrics import psnr
from diorama.export.nerfstudio import write_nerfstudio
from diorama.pipelines.base import load
from diorama.scene import Condition, Views
from diorama.training.lora import Config, LoRAStage
from diorama.training.trainer import Trainer


@torch.no_grad()
def scored(model: str, truth: Views, learnt: list[int], asked: list[int], steps: int) -> dict[str, float]:
    """Mean PSNR in dB at the views that are not learnt from, by what is known."""
    pipeline, cameras = load(model, "cpu"), truth.cameras
    assert cameras is not None
    held = [place for place in range(len(truth)) if place not in learnt]
    known = {"one known": [[place] for place in asked], "all learnt known": [learnt]}
    found = {}
    for name, choices in known.items():
        conditions = [Condition(truth[places], tuple(range(len(places)))) for places in choices]
        paths = [cameras[[*places, *held]] for places in choices]
        made = pipeline.generate(conditions, paths, steps=steps)
        images = torch.stack([scene.views.images[-len(held) :] for scene in made])
        found[name] = float(psnr(images, truth.images[held].expand_as(images)).mean())
    return found


def trained(chosen: argparse.Namespace, truth: Views, learnt: list[int], folder: Path) -> str:
    """The model that learns from some views of the capture."""
    write_nerfstudio(truth[learnt], folder / "learnt", overwrite=True)
    config = Config(
        out=folder / "run", model=chosen.model, data=folder / "learnt", steps=chosen.steps, batch=chosen.batch,
        learning_rate=chosen.learning_rate, rank=chosen.rank, device="cpu", precision="32-true", validate_every=10**6,
    )  # fmt: skip
    with Trainer(LoRAStage(config), config) as trainer:
        trainer.train()
    return str(config.out / "model")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scene", type=Path)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--profile")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=Config.rank)
    parser.add_argument("--learning-rate", type=float, default=Config.learning_rate)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--asked", type=int, default=4)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    truth = captured(chosen.scene, chosen.profile, chosen.size)
    learnt = list(range(0, len(truth), max(1, chosen.every)))
    if not 2 <= len(learnt) < len(truth):
        sys.exit(
            f"--every {chosen.every}: learns from {len(learnt)} of {len(truth)} views; accepted is 2 to all but one"
        )
    asked = learnt[:: max(1, len(learnt) // chosen.asked)][: chosen.asked]
    before = scored(chosen.model, truth, learnt, asked, chosen.sampling_steps)
    with tempfile.TemporaryDirectory() as folder:
        model = trained(chosen, truth, learnt, chosen.runs or Path(folder))
        after = scored(model, truth, learnt, asked, chosen.sampling_steps)
    title = f"{chosen.scene.name}: {chosen.steps} steps on {len(learnt)} views, {len(truth) - len(learnt)} kept back"
    table = Table("PSNR (dB) at views kept back", chosen.model, "fine-tuned", box=box.SIMPLE_HEAD, title=title)
    for name in before:
        table.add_row(name, f"{before[name]:.2f}", f"{after[name]:.2f}")
    Console().print(table)
    if chosen.out is not None:
        pairs = (("before", before), ("after", after))
        numbers = {f"{name} {when}": value for when, found in pairs for name, value in found.items()}
        settings = {name: value for name, value in vars(chosen).items() if name not in ("runs", "out", "scene")}
        write_numbers(chosen.out, numbers, settings | {"scene": chosen.scene.name}, "cpu")


if __name__ == "__main__":
    main()
