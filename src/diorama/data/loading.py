"""What training draws its batches from: pre-rendered worlds, or captures decoded in the background."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from diorama.scene import Views

Generators = Callable[[int], torch.Generator]  # of a step's random numbers, the same on every device


class Batch(NamedTuple):
    """One device's share of a step: scenes of one size and number of views."""

    views: (
        Views  # "batch view", float32, with cameras; points where any scene has them, of confidence 0 where it has not
    )
    known: int  # so many first views are the encoder's, the rest is to be predicted
    names: tuple[str, ...]  # of the scenes
    metric: Bool[Tensor, " batch"]  # whose unit is the metre
    complete: Bool[Tensor, " batch"]  # whose pixels without depth have no surface, as in worlds


@runtime_checkable
class Batches(Protocol):
    """Where a stage's batches come from. Nothing is kept from one step to the next, so any step may be asked for."""

    def batch(self, step: int, share: tuple[int, int] = (0, 1)) -> Batch:
        """The scenes `index, index + of, ...` of a step, where `share` is (index, of).

        The step's number decides everything: shapes are the same for every share, and shares make up the whole.
        """
        ...

    def counts(self) -> dict[str, int]:
        """What was skipped so far by this process: bad frames, bad scenes, scenes of too few frames."""
        ...

    def close(self) -> None:
        """End the threads that read ahead."""
        ...
