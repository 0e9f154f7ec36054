"""What only models of many large parts can be asked for, and which model a command is given."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

if TYPE_CHECKING:
    from diorama.pipelines.base import ScenePipeline


@dataclass(frozen=True)
class PartsFlags:
    """For models of many large parts (Gen3R); of others, models of tokens take --dtype, and --scale if they know it."""

    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None, arg(help_behavior_hint="(default: bf16 on CUDA, else fp32)")
    ] = None
    """Precision of the weights."""
    offload: Annotated[Literal["none", "stages", "blocks"] | None, arg(help_behavior_hint="(default: stages)")] = None
    """What is on the device at once: all parts, the one that works, or of the largest one block."""
    tiling: Annotated[bool, arg(help_behavior_hint="")] = False
    """Let the video VAE work in tiles: less memory, perhaps seams."""
    points: Annotated[Literal["depth", "head"] | None, arg(help_behavior_hint="(default: depth)")] = None
    """Which head of VGGT tells the points."""
    step_cache: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="(default: 0, never)")] = None
    """Leave out what changes by less than this share from step to step; 0.05 is careful."""
    negative_prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="(default: the model's)")] = None
    """What guidance leads away from."""
    scale: Annotated[float | None, arg(metavar="FACTOR", help_behavior_hint="(default: by VGGT, from the photos)")] = (
        None
    )
    """What camera movements are multiplied with; 1 takes them as they are. Other models have no default: there it makes
    them median depths of the first photo, and without it they guess how large that shows the scene."""

    @property
    def loading(self) -> dict[str, Any]:
        """What `load` is asked for beside the model's name."""
        from diorama.pipelines.plan import DTYPES

        told = {"dtype": self.dtype and DTYPES[self.dtype], "offload": self.offload}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def sampling(self) -> dict[str, Any]:
        """What `generate` is asked for beside the common settings."""
        return {name: value for name, value in given(self).items() if name not in ("dtype", "offload")}


def given(flags: Any) -> dict[str, Any]:
    """The flags of a group whose defaults say nothing that were given, by name."""
    return {name: value for name, value in vars(flags).items() if value is not None and value is not False}


def no_such(flags: dict[str, Any], why: str) -> None:
    """ValueError, in one line, where any of these flags was given."""
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        raise ValueError(f"{flag if value is True else f'{flag} {value}'}: {why}; leave {flag} out")


def means_vggt(model: str) -> bool:
    """Whether a --model is VGGT alone: the word, or a folder or file that holds nothing else."""
    if model == "" or not Path(model).exists():
        return model == "vggt"
    from diorama.pipelines.vggt import is_vggt

    return is_vggt(Path(model))


def _check_numbers(flags: PartsFlags) -> None:
    """ValueError for numbers that mean nothing, before gigabytes are read."""
    if not 0 <= (flags.step_cache or 0) < 1:
        raise ValueError(f"--step-cache {flags.step_cache}: accepted is 0 up to, not including, 1")
    if flags.scale is not None and not 0 < flags.scale < math.inf:
        raise ValueError(f"--scale {flags.scale}: accepted is more than 0")


def check_model(model: str, device: str, flags: PartsFlags, *, scaled: bool = False) -> type["ScenePipeline"]:
    """What `model` is; ValueError, before other heavy work, where it is none or these flags are not for it.

    `scaled`: also a model that is not Gen3R may be told a scale, if it was trained with it.
    """
    from diorama.pipelines.base import find_model, pick_device

    _check_numbers(flags)
    pick_device(device)
    kind, folder = find_model(model)
    if not kind.staged:
        taken = {*kind.loads, *({"scale"} if scaled and _knows_scale(folder) else ())}
        others = {name: value for name, value in given(flags).items() if name not in taken}
        no_such(others, f"only Gen3R takes this here, not {model}")
    return kind


def _knows_scale(folder: Path) -> bool:
    """Whether a pipeline's denoiser was trained with the scale."""
    config = folder / "denoiser" / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("scale") is True
