"""Voxels: one mean for each occupied cube."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diorama.geometry.points import voxel_downsample

from .drawing import close, generator, normal, quick, seeds, uniform


@quick
@given(seeds, st.floats(0.05, 3), st.integers(0, 60))
def test_against_a_dictionary(seed, size, count):
    points, colours = 2 * normal(seed, count, 3), uniform(seed + 1, 0, 1, count, 4)
    cubes = {}
    for point, colour in zip(points, colours, strict=True):
        cubes.setdefault(tuple((point / size).floor().int().tolist()), []).append(torch.cat([point, colour]))
    expected = [torch.stack(members).mean(0) for _, members in sorted(cubes.items())]
    found = torch.cat(voxel_downsample(points, colours, size), -1)
    close(found, torch.stack(expected) if expected else torch.zeros(0, 7).double())


@quick
@given(seeds, st.floats(0.05, 3))
def test_order_does_not_matter_and_means_stay_in_their_cubes(seed, size):
    points, colours = normal(seed, 50, 3), uniform(seed + 1, 0, 1, 50, 3)
    found = voxel_downsample(points, colours, size)
    order = torch.randperm(50, generator=generator(seed))
    for first, second in zip(found, voxel_downsample(points[order], colours[order], size), strict=True):
        close(first, second)
    cells = (found[0] / size).floor()
    assert len(cells.unique(dim=0)) == len(cells) == len((points / size).floor().unique(dim=0))
    assert found[1].min() >= colours.min()


def test_far_from_the_origin_no_digits_are_lost():
    offset = 8192.0
    points = offset + 0.9 * torch.rand(20000, 3, generator=generator(0))
    found, _ = voxel_downsample(points, torch.zeros(20000, 1), 1.0)
    exact = points.double().mean(0)
    assert len(found) == 1
    assert float((found[0].double() - exact).abs().max()) < 6e-4  # half a last digit of float32 there


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan])
def test_size_must_be_positive(size):
    with pytest.raises(ValueError, match="voxel size"):
        voxel_downsample(torch.rand(3, 3), torch.rand(3, 3), size)


def test_clouds_beyond_numbering_are_refused():
    with pytest.raises(ValueError, match="too small for a cloud"):
        voxel_downsample(1e9 * torch.rand(9, 3), torch.rand(9, 3), 1e-3)
    with pytest.raises(ValueError, match="NaN or infinity"):
        voxel_downsample(torch.full((3, 3), math.nan), torch.rand(3, 3), 1.0)
