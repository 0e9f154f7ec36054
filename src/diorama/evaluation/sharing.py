"""Which steps of a sampling ask DiT3D's backbone anew: measured on scenes, chosen by dynamic programming (DDT)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.models.dit3d import DiTOutput
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition


@torch.no_grad()
def backbone_states(
    pipeline: TokenPipeline, conditions: Sequence[Condition], paths: Sequence[Cameras], steps: int
) -> tuple[list[float], Float[Tensor, "step rows token dim"]]:
    """Times of a full sampling, and what the backbone said at each; the guidance is the pipeline's own."""
    times, states = [], []

    def note(_: object, inputs: tuple[Any, ...], output: DiTOutput) -> None:
        times.append(float(inputs[1][0]))
        states.append(output.state.half().cpu())

    hook = pipeline.denoiser.register_forward_hook(note)
    try:
        seeds = list(range(len(conditions)))
        pipeline.generate(list(conditions), list(paths), seed=seeds, steps=steps, memory=False)
    finally:
        hook.remove()
    return times, torch.stack(states).float()


def similarities(states: Float[Tensor, "step rows token dim"]) -> Float[Tensor, "step other"]:
    """Mean cosine between what the backbone says of a scene at two steps."""
    flat = F.normalize(states.flatten(2), dim=-1).transpose(0, 1)
    return (flat @ flat.mT).mean(0)


def best_steps(similarity: Float[Tensor, "step other"], count: int) -> list[int]:
    """The steps that ask anew, the first among them, so that all others are most like the one before that asked.

    By dynamic programming over the last span of steps (DDT, arXiv 2504.05741, section 3.4).
    """
    steps = len(similarity)
    if not 1 <= count <= steps:
        raise ValueError(f"{count} of {steps} steps: accepted are 1 to {steps}")
    before = F.pad(similarity.double().cumsum(1), (1, 0)).tolist()
    # For each number of spans: end of the last -> the sum so far, and where spans begin.
    best: list[dict[int, tuple[float, list[int]]]] = [{0: (0.0, [])}]
    for _ in range(count):
        ends: dict[int, tuple[float, list[int]]] = {}
        for start, (total, starts) in best[-1].items():
            for end in range(start + 1, steps + 1):
                reached = total + before[start][end] - before[start][start]
                if end not in ends or reached > ends[end][0]:
                    ends[end] = (reached, [*starts, start])
        best.append(ends)
    return best[count][steps][1]


def between(times: Sequence[float], steps: Sequence[int]) -> list[float]:
    """Times halfway before the given steps but the first, as `backbone` of `TokenPipeline.options` takes them."""
    return [round((times[step - 1] + times[step]) / 2, 3) for step in steps if step > 0]
