"""Consistency of scenes whose depth is exact, made wrong in known ways, and of planes with closed forms."""

import math
from dataclasses import replace

import pytest
import torch

from diorama.data.worlds import PLACES, render, world
from diorama.evaluation.consistency import CEILING, Consistency, warp_consistency
from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_quaternion
from diorama.geometry.similarity import Similarity
from diorama.scene import Views

SIZE = 48


def with_depth(views: Views, depth: torch.Tensor) -> Views:
    return replace(views, points=views.cameras.unproject(depth))


@pytest.fixture(scope="module", params=PLACES)
def scene(request) -> Views:
    """Four views of a procedural scene of each kind with exact depth."""
    place = world(5, kind=request.param)
    return render(place, place.path(6, 96, 96)[:4], samples=4)


def plane(*places: tuple[float, float, float], slope: float = 0.0) -> Views:
    """Views of the plane z = 3 + slope x with smooth waves painted on it."""
    poses = torch.eye(4).repeat(len(places), 1, 1)
    poses[:, :3, 3] = torch.tensor(places)
    cameras = Cameras.from_fov(60.0, SIZE, SIZE, poses)
    origins, directions = cameras.rays()
    reach = (3 + slope * origins[..., 0] - origins[..., 2]) / (directions[..., 2] - slope * directions[..., 0])
    points = origins + directions * reach[..., None]
    waves = torch.stack([torch.sin(points[..., 0]), torch.cos(points[..., 1]), torch.sin(points[..., :2].sum(-1))], 1)
    return Views(0.5 + 0.4 * waves, cameras, points, (reach > 0).float())


def means(found: Consistency) -> tuple[float, float]:
    return found.mean_psnr.item(), found.mean_share.item()


def test_true_depth_agrees_and_wrong_depth_does_not(scene: Views) -> None:
    psnr, share = means(warp_consistency(scene))
    assert psnr > 30 and share > 0.6
    falling = [psnr, *(means(warp_consistency(with_depth(scene, f * scene.depth)))[0] for f in (1.1, 1.3))]
    assert falling[0] > falling[1] + 5 and falling[1] > falling[2] + 0.5
    shuffled = means(warp_consistency(with_depth(scene, scene.depth[[1, 2, 3, 0]])))
    assert shuffled[0] < psnr - 3 and shuffled[1] < 0.75 * share
    strangers = means(warp_consistency(replace(scene, images=scene.images[[1, 2, 3, 0]])))
    assert strangers[0] < psnr - 10 and strangers[1] == share


def test_a_plane_is_consistent_to_the_pixel_however_steep() -> None:
    for slope in (0.0, 0.8):
        views = plane((0, 0, 0), (0.3, 0, 0), (0, 0.2, 0.4), slope=slope)
        found = warp_consistency(views)
        assert found.psnr.diagonal().isnan().all() and found.share.diagonal().isnan().all()
        assert found.psnr.nan_to_num(99).min() > 45 and found.share.nan_to_num(1).min() > 0.7


def test_the_share_is_the_overlap_and_the_error_that_of_the_pixels_there() -> None:
    width = 2 * 3 * math.tan(math.radians(30))  # of the picture on the plane
    views = plane((0, 0, 0), (width / 4, 0, 0), (3 * width, 0, 0))
    brighter = views.images.clone() * 0.5
    brighter[1] += 0.1
    found = warp_consistency(replace(views, images=brighter))
    assert found.share[0, 1].item() == pytest.approx(0.75, abs=0.03)
    assert found.share[1, 0].item() == pytest.approx(0.75, abs=0.03)
    assert found.psnr[0, 1].item() == pytest.approx(20, abs=0.1)
    # The third view shows none of what the others do: no pixel is compared, and no PSNR is made up.
    assert found.share[2, :2].tolist() == found.share[:2, 2].tolist() == [0, 0]
    assert found.psnr[2, :2].isnan().all() and found.psnr[:2, 2].isnan().all()
    assert found.mean_psnr.item() == pytest.approx(20, abs=0.1)
    assert found.mean_share.item() == pytest.approx(0.25, abs=0.01)


def test_a_surface_hidden_behind_another_and_the_edge_between_them_are_not_compared() -> None:
    views = plane((0, 0, 0), (0, 0, 0))
    near = (torch.arange(SIZE) < SIZE // 2).expand(2, SIZE, SIZE) & torch.tensor([True, False])[:, None, None]
    views = with_depth(views, torch.where(near, 2.0, views.depth))
    images = torch.where(near[:, None], 1.0, views.images)
    found = warp_consistency(replace(views, images=images))
    for pair in ((0, 1), (1, 0)):
        assert found.share[pair].item() == pytest.approx((SIZE // 2 - 1) / SIZE)
        assert found.psnr[pair] == CEILING


def test_sky_is_left_out_and_confidence_may_be_absent() -> None:
    views = plane((0, 0, 0), (0.1, 0, 0))
    upper = (torch.arange(SIZE) < SIZE // 4)[:, None].repeat(2, 1, SIZE)
    sky = replace(views, confidence=(~upper).float(), images=torch.where(upper[:, None], torch.rand(()), views.images))
    found = warp_consistency(sky)
    assert found.psnr[0, 1] > 45
    # One row beside the sky is an edge.
    assert 0.85 < found.share[0, 1] < (SIZE * 3 / 4 - 1) / (SIZE * 3 / 4)
    upper[0] = False
    one_sided = warp_consistency(replace(views, confidence=(~upper).float())).share
    assert one_sided[0, 1] > 0.85 and one_sided[1, 0] < 0.75
    plain = warp_consistency(replace(views, confidence=None))
    torch.testing.assert_close(plain.psnr, warp_consistency(views).psnr, equal_nan=True)
    nothing = warp_consistency(replace(views, confidence=torch.zeros(2, SIZE, SIZE)))
    assert nothing.mean_psnr.isnan() and nothing.mean_share.isnan()


def test_the_world_does_not_matter() -> None:
    views = plane((0, 0, 0), (0.3, 0, 0), slope=0.3)
    turn = matrix_from_quaternion(torch.tensor([0.3, -0.5, 0.7, 0.2]))
    moved = views.transformed(Similarity(turn, torch.tensor([1.0, -2, 0.5]), torch.tensor(2.5)))
    torch.testing.assert_close(
        warp_consistency(moved).psnr, warp_consistency(views).psnr, atol=0.1, rtol=0, equal_nan=True
    )


def test_what_is_missing_is_named() -> None:
    views = plane((0, 0, 0), (0.3, 0, 0))
    for broken in (Views(views.images), Views(views.images, views.cameras), views[0]):
        with pytest.raises(ValueError, match="accepted are 2 or more views of one scene with cameras and points"):
            warp_consistency(broken)
