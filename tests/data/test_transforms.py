"""Mirroring and cutting keep images, cameras and points in step."""

import torch

from diorama.data.transforms import fitted, mirrored
from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_vector
from diorama.scene import Views


def make_views() -> Views:
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(2, 3, 1, 1)
    poses[..., :3, :3] = matrix_from_vector(torch.randn(2, 3, 3, generator=generator))
    poses[..., :3, 3] = torch.randn(2, 3, 3, generator=generator)
    cameras = Cameras.from_fov(60.0, 6, 8, poses).cropped(1, 2, 6, 7)
    depth = 1 + torch.rand(2, 3, 6, 7, generator=generator)
    images = torch.rand(2, 3, 3, 6, 7, generator=generator)
    return Views(images, cameras, cameras.unproject(depth), torch.rand(2, 3, 6, 7, generator=generator))


def test_mirrored_points_lie_on_the_mirrored_rays() -> None:
    views = make_views()
    other = mirrored(views, torch.tensor([True, False]))
    other.cameras.checked()
    pixels, depth = other.cameras.project(other.points)
    torch.testing.assert_close(depth[0], views.depth[0].flip(-1))
    torch.testing.assert_close(pixels[0, :, :, 0, 0], torch.full((3, 6), 0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(other.images[0], views.images[0].flip(-1))


def test_unchosen_scenes_stay_and_twice_is_nothing() -> None:
    views = make_views()
    both = torch.tensor([True, True])
    other = mirrored(views, torch.tensor([True, False]))
    torch.testing.assert_close(other.points[1], views.points[1])
    torch.testing.assert_close(other.cameras.intrinsics[1], views.cameras.intrinsics[1])
    twice = mirrored(mirrored(views, both), both)
    torch.testing.assert_close(twice.points, views.points)
    torch.testing.assert_close(twice.cameras.camera_to_world, views.cameras.camera_to_world)


def test_a_part_of_another_shape_lies_where_it_is_asked_for() -> None:
    """Uncut along one axis and unscaled, the part is a slice, its points and rays those of the whole."""
    views = make_views()
    for place, left in (((0.5, 0.5), 2), ((0.0, 0.0), 0), ((1.0, 1.0), 4), ((0.9, 0.26), 1)):
        part = fitted(views, 6, 3, place)
        columns = slice(left, left + 3)
        assert torch.equal(part.images, views.images[..., columns])
        assert part.points is not None and views.points is not None and part.cameras is not None
        torch.testing.assert_close(part.points, views.points[..., columns, :])
        assert views.cameras is not None
        torch.testing.assert_close(part.cameras.rays()[1], views.cameras.rays()[1][..., columns, :])
