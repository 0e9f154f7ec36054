"""Matched points are the same point of the scene, to a part of a pixel."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from diorama.data.features import epipolar_distance, features, matched
from diorama.geometry.cameras import Cameras

Room = Callable[[Cameras], tuple[Tensor, Tensor]]


def test_matches_are_where_the_depth_says(room: Room, walk: Cameras) -> None:
    images, depth = room(walk)
    one, two = (features(image) for image in images[:2])
    first, second = matched(one, two)
    assert len(first) > 80
    points = walk[0].unproject(depth[:1])[0]
    rows, columns = np.floor(first[:, 1]).astype(int), np.floor(first[:, 0]).astype(int)
    pixels, _ = walk[1].project(points[rows, columns][None])
    # The corner lies up to half a pixel from the centre that the depth is of.
    centre = np.stack([columns + 0.5, rows + 0.5], -1)
    off = np.linalg.norm(pixels[0].numpy() + (first - centre) - second, axis=1)
    assert np.median(off) < 0.5
    assert (off < 2).mean() > 0.9


def test_nothing_matches_in_what_has_no_corners_or_nothing_in_common(room: Room, walk: Cameras) -> None:
    plain, some = features(torch.full((3, 100, 120), 0.5)), features(room(walk[0])[0][0])
    assert len(plain.places) == 0
    assert len(matched(plain, some)[0]) == 0
    generator = torch.Generator().manual_seed(0)
    noise = [features(torch.rand(3, 100, 120, generator=generator)) for _ in range(2)]
    assert len(matched(*noise)[0]) < 40
    with pytest.raises(ValueError, match="at least 48"):
        features(torch.rand(3, 40, 200))


def test_epipolar_distance_by_hand() -> None:
    # A camera that moves along x: lines are rows, and the distance is the difference of rows.
    fundamental = np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    first, second = np.array([[3.0, 5.0], [1.0, 1.0]]), np.array([[9.0, 5.0], [2.0, 4.5]])
    np.testing.assert_allclose(epipolar_distance(first, second, fundamental), [0, 3.5], atol=1e-12)
    np.testing.assert_allclose(epipolar_distance(first, second, fundamental[None])[0], [0, 3.5], atol=1e-12)
