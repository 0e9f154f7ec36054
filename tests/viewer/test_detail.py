"""Sizes and levels of live pictures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diorama.viewer.detail import BLENDED, LEVELS, PLAIN, SEARCH, SWIFT, Pace, Size, size_at, work_of


def test_the_scenes_own_camera_gives_the_scenes_own_size():
    fov = 2 * math.atan(0.5 * 64 / 70)
    assert size_at(fov, 1.0, 70.0, 8, 10**6) == (64, 64)
    assert size_at(fov, 1.5, 70.0, 8, 10**6) == (64, 96)
    assert size_at(fov, 1.0, 35.0, 8, 10**6) == (32, 32)


@given(fov=st.floats(0.01, 3.0), aspect=st.floats(0.1, 10), focal=st.floats(1, 500), patch=st.sampled_from([8, 14]))
def test_sizes_are_whole_patches_and_no_more_than_allowed(fov, aspect, focal, patch):
    height, width = size_at(fov, aspect, focal, patch, 4096)
    assert height % patch == width % patch == 0
    assert 0 < height * width <= 4096
    wide = size_at(2.0, aspect, 400.0, patch, 40_000)
    assert wide.height * wide.width > 40_000 * 0.5, "far fewer pixels than allowed"


def test_work_counts_what_is_decoded():
    size = Size(16, 24)
    assert work_of(size, PLAIN, 8, False) == work_of(size, SWIFT, 8, True) == 16 * 24
    assert work_of(size, PLAIN, 8, True) == (1 + SEARCH) * 16 * 24
    assert work_of(size, BLENDED, 8, False) == 4 * 24 * 32


def test_the_pace_chooses_what_fits_into_the_time():
    pace, works = Pace(), dict(zip(LEVELS, (100, 400, 1000, 2000), strict=True))
    assert pace.level(works, 0.1) == LEVELS[-1], "nothing is known yet"
    pace.learn(400, 0.04)
    assert [pace.level(works, seconds) for seconds in (0.001, 0.011, 0.05, 0.1, 0.3)] == [
        LEVELS[i] for i in (0, 0, 1, 2, 3)
    ]
    pace.learn(400, 0.2)
    assert pace.seconds == pytest.approx(0.5 * (0.04 + 0.2) / 400)
