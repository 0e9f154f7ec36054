"""Tracks of a scene whose surfaces are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diorama.export.tracks import Tracks, find_tracks
from diorama.scene import Scene, Views

from .conftest import colour_at, on_surface


def projected(views: Views, tracks: Tracks) -> np.ndarray:
    """Where each observation's point falls in its view, by the textbook."""
    cameras = views.cameras
    assert cameras is not None
    world_to_camera = np.linalg.inv(cameras.camera_to_world.double().numpy())[tracks.view]
    points = np.concatenate([tracks.points[tracks.track], np.ones((len(tracks.track), 1))], 1)
    local = np.einsum("nij,nj->ni", world_to_camera, points)[:, :3]
    assert (local[:, 2] > 0).all()
    image = np.einsum("nij,nj->ni", cameras.intrinsics.double().numpy()[tracks.view], local)
    return image[:, :2] / image[:, 2:]


def test_observations_are_where_their_points_project(stage: Scene) -> None:
    tracks = find_tracks(stage.views)
    errors = np.linalg.norm(projected(stage.views, tracks) - tracks.pixels, axis=1)
    assert errors.max() < 0.01  # the depth is exact
    lengths = np.bincount(tracks.track)
    assert lengths.min() >= 2
    assert lengths.max() == 4
    assert np.allclose(np.bincount(tracks.track, errors) / lengths, tracks.errors, atol=1e-3)
    assert (np.diff(tracks.track) >= 0).all()
    assert len({*zip(tracks.track.tolist(), tracks.view.tolist(), strict=True)}) == len(tracks.track)


def test_points_lie_on_the_surfaces_with_their_colours(stage: Scene) -> None:
    tracks = find_tracks(stage.views)
    points = torch.from_numpy(tracks.points).float()
    assert on_surface(points).max() < 1e-3
    assert np.abs(tracks.colours / 255 - colour_at(points).numpy()).max() < 0.01
    for depth in (2.0, 4.0):
        assert (torch.isclose(points[:, 2], torch.tensor(depth), atol=1e-3)).sum() > 100


def test_most_pixels_that_two_views_see_are_in_one_track(stage: Scene) -> None:
    tracks = find_tracks(stage.views)
    first = tracks.pixels[tracks.view == 0]
    assert len(first) > 0.9 * 48 * 56  # the rightmost columns are seen by no other view
    places = {tuple(pixel) for pixel in first.astype(int).tolist()}
    assert len(places) > 0.99 * len(first), "pixels of the first view in two tracks"
    assert len(tracks.points) < 1.4 * 48 * 64, "the same surface again from each view"


def test_a_view_that_disagrees_is_in_no_track(stage: Scene) -> None:
    views, cameras = stage.views, stage.views.cameras
    assert views.depth is not None and cameras is not None
    depth = views.depth.clone()
    depth[2] *= 1.2
    tracks = find_tracks(replace(views, points=cameras.unproject(depth)))
    assert 2 not in tracks.view
    assert {0, 1, 3} == set(tracks.view.tolist())
    confidence = torch.ones(4, 48, 64)
    confidence[2] = 0
    assert 2 not in find_tracks(replace(views, confidence=confidence)).view


def test_small_disagreement_is_a_residual_within_half_a_pixel(stage: Scene) -> None:
    views, cameras = stage.views, stage.views.cameras
    assert views.depth is not None and cameras is not None
    noise = torch.randn(views.depth.shape, generator=torch.Generator().manual_seed(1))
    tracks = find_tracks(replace(views, points=cameras.unproject(views.depth * (1 + 0.02 * noise))), tolerance=2.0)
    errors = np.linalg.norm(projected(views, tracks) - tracks.pixels, axis=1)
    assert len(tracks.points) > 500
    assert 0.02 < errors.max() <= 0.501


def test_number_of_tracks(stage: Scene) -> None:
    every, some = find_tracks(stage.views), find_tracks(stage.views, most=1000)
    assert 300 < len(some.points) <= 1200 < len(every.points)
    assert np.array_equal(some.points, find_tracks(stage.views, most=1000).points)
    assert len(find_tracks(stage.views[0]).points) == 0
    with pytest.raises(ValueError, match="accepted are a number above 0, and 1 or more"):
        find_tracks(stage.views, most=0)
    with pytest.raises(ValueError, match="have no depth"):
        find_tracks(Views(stage.views.images))
