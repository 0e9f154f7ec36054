"""The one training loop: any stage, on Lightning Fabric, resumable to the exact next loss."""

import json
import math
import os
import pickle
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from lightning.fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

CHECKPOINT_VERSION = 1


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
    """Steps between lines of log.jsonl."""
    save_every: int = 500
    """Steps between checkpoints."""
    validate_every: int = 1_000
    """Steps between validations with pictures."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """Processes that share every batch, one a device (DDP); on a CPU each takes its share of the cores."""


class Share(NamedTuple):
    """Which part of every batch this process has."""

    index: int = 0
    of: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Every `of`-th element, from `index` on."""
        return x[self.index :: self.of]


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


class Diverged(ValueError):
    """A loss or gradient that is not finite, in whichever process; all of them raise it."""


class Trainer:
    """Runs a stage from where its folder left off to the end; as a context it also ends the processes it started."""

    def __init__(self, stage: Stage, run: Run) -> None:
        self.stage, self.run, self.step = stage, run, 0
        if run.batch % run.devices:
            found = f"a batch of {run.batch} over {run.devices} devices"
            raise ValueError(f"{found}: accepted is a multiple of {run.devices}")
        self.checkpoint, self.log = run.out / "checkpoint.pt", run.out / "log.jsonl"
        state = self._read() if self.checkpoint.exists() else None  # refused before other processes are started
        strategy = "ddp" if run.devices > 1 else "auto"
        self.fabric = Fabric(accelerator=run.device, strategy=strategy, devices=run.devices, precision=run.precision)  # type: ignore[arg-type]
        try:
            self.fabric.launch()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        self.share = Share(self.fabric.global_rank, self.fabric.world_size)
        for module in stage.modules.values():
            module.to(self.fabric.device)
        self.ema = EMAModel(self._parameters(), decay=run.ema, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.ema.to(self.fabric.device)
        if state is not None:
            self._restore(state)

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the process group; after an error the first process ends the others, which may be waiting for it."""
        started: list[subprocess.Popen] = getattr(self.fabric.strategy.launcher, "procs", [])
        others = list(started)
        if kind is not None:
            started.clear()  # else Lightning's watch sees them end and kills this process too
            for process in others:
                process.kill()
        elif torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for process in others:
            process.wait()

    def _parameters(self) -> list[nn.Parameter]:
        return [p for module in self.stage.modules.values() for p in module.parameters() if p.requires_grad]

    def train(self, until: int | None = None) -> None:
        """Train to the run's last step, or to `until`; a stop at any moment loses at most `save_every` steps."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from torch.utils.tensorboard import SummaryWriter

        end, leads = self.run.steps if until is None else min(until, self.run.steps), self.fabric.is_global_zero
        if leads:
            self.run.out.mkdir(parents=True, exist_ok=True)
            self._forget()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        board = SummaryWriter(str(self.run.out / "tensorboard"), purge_step=self.step + 1) if leads else nullcontext()
        with board, Progress(*columns, disable=not leads) as progress:
            task = progress.add_task("training", total=self.run.steps, completed=self.step)
            while self.step < end:
                losses = self.train_step()
                progress.update(task, completed=self.step, description=f"loss {losses['loss']:.4f}")
                if self.step % self.run.log_every == 0:
                    losses = self._mean(losses)
                if leads:
                    self._keep(board, losses, end)
        if leads and self.step == self.run.steps:
            with self.averaged():
                self.stage.save(self.run.out / "model")
        self.fabric.barrier()  # what the first process wrote is there for all

    def _keep(self, board: Any, losses: dict[str, float], end: int) -> None:
        """What is due after this step: a line of the log, a validation, a checkpoint."""
        if self.step % self.run.log_every == 0:
            self._log(board, losses)
        if self.step % self.run.validate_every == 0 or self.step == self.run.steps:
            self._validate(board)
        if self.step % self.run.save_every == 0 or self.step == end:
            self._save()

    def train_step(self) -> dict[str, float]:
        """One step of every phase; the losses before it."""
        run, report = self.run, {"loss": 0.0}
        batch = self.stage.batch(self.step, self.share)
        share = learning_rate_share(self.step, run)
        with self.fabric.autocast():
            phases = self.stage.phases(batch, step_generator(run.seed, self.step, 1, self.share.index))
            for name, losses in phases:
                total = torch.stack([loss.float() for loss in losses.values()]).sum()
                self.fabric.backward(total)
                optimizers = self.stage.optimizers[name]
                groups = [group for optimizer in optimizers for group in optimizer.param_groups]
                parameters = [p for group in groups for p in group["params"]]
                self._check(f"{name} loss", self._average_gradients(parameters, total.detach()))
                norm = nn.utils.clip_grad_norm_(parameters, run.clip)
                self._check(f"{name} gradient", norm)
                for group in groups:
                    group["lr"] = share * group.setdefault("peak_lr", group["lr"])
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                report |= {key: float(value.detach()) for key, value in losses.items()}
                report |= {f"{name}_gradient_norm": float(norm)}
                report["loss"] += float(total.detach())
        self.ema.step(self._parameters())
        self.step += 1
        return report | {"learning_rate": share * run.learning_rate}

    def _average_gradients(self, parameters: list[nn.Parameter], loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Every process gets the mean of all, and of the loss, in one message: what is not finite in one is so in all.

        Stages call many methods of a model, which DDP's own hooks do not follow.
        """
        if self.share.of == 1:
            return loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        mean = self.fabric.all_reduce(nn.utils.parameters_to_vector([*gradients, loss]), reduce_op="mean")
        nn.utils.vector_to_parameters(mean[:-1], gradients)  # type: ignore[arg-type]
        return mean[-1]  # type: ignore[index]

    def _check(self, what: str, value: Float[Tensor, ""]) -> None:
        if not value.isfinite():
            raise Diverged(f"step {self.step}: {what} is {value.item()}; lower the learning rate")

    def _mean(self, values: dict[str, float]) -> dict[str, float]:
        """The numbers' means over all processes."""
        if self.share.of == 1:
            return values
        mean = self.fabric.all_reduce(torch.tensor(list(values.values()), device=self.fabric.device), reduce_op="mean")
        return dict(zip(values, mean.tolist(), strict=True))  # type: ignore[union-attr]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the raw ones."""
        self.ema.store(self._parameters())
        self.ema.copy_to(self._parameters())
        try:
            yield
        finally:
            self.ema.restore(self._parameters())

    def _forget(self) -> None:
        """Drop what was logged after the checkpoint, whose steps come again, and a line that a crash cut short."""
        if not self.log.exists():
            return
        lines = self.log.read_text().splitlines(keepends=True)
        draft = self.log.with_suffix(".part")
        draft.write_text("".join(x for x in lines if x.endswith("}\n") and json.loads(x)["step"] <= self.step))
        os.replace(draft, self.log)

    def _log(self, board: Any, values: dict[str, float]) -> None:
        with self.log.open("a") as log:
            log.write(json.dumps({"step": self.step, **{key: round(value, 6) for key, value in values.items()}}) + "\n")
        for key, value in values.items():
            board.add_scalar(key, value, self.step)

    def _validate(self, board: Any) -> None:
        with self.averaged(), torch.no_grad(), self.fabric.autocast():
            values, picture = self.stage.validate()
        self._log(board, {f"validation_{key}": value for key, value in values.items()})
        pixels = picture.float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(pixels).save(self.run.out / f"sample_{self.step:07d}.png")

    def _save(self) -> None:
        state = {
            "version": CHECKPOINT_VERSION,
            "step": self.step,
            "run": {key: str(value) for key, value in asdict(self.run).items()},
            "modules": {name: module.state_dict() for name, module in self.stage.modules.items()},
            "optimizers": {
                name: [optimizer.state_dict() for optimizer in optimizers]
                for name, optimizers in self.stage.optimizers.items()
            },
            "ema": self.ema.state_dict(),
        }
        temporary = self.checkpoint.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def _read(self) -> dict[str, Any]:
        """The checkpoint; ValueError if it is no such file, of another version or made with other settings."""
        try:  # to the CPU, where AdamW keeps its count of steps; the rest is moved as it is loaded
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            version = state.get("version")
        except (RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
            found = str(error).partition("\n")[0]
            raise ValueError(f"{self.checkpoint}: no readable checkpoint ({found}); accepted is a run's own") from None
        if version != CHECKPOINT_VERSION:
            raise ValueError(f"{self.checkpoint}: checkpoint version {version}, accepted is {CHECKPOINT_VERSION}")
        changed = {
            key: (state["run"].get(key), str(value))
            for key, value in asdict(self.run).items()
            if key not in ("out", "device", "log_every", "save_every", "validate_every")
            and state["run"].get(key, str(value)) != str(value)
        }
        if changed:
            settings = ", ".join(f"{key} was {old}, is {new}" for key, (old, new) in changed.items())
            raise ValueError(f"{self.checkpoint}: made with other settings ({settings}); use them or another --out")
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        for name, module in self.stage.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizers in self.stage.optimizers.items():
            for optimizer, saved in zip(optimizers, state["optimizers"][name], strict=True):
                optimizer.load_state_dict(saved)
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.fabric.device)
        self.step = state["step"]


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
