"""What every benchmark shares: clocks, counted operations, and the file of numbers with the machine and the command."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diorama.evaluation.benchmark import device_name


def write_numbers(out: Path, numbers: dict[str, float], settings: dict[str, Any], device: str, **more: Any) -> None:
    """Numbers, the settings and the command that gave them, and the machine, as JSON."""
    machine = {
        "cpu": device_name("cpu"),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # programs that want a core: 1 or less on a quiet machine
        "torch": metadata.version("torch"),
    }
    if device != "cpu":
        machine["gpu"] = torch.cuda.get_device_name()
    found = {"command": command(sys.argv), "numbers": numbers, "settings": settings, "machine": machine, **more}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def command(words: Sequence[str]) -> str:
    """How the script was called: without where its results go, and without the folders of this machine."""
    told, rest = ["python", f"benchmarks/{Path(words[0]).name}"], list(words[1:])
    while rest:
        word = rest.pop(0)
        if word == "--out":
            rest[:1] = []
        elif not word.startswith("--out="):
            told.append(Path(word).name if os.path.isabs(word) else word)
    return " ".join(told)


def clock(device: str) -> float:
    """Seconds of this process on a CPU, which a busy machine disturbs less; by the wall once a GPU has finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def best_seconds(works: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Shortest time of each in turns; the first turn warms up and does not count."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = clock(device)
            work()
            spent = clock(device) - start
            best[name] = min(best[name], spent) if turn else best[name]
    return best


def frozen(module: nn.Module, kind: torch.dtype) -> Any:
    """The module for inference, its weights in another precision: what counts operations would look for gradients."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(kind)
    return module.eval().requires_grad_(False)


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention; also of what is only on "meta"."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_gib(work: Callable[[], object], device: str) -> float | None:
    """Most memory on a GPU at once, weights included; None on a CPU, whose allocator does not tell."""
    if device == "cpu":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**30


def peak_rate(kind: torch.dtype, device: str) -> float:
    """Operations a second of a large matrix product, by the same clock as all else here."""
    side = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / best_seconds({"product": lambda: torch.mm(a, b)}, 5, device)["product"]
