"""Similarities form a group that acts on points and cameras."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from diorama.geometry.similarity import Similarity

from .drawing import close, close_cameras, normal, quick, random_cameras, random_similarity, seeds

batches = st.sampled_from([(), (2,), (2, 3)])


def close_maps(first, second):
    for name in ("rotation", "translation", "scale"):
        close(getattr(first, name), getattr(second, name))


@quick
@given(seeds, batches)
def test_group_laws(seed, batch):
    a, b, c = (random_similarity(seed + 10 * i, *batch) for i in range(3))
    neutral = Similarity(torch.eye(3).double().expand_as(a.rotation), 0 * a.translation, torch.ones_like(a.scale))
    close_maps(a.then(b).then(c), a.then(b.then(c)))
    close_maps(a.then(neutral), a)
    close_maps(neutral.then(a), a)
    close_maps(a.then(a.inverse()), neutral)
    close_maps(a.inverse().then(a), neutral)
    close_maps(a.then(b).inverse(), b.inverse().then(a.inverse()))


@quick
@given(seeds, batches, st.sampled_from([(), (4,), (4, 5)]))
def test_action_on_points(seed, batch, more):
    a, b = random_similarity(seed, *batch), random_similarity(seed + 10, *batch)
    points = normal(seed, *batch, *more, 3)
    close(b.apply(a.apply(points)), a.then(b).apply(points))
    close(a.inverse().apply(a.apply(points)), points)
    close(Similarity.identity(torch.float64).apply(points), points)


@quick
@given(seeds, st.sampled_from([(2,), (2, 3)]))
def test_action_on_cameras(seed, batch):
    cameras = random_cameras(seed, *batch)
    a, b = random_similarity(seed, *batch[:-1]), random_similarity(seed + 10, *batch[:-1])
    close_cameras(cameras.transformed(a).transformed(b), cameras.transformed(a.then(b)))
    close_cameras(cameras.transformed(a).transformed(a.inverse()), cameras)
    cameras.transformed(a).checked()


def test_one_map_serves_a_batch():
    one, points, cameras = random_similarity(0), normal(0, 2, 4, 3), random_cameras(0, 2, 3)
    close(one.apply(points)[1], one.apply(points[1]))
    close(cameras.transformed(one).centers, one.apply(cameras.centers))
    assert one.to(torch.float32).rotation.dtype == torch.float32
