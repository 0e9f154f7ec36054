"""What the loop and a stage tell each other: a run's settings, a process's share of a batch, the phases of a step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Run:
    """What every training run sets; stages add their own fields."""

    out: Path
    """Folder of the run: checkpoint, log, pictures and, at the end, the model."""
    steps: int = 120_000
    """Optimiser steps in all."""
    batch: int = 32
    """Scenes per step."""
    learning_rate: float = 2e-4
    """Peak rate of AdamW."""
    warmup: int = 8_000
    """Steps of linear warm-up before the cosine."""
    final_rate: float = 0.1
    """Share of the peak rate that the cosine ends at."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.9978
    """Decay of the averaged weights, which are the ones validated and saved."""
    precision: str = "bf16-mixed"
    """Fabric's name: 32-true or bf16-mixed."""
    seed: int = 0
    """Of weights, batches and noise."""
    log_every: int = 20
    """Steps between lines of log.jsonl and speed.jsonl."""
    save_every: int = 500
    """Steps between checkpoints."""
    validate_every: int = 1_000
    """Steps between validations with pictures."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """Processes of a machine that share every batch, one a device; on a CPU each takes its share of the cores."""
    nodes: int = 1
    """Machines, each with so many devices; torchrun starts the command on them and says both numbers itself."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What a process holds: ddp all weights, fsdp (FSDP2) a part of the transformer blocks' and all others."""
    accumulate: int = 1
    """Passes that a process goes through its share of a batch in, for less memory; the gradients are the same."""
    checkpoint_activations: bool = False
    """Compute a transformer block's activations again on the way back instead of keeping them, for less memory."""
    compile: bool = False
    """Compile the transformer blocks (torch.compile), once for each shape."""


HOW = ("device", "devices", "nodes", "strategy", "accumulate", "checkpoint_activations", "compile")
HOW_OFTEN = ("out", "log_every", "save_every", "validate_every")
FREE = (*HOW, *HOW_OFTEN)  # settings that may change when a run is resumed


class Share(NamedTuple):
    """Which part of every batch this process, or one of its passes, has."""

    index: int = 0
    of: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Every `of`-th element, from `index` on."""
        return x[self.index :: self.of]

    def passes(self, count: int) -> list["Share"]:
        """The same part in so many smaller ones."""
        return [Share(self.index + self.of * number, self.of * count) for number in range(count)]


WHOLE = Share()


@runtime_checkable  # so that tests can check types
class Stage(Protocol):
    """What a stage of training tells the loop."""

    modules: dict[str, nn.Module]  # in training
    optimizers: dict[str, list[Optimizer]]  # by phase; a phase may step several at once

    def batch(self, step: int, share: Share = WHOLE) -> Any:
        """One process's share of a step's batch, drawn from the step's number alone: resuming is exact that way."""
        ...

    def phases(self, batch: Any, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Phase names with the losses to be summed; the loop steps between yields."""
        ...

    def validate(self) -> tuple[dict[str, float], Float[Tensor, "3 height width"]]:
        """Numbers on validation data and a picture of what they mean, from the averaged weights."""
        ...

    def save(self, folder: Path) -> None:
        """Write the finished models (averaged weights) for `load`."""
        ...


def learning_rate_share(step: int, run: Run) -> float:
    """Linear warm-up, then a cosine down to `final_rate`."""
    if step < run.warmup:
        return (step + 1) / run.warmup
    progress = min(1.0, (step - run.warmup) / max(1, run.steps - run.warmup))
    return run.final_rate + (1 - run.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def step_generator(seed: int, step: int, stream: int, process: int = 0) -> torch.Generator:
    """Random numbers of one step: the same whether or not training stopped before it."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + step) * 7 + stream) * 4_099 + process)


def matrix_optimizers(module: nn.Module, run: Run, muon_rate: float) -> list[Optimizer]:
    """Muon for the blocks' matrices and AdamW for the rest; AdamW for all where `muon_rate` is 0 (the paper)."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    blocks = (".blocks.", "neck.", "blocks.")
    matrices = {n: p for n, p in parameters.items() if muon_rate and p.ndim == 2 and any(b in n for b in blocks)}
    rest = [p for name, p in parameters.items() if name not in matrices]
    optimizers: list[Optimizer] = [torch.optim.AdamW(rest, run.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)]
    if matrices:
        muon = torch.optim.Muon(list(matrices.values()), lr=muon_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers
