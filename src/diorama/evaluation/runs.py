"""What an evaluation run leaves in its folder (run.json, scenes.jsonl, summary.json), read back and checked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the files must hold, by example: [form] and {str: form} repeat, a tuple lists what is accepted. More is allowed.
NUMBER = (float, None)
INTERVAL = {"low": NUMBER, "high": NUMBER}
RUN = {
    "method": {"name": str, "licence": str, "settings": dict},
    "benchmark": {"name": str, "hash": str, "protocol": dict, "scenes": int, "notes": [str]},
    "hardware": dict,
    "versions": dict,
}
SCENE = {
    "setting": str,
    "scene": str,
    "known": [int],
    "metrics": {str: NUMBER},
    "views": [{"known": bool, "distance": NUMBER, "metrics": {str: NUMBER}}],
    "cameras": ({"true": [[float]], "estimated": ([[float]], None)}, None),
    "strip": (str, None),
    "failure": (str, None),
}
SUMMARY = {
    "rows": [{"setting": str, "metric": str, "mean": NUMBER, **INTERVAL, "scenes": int, "better": str}],
    "pooled": [{"setting": str, "metric": str, "value": NUMBER, **INTERVAL, "images": int}],
    "timing": [{"setting": str, "seconds_per_16_views": NUMBER, "peak_memory_mib": NUMBER, "device": (str, None)}],
}
NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", None: "null"}
NAMES |= {list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Run:
    """One evaluation run as its folder holds it."""

    label: str  # unique among the runs read together
    folder: Path
    about: dict[str, Any]  # run.json
    scenes: list[dict[str, Any]]  # one for each setting and scene
    summary: dict[str, list[dict[str, Any]]]

    def of(self, setting: str) -> dict[str, dict[str, Any]]:
        """The scenes of one setting by name."""
        return {scene["scene"]: scene for scene in self.scenes if scene["setting"] == setting}

    def row(self, part: str, setting: str, metric: str | None = None) -> dict[str, Any]:
        """The summary's row of that setting and metric; empty where it has none."""
        rows = (row for row in self.summary[part] if row["setting"] == setting)
        return next((row for row in rows if metric is None or row["metric"] == metric), {})


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, labelled by their method; ValueError in one line for what is no evaluation run."""
    if not folders:
        raise ValueError("no evaluation run was named; accepted are one or more folders that hold run.json")
    runs: list[Run] = []
    for folder in map(Path, folders):
        about, summary = _read(folder / "run.json", RUN), _read(folder / "summary.json", SUMMARY)
        file = folder / "scenes.jsonl"
        lines = [(f"{file}, line {n}", line) for n, line in enumerate(_text(file).split("\n"), 1) if line.strip()]
        scenes = [_checked(_parsed(line, where), SCENE, where) for where, line in lines]
        taken, label = [run.label for run in runs], about["method"]["name"]
        if label in taken:
            label = f"{label}, {folder.resolve().name}"
        runs.append(Run(label if label not in taken else f"{label} ({len(runs) + 1})", folder, about, scenes, summary))
    return runs


def _read(file: Path, form: Any) -> Any:
    return _checked(_parsed(_text(file), str(file)), form, str(file))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "not UTF-8"
        raise ValueError(f"{file}: {found}; accepted is what an evaluation run wrote") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}; accepted is JSON") from error


def _checked(value: Any, form: Any, where: str) -> Any:
    """`value`, which has the form; otherwise ValueError with the place, what was found and what is accepted."""
    kinds = form if isinstance(form, tuple) else (form,)
    fitting = next((kind for kind in kinds if _fits(value, kind)), kinds)
    if fitting is kinds:
        names = (NAMES[type(kind) if isinstance(kind, list | dict) else kind] for kind in kinds)
        raise ValueError(f"{where}: found {value!r:.40}, accepted is {' or '.join(names)}")
    if isinstance(fitting, list):
        for number, entry in enumerate(value):
            _checked(entry, fitting[0], f"{where}, entry {number}")
    for key, part in fitting.items() if isinstance(fitting, dict) else ():
        if key is str:
            for name, entry in value.items():
                _checked(entry, part, f"{where}, {name!r:.40}")
        elif key in value:
            _checked(value[key], part, f"{where}, {key}")
        else:
            raise ValueError(f"{where}: lacks {key!r}; accepted is what an evaluation run wrote")
    return value


def _fits(value: Any, kind: Any) -> bool:
    if kind is None or isinstance(value, bool):
        return value is kind or (kind is bool and isinstance(value, bool))
    if isinstance(kind, list | dict):
        return isinstance(value, type(kind))
    return isinstance(value, int | float if kind is float else kind)
