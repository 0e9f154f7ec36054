"""How many samples a second does training make, against a plain loop of the same models in the same run?

    python benchmarks/training.py              # the embedded sizes, on procedural worlds

The plain loop has the same models, optimisers, batch, precision, losses and averaged weights, and is written as a short
training script is: it draws a step's views one scene after the other before each step, decodes the wanted views one
by one, each from the latents themselves (as the paper's decoder does, without a cache of their keys and values), reads
each loss as it comes, and, for the denoiser, encodes the views and their conditions in every step, as the paper does.
A third column is that loop with what our models offer, batched decoding from the cache and latents kept from one step
to the next: what is left between it and the trainer is the trainer's own. Where other programs run, the ratios of
processor time hold and those on the clock do not.
"""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from machine import write_numbers
from torch import Tensor

from diorama.data.cache import WorldsCache, write_cache
from diorama.flow import interpolate, shifted
from diorama.geometry.cameras import Cameras
from diorama.models.rae3d import RAE3D, SIZES, LatentCache
from diorama.pipelines.tokens import encode_views
from diorama.scene import Views
from diorama.training import dit3d, rae3d
from diorama.training.losses import gradient_loss, point_loss, velocity_loss
from diorama.training.rae3d import visible_views
from diorama.training.trainer import Run, Stage, Trainer, learning_rate_share, step_generator

KNOWN, WANTED, VIEWS = 4, 4, 8


@dataclass(frozen=True)
class Config:
    """What is measured."""

    batch: int = 8
    """Scenes per step of the autoencoder."""
    samples: int = 16
    """Scenes per step of the denoiser."""
    scenes: int = 32
    side: int = 64
    rounds: int = 5
    """Times that each loop has its turn; the first turn is not counted."""
    steps: int = 3
    """Steps in a turn."""
    precision: str = "bf16-mixed"
    threads: int = 1
    out: Path = Path(__file__).parent / "results" / "training.json"


class Plain:
    """A plain training loop; `losses` is what a stage's model is to minimise."""

    def __init__(self, stage: Stage, run: Run, losses: Callable[[int], dict[str, Tensor]]) -> None:
        (self.model,), (self.optimizers,) = stage.modules.values(), stage.optimizers.values()
        self.run, self.losses, self.step = run, losses, 0
        self.rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.averaged = [parameter.detach().clone() for parameter in self.model.parameters()]

    def train(self, steps: int) -> None:
        """Some steps."""
        for _ in range(steps):
            share = learning_rate_share(self.step, self.run)
            for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = share * rate
            with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in self.run.precision):
                losses = self.losses(self.step)
                total = torch.stack(list(losses.values())).sum()
            total.backward()
            self.report = {name: loss.item() for name, loss in losses.items()} | {"loss": total.item()}
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.clip)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                for mean, parameter in zip(self.averaged, self.model.parameters(), strict=True):
                    mean.lerp_(parameter, 1 - self.run.ema)
            self.step += 1


def drawn(cache: WorldsCache, count: int, views: int, step: int) -> Views:
    """Random views of random scenes, one scene after the other."""
    scenes = []
    for number in range(count):
        generator = step_generator(1, step, number)
        scene = torch.randint(len(cache), (1,), generator=generator)
        scenes.append(cache.batch(scene, torch.randperm(cache.views, generator=generator)[None, :views]))
    parts = [(x.images, x.points, x.confidence, x.cameras.camera_to_world, x.cameras.intrinsics) for x in scenes]  # type: ignore[union-attr]
    images, points, confidence, poses, intrinsics = (torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[arg-type]
    return Views(images, Cameras(poses, intrinsics, cache.height, cache.width), points, confidence)


def autoencoder_losses(stage: rae3d.RAE3DStage, cache: WorldsCache, kept: bool) -> Callable[[int], dict[str, Tensor]]:
    """From views drawn for this step; with the latents' keys and values `kept`, all wanted ones decoded at once."""
    config, model = stage.config, stage.model

    def losses(step: int) -> dict[str, Tensor]:
        views, generator = drawn(cache, config.batch, KNOWN + WANTED, step), step_generator(1, step, 9)
        visible = visible_views(config.batch, KNOWN, config, generator)
        cameras, similarity = views.cameras.normalized()  # type: ignore[union-attr]
        latents = encode_views(model, views[:KNOWN], cameras[:KNOWN], visible)
        level = config.noise * torch.rand(config.batch, 1, 1, generator=generator)
        latents = latents + torch.randn(latents.shape, generator=generator) * level
        true, rays = views[KNOWN:], cameras[KNOWN:].plucker()
        if kept:
            scene = model.cache(latents)
            images = model.decode_images(scene, rays)
        else:
            scene = LatentCache(latents, None, None)
            images = torch.cat([model.decode_images(scene, rays[:, view : view + 1]) for view in range(WANTED)], 1)
        points, confidence = model.decode_points(scene, rays[:, :1])
        world = similarity.apply(true[:1].points)  # type: ignore[arg-type]
        terms = point_loss(points, 1 + confidence, world, true[:1].mask)  # type: ignore[arg-type]
        pictures = {"image": F.mse_loss(images.float(), true.images)}
        pictures["gradient"] = config.gradient_weight * gradient_loss(images.float(), true.images)
        return pictures | {name: config.point_weight * value for name, value in terms.items()}

    return losses


def denoiser_losses(stage: dit3d.DiT3DStage, cache: WorldsCache, kept: bool) -> Callable[[int], dict[str, Tensor]]:
    """From latents encoded in this step, or `kept` since before the first."""
    config, model, autoencoder = stage.config, stage.model, stage.autoencoder

    def encoded(step: int) -> tuple[Tensor, Tensor]:
        views, generator = drawn(cache, config.batch, VIEWS, step), step_generator(1, step, 9)
        cameras = views.cameras.normalized()[0]  # type: ignore[union-attr]
        known = torch.rand(config.batch, VIEWS, generator=generator).argsort(1) < KNOWN
        with torch.no_grad():
            masks = (torch.ones_like(known), known)
            data, condition = (autoencoder.normalize(encode_views(autoencoder, views, cameras, x)) for x in masks)
        return data, condition

    def losses(step: int) -> dict[str, Tensor]:
        generator = step_generator(1, step, 10)
        data, known = stage.batch(step)[:2] if kept else encoded(step)
        t = shifted(torch.rand(len(data), generator=generator), stage.shift)
        noise = torch.randn(data.shape, generator=generator)
        return {"velocity": velocity_loss(model(interpolate(data, noise, t), t, known).velocity.float(), data, noise)}

    return losses


def trainer_turn(trainer: Trainer, steps: int) -> None:
    """Some steps as `Trainer.train` makes them, without what it writes."""
    end = trainer.step + steps
    with trainer.ahead(end):
        while trainer.step < end:
            trainer.train_step()


def seconds(loops: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Medians of every loop's turn, on the clock and of the processor; turns alternate: others may use the machine."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, turn in loops.items():
            start = time.perf_counter(), time.process_time()
            turn()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: tuple(map(statistics.median, zip(*found[1:], strict=True))) for name, found in times.items()}  # type: ignore[misc]


def stages(config: Config, folder: Path) -> dict[str, tuple[Callable[[], Any], Run, Any]]:
    """Of each of the two: what makes a stage, its settings, and the plain loop's losses."""
    worlds = write_cache(folder / "worlds", range(config.scenes), height=config.side, width=config.side, samples=1)
    common = {"data": worlds, "validation": worlds, "size": "tiny", "steps": 10**4, "warmup": 10, "device": "cpu"}
    common |= {"precision": config.precision, "muon_rate": 2e-3, "learning_rate": 1e-3}
    RAE3D(**SIZES["tiny"]).save_pretrained(folder / "autoencoder")
    of_views = {"known_views": (KNOWN,), "target_views": WANTED, "noise": 0.2, "gradient_weight": 0.5}
    autoencoder = rae3d.Config(out=folder / "rae3d", batch=config.batch, point_weight=0.1, **of_views, **common)
    of_latents = {"autoencoder": folder / "autoencoder", "encoder_views": VIEWS, "visible": (KNOWN,)}
    denoiser = dit3d.Config(out=folder / "dit3d", batch=config.samples, **of_latents, **common)
    return {
        "RAE3D tiny": (lambda: rae3d.RAE3DStage(autoencoder), autoencoder, autoencoder_losses),
        "DiT3D tiny": (lambda: dit3d.DiT3DStage(denoiser), denoiser, denoiser_losses),
    }


def main(config: Config) -> None:
    """Measure, print a table and write the JSON."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    torch.set_num_threads(config.threads)
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (made, run, losses) in stages(config, Path(folder)).items():
            cache = WorldsCache(run.data)  # type: ignore[attr-defined]
            trainer = Trainer(made(), run)
            plain, kept = (Plain(stage, run, losses(stage, cache, x)) for stage, x in ((made(), False), (made(), True)))
            loops = {
                "trainer": lambda: trainer_turn(trainer, config.steps),  # noqa: B023
                "plain loop": lambda: plain.train(config.steps),  # noqa: B023
                "plain loop, kept": lambda: kept.train(config.steps),  # noqa: B023
            }
            found = seconds(loops, config.rounds)
            for loop, (wall, _) in found.items():
                numbers[f"{name}, {loop}, samples/s"] = run.batch * config.steps / wall
            for loop in ("plain loop", "plain loop, kept"):
                for place, clock in enumerate(("wall", "processor")):
                    numbers[f"{name}, trainer / {loop}, {clock}"] = found[loop][place] / found["trainer"][place]
            numbers[f"{name}, MFU"] = trainer.meter.told()["mfu"]
    numbers["programs that wanted a core meanwhile (load)"] = os.getloadavg()[2]
    write_numbers(config.out, numbers, {k: str(v) for k, v in asdict(config).items() if k != "out"}, "cpu")
    for name, number in numbers.items():
        print(f"{name:50} {number:8.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
