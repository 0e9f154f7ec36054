"""Do Gen3R's orderings hold here? Small arms trained on Worlds, compared in pairs; writes results/gen3r_ablations.json.

    python benchmarks/gen3r_ablations.py                                              # from nothing
    python benchmarks/gen3r_ablations.py --vggt A/model --video-vae B/model --adapter C/model --adapter-none D/model
    python benchmarks/gen3r_ablations.py --arms two-stage wvd                         # trains these, compares nothing

(a) The adapter with and without KL to the video's latents, each with a denoiser of its own; (b) one denoiser of video
and geometry against two stages, video first and VGGT after it; (c) what the adapter alone leaves of VGGT's geometry;
(d) WVD's way, where the video VAE encodes VGGT's point maps instead. Every arm gets the same minutes of its process's
own time (on a GPU, of the clock): a few steps are timed first, which fixes their number in the arm's `plan.json`.
Denoisers learn what is compared, one view with cameras, from latents that are made beforehand, in nobody's budget. A
run that was stopped continues, and what is trained or measured stays. Scores are over test worlds; intervals are 95 %
of a bootstrap that draws scenes, paired between arms. `ablation/gen3r_arms.py` says what is trained,
`ablation/gen3r_claims.py` what is compared.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from ablation import gen3r_claims
from ablation.budget import Budget, trained
from ablation.gen3r_arms import ARMS, FOUNDATIONS, PIPELINES, Plan, prepared
from ablation.gen3r_claims import CLAIMS, Evaluated, Scores
from ablations import show
from machine import write_numbers
from rich.console import Console

from diorama.data.cache import WorldsCache, write_cache
from diorama.data.worlds import SPLITS, WORLDS_VERSION
from diorama.evaluation.metrics import paired_bootstrap

SIDE, VIEWS = 112, 17  # pixels and views of the worlds that are rendered here


@dataclass(frozen=True)
class Options:
    """How long, of what, and where it goes."""

    budget_minutes: float = 10.0
    """Of training, for each adapter and each denoiser."""
    foundation_minutes: float = 30.0
    """Of training, for VGGT and for the video VAE where they are not given."""
    out: Path = Path("runs/gen3r_ablations")
    """The arms' runs, their scores and the rendered scenes are kept here."""
    results: Path = Path(__file__).parent / "results" / "gen3r_ablations.json"
    """The file that gets the numbers."""
    train: Path | None = None
    """Rendered Worlds of the train split at a multiple of 112 pixels, instead of rendering them."""
    validation: Path | None = None
    """The same of the validation split."""
    test: Path | None = None
    """The same of the test split."""
    train_scenes: int = 2000
    """Scenes to render where --train is not given."""
    test_scenes: int = 64
    """Scenes that the arms are compared on."""
    vggt: Path | None = None
    """Folder of a trained VGGT, instead of training one."""
    video_vae: Path | None = None
    """Folder of a trained video VAE, instead of training one."""
    adapter: Path | None = None
    """Folder of an adapter trained with KL (`--alignment video`), instead of training one."""
    adapter_none: Path | None = None
    """Folder of an adapter trained without (`--alignment none`), instead of training one."""
    worlds: int = 256
    """Of the train scenes, that denoisers learn from: their latents are made beforehand."""
    frames: int = 9
    """Of a clip, 4k + 1: the first of its scene's path."""
    batch: int = 4
    """Clips a step of VGGT, adapters and denoisers."""
    device: str = "cpu"
    """cpu or cuda."""
    only: tuple[str, ...] = ()
    """Names of comparisons, to train and compare no more than these need."""
    arms: tuple[str, ...] = ()
    """Train these arms, and what they need, and compare nothing."""
    smoke: bool = False
    """A few worlds, the smallest models and one step of each: does it run? Its numbers mean nothing."""

    def __post_init__(self) -> None:
        for flag, chosen, known in (("only", self.only, CLAIMS), ("arms", self.arms, ARMS)):
            if unknown := sorted(set(chosen) - set(known)):
                raise ValueError(f"--{flag} {unknown[0]}: accepted are {', '.join(known)}")
        if min(self.budget_minutes, self.foundation_minutes) <= 0 or self.test_scenes < 2 or self.worlds < 1:
            raise ValueError("accepted are budgets above 0, one world to learn from and two test scenes, or more")
        if self.frames % 4 != 1:
            raise ValueError(f"--frames {self.frames}: accepted are 4k + 1")

    @property
    def given(self) -> dict[str, Path]:
        """Models that are not trained here, by arm."""
        named = {"vggt": self.vggt, "video-vae": self.video_vae}
        named |= {"adapter": self.adapter, "adapter-none": self.adapter_none}
        return {arm: folder for arm, folder in named.items() if folder is not None}


def main(options: Options) -> None:
    """Render, train what is missing, compare, print and write."""
    console = Console()
    chosen = {name: claim for name, claim in CLAIMS.items() if not options.only or name in options.only}
    arms = needed(set(options.arms) or {arm for claim in chosen.values() for arm in claim.arms}, set(options.given))
    plan = planned(options)
    for name in arms:
        train(name, plan, options, console)
    if options.arms:
        return
    torch.set_num_threads(1)
    evaluated = Evaluated(plan, options.test_scenes, console.print)
    verdicts = [verdict for claim in chosen.values() for verdict in claim.compared(evaluated)]
    rows = table(evaluated)
    show_scores(rows)
    show(verdicts)
    plain = {name: value for name, value in asdict(options).items() if isinstance(value, int | float)}
    settings: dict[str, Any] = plain | {"worlds_version": WORLDS_VERSION, "sampling_steps": gen3r_claims.STEPS}
    settings["arms"] = {name: json.loads((plan.out / name / "plan.json").read_text()) for name in arms}
    settings["given"] = {name: lasted(folder) for name, folder in plan.given.items()}
    found = [verdict._asdict() | {"finding": verdict.finding} for verdict in verdicts]
    numbers = {f"{row['what']}: {row['number']}": row["mean"] for row in rows}
    write_numbers(options.results, numbers, settings, options.device, verdicts=found, scores=rows)
    console.print(f"written to {options.results}")


def needed(names: set[str], given: set[str]) -> list[str]:
    """These arms and all that they start from, in the order of ARMS, without what is given."""
    while more := {need for name in names - given for need in ARMS[name].needs} - names:
        names |= more
    return [name for name in ARMS if name in names - given]


def planned(options: Options) -> Plan:
    """What all arms share; worlds are rendered unless they are there."""
    small = options.smoke
    size = dict(views=5 if small else VIEWS, height=SIDE, width=SIDE, samples=1 if small else 4)

    def worlds(given: Path | None, split: str, scenes: int) -> Path:
        if given is not None:
            WorldsCache(given, allow_test=True)  # refused before anything is trained
            return given
        seeds, folder = SPLITS[split][:scenes], options.out / "worlds" / f"{split}-{scenes}"
        if not (folder / "meta.json").exists():
            Console().print(f"rendering {scenes} scenes ({split})")
        return write_cache(folder, seeds, workers=1 if small else os.cpu_count() or 1, **size)

    return Plan(
        out=options.out,
        train=worlds(options.train, "train", 2 if small else options.train_scenes),
        validation=worlds(options.validation, "validation", 1 if small else 16),
        test=worlds(options.test, "test", options.test_scenes),
        given=options.given,
        frames=5 if small else options.frames,
        worlds=options.worlds,
        batch=1 if small else options.batch,
        device=options.device,
        precision="32-true" if small else "bf16-mixed",
        small=small,
    )


def train(name: str, plan: Plan, options: Options, console: Console) -> None:
    """Train an arm unless its model is there."""
    arm, folder = ARMS[name], plan.out / name
    if not (folder / "model").is_dir() and name in PIPELINES:
        console.print(f"{name}: latents of {plan.worlds} worlds")
        prepared(name, plan)
    minutes = options.foundation_minutes if name in FOUNDATIONS else options.budget_minutes
    budget = Budget(1e-9, plan.device, warm=0, timed=1) if options.smoke else Budget(minutes, plan.device)
    steps, seconds = trained(folder, arm.what, lambda steps: arm.build(plan, folder, steps), budget)
    console.print(f"{name}: {steps} steps of {seconds:.3f} s, {arm.what}")


def lasted(model: Path) -> str:
    """What the log beside a given model says of its training."""
    log = model.parent / "log.jsonl"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []
    return f"given, {max(steps)} steps" if steps else "given"


def table(of: Evaluated) -> list[dict[str, Any]]:
    """Every score of every arm that was measured: its mean with the bootstrap's interval."""
    names = [("first frame repeated", {"psnr": of.repeated()})]
    for file in sorted((of.plan.out / "scores").glob("*.json")):
        found = json.loads(file.read_text())
        if found["settings"] == of.settings:
            scores: Scores = {key: torch.tensor(x, dtype=torch.float64) for key, x in found["scores"].items()}
            names.append((file.stem, scores))
    rows = []
    for what, scores in names:
        for number, values in scores.items():
            mean, low, high = paired_bootstrap(values, torch.zeros_like(values))
            rows.append({"what": what, "number": number, "mean": mean, "low": low, "high": high})
    return rows


def show_scores(rows: list[dict[str, Any]]) -> None:
    """Print the arms' scores, a line for each."""
    columns = gen3r_claims.NUMBERS
    print("| | " + " | ".join(columns) + " |\n" + "|---" * (1 + len(columns)) + "|")
    for what in dict.fromkeys(row["what"] for row in rows):
        own = {row["number"]: row for row in rows if row["what"] == what}
        told = {name: "{mean:.4g} [{low:.4g}, {high:.4g}]".format(**row) for name, row in own.items()}
        print(f"| {what} | " + " | ".join(told.get(name, "") for name in columns) + " |")
    print()


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description="Train Gen3R's parts and small denoisers on Worlds; compare them in pairs."))
    except (ValueError, OSError) as error:
        sys.exit(f"gen3r_ablations: {error}")
