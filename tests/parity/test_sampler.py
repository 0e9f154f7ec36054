"""Gen3R's loop of guided steps against the published pipeline's, with a stand-in denoiser."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diorama.pipelines.base import Context, ScenePipeline
from diorama.pipelines.gen3r import Gen3RPipeline

from .golden import load


class StandIn(Gen3RPipeline):
    """The pipeline's own loop, guidance and times around a velocity in closed form; `known` is the text alone."""

    def __init__(self, shift, train_steps):
        self.__dict__["scheduler"] = FlowMatchEulerDiscreteScheduler(num_train_timesteps=train_steps, shift=shift)
        self.__dict__["times"] = []

    def denoise(self, latents, t, known):
        self.times.append(1000 * t)
        return 0.6 * latents + 0.05 * latents.flip(-1) + known.mean() + t * latents.sin()

    sampled = ScenePipeline.sampled  # there is no transformer to fetch
    transformer = SimpleNamespace(cache_context=nullcontext)


@pytest.fixture(scope="module")
def golden():
    return load("sampler")


def test_fifty_guided_steps(golden):
    told = golden.config["constructor"]
    pipeline = StandIn(told["scheduler"]["shift"], told["scheduler"]["num_train_timesteps"])
    contexts = [Context(golden.inputs[f"context_{kind}"], [], []) for kind in ("positive", "negative")]
    settings = {"steps": told["num_inference_steps"], "guidance": told["guidance_scale"], "interval": (0.0, 1.0)}
    final = pipeline.sampled(golden.inputs["latents"], *contexts, settings)
    golden.check(final_latents=final, timesteps=torch.tensor(pipeline.times[::2]))
    assert pipeline.times[::2] == pipeline.times[1::2]


def test_outside_the_interval_only_the_first_branch_runs(golden):
    pipeline = StandIn(2.0, 1000)
    contexts = [Context(golden.inputs[f"context_{kind}"], [], []) for kind in ("positive", "negative")]
    pipeline.sampled(golden.inputs["latents"], *contexts, {"steps": 10, "guidance": 5.0, "interval": (0.0, 0.5)})
    counts = {time: pipeline.times.count(time) for time in pipeline.times}
    assert all(count == (2 if time <= 500 else 1) for time, count in counts.items()) and len(counts) == 10
