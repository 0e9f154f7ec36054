"""What is left out of a cloud, on clouds whose bad points are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diorama.export.cleaning import Cleaning, cleaned, neighbour_distance
from diorama.scene import Scene, Views


def kept(views: Views, **choices: float) -> torch.Tensor:
    mask = cleaned(views, Cleaning(**choices)).mask
    assert mask is not None
    return mask


def test_nothing_is_left_out_unless_asked(scene: Scene) -> None:
    assert torch.equal(kept(scene.views), scene.views.confidence > 0)
    bare = Views(scene.views.images)
    assert cleaned(bare, Cleaning(0.5, 1.0, 1.0)) is bare
    points = scene.views.points.clone()
    points[1, 2, 3, 0] = torch.inf
    assert kept(Views(scene.views.images, None, points)).logical_not().nonzero().tolist() == [[1, 2, 3]]


def test_the_least_confident_share(scene: Scene) -> None:
    before, mask = scene.views.confidence, kept(scene.views, drop=0.3)
    assert mask.sum() == pytest.approx(0.7 * int((before > 0).sum()), abs=2)
    assert before[mask].min() > before[~mask].max()


def test_sky_is_far(stage: Scene) -> None:
    views = stage.views
    depth = views.depth.clone()
    depth[:, :10] = 300.0  # above the horizon
    mask = kept(replace(views, points=views.cameras.unproject(depth)), far=10.0)
    assert not mask[:, :10].any()
    assert mask[:, 10:].all()
    with pytest.raises(ValueError, match="far points are known by their depth"):
        cleaned(replace(views, cameras=None), Cleaning(far=10.0))


def test_points_alone_in_the_air(stage: Scene) -> None:
    views = stage.views
    depth = views.depth.clone()
    alone = torch.zeros_like(depth, dtype=torch.bool)
    alone[:, 7::12, 9::16] = True
    depth[alone] = 0.8
    mask = kept(replace(views, points=views.cameras.unproject(depth)), outliers=2.0)
    assert not mask[alone].any()
    assert mask[~alone].float().mean() > 0.95


def test_neighbour_distance_is_the_one_of_all_pairs() -> None:
    points = np.random.default_rng(0).normal(size=(60, 3))
    apart = np.sort(np.linalg.norm(points[:, None] - points, axis=-1), 1)
    assert np.allclose(neighbour_distance(points, 5), apart[:, 1:6].mean(1))
    assert np.allclose(neighbour_distance(points[:3], 5), apart_of(points[:3]))
    assert len(neighbour_distance(points[:1], 5)) == 0


def apart_of(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points, axis=-1).sum(1) / (len(points) - 1)


@pytest.mark.parametrize("bad", [{"drop": 1.0}, {"drop": -0.1}, {"far": 0.0}, {"outliers": float("nan")}])
def test_bad_numbers(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="accepted is"):
        Cleaning(**bad)
