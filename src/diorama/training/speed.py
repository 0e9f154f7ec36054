"""How fast a run is: samples a second, and the share of the device's arithmetic that its model uses (MFU)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

KINDS = 16  # of batches whose operations are counted; counting each of endlessly many would cost time


class Meter:
    """Measures steps; those of a new kind are counted instead, by torch's FlopCounterMode, and not timed.

    What is computed again instead of kept does not count, so that the share is the model's and not the hardware's.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self.device, self.precision = device, precision
        self.counted: dict[tuple[tuple[int, ...], ...], int] = {}
        self._losses: tuple[str, ...] = ()
        self._counter: FlopCounterMode | None = None
        self._again = 0
        self._peak: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._samples, self._operations, self._seconds = 0, 0.0, 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step, which `begin` tells what it is about."""
        start, self._kind, self._fresh = time.perf_counter(), (), False
        yield
        if not self._fresh:
            self._samples += sum(shape[0] for shape in self._kind[:: self._parts])
            known = self.counted.get(self._kind)
            self._operations += sum(self.counted.values()) / len(self.counted) if known is None else known
            self._seconds += time.perf_counter() - start

    def begin(self, batches: list[Any]) -> None:
        """What a step's passes get; where its shapes are new it is counted."""
        self._kind = tuple(shape for batch in batches for shape in shapes(batch))
        self._parts = max(1, len(self._kind) // len(batches))
        self._fresh = self._kind not in self.counted and len(self.counted) < KINDS
        if self._fresh:
            self.counted[self._kind] = 0

    def made(self, losses: tuple[str, ...]) -> None:
        """Which losses the step had; once there are others its work is another, too, and is counted again."""
        if self._losses not in ((), losses):
            self.counted.clear()
        self._losses = losses

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Forward and backward passes, whose operations belong to the model."""
        if not self._fresh:
            yield
            return
        self._again = 0
        # What it would take apart, rounding gradients differently: a resumed run, which counts again, would show it.
        aten = torch.ops.aten
        whole = dict.fromkeys((aten.silu_backward.default, aten._upsample_nearest_exact2d.default), lambda *_, **__: 0)
        counter = FlopCounterMode(display=False, custom_mapping=whole)
        with counter as self._counter, torch.compiler.set_stance("force_eager"):
            yield
        self.counted[self._kind] += self._counter.get_total_flops() - self._again
        self._counter = None

    @contextmanager
    def again(self) -> Iterator[None]:
        """What is computed for the second time."""
        before = 0 if self._counter is None else self._counter.get_total_flops()
        try:
            yield
        finally:  # torch leaves by an error once it has what it needs
            if self._counter is not None:
                self._again += self._counter.get_total_flops() - before

    def peak(self) -> float:
        """Operations a second of a large matrix product in the run's precision, measured once."""
        if self._peak is None:
            self._peak = matmul_rate(self.device, self.precision)
        return self._peak

    def told(self) -> dict[str, float]:
        """This process's numbers since they were last asked for; nothing where no step was timed."""
        if not self._samples:
            return {}
        rate, speed, peak = self._operations / self._seconds, self._samples / self._seconds, self.peak()
        self._clear()
        return {"samples_per_second": speed, "mfu": rate / peak, "flops": rate, "measured_peak_flops": peak}


def matmul_rate(device: torch.device, precision: str) -> float:
    """Operations a second of the fastest of some matrix products, in what Fabric's `precision` computes in."""
    kind = torch.bfloat16 if "bf16" in precision else torch.float16 if precision.startswith("16") else torch.float32
    side, repeats = (1024, 3) if device.type == "cpu" else (8192, 20)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def shapes(batch: Any) -> list[tuple[int, ...]]:
    """Shapes of a batch's tensors, which say how much work it is; the first's first is the number of samples."""
    if isinstance(batch, Tensor):
        return [tuple(batch.shape)]
    if is_dataclass(batch):
        batch = [getattr(batch, field.name) for field in fields(batch)]
    return [shape for part in batch for shape in shapes(part)] if isinstance(batch, (list, tuple)) else []
