"""A folder as an evaluation run leaves it: scenes and settings, numbers that are missing, one scene that failed."""

import json
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image

HOSTILE = '<script>alert("x")</script>\'"&{{ 7 * 7 }}</style>'
SETTINGS = {"1 known": (0,), "2 known": (0, 7), "4 known": (0, 2, 5, 7)}
VIEWS, SCENES, FAILED = 8, ("10100000", "10100001", "10100002", "10100003", HOSTILE), "10100002"
NOTE = "lpips_vgg is not measured: its weights are absent; `diorama download lpips-vgg` fetches them."


def fake_run(folder: Path, *, name: str = "tiny", lift: float = 0.0, hash: str = "5f1d", size: int = 64) -> Path:
    """Write a run whose PSNR is `lift` dB above the plain one's, with strips of `size` pixels a view; its path."""
    folder.mkdir(parents=True)
    lines = []
    for index, (setting, known) in enumerate(SETTINGS.items()):
        lines += [scene_line(folder, setting, known, scene, lift + 2 * index, size) for scene in SCENES]
    about = {
        "method": {"name": name, "licence": "Apache-2.0", "settings": {"steps": 50, "guidance": 2.0}},
        "benchmark": {
            "name": "worlds",
            "hash": hash,
            "protocol": {"views": VIEWS, "size": {"height": 64, "width": 64}, "score_known": False},
            "scenes": len(SCENES),
            "notes": [NOTE],
        },
        "hardware": {"device": "cpu", "threads": 1},
        "versions": {"diorama": "0.1.0", "torch": "2.13.0"},
    }
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "scenes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps(summary(lines)))
    return folder


def scene_line(folder: Path, setting: str, known: tuple[int, ...], scene: str, lift: float, size: int) -> dict:
    """One line of scenes.jsonl, its strip written."""
    random_numbers = random.Random(f"{setting} {scene}")
    angles = [0.9 * view / (VIEWS - 1) for view in range(VIEWS)]
    true = [[math.sin(angle), 0.0, 1 - math.cos(angle)] for angle in angles]
    failed = scene == FAILED and setting == "2 known"
    views = []
    for view in range(VIEWS):
        distance = min(math.dist(true[view], true[other]) for other in known)
        value = 16 + lift - 5 * distance + random_numbers.gauss(0, 0.8)
        metrics = {"psnr": value, "ssim": 0.3 + value / 60, "lpips_vgg": None}
        views.append({"view": view, "known": view in known, "distance": distance, "metrics": metrics})
    unseen = [view["metrics"] for view in views if not view["known"]]
    means = {name: sum(metrics[name] for metrics in unseen) / len(unseen) for name in ("psnr", "ssim")}
    number = f"{list(SETTINGS).index(setting)}-{SCENES.index(scene)}.png"
    if not failed:
        path = folder / "strips" / number
        path.parent.mkdir(exist_ok=True)
        write_strip(path, known, size, random_numbers.random())
    estimated = [[x + random_numbers.gauss(0, 0.02), y, z + random_numbers.gauss(0, 0.02)] for x, y, z in true]
    return {
        "setting": setting,
        "scene": scene,
        "known": list(known),
        "metrics": {"psnr": None, "ssim": None, "lpips_vgg": None} if failed else {**means, "lpips_vgg": None},
        "views": [] if failed else views,
        "cameras": None if failed else {"true": true, "estimated": estimated if setting == "1 known" else None},
        "strip": None if failed else f"strips/{number}",
        "failure": "out of memory: 12 GiB asked, 8 GiB there" if failed else None,
        "timing": {"seconds_per_16_views": None if failed else 1.2, "peak_memory_mib": 900.0, "device": "cpu"},
    }


def write_strip(path: Path, known: tuple[int, ...], size: int, shift: float) -> None:
    """Rows known, true, generated, error; a smooth picture that moves along the views."""
    y, x = np.mgrid[0:size, 0:size] / size
    true = [np.stack([x, y, np.sin(9 * (x + shift + 0.1 * v)) ** 2], -1) for v in range(VIEWS)]
    made = [0.8 * view + 0.1 for view in true]
    rows = [[view * (v in known) for v, view in enumerate(true)], true, made]
    rows.append([abs(a - b) * 3 for a, b in zip(true, made, strict=True)])
    pixels = np.concatenate([np.concatenate(row, 1) for row in rows], 0)
    Image.fromarray((pixels.clip(0, 1) * 255).astype("uint8")).save(path)


def summary(lines: list[dict]) -> dict:
    """summary.json of these lines."""
    rows, pooled, timing = [], [], []
    for setting in SETTINGS:
        scenes = [line for line in lines if line["setting"] == setting]
        for metric, better in (("psnr", "higher"), ("ssim", "higher"), ("lpips_vgg", "lower")):
            values = [line["metrics"][metric] for line in scenes if line["metrics"][metric] is not None]
            mean = sum(values) / len(values) if values else None
            ends = {"low": 0.97 * mean, "high": 1.02 * mean} if values else {"low": None, "high": None}
            failures = sum(line["failure"] is not None for line in scenes)
            counts = {"scenes": len(values), "failures": failures, "better": better}
            rows.append({"setting": setting, "metric": metric, "mean": mean, **ends, **counts})
        value = {"value": 31.5, "low": 28.0, "high": 36.25, "images": 35}
        pooled.append({"setting": setting, "metric": "fd_worlds64", **value})
        timing.append({"setting": setting, "seconds_per_16_views": 1.2, "peak_memory_mib": 900.0, "device": "cpu"})
    return {"rows": rows, "pooled": pooled, "timing": timing}
