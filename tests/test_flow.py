import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diorama.flow import dimension_shift, guidance_at, guided, interpolate, shifted, uniform_sigmas, velocity

SHIFT = dimension_shift(1024, 768)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sampler(steps, shift=SHIFT):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=uniform_sigmas(steps))
    return scheduler


@pytest.mark.parametrize(("tokens", "expected"), [(256, 6.928), (512, 9.798), (1024, 13.856)])
def test_more_numbers_need_more_noise(tokens, expected):
    assert dimension_shift(tokens, 768) == pytest.approx(expected, abs=5e-4)
    assert dimension_shift(64, 64) == 1


def test_shifting_keeps_both_ends_and_moves_the_rest_towards_noise():
    t = torch.linspace(0, 1, 21)
    moved = shifted(t, SHIFT)
    assert moved[0] == 0 and moved[-1] == 1
    assert (moved[1:-1] > t[1:-1]).all() and (moved.diff() > 0).all()
    torch.testing.assert_close(shifted(t, 1.0), t)
    torch.testing.assert_close(shifted(shifted(t, 3.0), 1 / 3.0), t)


def test_both_tails_of_the_sampling_grid():
    """Ours is shifted once and ends at 0; diffusers' default call shifts the smallest time twice."""
    sigmas = sampler(50).sigmas
    assert len(sigmas) == 51
    torch.testing.assert_close(sigmas, shifted(torch.linspace(1, 0, 51), SHIFT))
    assert sigmas[0] == 1 and float(sigmas[-2]) == pytest.approx(0.220, abs=5e-4) and sigmas[-1] == 0
    stock = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    stock.set_timesteps(50)
    assert float(stock.sigmas[-2]) == pytest.approx(0.161, abs=5e-4) and stock.sigmas[-1] == 0


def test_one_step_goes_from_noise_to_data():
    assert sampler(1).sigmas.tolist() == [1, 0]


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match=rf"^{steps} steps: at least 1 is needed$"):
        uniform_sigmas(steps)


def test_the_path_starts_at_the_data_and_ends_at_the_noise():
    data, noise = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    torch.testing.assert_close(interpolate(data, noise, torch.zeros(3)), data)
    torch.testing.assert_close(interpolate(data, noise, torch.ones(3)), noise)
    mixed = interpolate(data, noise, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(mixed, torch.stack([data[0], 0.75 * data[1] + 0.25 * noise[1], noise[2]]))


def test_the_velocity_is_the_paths_derivative():
    data, noise = normal(2, 6).double(), normal(2, 6, seed=1).double()
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    later, before = (interpolate(data, noise, t + step) for step in (1e-3, -1e-3))
    torch.testing.assert_close((later - before) / 2e-3, velocity(data, noise))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=st.integers(1, 60), shift=st.floats(0.5, 20))
def test_euler_steps_along_the_exact_velocity_recover_the_data(steps, shift):
    data, noise = normal(2, 6), normal(2, 6, seed=1)
    scheduler, x = sampler(steps, shift), noise
    for time in scheduler.timesteps:
        x = scheduler.step(velocity(data, noise), time, x, return_dict=False)[0]
    torch.testing.assert_close(x, data, atol=1e-5, rtol=0)


def test_guidance_1_is_the_conditional_velocity_and_0_the_other():
    conditional, unconditional = normal(4), normal(4, seed=1)
    torch.testing.assert_close(guided(conditional, unconditional, 1.0), conditional)
    torch.testing.assert_close(guided(conditional, unconditional, 0.0), unconditional)
    torch.testing.assert_close(guided(conditional, unconditional, 2.0), 2 * conditional - unconditional)


@pytest.mark.parametrize(("t", "expected"), [(0.0, 1.0), (0.2, 3.0), (0.5, 3.0), (0.8, 3.0), (0.81, 1.0), (1.0, 1.0)])
def test_guidance_acts_inside_its_interval(t, expected):
    assert guidance_at(t, 3.0, (0.2, 0.8)) == expected


@pytest.mark.parametrize("interval", [(0.8, 0.2), (-0.1, 1.0), (0.0, 1.5), (float("nan"), 1.0)])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match=r"^guidance interval \([^\n]+\): accepted is 0 <= low <= high <= 1$"):
        guidance_at(0.5, 2.0, interval)
