"""Playing along a path."""

import pytest
from tests import miniature

from diorama.viewer.path import Flight, evenly
from diorama.viewer.poses import pose_of


def test_a_flight_passes_through_every_view():
    path = miniature.path(4)
    flight = Flight.along(path)
    for place in range(4):
        found, wanted = flight.at(float(place)), pose_of(path[place])
        assert found.position == pytest.approx(wanted.position, abs=1e-6)
        assert found.wxyz == pytest.approx(wanted.wxyz, abs=1e-6)
        assert (found.fov, found.aspect) == pytest.approx((wanted.fov, wanted.aspect))
    middle = flight.at(0.5).position
    assert middle != pytest.approx(flight.at(0.0).position)
    assert flight.at(99.0) == flight.at(3.0)


def test_time_goes_round():
    flight = Flight.along(miniature.path(4))
    time, seen = 0.0, []
    for _ in range(40):
        time = flight.after(time, 0.25)
        assert 0 <= time <= 3.5
        seen.append(int(time))
    assert seen[3:11] == [1] * 4 + [2] * 4 and seen.count(3) >= 2
    assert seen.count(0) > 4, "it begins again"
    assert Flight.along(miniature.path(1)).after(0.0, 0.5) == 0.0


def test_few_of_many_views_are_spread_evenly():
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(101, 5) == [0, 25, 50, 75, 100]
