"""The one training loop: any stage, on Lightning Fabric, resumable to the exact next loss."""

import json
import math
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor

from diorama.training import checkpoints
from diorama.training.speed import Meter
from diorama.training.stage import (
    WHOLE,
    Run,
    Share,
    Stage,
    learning_rate_share,
    matrix_optimizers,
    step_generator,
)  # fmt: skip
from diorama.training.strategies import (
    average_gradients,
    check_blocks,
    clip_gradients,
    gathered,
    local,
    open_fabric,
    place,
    prepare_blocks,
)  # fmt: skip

__all__ = [
    "WHOLE", "Diverged", "Run", "Share", "Stage", "Trainer", "learning_rate_share", "matrix_optimizers",
    "step_generator",
]  # fmt: skip


class Diverged(ValueError):
    """A loss or gradient that is not finite, in whichever process; all of them raise it."""


class Trainer:
    """Runs a stage from where its folder left off to the end; as a context it also ends the processes it started."""

    def __init__(self, stage: Stage, run: Run) -> None:
        self.stage, self.run, self.step = stage, run, 0
        self.log, self.speed_log, self.sharded = run.out / "log.jsonl", run.out / "speed.jsonl", run.strategy == "fsdp"
        self.fabric = open_fabric(run)
        check_blocks(stage, run)
        state = checkpoints.read(run)  # refused before other processes are started
        names, order = checkpoints.parameter_names(stage)
        try:
            self.fabric.launch()
            self.share = Share(self.fabric.global_rank, self.fabric.world_size)
            place(stage, self.fabric, run)
            self.meter = Meter(self.fabric.device, run.precision)
            if reason := prepare_blocks(stage, self.fabric, run, self.meter.again):
                self.fabric.print(f"--compile: not possible here ({reason}); goes on without")
        except BaseException as error:
            self.__exit__(type(error))
            raise
        trained = [p for module in stage.modules.values() for p in module.parameters() if p.requires_grad]
        self.parameters = [local(p) for p in trained]
        fast = self.fabric.device.type != "cpu"
        self.ema = EMAModel(
            self.parameters, decay=run.ema, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=fast
        )
        self.ema.to(self.fabric.device)
        self.held = checkpoints.Held(stage, self.ema, dict(zip(names, trained, strict=True)), order)
        if state is not None:
            checkpoints.restore(self.held, state)
            self.step = state["step"]
        self._thread: ThreadPoolExecutor | None = None
        self._drawn: dict[int, Future[list[Any]]] = {}

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

    def train(self, until: int | None = None) -> None:
        """Train to the run's last step, or to `until`; a stop at any moment loses at most `save_every` steps."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from torch.utils.tensorboard import SummaryWriter

        end, leads = self.run.steps if until is None else min(until, self.run.steps), self.fabric.is_global_zero
        if leads:
            self.run.out.mkdir(parents=True, exist_ok=True)
            for log in (self.log, self.speed_log):
                self._forget(log)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        board = SummaryWriter(str(self.run.out / "tensorboard"), purge_step=self.step + 1) if leads else nullcontext()
        with board, Progress(*columns, disable=not leads) as progress, self.ahead(end):
            task, speed = progress.add_task("training", total=self.run.steps, completed=self.step), ""
            while self.step < end:
                losses = self.train_step()
                if self.step % self.run.log_every == 0:
                    losses, speed = self._mean(losses), self._speed(board) if leads else ""
                progress.update(task, completed=self.step, description=f"loss {losses['loss']:.4f}{speed}")
                self._keep(board, losses, end)
        if self.step == self.run.steps and (leads or self.sharded):
            with self.averaged(), gathered(self.stage, self.fabric):
                if leads:
                    self.stage.save(self.run.out / "model")
        self.fabric.barrier()  # what the first process wrote is there for all

    def _keep(self, board: Any, losses: dict[str, float], end: int) -> None:
        """What is due after this step: a line of the log, a validation, a checkpoint."""
        leads = self.fabric.is_global_zero
        if leads and self.step % self.run.log_every == 0:
            self._log(board, losses)
        if not (leads or self.sharded):  # all have a part in what is sharded
            return
        if self.step % self.run.validate_every == 0 or self.step == self.run.steps:
            self._validate(board)
        if self.step % self.run.save_every == 0 or self.step == end:
            checkpoints.save(self.held, self.run, self.step, self.fabric)

    def train_step(self) -> dict[str, float]:
        """One step of every phase; the losses before it."""
        with self.meter.step():
            batches = self._batches()
            self.meter.begin(batches)
            with self.fabric.autocast():
                report = self._optimized(batches)
        self.meter.made(tuple(report))
        self.step += 1
        return report

    def _optimized(self, batches: list[Any]) -> dict[str, float]:
        run, report = self.run, {"loss": 0.0}
        share = learning_rate_share(self.step, run)
        for name, losses in self._phases(batches):
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            optimizers = self.stage.optimizers[name]
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            parameters = [p for group in groups for p in group["params"]]
            mean = average_gradients(self.fabric, parameters, total)
            norm = clip_gradients(parameters, run.clip)
            # One transfer: each waits for the device.
            *values, total, mean, norm = torch.stack([*losses.values(), total, mean, norm.to(total)]).tolist()
            self._check(f"{name} loss", mean)
            self._check(f"{name} gradient", norm)
            for group in groups:
                group["lr"] = share * group.setdefault("peak_lr", group["lr"])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            report |= dict(zip(losses, values, strict=True)) | {f"{name}_gradient_norm": norm}
            report["loss"] += total
        self.ema.step(self.parameters)
        return report | {"learning_rate": share * run.learning_rate}

    def _phases(self, batches: list[Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Phases with their losses, once every pass has added its share to the gradients."""
        count, first = len(batches), self.share.index
        passes = [
            self.stage.phases(batch, step_generator(self.run.seed, self.step, 1, first + self.share.of * number))
            for number, batch in enumerate(batches)
        ]
        while True:
            means: dict[str, Tensor] = {}
            for part in passes:
                with self.meter.counting():
                    found = next(part, None)
                    if found is None:
                        return
                    name, losses = found
                    total = torch.stack([loss.float() for loss in losses.values()]).sum()
                    self.fabric.backward(total / count if count > 1 else total)
                for key, loss in losses.items():
                    means[key] = means.get(key, 0) + loss.detach().float() / count
            yield name, means

    def _batches(self) -> list[Any]:
        """This step's share of a batch, a part for each pass."""

        def draw(step: int) -> list[Any]:
            return [self.stage.batch(step, share) for share in self.share.passes(self.run.accumulate)]

        drawn = self._drawn.pop(self.step, None)
        batches = draw(self.step) if drawn is None else drawn.result()
        if self._thread is not None and self.step + 1 < self._end:
            self._drawn[self.step + 1] = self._thread.submit(draw, self.step + 1)
        return batches

    @contextmanager
    def ahead(self, end: int) -> Iterator[None]:
        """Up to a step, a thread draws each batch during the step before; it is the same whenever it is drawn."""
        with ThreadPoolExecutor(1) as thread:
            self._thread, self._end = thread, end
            try:
                yield
            finally:
                self._thread = None
                self._drawn.clear()

    def _check(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise Diverged(f"step {self.step}: {what} is {value}; lower the learning rate")

    def _mean(self, values: dict[str, float]) -> dict[str, float]:
        """The numbers' means over all processes."""
        if self.share.of == 1:
            return values
        mean = self.fabric.all_reduce(torch.tensor(list(values.values()), device=self.fabric.device), reduce_op="mean")
        return dict(zip(values, mean.tolist(), strict=True))  # type: ignore[union-attr]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the raw ones."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def _forget(self, log: Path) -> None:
        """Drop what was logged after the checkpoint, whose steps come again, and a line that a crash cut short."""
        if not log.exists():
            return
        lines = log.read_text().splitlines(keepends=True)
        draft = log.with_suffix(".part")
        draft.write_text("".join(x for x in lines if x.endswith("}\n") and json.loads(x)["step"] <= self.step))
        os.replace(draft, log)

    def _log(self, board: Any, values: dict[str, float], log: Path | None = None) -> None:
        with (log or self.log).open("a") as file:
            file.write(
                json.dumps({"step": self.step, **{key: round(value, 6) for key, value in values.items()}}) + "\n"
            )
        for key, value in values.items():
            board.add_scalar(key, value, self.step)

    def _speed(self, board: Any) -> str:
        """Log how fast it was since the last time, in a file of its own: the other is the same whenever it is run."""
        told = self.meter.told()
        if not told:
            return ""
        told["samples_per_second"] *= self.share.of
        self._log(board, told, self.speed_log)
        return f", {told['samples_per_second']:.3g} samples/s, MFU {told['mfu']:.1%}"

    def _validate(self, board: Any) -> None:
        with self.averaged(), torch.no_grad(), self.fabric.autocast():
            values, picture = self.stage.validate()
        if not self.fabric.is_global_zero:
            return
        self._log(board, {f"validation_{key}": value for key, value in values.items()})
        pixels = picture.float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(pixels).save(self.run.out / f"sample_{self.step:07d}.png")
