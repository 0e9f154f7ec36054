"""Checkpoints of a run: one file, or with fsdp a folder of every process's part; each kind of run reads both."""

import json
import os
import pickle
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from diffusers.training_utils import EMAModel
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from diorama.training.stage import FREE, Run, Stage

VERSION = 1
FILE, FOLDER, ABOUT = "checkpoint.pt", "checkpoint", "run.json"


class Held(NamedTuple):
    """What a checkpoint is of; parameters are told by `names`, as optimisers that are sharded order them anew."""

    stage: Stage
    ema: EMAModel
    parameters: dict[str, nn.Parameter]  # in training, by module and name
    order: dict[str, list[list[str]]]  # names as each optimiser of a phase had them before sharding

    def named(self, phase: str) -> list[tuple[Optimizer, list[str]]]:
        """A phase's optimisers, each with its parameters' names."""
        return list(zip(self.stage.optimizers[phase], self.order[phase], strict=True))


def parameter_names(stage: Stage) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Names of what is in training, and of every optimiser's parameters in their order."""
    every = {id(p): f"{part}.{name}" for part, module in stage.modules.items() for name, p in module.named_parameters()}
    order = {
        phase: [[every[id(p)] for group in one.param_groups for p in group["params"]] for one in optimizers]
        for phase, optimizers in stage.optimizers.items()
    }
    trained = [
        f"{part}.{name}"
        for part, module in stage.modules.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    ]
    return trained, order


def read(run: Run) -> dict[str, Any] | None:
    """The newest checkpoint's content, or of a sharded one what it says of itself; None where there is none.

    Raises ValueError if it is no such thing, of another version or made with other settings.
    """
    found = [state for state in (_read_file(run.out / FILE), _read_about(run.out / FOLDER)) if state is not None]
    if not found:
        return None
    state = max(found, key=lambda one: one["step"])  # of a run that went on with another strategy there may be both
    where = state.get("folder", run.out / FILE)
    if state.get("version") != VERSION:
        raise ValueError(f"{where}: checkpoint version {state.get('version')}, accepted is {VERSION}")
    changed = {
        key: (state["run"].get(key), str(value))
        for key, value in asdict(run).items()
        if key not in FREE and state["run"].get(key, str(value)) != str(value)
    }
    if changed:
        settings = ", ".join(f"{key} was {old}, is {new}" for key, (old, new) in changed.items())
        raise ValueError(f"{where}: made with other settings ({settings}); use them or another --out")
    return state


def _read_file(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:  # to the CPU, where AdamW keeps its count of steps; the rest is moved as it is loaded
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {"step": 0, "version": None} | state
    except (RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise _unreadable(file, error) from None


def _read_about(folder: Path) -> dict[str, Any] | None:
    """What the newest whole checkpoint in the folder says: parts that were not finished have another ending."""
    steps = sorted(path for path in folder.glob("*") if path.name.isdigit())
    if not steps:
        return None
    try:
        return json.loads((steps[-1] / ABOUT).read_text()) | {"folder": steps[-1]}
    except (OSError, ValueError) as error:
        raise _unreadable(steps[-1], error) from None


def _unreadable(where: Path, error: BaseException) -> ValueError:
    found = str(error).partition("\n")[0]
    return ValueError(f"{where}: no readable checkpoint ({found}); accepted is a run's own")


def save(held: Held, run: Run, step: int, fabric: Fabric) -> None:
    """Replace the run's checkpoint at once; with fsdp all processes have to call this, else the first."""
    about = {"version": VERSION, "step": step, "run": {key: str(value) for key, value in asdict(run).items()}}
    file, folder = run.out / FILE, run.out / FOLDER
    if run.strategy != "fsdp":
        state = about | {
            "modules": {name: module.state_dict() for name, module in held.stage.modules.items()},
            "optimizers": {name: [one.state_dict() for one in part] for name, part in held.stage.optimizers.items()},
            "ema": held.ema.state_dict(),
        }
        temporary = file.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, file)
        shutil.rmtree(folder, ignore_errors=True)  # of the same run with fsdp
        return
    part, whole = folder / f"{step:09d}.part", folder / f"{step:09d}"
    if fabric.is_global_zero:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    fabric.barrier()
    dcp.save(_tensors(held, None), checkpoint_id=part)
    if fabric.is_global_zero:
        about["ema"] = {key: value for key, value in held.ema.state_dict().items() if key != "shadow_params"}
        (part / ABOUT).write_text(json.dumps(about))
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(part, whole)
        for other in folder.glob("*"):
            if other != whole:
                shutil.rmtree(other)
        file.unlink(missing_ok=True)
    fabric.barrier()


def restore(held: Held, state: dict[str, Any]) -> None:
    """Put a checkpoint's content, whole or sharded, into what is in training here, whole or sharded."""
    if "folder" in state:
        _restore_folder(held, state["folder"])
    else:
        _restore_file(held, state)
    held.ema.load_state_dict({**state["ema"], "shadow_params": held.ema.shadow_params})


def _restore_folder(held: Held, folder: Path) -> None:
    try:
        saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        tensors = _tensors(held, saved)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # of one process alone, which may read
            dcp.load(tensors, checkpoint_id=folder)
    except (CheckpointException, OSError, RuntimeError) as error:
        raise _unreadable(folder, error) from None
    for name, module in held.stage.modules.items():
        module.load_state_dict({key: tensors[f"modules/{name}/{key}"] for key in module.state_dict()})
    for key, value in tensors.items():
        kind, *place = key.split("/")
        if kind == "optimizers":
            phase, number, name, what = place
            held.stage.optimizers[phase][int(number)].state[held.parameters[name]][what] = value


def _restore_file(held: Held, state: dict[str, Any]) -> None:
    for name, module in held.stage.modules.items():
        here = module.state_dict()
        module.load_state_dict({key: _like(here.get(key), x) for key, x in state["modules"][name].items()})
    for phase in held.stage.optimizers:
        for (optimizer, names), saved in zip(held.named(phase), state["optimizers"][phase], strict=True):
            if not any(isinstance(held.parameters.get(name), DTensor) for name in names):
                optimizer.load_state_dict(saved)
                continue
            for number, name in enumerate(names):
                parameter = held.parameters[name]
                for what, value in saved["state"].get(number, {}).items():
                    optimizer.state[parameter][what] = _like(parameter, value) if value.ndim else value
    for parameter, mean, saved in zip(
        held.parameters.values(), held.ema.shadow_params, state["ema"]["shadow_params"], strict=True
    ):
        mean.copy_(_local(_like(parameter, saved)))


def _tensors(held: Held, saved: dict[str, Any] | None) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its path; with what a `saved` one holds, room for its optimisers' is made."""
    tensors = {
        f"modules/{name}/{key}": value
        for name, module in held.stage.modules.items()
        for key, value in module.state_dict().items()
    }
    for (name, parameter), mean in zip(held.parameters.items(), held.ema.shadow_params, strict=True):
        tensors[f"ema/{name}"] = _whole(parameter, mean)
    for phase in held.stage.optimizers:
        for number, (optimizer, names) in enumerate(held.named(phase)):
            for name in names:
                start, parameter = f"optimizers/{phase}/{number}/{name}/", held.parameters.get(name)
                if parameter is None:
                    continue
                known = optimizer.state.get(parameter, {})
                if saved is not None:
                    there = {key.removeprefix(start): one for key, one in saved.items() if key.startswith(start)}
                    known = {what: _room(parameter, one) for what, one in there.items()}
                tensors |= {start + what: value for what, value in known.items()}
    return tensors


def _room(parameter: nn.Parameter, saved: Any) -> Tensor:
    kind = saved.properties.dtype
    if tuple(saved.size) == tuple(parameter.shape):
        return torch.zeros_like(parameter.detach(), dtype=kind)
    return torch.zeros(saved.size, dtype=kind)  # a count of steps, which AdamW keeps on the CPU


def _like(here: Tensor | None, value: Tensor) -> Tensor:
    """The value where and as what is there is; every process has all of it and takes its part."""
    if not isinstance(here, DTensor):
        return value if here is None else value.to(here.device)
    return distribute_tensor(value.to(here.device), here.device_mesh, here.placements, src_data_rank=None)


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _whole(parameter: nn.Parameter, part: Tensor) -> Tensor:
    """What belongs to a process's part of a parameter, as part of the whole."""
    if not isinstance(parameter, DTensor):
        return part
    mesh, places, shape = parameter.device_mesh, parameter.placements, parameter.shape
    return DTensor.from_local(part, mesh, places, run_check=False, shape=shape, stride=parameter.stride())
