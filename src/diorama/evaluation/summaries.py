"""From a run's lines to its summary: means with intervals, distances between sets, and what it cost."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diorama.evaluation.frechet import MINIMUM_IMAGES, bootstrap, frechet_distance, kernel_distance
from diorama.evaluation.metrics import better, paired_bootstrap
from diorama.evaluation.scoring import Instruments

Line = dict[str, Any]  # of scenes.jsonl
KINDS = ("generated", "true")


def rows(lines: Sequence[Line], tools: Instruments) -> list[dict[str, Any]]:
    """Mean of every metric over scenes, with the 95 % interval of a bootstrap that draws scenes."""
    table = []
    for setting, part in by_setting(lines).items():
        failures = sum(line["failure"] is not None for line in part)
        names = dict.fromkeys(name for line in part for name in line["metrics"])
        for metric in names or ("psnr",):  # a setting in which all failed has its failures somewhere
            found = [line["metrics"][metric] for line in part if metric in line["metrics"]]
            values = torch.tensor([value for value in found if value is not None], dtype=torch.float64)
            interval = paired_bootstrap(values, torch.zeros_like(values)) if len(values) else (None, None, None)
            missed = 0 if metric in tools.blank else len(found) - len(values)
            row: dict[str, Any] = {"setting": setting, "metric": metric}
            row |= dict(zip(("mean", "low", "high"), map(_rounded, interval), strict=True))
            better_is = "higher" if metric.startswith("vbench_") else better(metric)
            table.append(row | {"scenes": len(values), "failures": failures + missed, "better": better_is})
    return table


def pooled(lines: Sequence[Line], tools: Instruments, parts: Path) -> list[dict[str, Any]]:
    """Distances between all scored pictures and the true ones; None where these are too few to say anything."""
    table = []
    for setting, answered in by_setting(lines).items():
        files = [parts / place(setting, line["scene"], ".npz") for line in answered if line["failure"] is None]
        held = [_arrays(file) for file in files if file.is_file()]
        for features in tools.features if held else []:
            sets = [[torch.from_numpy(arrays[f"{features.name}/{kind}"]) for arrays in held] for kind in KINDS]
            scene = torch.repeat_interleave(torch.arange(len(held)), torch.tensor([len(values) for values in sets[0]]))
            made, true = map(torch.cat, sets)
            for key, distance in (("fd", frechet_distance), ("kd", kernel_distance)):
                row = {"setting": setting, "metric": f"{key}_{features.name}", "value": None, "low": None, "high": None}
                if len(made) >= MINIMUM_IMAGES and len(held) > 1:
                    found = bootstrap(distance, made, true, (scene, scene), minimum=MINIMUM_IMAGES)
                    row |= {name: _rounded(getattr(found, name)) for name in ("value", "low", "high")}
                table.append(row | {"images": len(made)})
    return table


def timings(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Mean time and greatest memory of each setting."""
    table = []
    for setting, part in by_setting(lines).items():
        costs = [line["timing"] for line in part if line["failure"] is None]
        memory = [cost["peak_memory_mib"] for cost in costs if cost["peak_memory_mib"] is not None]
        seconds = [cost["seconds_per_16_views"] for cost in costs]
        row = {"setting": setting, "seconds_per_16_views": sum(seconds) / len(seconds) if seconds else None}
        device = costs[0]["device"] if costs else None
        table.append(row | {"peak_memory_mib": max(memory, default=None), "device": device})
    return table


def slug(setting: str) -> str:
    """A setting's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", setting.lower()).strip("-")


def place(setting: str, scene: str, ending: str) -> Path:
    """Where a scene's file of some kind lies among others of that kind."""
    return Path(slug(setting)) / (scene.replace("/", "_") + ending)


def by_setting(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each setting, in their order."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["setting"], []).append(line)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)
