"""The times of Gen3R's sampler and training; tests/parity/test_dit_ddt.py has those of 3DDiT."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diorama.pipelines.gen3r import Gen3RPipeline

from .golden import load


@pytest.fixture(scope="module")
def golden():
    return load("flow_schedules")


def scheduled(shift, steps):
    """The scheduler as a Gen3R pipeline sets it."""
    pipeline = Gen3RPipeline.__new__(Gen3RPipeline)
    pipeline.__dict__["scheduler"] = FlowMatchEulerDiscreteScheduler(shift=shift)
    pipeline.schedule(steps, torch.device("cpu"))
    return pipeline.scheduler


@pytest.mark.parametrize(("shift", "steps"), [(2, 50), (2, 20), (5, 50)])
def test_the_samplers_times_are_the_schedulers_own(golden, shift, steps):
    found, name = scheduled(float(shift), steps), f"shift{shift}_steps{steps}"
    golden.check(**{f"euler_sigmas_{name}": found.sigmas, f"euler_timesteps_{name}": found.timesteps})


def test_the_tail_is_shifted_twice():
    """Of a table that is shifted already the last is shifted again; 3DRAE's grid is shifted once and ends elsewhere."""
    smallest = 2 * 0.001 / (1 + 0.001)
    assert float(scheduled(2.0, 50).sigmas[-2]) == pytest.approx(2 * smallest / (1 + smallest), rel=1e-5)
    assert float(scheduled(2.0, 50).sigmas[-1]) == 0


def test_training_draws_from_this_table(golden):
    found = FlowMatchEulerDiscreteScheduler(shift=2.0)
    golden.check(train_sigmas_shift2=found.sigmas, train_timesteps_shift2=found.timesteps)
