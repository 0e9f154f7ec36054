"""Does a model of few steps hold what its teacher reaches in many? On held-out Worlds; writes results/distill.json.

    python benchmarks/distill.py runs/distill-tiny/model             # against `tiny`, 64 scenes

From one known view each scene is generated three times from the same noise: by the teacher at its own steps and
guidance, by the teacher at as few steps as the student takes, and by the student. Told are the Fréchet distance to the
true unseen views, how far that is above the teacher's (95 % of a bootstrap that draws scenes, paired), PSNR to the
truth and to the teacher's own, the distance of normalised latents, and seconds a scene: of the processor on a CPU, else
of the clock. The three take turns, batch by batch.
"""

import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from jaxtyping import Float
from machine import write_numbers
from quality import Options as Cache
from quality import training_side, worlds
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diorama.data.cache import WorldsCache
from diorama.evaluation.frechet import MINIMUM_IMAGES, frechet_distance, worlds64
from diorama.evaluation.metrics import gradient_energy, psnr
from diorama.evaluation.quality import Scores, batches, capped, images_of, joined
from diorama.pipelines.base import load
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition, Views

TEACHER, FEW, STUDENT = "teacher", "teacher in few steps", "student"
BOUND = 0.05  # share of the teacher's Fréchet distance that the student may lie above it


@dataclass(frozen=True)
class Options:
    """What to measure, and where it goes."""

    student: tyro.conf.Positional[str]
    """Folder of a distilled pipeline, or an embedded model's name."""
    teacher: str = "tiny"
    """What it was distilled from."""
    scenes: int = 64
    """Test scenes, the unseen views of which are scored."""
    batch: int = 16
    """Scenes in one forward pass."""
    draws: int = 200
    """Draws of the bootstrap."""
    minimum: int = MINIMUM_IMAGES
    """Fewest images that a Fréchet distance is told of."""
    cache: Path = Cache.cache
    """Rendered scenes are kept here."""
    workers: int = 1
    """Processes that render scenes the first time."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    out: Path = Path(__file__).parent / "results" / "distill.json"
    """The file that gets the numbers."""


class Arm(NamedTuple):
    """One way to generate."""

    pipeline: TokenPipeline
    steps: int
    guidance: float


def main(options: Options) -> dict[str, Any]:
    """Generate, score, print and write."""
    teacher, student = (load(name, options.device) for name in (options.teacher, options.student))
    assert isinstance(teacher, TokenPipeline) and isinstance(student, TokenPipeline)
    own, few = teacher.config, student.config
    arms = {
        TEACHER: Arm(teacher, own.steps, own.guidance),
        FEW: Arm(teacher, few.steps, own.guidance),
        STUDENT: Arm(student, few.steps, few.guidance),
    }
    kept = Cache(cache=options.cache, workers=options.workers)
    data = worlds(kept, "test", options.scenes, training_side(teacher))
    numbers = scored(*generated(arms, data, options), options)
    told = {name: f"{arm.steps} steps, guidance {arm.guidance:g}" for name, arm in arms.items()}
    settings = {name: str(value) for name, value in asdict(options).items() if name not in ("cache", "out")}
    settings |= {"student": Path(options.student).name, "teacher": Path(options.teacher).name}
    write_numbers(options.out, numbers, settings, str(teacher.device).partition(":")[0], arms=told)
    show(numbers, told)
    return numbers


def generated(
    arms: dict[str, Arm], data: WorldsCache, options: Options
) -> tuple[dict[str, Scores], Float[Tensor, "scene view dim"]]:
    """Scores of each arm, one row a scene, and the features of what is true."""
    features = worlds64(arms[TEACHER].pipeline.device)
    found: dict[str, list[Scores]] = defaultdict(list)
    truth = []
    for rows, views in batches(data, range(data.views), options.scenes, options.batch):
        true, reference = views.images[:, 1:], None
        if not truth:
            made(arms[FEW], views, rows)  # the first that a device does takes longer
        truth.append(of(features, true))
        for name, arm in arms.items():
            images, latents, seconds = made(arm, views, rows)
            reference = reference or (images, latents)
            found[name].append(
                {
                    "features": of(features, images),
                    "energy": gradient_energy(images).mean(1),
                    "true_energy": gradient_energy(true).mean(1),
                    "psnr": psnr(images, true).mean(1),
                    "agreement": capped(images, reference[0]).mean(1),
                    "distance": (latents - reference[1]).square().mean((1, 2)).sqrt(),
                    "seconds": torch.tensor(seconds).expand(len(rows), 2) / len(rows),
                }
            )
    return {name: joined(parts) for name, parts in found.items()}, torch.cat(truth)


def made(arm: Arm, views: Views, seeds: range) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Unseen views and normalised latents of a batch of scenes, and seconds until the latents and until the views."""
    items, pipeline, marks = views.apart(), arm.pipeline, [clock(arm)]
    conditions, paths = [Condition(item[:1], (0,)) for item in items], [item.cameras for item in items]
    how: dict[str, Any] = dict(seed=list(seeds), steps=arm.steps, guidance=arm.guidance)
    scenes = pipeline.generate(conditions, paths, on_step=lambda *_: marks.append(clock(arm)), **how)  # type: ignore[arg-type]
    seconds = marks[-1] - marks[0], clock(arm) - marks[0]
    latents = torch.stack([scene.latents for scene in scenes]).to(pipeline.device)  # type: ignore[misc]
    return images_of(scenes)[:, 1:], pipeline.autoencoder.normalize(latents).cpu(), seconds


def scored(arms: dict[str, Scores], true: Float[Tensor, "scene view dim"], options: Options) -> dict[str, float]:
    """Numbers of the report by name."""
    numbers = {}
    for name, arm in arms.items():
        whole = frechet_distance(arm["features"].flatten(0, 1), true.flatten(0, 1), minimum=options.minimum)
        to_latents, in_all = arm["seconds"].mean(0).tolist()
        numbers |= {
            f"{name}: fd_worlds64": whole,
            f"{name}: psnr": float(arm["psnr"].mean()),
            f"{name}: psnr to the teacher": float(arm["agreement"].mean()),
            f"{name}: distance of latents": float(arm["distance"].mean()),
            f"{name}: share of gradient energy": float(arm["energy"].mean() / arm["true_energy"].mean()),
            f"{name}: seconds to latents": to_latents,
            f"{name}: seconds in all": in_all,
        }
    for name in (FEW, STUDENT):
        low, high = interval(arms[name]["features"], arms[TEACHER]["features"], true, options.draws)
        value, base = numbers[f"{name}: fd_worlds64"], numbers[f"{TEACHER}: fd_worlds64"]
        numbers |= {
            f"{name}: above the teacher": value / base - 1,
            f"{name}: above the teacher, low": (value - base + low) / base,
            f"{name}: above the teacher, high": (value - base + high) / base,
        }
        for what in ("to latents", "in all"):
            ratio = numbers[f"{TEACHER}: seconds {what}"] / numbers[f"{name}: seconds {what}"]
            numbers[f"{name}: times faster {what}"] = ratio
    return {name: round(value, 5) for name, value in numbers.items()}


def interval(
    one: Float[Tensor, "scene view dim"],
    other: Float[Tensor, "scene view dim"],
    true: Float[Tensor, "scene view dim"],
    draws: int,
) -> tuple[float, float]:
    """95 % of how a difference of two Fréchet distances varies around its mean when scenes are drawn again."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(draws):
        rows = torch.randint(len(true), (len(true),), generator=generator)
        first, second, real = (x[rows].flatten(0, 1) for x in (one, other, true))
        found.append(frechet_distance(first, real, minimum=2) - frechet_distance(second, real, minimum=2))
    spread = torch.tensor(found, dtype=torch.float64)
    low, high = (spread - spread.mean()).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def of(features: Any, images: Float[Tensor, "scene view 3 height width"]) -> Float[Tensor, "scene view dim"]:
    """Features of every view."""
    return torch.stack([features(scene) for scene in images])


def clock(arm: Arm) -> float:
    """Seconds of the processor on a CPU, where other programs then do not count; else of the clock."""
    return time.process_time() if arm.pipeline.device.type == "cpu" else time.perf_counter()


def show(numbers: dict[str, float], told: dict[str, str]) -> None:
    """Print the table and whether the student holds."""
    table = Table("", *(f"{name} ({how})" for name, how in told.items()))
    for what in dict.fromkeys(name.partition(": ")[2] for name in numbers):
        table.add_row(
            what, *(f"{numbers[f'{name}: {what}']:.4g}" if f"{name}: {what}" in numbers else "-" for name in told)
        )
    above = numbers[f"{STUDENT}: above the teacher"]
    Console().print(table, f"student: {above:+.1%}, {'within' if above <= BOUND else 'not within'} {BOUND:.0%}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=(__doc__ or "").splitlines()[0]))
    except (ValueError, OSError) as error:
        sys.exit(f"distill: {error}")
