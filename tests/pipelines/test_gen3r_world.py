"""Geometry in VGGT's frame and scale, told again in the caller's world."""

import math
from dataclasses import replace

import pytest
import torch
from tests.miniature import images, path

from diorama.geometry.similarity import Similarity
from diorama.models.vggt import VGGTOutput
from diorama.pipelines.gen3r_conditions import packed
from diorama.pipelines.gen3r_world import (
    Surface,
    control_for,
    control_frame,
    in_range,
    in_shot,
    in_world,
    photos_for,
    placed,
    scale_of_paths,
    scale_of_scene,
    surface,
    unprojected,
)
from diorama.scene import Condition, Shot, Views

SIZE = 16


def a_path(views=3, seed=0):
    return path(views, SIZE, SIZE, seed).to(torch.float64)


def turn(scale=2.5):
    """A similarity without any special numbers."""
    axis = torch.tensor([[0, -0.3, 0.2], [0.3, 0, -0.4], [-0.2, 0.4, 0]], dtype=torch.float64)
    return Similarity(
        torch.linalg.matrix_exp(axis), torch.tensor([3.0, -1.0, 2.0]).double(), torch.tensor(scale).double()
    )


def depths(views=3, low=1.0):
    return low + torch.rand(views, SIZE, SIZE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def seen(cameras, depth):
    """What VGGT would say, with a point head that sees everything half as far again."""
    far = cameras.unproject(1.5 * depth)[None]
    ones = torch.ones_like(depth)[None]
    batch = replace(cameras, camera_to_world=cameras.camera_to_world[None], intrinsics=cameras.intrinsics[None])
    return VGGTOutput(batch, depth[None], 2 * ones, far, 3 * ones, torch.zeros(1, 1, len(depth), 9))


def predicted(wanted, world):
    """A surface in the frame of `world` (a map from the wanted path's), and its depths in the wanted path's units."""
    depth = depths(wanted.views)
    cameras = wanted.transformed(world)
    return Surface(cameras, depth * world.scale, torch.ones_like(depth)), depth


def test_a_perfect_prediction_is_told_in_the_callers_world_and_units():
    wanted = a_path()
    found, depth = predicted(wanted, turn())
    for cameras in ("wanted", "predicted"):
        views = in_world(images(3, SIZE, SIZE), found, Condition(), wanted, 7.0, cameras=cameras)
        torch.testing.assert_close(views.points, wanted.unproject(depth).float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(views.depth, depth.float(), atol=1e-4, rtol=1e-4, check_dtype=False)
        torch.testing.assert_close(views.cameras.camera_to_world.double(), wanted.camera_to_world, atol=1e-5, rtol=1e-5)
    assert in_world(images(3, SIZE, SIZE), found, Condition(), wanted, 7.0).cameras is wanted


def test_a_path_that_only_turns_takes_the_scale_that_it_is_given():
    wanted = a_path()
    wanted = replace(wanted, camera_to_world=wanted.camera_to_world.clone())
    wanted.camera_to_world[:, :3, 3] = wanted.camera_to_world[0, :3, 3].clone()
    found, depth = predicted(wanted, turn())
    views = in_world(images(3, SIZE, SIZE), found, Condition(), wanted, 2.5)
    torch.testing.assert_close(views.depth, depth, atol=1e-4, rtol=1e-4, check_dtype=False)


def test_without_cameras_the_first_stands_at_the_origin():
    wanted = a_path()
    found, depth = predicted(wanted, turn())
    views = in_world(images(3, SIZE, SIZE), found, Condition(), Shot(3, SIZE, SIZE), 1.0)
    torch.testing.assert_close(views.cameras.camera_to_world[0], torch.eye(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(views.depth, 2.5 * depth, atol=1e-4, rtol=1e-4, check_dtype=False)


def test_a_shot_with_known_cameras_is_told_in_their_world():
    wanted = a_path()
    found, depth = predicted(wanted, turn())
    known = Views(images(2, SIZE, SIZE), wanted[[2, 0]].to(torch.float32))
    views = in_world(images(3, SIZE, SIZE), found, Condition(known, (2, 0)), Shot(3, SIZE, SIZE), 1.0)
    torch.testing.assert_close(views.points, wanted.unproject(depth).float(), atol=1e-4, rtol=1e-4)


def test_points_may_stand_beside_their_rays_as_published():
    camera, depth = a_path(1), depths(1)
    shifted = unprojected(camera, depth, whole_pixels=True)
    places, far = camera.project(shifted)
    columns = torch.arange(SIZE).double()
    torch.testing.assert_close(places[0, 3, :, 0], columns, atol=1e-3, rtol=0)
    torch.testing.assert_close(far, depth, atol=1e-4, rtol=1e-4)
    on_rays = in_world(images(1, SIZE, SIZE), Surface(camera, depth, depth), Condition(), camera, 1.0)
    beside = in_world(images(1, SIZE, SIZE), Surface(camera, depth, depth), Condition(), camera, 1.0, whole_pixels=True)
    torch.testing.assert_close(on_rays.points, camera.unproject(depth).float())
    torch.testing.assert_close(beside.points, shifted.float())
    assert float((on_rays.points - beside.points).abs().max()) > 1e-3


def test_the_two_heads_surfaces():
    cameras, depth = a_path(2), depths(2)
    by_depth, by_points = (surface(seen(cameras, depth), kind) for kind in ("depth", "head"))
    torch.testing.assert_close(by_depth.depth, depth)
    torch.testing.assert_close(by_points.depth, 1.5 * depth, atol=1e-5, rtol=1e-5)
    assert set(by_depth.confidence.unique().tolist()) == {0.0, 2.0}
    assert set(by_points.confidence.unique().tolist()) == {0.0, 3.0}


def test_points_behind_their_camera_are_no_surface():
    cameras, depth = a_path(1), depths(1)
    output = seen(cameras, depth)
    output.points[0, 0, :8] = cameras.unproject(-depth)[0, :8]
    found = surface(output, "head")
    assert (found.confidence[0, :8] == 0).all() and (found.depth > 0).all()


def test_depths_out_of_range_have_no_confidence():
    depth = torch.linspace(1, 2, 1000).reshape(1, 25, 40)
    kept = in_range(depth)
    assert 970 <= int(kept.sum()) <= 980 and not kept[0, 0, 0] and not kept[0, -1, -1]
    assert int(in_range(100 * depth).sum()) == 0
    assert torch.equal(in_range(torch.cat([depth, 3 * depth]))[0], kept[0])


def test_the_control_is_in_the_first_cameras_frame():
    wanted = a_path(5)
    frame = control_frame(wanted, 3.0)
    control = control_for(wanted, frame, torch.device("cpu"))
    local = wanted.relative_to(wanted.camera_to_world[0])
    local.camera_to_world[:, :3, 3] *= 3.0
    expected = packed(local.plucker()[None]).float()
    assert control.shape == (1, 24, 2, SIZE, 2 * SIZE)
    torch.testing.assert_close(control[..., :SIZE], expected, atol=1e-5, rtol=1e-5)
    moved = wanted.transformed(replace(turn(), scale=torch.ones(()).double()))
    again = control_for(moved, control_frame(moved, 3.0), torch.device("cpu"))
    torch.testing.assert_close(again, control, atol=1e-5, rtol=1e-5)
    assert not control_for(Shot(5, SIZE, SIZE), None, torch.device("cpu")).any()


def test_the_scale_of_a_scene():
    cameras, depth = a_path(3), depths(3)
    world = turn(0.4)
    told = seen(cameras.transformed(world), 0.4 * depth)
    photos = images(3, SIZE, SIZE)
    by_depth = Views(photos, cameras, cameras.unproject(depth), torch.ones(3, SIZE, SIZE).double())
    assert scale_of_scene(by_depth, told) == pytest.approx(0.4, rel=1e-4)
    assert scale_of_scene(Views(photos, cameras), told) == pytest.approx(0.4, rel=1e-4)
    median = float((0.4 * depth).median())
    assert scale_of_scene(Views(photos), told) == pytest.approx(median)
    alone = seen(cameras[:1].transformed(world), 0.4 * depth[:1])
    assert scale_of_scene(Views(photos[:1], cameras[:1]), alone) == pytest.approx(float((0.4 * depth[:1]).median()))


def test_paths_that_do_not_move_have_no_scale():
    moving, still = a_path(3), a_path(1)[[0, 0, 0]]
    assert scale_of_paths(moving, still, 1.0) is None and scale_of_paths(still, moving, 1.0) is None
    assert scale_of_paths(moving, moving, 1.0) == pytest.approx(1.0)
    assert scale_of_paths(moving, moving, math.inf) is None


def test_photos_are_cropped_for_a_shot():
    photo = torch.zeros(1, 3, 20, 40)
    photo[..., 10:30] = 1
    assert photos_for(Condition(Views(photo), (0,)), Shot(2, 10, 10)).unique().tolist() == [1.0]


def test_views_find_their_places_on_a_path():
    wanted, photos = a_path(4), images(2, SIZE, SIZE)
    condition, target = placed(Views(photos, wanted[[3, 1]]), wanted)
    assert condition.at == (3, 1) and target is wanted
    condition, target = placed(Views(photos), None)
    assert condition.at == (0, 1) and target == Shot(2, SIZE, SIZE)
    condition, target = placed(Views(photos, wanted[:2]), None)
    assert condition.at == (0, 1) and torch.equal(target.camera_to_world, wanted.camera_to_world[:2])
    with pytest.raises(ValueError, match=r"^view 1 is not on the wanted path: accepted are paths through all known"):
        placed(Views(photos, wanted[[0, 3]]), wanted[:3])
    with pytest.raises(ValueError, match=r"^2 views without cameras for 4 wanted ones: accepted is one each$"):
        placed(Views(photos), wanted)


@pytest.mark.parametrize(
    ("condition", "shot", "message"),
    [
        (Condition(Views(images(1)), (5,)), Shot(5, 16, 16), "known view at place 5 of 5 wanted views"),
        (Condition(Views(images(1)), (0,)), Shot(5, 0, 16), "accepted are 1 or more views of 1x1 pixels or more"),
        (Condition(Views(images(1, batch=(1,))), (0,)), Shot(5, 16, 16), "known images of shape (1, 1, 3, 32, 32)"),
    ],
)
def test_what_is_not_of_a_shot(condition, shot, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        in_shot(condition, shot)
    assert message in str(error.value)
