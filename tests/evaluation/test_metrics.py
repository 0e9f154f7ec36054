"""Metrics against closed forms and independent implementations."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d

from diorama.evaluation.metrics import (
    METRICS,
    better,
    constant_depth_abs_rel,
    depth_abs_rel,
    depth_delta,
    gradient_correlation,
    gradient_energy,
    paired_bootstrap,
    psnr,
    ssim,
)


def pictures(*batch: int, height: int = 20, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(*batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(offset=st.floats(0.001, 0.5))
def test_psnr_of_a_constant_error_is_its_closed_form(offset: float) -> None:
    true = pictures(2, 3) / 2
    assert psnr(true + offset, true).shape == (2, 3)
    torch.testing.assert_close(
        psnr(true + offset, true), torch.full((2, 3), -20 * math.log10(offset)), atol=1e-2, rtol=0
    )


def test_psnr_clamps_both_images_and_is_infinite_for_equal_ones() -> None:
    white = torch.ones(3, 4, 4)
    assert psnr(white * 7, white).item() == math.inf
    assert psnr(white * -2, white).item() == 0


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang's SSIM with scipy, one channel at a time in double precision."""
    kernel = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    kernel /= kernel.sum()

    def smooth(image: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(image, kernel, 0), kernel, 1)[5:-5, 5:-5]

    values = []
    for a, b in zip(x.astype(float), y.astype(float), strict=True):
        ma, mb = smooth(a), smooth(b)
        va, vb, cov = smooth(a * a) - ma * ma, smooth(b * b) - mb * mb, smooth(a * b) - ma * mb
        top, bottom = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4), (ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)
        values.append((top / bottom).mean())
    return float(np.mean(values))


def test_ssim_equals_an_independent_implementation() -> None:
    true = pictures(4, 2)
    noisy = (true + 0.3 * (pictures(4, 2, seed=1) - 0.5)).clamp(0, 1)
    expected = [
        [reference_ssim(a.numpy(), b.numpy()) for a, b in zip(*row, strict=True)]
        for row in zip(noisy, true, strict=True)
    ]
    torch.testing.assert_close(ssim(noisy, true), torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(ssim(true, true), torch.ones(4, 2))
    torch.testing.assert_close(ssim(noisy, true), ssim(true, noisy))


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match=r"10x24.*at least 11"):
        ssim(pictures(height=10), pictures(height=10))


@settings(deadline=None, max_examples=30)
@given(slope_x=st.floats(-0.03, 0.03), slope_y=st.floats(-0.03, 0.03))
def test_gradient_energy_of_a_ramp_is_its_slope_squared(slope_x: float, slope_y: float) -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    ramp = (0.5 + slope_x * (x - 8) + slope_y * (y - 8)).expand(3, 16, 16)
    torch.testing.assert_close(gradient_energy(ramp).item(), slope_x**2 + slope_y**2, atol=1e-6, rtol=1e-3)


def test_gradient_energy_of_a_checkerboard_is_two() -> None:
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = ((x + y) % 2).float().expand(2, 3, 8, 8)
    torch.testing.assert_close(gradient_energy(board), torch.full((2,), 2.0))


@settings(deadline=None, max_examples=30)
@given(contrast=st.floats(0.05, 1), brightness=st.floats(0, 1))
def test_gradient_correlation_ignores_brightness_and_contrast(contrast: float, brightness: float) -> None:
    true = pictures(3)
    changed = contrast * true + (1 - contrast) * brightness
    torch.testing.assert_close(gradient_correlation(changed, true), torch.ones(3), atol=1e-4, rtol=0)


def test_gradient_correlation_of_a_negative_is_minus_one_and_of_nothing_zero() -> None:
    true = pictures(3)
    torch.testing.assert_close(gradient_correlation(1 - true, true), -torch.ones(3))
    assert gradient_correlation(torch.full_like(true, 0.5), true).tolist() == [0, 0, 0]
    assert gradient_correlation(pictures(3, seed=5), true).abs().max() < 0.15
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = [(0.5 + 0.4 * torch.sin(axis)).expand(3, 16, 16) for axis in (x, y)]
    assert abs(gradient_correlation(*waves).item()) < 0.05


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.1, 4))
def test_depth_abs_rel_is_the_relative_scale_error_and_median_alignment_removes_it(scale: float) -> None:
    true = 1 + pictures(2)[:, 0]
    mask = pictures(2, seed=1)[:, 1] > 0.3
    wrong = torch.where(mask, scale * true, 1e6)
    torch.testing.assert_close(depth_abs_rel(wrong, true, mask), torch.full((2,), abs(scale - 1)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(depth_abs_rel(wrong, true, mask, alignment="median"), torch.zeros(2), atol=1e-6, rtol=0)


def test_depth_abs_rel_says_what_it_accepts_and_is_nan_where_nothing_is_valid() -> None:
    true = 1 + pictures(2)[:, 0]
    nothing = torch.zeros_like(true, dtype=torch.bool)
    assert depth_abs_rel(true, true, nothing).isnan().all()
    assert constant_depth_abs_rel(true, nothing).isnan().all()
    with pytest.raises(ValueError, match=r"alignment 'mean'.*'median'"):
        depth_abs_rel(true, true, ~nothing, alignment="mean")


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), power=st.sampled_from([1, 2, 3]))
def test_depth_delta_is_the_share_of_pixels_within_the_ratio(seed: int, power: int) -> None:
    true = torch.exp(2 * pictures(2, seed=seed)[:, 0])
    predicted = true * torch.exp(pictures(2, seed=seed)[:, 1] - 0.5) ** power
    mask = pictures(2, seed=seed)[:, 2] > 0.3
    ratio = np.maximum(predicted.numpy() / true.numpy(), true.numpy() / predicted.numpy())
    expected = [float((ratio[i][mask[i].numpy()] < 1.25**power).mean()) for i in range(2)]
    assert 0.2 < min(expected) <= max(expected) < 0.8
    assert depth_delta(predicted, true, mask, power=power).tolist() == pytest.approx(expected, abs=1e-6)
    # Swapping prediction and truth changes nothing, nor does a common factor; uniform logarithms have a closed form.
    torch.testing.assert_close(
        depth_delta(3 * true, 3 * predicted, mask, power=power), depth_delta(predicted, true, mask, power=power)
    )
    everywhere = torch.ones_like(mask)
    closed = 2 * math.log(1.25)
    assert depth_delta(predicted, true, everywhere, power=power).mean().item() == pytest.approx(closed, abs=0.06)


def test_depth_delta_misses_what_is_no_depth_and_can_be_aligned() -> None:
    true = 1 + pictures(4)[:, 0]
    mask = torch.ones_like(true, dtype=torch.bool)
    wrong = torch.stack([-true[0], 0 * true[1], torch.full_like(true[2], torch.nan), true[3]])
    assert depth_delta(wrong, true, mask, power=3).tolist() == [0, 0, 0, 1]
    assert depth_delta(5 * true, true, mask, power=3).tolist() == [0, 0, 0, 0]
    assert depth_delta(5 * true, true, mask, alignment="median").tolist() == [1, 1, 1, 1]
    assert depth_delta(true, true, ~mask).isnan().all()
    with pytest.raises(ValueError, match=r"alignment 'mean'.*'median'"):
        depth_delta(true, true, mask, alignment="mean")


def test_every_metric_says_which_direction_is_better() -> None:
    assert set(METRICS.values()) == {"higher", "lower"}
    assert all(better(name) == direction for name, direction in METRICS.items())
    assert [better(name) for name in ("lpips_vgg", "fd_worlds64", "abs_rel_median_aligned")] == ["lower"] * 3
    assert [better(name) for name in ("auc_30", "ate_r_rot_avg", "delta_1")] == ["higher", "lower", "higher"]
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    assert [
        name for name in METRICS if not re.search(rf"^\| .*`{name}(_[A-Z]+)?`.* \| {better(name)} \|", page, re.M)
    ] == []
    for name in ("psn", "psnrs", "fid", "delta", ""):
        with pytest.raises(ValueError, match=f"metric '{name}': accepted are psnr, "):
            better(name)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000))
def test_no_constant_depth_beats_the_best_one(seed: int) -> None:
    true = torch.exp(3 * pictures(seed=seed)[0])
    mask = pictures(seed=seed + 1)[0] > 0.5
    best = constant_depth_abs_rel(true, mask)
    every = torch.stack([depth_abs_rel(torch.full_like(true, float(c)), true, mask) for c in true[mask][::7]])
    assert (best <= every + 1e-6).all()
    dense = torch.linspace(1, 20, 400)
    grid = ((dense[:, None] - true[mask]).abs() / true[mask]).mean(1).min()
    assert 0 <= grid - best < 0.02


def test_the_bootstrap_is_paired_seeded_and_contains_the_mean() -> None:
    a = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 10
    noise = torch.randn(200, generator=torch.Generator().manual_seed(1))
    mean, low, high = interval = paired_bootstrap(a + 1 + noise, a)
    assert interval == paired_bootstrap(a + 1 + noise, a)
    assert low < mean < high
    assert mean == pytest.approx(1 + noise.mean().item(), abs=1e-4)
    # Half the width is 1.96 standard errors of the paired difference, however different the scenes are.
    assert (high - low) / 2 == pytest.approx(1.96 * noise.std().item() / math.sqrt(200), rel=0.06)
    constant = paired_bootstrap(a, a - 0.5)
    assert constant.low == pytest.approx(constant.high, abs=1e-5)
