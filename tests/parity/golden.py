"""Reference numbers of the published implementations: how they are read, re-made and compared.

`golden/NAME.json` says what went in, what came out and how close is close enough; `golden/NAME.safetensors` holds the
outputs. Inputs that are not stored, and all weights, are drawn again from their names.
"""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).with_suffix("")


@dataclass(frozen=True)
class Golden:
    """One fixture: its description, its inputs and the outputs to reach."""

    config: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def state(self) -> dict[str, Tensor]:
        """All weights of the module under their published names, checked against the fixture's sum."""
        told = self.config["weights"]
        state = weights(told["entries"], self.config["prefix"])
        total = sum(float(tensor.double().abs().sum()) for tensor in state.values())
        assert abs(total - told["sum_of_abs"]) <= 1e-6 * told["sum_of_abs"]
        return state

    def check(self, **found: Tensor) -> None:
        """Assert that every named output is within its own limit of the reference."""
        for name, value in found.items():
            told = self.config["outputs"][name]
            assert list(value.shape) == told["shape"], f"{name}: shape {tuple(value.shape)}, expected {told['shape']}"
            expected = self.outputs[name].double()
            error = (_subset(value.detach().double().cpu(), told["take"]) - expected).abs()
            if "max_mismatch_fraction" in told:
                wrong, limit = float((error > 0.5).double().mean()), told["max_mismatch_fraction"]
            else:
                wrong, limit = float(error.max()), told["atol"] + told["rtol"] * float(expected.abs().max())
            assert wrong <= limit, f"{name}: error {wrong:.3g}, accepted {limit:.3g}"


def load(name: str) -> Golden:
    """The fixture called `name`."""
    config = json.loads((FOLDER / f"{name}.json").read_text())
    stored = load_file(FOLDER / f"{name}.safetensors")
    inputs = {
        key: stored[f"in.{key}"] if f"in.{key}" in stored else _input(f"{config['prefix']}input.{key}", told)
        for key, told in config["inputs"].items()
    }
    return Golden(config, inputs, {key[4:]: value for key, value in stored.items() if key.startswith("out.")})


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that are a function of their name and shape."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(np.asarray(generator.standard_normal(shape), dtype=np.float32))


def _input(name: str, told: dict[str, Any]) -> Tensor:
    if "values" in told:
        return torch.tensor(told["values"], dtype=getattr(torch, told.get("dtype", "float32")))
    low, high = told.get("clip", (-math.inf, math.inf))
    return (told.get("shift", 0.0) + told.get("scale", 1.0) * draw(name, tuple(told["shape"]))).clamp(low, high)


def _subset(values: Tensor, chosen: list[list[int] | None] | None) -> Tensor:
    for axis, index in enumerate(chosen or []):
        if index is not None:
            values = values.index_select(axis, torch.tensor(index))
    return values


def weights(shapes: dict[str, list[int]], prefix: str = "") -> dict[str, Tensor]:
    """Weights of a published model, each drawn from its name and scaled for its kind."""
    state = {name: _weight(prefix + name, tuple(shape)) for name, shape in shapes.items()}
    for name in state:
        if name.endswith(".weight_v"):  # spectral norm's pair of vectors belong together
            vector = state[name[:-1] + "orig"].flatten(1).double().T @ state[name[:-1] + "u"].double()
            state[name] = (vector / vector.norm()).float()
    return state


def _weight(name: str, shape: tuple[int, ...]) -> Tensor:
    leaf, inputs, values = name.rpartition(".")[2], math.prod(shape[1:]), draw(name, shape)
    if leaf == "W":
        return values
    if leaf in ("pos_embed", "modulation") or "token" in leaf:
        return 0.3 * values
    if leaf in ("weight", "gamma") and inputs == 1:
        return 1 + 0.1 * values
    if leaf in ("weight_u", "weight_v"):
        return values / values.norm()
    return 0.1 * values if leaf == "bias" or inputs == 1 else values / math.sqrt(inputs)
