"""Which views are known, which frames are shown, at which size."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from diorama.evaluation.protocols import PROTOCOLS, WORLDS, Setting, Size, known_places, uniform


def test_known_places_are_spread_over_the_path() -> None:
    assert [known_places(count, 12) for count in (4, 2, 1)] == [(0, 4, 7, 11), (0, 11), (0,)]


@pytest.mark.parametrize(("count", "frames"), [(16, 16), (16, 301), (49, 278), (2, 7)])
def test_frames_are_numpys_rounded_linspace(count: int, frames: int) -> None:
    assert uniform(count, frames) == tuple(np.round(np.linspace(0, frames - 1, count)).astype(int))


def test_the_papers_conditions() -> None:
    assert [s.places(16) for s in PROTOCOLS["3drae"].settings] == [(0,), (0, 15), (0, 3, 6, 9, 12, 15)]
    gen3r = {s.name: s.places(49) for s in PROTOCOLS["gen3r"].settings}
    assert gen3r["first and last"] == (0, 48)
    assert gen3r["all, no cameras"] == tuple(range(49))
    assert [s.places(16) for s in WORLDS.settings] == [(0,), (0, 15), (0, 5, 10, 15)]


def test_places_count_from_both_ends_and_are_there() -> None:
    assert Setting("ends", (0, -1)).places(1) == (0,)
    with pytest.raises(ValueError, match="3 views.*'far' knows.*5"):
        Setting("far", (5,)).places(3)


@pytest.mark.parametrize(("height", "width"), [(360, 640), (1080, 1920), (640, 360), (500, 500), (300, 900)])
def test_an_area_keeps_the_aspect_within_bounds(height: int, width: int) -> None:
    tall, wide = Size(pixels=75_500, multiple=14).of(height, width)
    assert tall % 14 == wide % 14 == 0
    assert 0.87 * 75_500 < tall * wide <= 75_500
    assert wide / tall == pytest.approx(min(max(width / height, 0.7), 1.8), rel=0.08)


def test_a_fixed_size_is_that_of_all() -> None:
    assert Size(256, 256).of(360, 640) == (256, 256)


def test_protocols_are_named_and_can_be_written_down() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        json.dumps(asdict(protocol), allow_nan=False)
