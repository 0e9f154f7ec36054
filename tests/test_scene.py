"""The records: what goes together is checked when it is put together, and depth is a view of the points."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diorama.geometry.cameras import Cameras
from diorama.scene import Condition, Provenance, Scene, Shot, Views

from .geometry.drawing import (
    close,
    close_cameras,
    quick,
    random_cameras,
    random_similarity,
    rebuilt,
    seeds,
    sizes,
    uniform,
)

batches = st.sampled_from([(1,), (3,), (2, 3)])


def random_views(seed, *batch, height=5, width=7):
    cameras = random_cameras(seed, *batch, height=height, width=width)
    depth = uniform(seed + 7, 0.5, 5, *batch, height, width)
    confidence = uniform(seed + 8, 0, 1, *batch, height, width).round()
    return Views(uniform(seed, 0, 1, *batch, 3, height, width), cameras, cameras.unproject(depth), confidence), depth


@quick
@given(seeds, batches, sizes, sizes)
def test_depth_is_z_of_the_points(seed, batch, height, width):
    views, depth = random_views(seed, *batch, height=height, width=width)
    close(views.depth, depth)
    map_ = random_similarity(seed, *batch[:-1])
    close(views.transformed(map_).depth, map_.scale[..., None, None, None] * depth)
    assert Views(views.images, views.cameras).depth is None
    assert Views(views.images, points=views.points).depth is None


@quick
@given(seeds, batches)
def test_transforming_there_and_back(seed, batch):
    views, _ = random_views(seed, *batch)
    map_ = random_similarity(seed, *batch[:-1])
    back = views.transformed(map_).transformed(map_.inverse())
    close(back.points, views.points)
    close_cameras(back.cameras, views.cameras)
    assert back.images is views.images


@pytest.mark.parametrize("index", [1, -2, [1], (1,), slice(1, 2), torch.tensor([1])])
def test_indexing_keeps_the_view_axis_of_every_field(index):
    views, depth = random_views(0, 2, 3)
    chosen = views[index]
    assert len(chosen) == 1
    assert chosen.cameras.views == 1
    close(chosen.images, views.images[:, 1:2])
    close(chosen.depth, depth[:, 1:2])
    close(chosen.confidence, views.confidence[:, 1:2])
    assert torch.equal(chosen.mask, chosen.confidence > 0)


def test_views_can_be_counted_and_walked():
    views, _ = random_views(0, 3)
    assert len(list(views)) == len(views) == 3
    with pytest.raises(IndexError, match="view 3 of 3"):
        views[3]
    bare = Views(views.images)
    assert bare[0].cameras is bare[0].points is bare[0].confidence is bare.mask is None
    assert views.to(torch.float32).points.dtype == torch.float32
    assert bare.to(torch.float32).cameras is None


@quick
@given(seeds, sizes, sizes)
def test_resized_points_stay_on_their_rays(seed, height, width):
    views, depth = random_views(seed, 2, 2)
    small = views.resized(height, width)
    assert small.images.shape == (2, 2, 3, height, width)
    close_cameras(small.cameras, views.cameras.resized(height, width))
    close(small.cameras.unproject(small.depth), small.points)
    assert torch.isin(small.depth.float(), depth.float()).all()
    assert torch.isin(small.confidence, views.confidence).all()
    assert small.images.min() >= 0
    assert small.images.max() <= 1


def test_resizing_details():
    views, _ = random_views(0, 2)
    assert views.resized(5, 7) is views
    doubled = views.resized(10, 14)
    close(doubled.depth[:, ::2, ::2], views.depth)
    assert torch.equal(doubled.confidence[:, 1::2, 1::2], views.confidence)
    third = random_views(0, 2, height=9, width=9)[0]
    close(third.resized(3, 3).depth, third.depth[:, 1::3, 1::3])  # the middle of each block
    grey = Views(torch.full((2, 3, 6, 6), 0.25)).resized(4, 3)
    close(grey.images, torch.full((2, 3, 4, 3), 0.25), 1e-6)
    assert grey.cameras is None
    free = Views(views.images, points=views.points).resized(10, 14)
    assert torch.equal(free.points[:, ::2, ::2], views.points)


def test_what_does_not_fit_together_is_refused():
    views, _ = random_views(0, 3)
    for wrong, message in (
        ({"cameras": views.cameras[:2]}, "3 images of 5x7 but 2 cameras of 5x7"),
        ({"cameras": views.cameras.resized(4, 4)}, "3 images of 5x7 but 3 cameras of 4x4"),
        ({"images": views.images[0]}, r"images of shape \(3, 5, 7\): accepted is"),
        ({"images": views.images[:, :1]}, r"images of shape \(3, 1, 5, 7\): accepted is"),
        ({"points": views.points[:, 1:]}, r"points of shape \(3, 4, 7, 3\): these images accept \(3, 5, 7, 3\)"),
        ({"confidence": views.confidence[:2]}, r"confidence of shape \(2, 5, 7\): these images accept \(3, 5, 7\)"),
    ):
        with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
            rebuilt(views, **wrong)


def test_conditions():
    views, _ = random_views(0, 2)
    assert Condition().at == ()
    assert Condition(views, at=(0, 5), prompt="a room").views is views
    for known, at, message in (
        (views, (0,), r"2 known views but 1 places in `at`"),
        (None, (0,), r"0 known views but 1 places"),
        (views, (), r"2 known views but 0 places"),
        (views, (3, 3), r"places \(3, 3\) of the known views: accepted are different"),
        (views, (0, -1), r"places \(0, -1\) of the known views: accepted are different"),
    ):
        with pytest.raises(ValueError, match=message):
            Condition(known, at)


def test_records_cannot_be_changed():
    views, _ = random_views(0, 2)
    scene = Scene(views, Condition())
    assert scene.provenance == Provenance("unknown")
    for record, name in ((scene, "views"), (views, "images"), (Shot(3, 4, 5), "views"), (scene.condition, "prompt")):
        with pytest.raises(AttributeError):
            setattr(record, name, None)


def test_a_photo_alone_is_a_condition():
    photo = Views(torch.rand(1, 3, 4, 6), Cameras.from_fov(60.0, 4, 6))
    assert len(Condition(photo, at=(0,)).views) == 1


def test_a_batch_comes_apart():
    views, depth = random_views(0, 3, 2)
    rows = views.apart()
    assert len(rows) == 3
    for number, row in enumerate(rows):
        close(row.images, views.images[number], 0)
        close(row.depth, depth[number])
        close(row.confidence, views.confidence[number], 0)
    bare = Views(views.images).apart()[2]
    assert bare.cameras is bare.points is bare.confidence is None
    close(bare.images, views.images[2], 0)


def gradient(cameras):
    """Images whose red and green tell, in [0, 1], where in the camera's plane at depth 1 a pixel looks."""
    steps = [torch.arange(side) + 0.5 for side in (cameras.height, cameras.width)]
    y, x = torch.meshgrid(*steps, indexing="ij")
    fx, fy, cx, cy = (cameras.intrinsics[:, *place, None, None] for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
    planes = [(x - cx) / fx / 4 + 0.5, (y - cy) / fy / 4 + 0.5]
    return torch.stack([*planes, torch.zeros_like(planes[0])], 1).float()


@pytest.mark.parametrize("size", [(60, 60), (20, 20), (30, 40), (24, 48), (60, 80), (96, 96)])
def test_images_for_other_cameras_look_where_these_look(size):
    photo = Cameras.from_fov(60.0, 60, 80)
    for wanted in (
        photo.fitted(*size),
        photo.fitted(*size).fitted(16, 24),
        photo.cropped(10, 5, 31, 43).resized(*size),
    ):
        found = Views(gradient(photo), photo).images_for(wanted)
        close(found, gradient(wanted), 0.5 / 60 / 4 + 1e-3)  # half a pixel of the photo's


def test_images_for_the_same_cameras_are_the_images():
    views, _ = random_views(0, 2)
    close(views.images_for(views.cameras), views.images)
    with pytest.raises(ValueError, match="^views without cameras"):
        Views(views.images).images_for(views.cameras)


def test_known_views_are_checked_against_their_path():
    wanted = random_cameras(0, 3, height=6, width=6).to(torch.float32)
    photo = Views(torch.rand(1, 3, 8, 12))
    told = Condition(photo, at=(2,)).along(wanted).views
    close_cameras(told.cameras.fitted(6, 6), wanted[2], 1e-6)  # the photo is wider: the path sees its middle
    assert torch.equal(told.images, photo.images)
    assert Condition(told, at=(2,)).along(wanted).views.cameras.width == 12
    stretched = Views(photo.images, wanted[2].resized(8, 12))
    assert Condition(stretched, at=(2,)).along(wanted).views.cameras.width == 12
    with pytest.raises(ValueError, match="^the known view at place 1 has another orientation than the wanted camera"):
        Condition(told, at=(1,)).along(wanted)
    assert Condition().along(wanted).views is None
