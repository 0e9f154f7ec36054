"""A teacher's guided trajectories from noise to data: made once, kept on disk, read by what is distilled from them."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diorama.flow import uniform_sigmas
from diorama.training.latents import kept_of

Velocity = Callable[[Tensor, float], Tensor]  # of normalised latents at a time


class Trajectories(NamedTuple):
    """Straight pieces from noise towards data, and what the teacher knew; latents are normalised."""

    noise: Float[Tensor, "batch token channel"]
    pieces: Float[Tensor, "batch piece token channel"]  # mean velocity of each, from noise on
    known: Float[Tensor, "batch token channel"]
    log_scale: Float[Tensor, " batch"] | None = None  # None for a model without scale


def knots(scheduler: FlowMatchEulerDiscreteScheduler, steps: int) -> list[float]:
    """Times at which a sampler of so many steps stops, from 1 to 0."""
    scheduler.set_timesteps(sigmas=uniform_sigmas(steps))
    return torch.as_tensor(scheduler.sigmas).tolist()


@torch.no_grad()
def mean_velocities(
    velocity: Velocity, noise: Float[Tensor, "batch token channel"], times: Sequence[float], pieces: int
) -> Float[Tensor, "batch piece token channel"]:
    """What one Euler step has to say to come as far as all of a piece's do, along the path from this noise."""
    if (len(times) - 1) % pieces:
        raise ValueError(f"{len(times) - 1} steps in {pieces} pieces: accepted is a multiple of {pieces}")
    count, latents, found = (len(times) - 1) // pieces, noise, []
    for first in range(0, len(times) - 1, count):
        start = latents
        for step in range(first, first + count):
            latents = latents - (times[step] - times[step + 1]) * velocity(latents, times[step])
        found.append((start - latents) / (times[first] - times[first + count]))
    return torch.stack(found, 1)


class Kept:
    """Trajectories in a folder, a file for each batch that the teacher made."""

    def __init__(self, folder: Path, batches: int, made_of: Mapping[str, str]) -> None:
        self.folder, self.batches, self.made_of = folder, batches, dict(made_of)
        self._at: list[tuple[Path, int]] = []  # file and row of every trajectory

    def file(self, number: int) -> Path:
        """Where a batch is kept."""
        return self.folder / f"{number:06d}.safetensors"

    def make(self, make: Callable[[int], Trajectories]) -> None:
        """Have `make` make the batches that are not there: of several processes each its share, then all wait.

        ValueError for a folder whose files were made with other settings or by another teacher.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        mine = [number for number in range(rank, self.batches, world) if not kept_of(self.file(number), self.made_of)]
        for number in track(mine, description="the teacher's trajectories", transient=True):
            found = make(number)._asdict().items()
            tensors = {name: value.cpu().contiguous() for name, value in found if value is not None}
            draft = self.file(number).with_suffix(".part")
            save_file(tensors, draft, self.made_of)
            draft.replace(self.file(number))
        while not all(self.file(number).exists() for number in range(self.batches)):
            time.sleep(0.1)
        self._at = []
        for number in range(self.batches):
            with safe_open(self.file(number), "pt") as stored:
                rows = stored.get_slice("noise").get_shape()[0]
            self._at += [(self.file(number), row) for row in range(rows)]

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, rows: Int[Tensor, " batch"]) -> Trajectories:
        """Some of them, in single precision; only these are read."""
        found: dict[str, list[Tensor]] = {}
        for file, row in (self._at[place] for place in rows.tolist()):
            with safe_open(file, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - no mapping
                    found.setdefault(name, []).append(stored.get_slice(name)[row : row + 1][0].float())
        return Trajectories(**{name: torch.stack(values) for name, values in found.items()})
