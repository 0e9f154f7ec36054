"""Cameras: projection, rays and changes of frame, as laws rather than examples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity

from .drawing import (
    close,
    close_cameras,
    normal,
    quick,
    random_cameras,
    random_poses,
    random_rotation,
    random_similarity,
    rebuilt,
    seeds,
    sizes,
    uniform,
)

batches = st.sampled_from([(1,), (3,), (2, 3), (1, 2, 2)])


def pixel_centres(height, width):
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1).double()


def at_pixels(cameras, pixels):
    """Unit directions at continuous pixel positions, by the inverse of the intrinsics."""
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    matrix = cameras.camera_to_world[..., :3, :3] @ torch.linalg.inv(cameras.intrinsics)
    directions = torch.einsum("...ij,hwj->...hwi", matrix, homogeneous)
    return directions / directions.norm(dim=-1, keepdim=True)


@quick
@given(seeds, batches, sizes, sizes)
def test_project_undoes_unproject(seed, batch, height, width):
    cameras = random_cameras(seed, *batch, height=height, width=width)
    depth = uniform(seed, 0.1, 10, *batch, height, width)
    pixels, found = cameras.project(cameras.unproject(depth))
    close(found, depth)
    close(pixels, pixel_centres(height, width).expand_as(pixels), 1e-7)


@quick
@given(seeds, batches, sizes, sizes)
def test_rays_are_unit_and_pass_through_the_points(seed, batch, height, width):
    cameras = random_cameras(seed, *batch, height=height, width=width)
    origins, directions = cameras.rays()
    close(directions.norm(dim=-1), torch.ones(*batch, height, width, dtype=torch.float64))
    close(directions, at_pixels(cameras, pixel_centres(height, width)))
    offset = cameras.unproject(uniform(seed, 0.1, 10, *batch, height, width)) - origins
    close(torch.linalg.cross(offset, directions), torch.zeros_like(offset))
    assert ((offset * directions).sum(-1) > 0).all()


@quick
@given(seeds, batches)
def test_world_to_camera_is_the_inverse(seed, batch):
    cameras = random_cameras(seed, *batch)
    close(cameras.world_to_camera, torch.linalg.inv(cameras.camera_to_world))


@quick
@given(seeds, batches)
def test_plucker_invariants(seed, batch):
    cameras = random_cameras(seed, *batch)
    origins, directions = (value.movedim(-1, -3) for value in cameras.rays())
    moment, direction = cameras.plucker().split(3, -3)
    close(direction.norm(dim=-3), torch.ones_like(direction[..., 0, :, :]))
    close((moment * direction).sum(-3), torch.zeros_like(direction[..., 0, :, :]))
    close(moment, torch.linalg.cross(origins, direction, dim=-3))
    moved = origins + uniform(seed, -5, 5, *batch, 1, 5, 7) * directions
    close(moment, torch.linalg.cross(moved, direction, dim=-3))


@quick
@given(seeds, batches)
def test_a_frame_is_a_group_action(seed, batch):
    cameras = random_cameras(seed, *batch)
    first = cameras.camera_to_world[..., 0, :, :]
    own = cameras.relative_to(first)
    close(own.camera_to_world[..., 0, :, :], torch.eye(4).double().expand_as(first))
    close_cameras(own.transformed(Similarity(first[..., :3, :3], first[..., :3, 3], first[..., 3, 3])), cameras)

    pose = random_poses(seed + 9, *batch[:-1])
    close_cameras(cameras.relative_to(pose).relative_to(torch.linalg.inv(pose) @ first), own)
    motion = replace(random_similarity(seed + 11, *batch[:-1]), scale=torch.ones(batch[:-1], dtype=torch.float64))
    moved = cameras.transformed(motion)
    close_cameras(moved.relative_to(moved.camera_to_world[..., 0, :, :]), own)


@quick
@given(seeds, st.sampled_from([(2,), (4,), (2, 3)]))
def test_normalized(seed, batch):
    cameras = random_cameras(seed, *batch)
    normal, similarity = cameras.normalized()
    close_cameras(cameras.transformed(similarity), normal)
    close(normal.centers.norm(dim=-1).amax(-1), torch.ones(batch[:-1], dtype=torch.float64))
    close(normal.camera_to_world[..., 0, :, :], torch.eye(4).double().expand(*batch[:-1], 4, 4))
    close_cameras(normal.normalized()[0], normal)
    close_cameras(cameras.transformed(random_similarity(seed + 9)).normalized()[0], normal)
    close_cameras(normal.transformed(similarity.inverse()), cameras)


@quick
@given(seeds)
def test_cameras_in_one_place_keep_their_scale(seed):
    poses = random_poses(seed, 1).repeat(4, 1, 1)
    poses[:, :3, :3] = random_rotation(seed + 1, 4)
    cameras = random_cameras(seed, 4)
    for still in (replace(cameras, camera_to_world=poses), cameras[2]):
        normal, similarity = still.to(torch.float32).normalized()
        assert similarity.scale == 1
        close(normal.centers, torch.zeros_like(normal.centers), 1e-5)


@quick
@given(seeds, sizes, sizes, sizes, sizes)
def test_resized_rays_are_the_same_rays(seed, height, width, new_height, new_width):
    cameras = random_cameras(seed, 2, height=height, width=width)
    resized = cameras.resized(new_height, new_width)
    scale = torch.tensor([width / new_width, height / new_height], dtype=torch.float64)
    close(resized.rays()[1], at_pixels(cameras, pixel_centres(new_height, new_width) * scale))
    close_cameras(resized.resized(height, width), cameras)


@quick
@given(seeds, st.integers(0, 3), st.integers(0, 4), st.integers(1, 2), st.integers(1, 3))
def test_cropped_keeps_the_rays_of_kept_pixels(seed, top, left, height, width):
    cameras = random_cameras(seed, 2)
    window = cameras.cropped(top, left, height, width)
    assert (window.height, window.width) == (height, width)
    close(window.plucker(), cameras.plucker()[..., top : top + height, left : left + width])


@quick
@given(seeds, batches)
def test_projection_follows_the_world(seed, batch):
    cameras, map_ = random_cameras(seed, *batch), random_similarity(seed + 9, *batch[:-1])
    points = normal(seed, *batch, 6, 3)
    pixels, depth = cameras.project(points)
    moved_pixels, moved_depth = cameras.transformed(map_).project(map_.apply(points))
    scale = map_.scale.reshape(*batch[:-1], 1, 1)
    close(moved_depth, scale * depth)
    seen = depth.abs() > 0.05
    close(moved_pixels[seen], pixels[seen], 1e-6)


@quick
@given(st.floats(1, 179), sizes, sizes)
def test_field_of_view_spans_the_longer_side(degrees, height, width):
    cameras = Cameras.from_fov(degrees, height, width).checked()
    focal = float(cameras.intrinsics[0, 0, 0])
    assert 2 * np.degrees(np.arctan(max(height, width) / 2 / focal)) == pytest.approx(degrees, rel=1e-5)
    assert cameras.views == 1
    if width >= height:
        assert float(cameras.fov) == pytest.approx(degrees, rel=1e-4)


def test_first_pixel_centre_and_axes():
    cameras = Cameras.from_fov(90.0, 4, 4)
    pixels, depth = cameras.project(
        torch.tensor([[[0.0, 0.0, 2.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, -1.0]]])
    )
    close(pixels[0, :3], torch.tensor([[2.0, 2.0], [4.0, 2.0], [2.0, 4.0]]), 1e-6)  # x right, y down
    assert depth[0, 0] == 2
    assert depth[0, 3] < 0
    close(cameras.project(cameras.unproject(torch.ones(1, 4, 4)))[0][0, 0, 0], torch.tensor([0.5, 0.5]), 1e-6)


@pytest.mark.parametrize("index", [1, -2, [1], (1,), slice(1, 2), torch.tensor([1])])
def test_indexing_keeps_the_view_axis(index):
    cameras = random_cameras(0, 2, 3)
    chosen = cameras[index]
    assert chosen.views == len(chosen) == 1
    close(chosen.camera_to_world[:, 0], cameras.camera_to_world[:, 1])


def test_indexing_ends():
    cameras = random_cameras(0, 3)
    assert len(list(cameras)) == 3
    for place in (3, -4):
        with pytest.raises(IndexError, match=rf"view {place} of 3"):
            cameras[place]


def set_entry(name, row, column, value):
    def spoil(cameras, view):
        changed = getattr(cameras, name).clone()
        changed[..., view, row, column] = value
        return replace(cameras, **{name: changed})

    return spoil


def scaled(cameras, view):
    poses = cameras.camera_to_world.clone()
    poses[..., view, :3, :3] *= 1.1
    return replace(cameras, camera_to_world=poses)


def reflected(cameras, view):
    poses = cameras.camera_to_world.clone()
    poses[..., view, :3, 0] *= -1
    return replace(cameras, camera_to_world=poses)


def transposed(cameras, view):
    intrinsics = cameras.intrinsics.clone()
    intrinsics[..., view, :, :] = intrinsics[..., view, :, :].mT.clone()
    return replace(cameras, intrinsics=intrinsics)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (set_entry("camera_to_world", 0, 3, float("nan")), "non-finite pose"),
        (set_entry("camera_to_world", 0, 0, float("inf")), "non-finite pose"),
        (set_entry("intrinsics", 0, 0, float("nan")), "non-finite intrinsics"),
        (set_entry("camera_to_world", 3, 0, 0.5), "not a rigid camera-to-world"),
        (scaled, "not a rigid camera-to-world"),
        (reflected, "not a rigid camera-to-world"),
        (transposed, "not upper triangular"),
        (set_entry("intrinsics", 0, 0, -3.0), "focal length that is not positive"),
        (set_entry("intrinsics", 1, 1, 0.0), "focal length that is not positive"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checked_names_the_camera_and_the_fault(spoil, message, dtype):
    cameras = random_cameras(3, 4).to(dtype)
    assert cameras.checked() is cameras
    with pytest.raises(ValueError, match=rf"^camera 2 .*{message}[^\n]*$"):
        spoil(cameras, 2).checked()


def test_construction_errors():
    with pytest.raises(ValueError, match=r"\(2,\) poses but \(3,\) intrinsics"):
        rebuilt(random_cameras(0, 3), camera_to_world=torch.eye(4).repeat(2, 1, 1))
    with pytest.raises(ValueError, match="image size 0x4"):
        Cameras(torch.eye(4)[None], torch.eye(3)[None], 0, 4)
    for degrees in (0.0, 180.0, -5.0, float("nan")):
        with pytest.raises(ValueError, match="field of view"):
            Cameras.from_fov(degrees, 4, 4)


@quick
@given(seeds, st.sampled_from([(2,), (3, 2)]))
def test_a_batch_comes_apart_and_together_again(seed, batch):
    cameras = random_cameras(seed, *batch, 4)
    rows = cameras.apart()
    assert len(rows) == batch[0]
    close_cameras(Cameras.stacked(rows), cameras, 0)
    close(rows[1].camera_to_world, cameras.camera_to_world[1], 0)
    close_cameras(cameras[:1].joined(cameras[1:]), cameras, 0)
    for other in (rows[0][:2], rows[0].resized(5, 8)):
        with pytest.raises(
            ValueError, match=r"^paths of different shapes \(views, height, width\) \[[^\n]+\] in one batch$"
        ):
            Cameras.stacked([rows[0], other])


@quick
@given(seeds, sizes, sizes, sizes, sizes)
def test_fitting_shows_the_centre_and_keeps_the_proportions_of_pixels(seed, height, width, new_height, new_width):
    cameras = random_cameras(seed, 2, height=height, width=width)
    fitted = cameras.fitted(new_height, new_width)
    step = min(height / new_height, width / new_width)  # old pixels for a new one: the most that both sides allow
    middle, new_middle = (torch.tensor(size).double() / 2 for size in ((width, height), (new_width, new_height)))
    close(fitted.rays()[1], at_pixels(cameras, middle + step * (pixel_centres(new_height, new_width) - new_middle)))
    close_cameras(fitted.widened(height, width), cameras)
    assert (fitted.height, fitted.width) == (new_height, new_width)


def test_far_from_the_origin_cameras_keep_their_distances():
    """What singles hold of cameras kilometres away, normalising does not lose: doubles of the same numbers agree."""
    near = random_cameras(0, 6)
    poses = near.camera_to_world.clone()
    poses[:, :3, 3] += torch.tensor([8000.0, -3000.0, 5000.0])
    far = replace(near, camera_to_world=poses).to(torch.float32)
    exact = far.to(torch.float64).normalized()[0]
    close(far.normalized()[0].centers.double(), exact.centers, 1e-6)
    close(far.extent.double(), far.to(torch.float64).extent, 1e-6)


def test_deviation_names_its_parts():
    cameras = random_cameras(0, 2)
    close(cameras.deviation(cameras), torch.zeros(2, 3).double())
    poses, intrinsics = cameras.camera_to_world.clone(), cameras.intrinsics.clone()
    poses[1, :3, 3] += torch.tensor([3.0, 0.0, 4.0])
    intrinsics[1, 0, 2] += 0.7
    moved = replace(cameras, camera_to_world=poses, intrinsics=intrinsics)
    close(cameras.deviation(moved), torch.tensor([[0, 0, 0], [0, 5, 0.1]], dtype=torch.float64))
    turned = cameras.relative_to(cameras.camera_to_world[0])
    assert cameras.deviation(turned)[0, 0] > 0.1


def test_a_path_is_checked_and_precise():
    cameras = random_cameras(0, 3)
    assert cameras.path().camera_to_world.dtype == torch.float64
    assert cameras.to(torch.float32).path().intrinsics.dtype == torch.float32
    for wrong in (random_cameras(0, 2, 3), cameras[[]]):
        with pytest.raises(
            ValueError, match=r"^cameras of shape \([^\n]+\): accepted is one path of shape \(views, 4, 4\)$"
        ):
            wrong.path()
    with pytest.raises(ValueError, match="camera 0 is not a rigid"):
        scaled(cameras, 0).path()
