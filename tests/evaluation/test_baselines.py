"""Baselines on scenes whose pictures have closed forms: textured planes."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter

from diorama.evaluation.baselines import (
    best_blur,
    blurred,
    copy_nearest,
    depth_warp,
    mean_of_known,
    median_depth,
    nearest_view,
    plane_warp,
    seen_in,
)
from diorama.evaluation.metrics import psnr
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.scene import Views

SIZE = 24


def cameras_at(*places: tuple[float, float, float], turn: float = 0.0) -> Cameras:
    """One batch entry of cameras at places, all turned about y by `turn` radians."""
    poses = torch.eye(4).repeat(1, len(places), 1, 1)
    poses[0, :, :3, 3] = torch.tensor(places)
    poses[0, :, 0, 0] = poses[0, :, 2, 2] = math.cos(turn)
    poses[0, :, 0, 2], poses[0, :, 2, 0] = math.sin(turn), -math.sin(turn)
    return Cameras.from_fov(60.0, SIZE, SIZE, poses)


def plane_views(cameras: Cameras, slope: float = 0.0) -> Views:
    """The plane z = 3 + slope x with smooth waves of colour painted on it."""
    origins, directions = cameras.rays()
    reach = (3 + slope * origins[..., 0] - origins[..., 2]) / (directions[..., 2] - slope * directions[..., 0])
    points = origins + directions * reach[..., None]
    waves = torch.stack(
        [torch.sin(points[..., 0]), torch.cos(1.3 * points[..., 1]), torch.sin(points[..., :2].sum(-1))]
    )
    return Views(0.5 + 0.4 * waves.movedim(0, 2), cameras, points, (reach > 0).float())


def joined(*views: Views) -> Views:
    """Views of single scenes as one batch."""
    cameras = [v.cameras for v in views]
    return Views(
        torch.cat([v.images for v in views]),
        Cameras(
            torch.cat([c.camera_to_world for c in cameras]),
            torch.cat([c.intrinsics for c in cameras]),
            SIZE,
            SIZE,
        ),
        torch.cat([v.points for v in views]),
        torch.cat([v.confidence for v in views]),
    )


def test_the_nearest_view_counts_distance_by_depth_and_angle() -> None:
    known = plane_views(cameras_at((0, 0, 0), (2, 0, 0)))
    assert nearest_view(known, cameras_at((0.4, 0, 0), (1.7, 0, 0), (9, 0, 0))).tolist() == [[0, 1, 1]]
    turned = cameras_at((0, 0, 0), turn=0.5)
    both = Cameras(
        torch.cat([cameras_at((0.3, 0, 0)).camera_to_world, turned.camera_to_world], 1),
        known.cameras.intrinsics,
        SIZE,
        SIZE,
    )
    # 0.3 at depth 3 is a tenth of a radian of motion, less than the half by which the other one is turned.
    assert nearest_view(plane_views(both), cameras_at((0, 0, 0))).tolist() == [[0]]


def test_without_points_the_extent_of_the_path_stands_for_the_depth() -> None:
    known, wanted = cameras_at((0, 0, 0), (2, 0, 0)), cameras_at((0.4, 0, 0), (1.7, 0, 0), (9, 0, 0))
    bare = Views(torch.rand(1, 2, 3, SIZE, SIZE), known)
    assert nearest_view(bare, wanted).tolist() == [[0, 1, 1]]
    assert nearest_view(bare, cameras_at((0, 0, 0))).tolist() == [[0]]
    still = Views(bare.images, cameras_at((1, 1, 1), (1, 1, 1)))
    assert nearest_view(still, cameras_at((1, 1, 1))).tolist() == [[0]]


def test_copying_a_known_camera_gives_its_picture_and_the_mean_is_the_mean() -> None:
    known = plane_views(cameras_at((0, 0, 0), (1, 0, 0), (0, 1, 0)))
    torch.testing.assert_close(copy_nearest(known, known.cameras[[2, 0]]), known.images[:, [2, 0]])
    mean = mean_of_known(known, known.cameras[:2])
    torch.testing.assert_close(mean, known.images.mean(1, keepdim=True).expand(-1, 2, -1, -1, -1))


def test_a_plane_warps_exactly_and_repeats_its_edge_outside() -> None:
    known, target = plane_views(cameras_at((0, 0, 0))), plane_views(cameras_at((0.4, -0.2, 0.5), (0, 0, 0)))
    warped = plane_warp(known, target.cameras)
    seen = seen_in(known, target)
    assert 0.7 < seen[0, 0].float().mean() < 1
    error = (warped - target.images).abs().amax(2)
    assert error[seen].max() < 0.01
    assert error[:, 1].max() < 1e-4
    far_left = plane_warp(known, cameras_at((-50, 0, 0)))[0, 0]
    torch.testing.assert_close(far_left, known.images[0, 0, :, :, :1].expand(-1, -1, SIZE), atol=1e-5, rtol=0)


def test_rays_that_miss_the_plane_give_finite_colours() -> None:
    known = plane_views(cameras_at((0, 0, 0)))
    behind = plane_warp(known, cameras_at((0, 0, 0), (0, 0, 5), turn=math.pi / 2))
    assert behind.isfinite().all()
    assert behind.min() >= known.images.min() - 1e-5
    assert behind.max() <= known.images.max() + 1e-5


def test_the_depth_warp_is_exact_where_a_known_view_sees_and_copies_elsewhere() -> None:
    known = plane_views(cameras_at((0, 0, 0), (1.5, 0, 0)), slope=0.6)
    target = plane_views(cameras_at((0.3, 0, 0.4), (1, 0, 0), (-3, 0, 0)), slope=0.6)
    seen, warped = seen_in(known, target), depth_warp(known, target)
    error = (warped - target.images).abs().amax(2)[seen]
    assert error.quantile(0.97) < 0.01
    assert error.max() < 0.1  # within half a pixel of a picture's edge there is nothing to interpolate
    torch.testing.assert_close(
        warped.movedim(2, -1)[~seen], copy_nearest(known, target.cameras).movedim(2, -1)[~seen], atol=0, rtol=0
    )
    assert (
        psnr(warped, target.images)[0, :2].min() > psnr(plane_warp(known, target.cameras), target.images)[0, :2].max()
    )


def test_two_views_see_what_either_sees_and_nothing_is_seen_backwards() -> None:
    known, target = plane_views(cameras_at((0, 0, 0), (1.5, 0, 0))), plane_views(cameras_at((0.7, 0, 0)))
    torch.testing.assert_close(seen_in(known, target), seen_in(known[0], target) | seen_in(known[1], target))
    assert seen_in(known, known).all()
    away = Views(target.images, cameras_at((0, 0, 0), turn=math.pi), target.points - 6, target.confidence)
    assert not seen_in(known[0], away).any()


def test_a_point_behind_a_nearer_surface_is_not_seen() -> None:
    known, target = plane_views(cameras_at((0, 0, 0))), plane_views(cameras_at((0, 0, 0)))
    closer = known.cameras.unproject(torch.full((1, 1, SIZE, SIZE), 2.0))
    half = torch.arange(SIZE) < SIZE // 2
    screen = Views(known.images, known.cameras, torch.where(half[:, None], closer, known.points), known.confidence)
    seen = seen_in(screen, target)[0, 0]
    assert not seen[:, : SIZE // 2 - 1].any()
    assert seen[:, SIZE // 2 + 1 :].all()


def test_sky_is_seen_where_the_known_view_has_sky() -> None:
    views = plane_views(cameras_at((0, 0, 0), (0.2, 0, 0)))
    sky = Views(views.images, views.cameras, views.points, torch.zeros_like(views.confidence))
    assert seen_in(sky[0], sky[1])[0, 0, :, 2:].all()
    assert not seen_in(views[0], sky[1]).any()
    assert not seen_in(sky[0], views[1]).any()
    assert (median_depth(sky) > 1000).all()


def test_baselines_of_a_batch_are_those_of_each_scene_and_follow_the_world() -> None:
    scenes = [plane_views(cameras_at((0, 0, 0), (1, 0.2, 0), (0.5, 0, 0.3)), slope) for slope in (0.0, 0.7)]
    mapped = Similarity(
        torch.linalg.qr(torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))).Q,
        torch.tensor([[1.0, 2, 3], [-1, 0, 1]]),
        torch.tensor([2.0, 0.5]),
    )
    mapped = Similarity(
        mapped.rotation * torch.linalg.det(mapped.rotation)[:, None, None], mapped.translation, mapped.scale
    )
    batch = joined(*scenes)
    moved = batch.transformed(mapped)
    for baseline in (copy_nearest, mean_of_known, plane_warp):
        together = baseline(batch[:2], batch.cameras[2:])
        alone = torch.cat([baseline(scene[:2], scene.cameras[2:]) for scene in scenes])
        torch.testing.assert_close(together, alone)
        torch.testing.assert_close(baseline(moved[:2], moved.cameras[2:]), together, atol=1e-4, rtol=0)
    torch.testing.assert_close(depth_warp(batch[:2], batch[2:])[1:], depth_warp(scenes[1][:2], scenes[1][2:]))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_the_blur_is_scipys(sigma: float) -> None:
    images = torch.rand(2, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    radius = round(3 * sigma) + 1
    expected = gaussian_filter(images.double().numpy(), sigma, mode="nearest", radius=radius, axes=(-2, -1))
    torch.testing.assert_close(blurred(images, sigma).double(), torch.from_numpy(expected), atol=1e-6, rtol=0)
    assert blurred(images, 0.0) is images


def test_the_best_blur_undoes_noise_and_leaves_the_truth_alone() -> None:
    true = plane_views(cameras_at((0, 0, 0), (1, 0, 0))).images
    noisy = true + 0.2 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    assert best_blur(true, true) == 0
    assert best_blur(noisy, true) >= 1


def test_what_is_missing_is_named() -> None:
    views = plane_views(cameras_at((0, 0, 0)))
    with pytest.raises(ValueError, match="without cameras"):
        copy_nearest(Views(views.images), views.cameras)
    with pytest.raises(ValueError, match="points and confidence"):
        plane_warp(Views(views.images, views.cameras), views.cameras)
    with pytest.raises(ValueError, match="points and confidence"):
        seen_in(views, Views(views.images, views.cameras))
