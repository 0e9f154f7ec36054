"""How steps lead from noise to latents: the solver, what steps may share, and named presets of both."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from jaxtyping import Float, Int
from torch import Tensor

from diorama.flow import guidance_at, uniform_sigmas
from diorama.models.dit3d import DiT3D
from diorama.nn.attention import KeysValues

SOLVERS = ("euler", "unipc")
Preset = dict[str, Any]  # what `generate` is asked for where a caller says nothing
# Presets by name; what they cost is measured by benchmarks/sampling.py, whose --schedule gives the times of `backbone`.
TOKEN_SPEEDS: dict[str, Preset] = {
    "quality": {},
    "balanced": {"solver": "unipc", "steps": 10},
    "fast": {"solver": "unipc", "steps": 8, "guidance": 1.0, "backbone": (0.867, 0.625, 0.341), "memory": False},
}
GEN3R_SPEEDS: dict[str, Preset] = {
    "quality": {},
    "balanced": {"solver": "unipc", "steps": 25},
    "fast": {"solver": "unipc", "steps": 12},
}


def settled(
    config: Mapping[str, Any], presets: Mapping[str, Preset], speed: str, asked: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that every family has, and the rest for the family: its own defaults, then a preset's, then those asked.

    A model of no more steps than a preset's, distilled say, keeps the steps that it was made for. ValueError, in one
    line, for a preset that it has not, and for steps, guidance or a solver that cannot be.
    """
    if speed not in presets:
        raise ValueError(f"speed {speed!r}: accepted by {config['title']} are {', '.join(presets)}")
    defaults = {"steps": config["steps"], "guidance": config["guidance"], "interval": (0.0, 1.0)}
    preset = presets[speed]
    if config["steps"] <= preset.get("steps", 0):
        preset = {name: value for name, value in preset.items() if name not in (*defaults, "solver", "backbone")}
    chosen = defaults | preset | {name: value for name, value in asked.items() if value is not None}
    common = {name: chosen.pop(name) for name in (*defaults, "solver") if name in chosen}
    uniform_sigmas(common["steps"])
    guidance_at(1.0, common["guidance"], common["interval"])
    if common.get("solver", "euler") not in SOLVERS:
        raise ValueError(f"solver {common['solver']!r}: accepted are {', '.join(SOLVERS)}")
    return common, chosen


def solver(name: str, euler: FlowMatchEulerDiscreteScheduler) -> Any:
    """What steps along the times that `euler` was set to: itself, or UniPC of second order (arXiv 2302.04867).

    UniPC needs fewer steps for the same error. Its own times are whole numbers: ask `euler` for them.
    """
    if name == "euler":
        return euler
    told: Any = euler  # its annotations say dictionary and list, where attributes and an array are
    made = UniPCMultistepScheduler(
        num_train_timesteps=told.config.num_train_timesteps, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    made.set_timesteps(sigmas=told.sigmas[:-1].cpu().double().numpy(), device=told.timesteps.device)
    made.set_begin_index(0)
    return made


class Kept:
    """What the steps of one sampling share: keys and values of what is known, and at times DiT3D's backbone.

    `anew` are times in falling order: the backbone is asked at the first step, at the first at or below each of them,
    and where guidance comes to act; the steps between give its last state to the head again (DDT, arXiv 2504.05741).
    """

    def __init__(self, anew: Sequence[float] = (), prefix: list[KeysValues] | None = None) -> None:
        self.anew, self.prefix = tuple(anew), prefix
        self.span = -1
        self.state: Tensor | None = None

    def state_at(self, t: float, rows: int) -> Tensor | None:
        """The state for so many rows at time t; None where the backbone is to be asked."""
        span, before = sum(t <= time for time in self.anew), self.span
        self.span = span
        if not self.anew or span != before or self.state is None or len(self.state) < rows:
            return None
        return self.state[:rows]

    def prefix_of(self, rows: int) -> list[KeysValues] | None:
        """Keys and values of the first rows."""
        return self.prefix and [KeysValues(x.keys[:rows], x.values[:rows]) for x in self.prefix]


class Told(NamedTuple):
    """What the denoiser is told of requests."""

    tokens: Float[Tensor, "batch token dim"]
    label: Int[Tensor, " batch"] | None = None  # None for a model without classes
    log_scale: Float[Tensor, " batch"] | None = None  # None for a model without scale, NaN where it is not known
    kept: Kept | None = None  # what the steps of a sampling share, if anything

    def beside(self, other: "Told") -> "Told":
        """Both branches of guidance as one batch."""
        pairs = zip(self[:3], other[:3], strict=True)
        return Told(*(None if one is None else torch.cat([one, two]) for one, two in pairs), self.kept)  # type: ignore[arg-type]


def kept_over_steps(denoiser: DiT3D, known: Told, settings: Mapping[str, Any]) -> Kept:
    """What the steps of a sampling will share; `known` is all that the denoiser will be told."""
    prefix = None
    if denoiser.config.condition == "prefix":
        prefix = denoiser.prefix(known.tokens.to(denoiser.dtype), known.label, known.log_scale)
    return Kept(settings.get("backbone", ()), prefix)


def checked_times(anew: Sequence[float]) -> tuple[float, ...]:
    """Times at which the backbone is asked anew; ValueError unless they fall from 1 to 0."""
    if any(a <= b for a, b in pairwise((1.0, *anew, 0.0))):
        raise ValueError(f"backbone {list(anew)}: accepted are times between 1 and 0, in falling order")
    return tuple(anew)


def part_of(on_step: Callable[[int, int], None] | None, number: int, parts: int) -> Callable[[int, int], None] | None:
    """What to tell of the steps of one of several parts of a job, so that they count on."""
    if on_step is None:
        return None
    return lambda done, steps: on_step(number * steps + done, parts * steps)
