"""A captured scene decodes what is asked, with images, cameras and depth in step."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras


def camera(x: float, height: int = 24, width: int = 32, focal: float = 30.0) -> Cameras:
    pose = torch.eye(4, dtype=torch.float64)[None]
    pose[0, 0, 3] = x
    matrix = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]], dtype=torch.float64)
    return Cameras(pose, matrix, height, width)


def gradient(height: int = 24, width: int = 32) -> Tensor:
    """Red is the column and green the row of each pixel's centre, as shares."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width), torch.zeros(height, width)])


def given(value: Tensor) -> Callable[[int], Tensor]:
    return lambda most: value


def test_only_what_is_asked_is_decoded() -> None:
    asked = []

    def image(number: int) -> Callable[[int], Tensor]:
        def decode(most: int) -> Tensor:
            asked.append(number)
            return torch.full((3, 24, 32), number / 10)

        return decode

    scene = CapturedScene("room", tuple(Frame(f"{i}.png", image(i), camera(i + 1e-9)) for i in range(5)))
    assert scene.cameras is not None
    assert not asked
    views = scene.views([3, 1])
    assert asked == [3, 1]
    assert views.cameras is not None
    # 1e-9 beside 3 is there in double precision alone.
    assert views.cameras.centers[:, 0].tolist() == [3 + 1e-9, 1 + 1e-9]
    assert views.points is None


def test_depth_becomes_points_where_it_is_valid() -> None:
    depth = torch.full((12, 16), 2.0)  # half the image's size
    depth[0, 0], depth[0, 1], depth[11, 15] = 0, float("inf"), float("nan")
    mask = torch.ones(24, 32, dtype=torch.bool)
    mask[12, 12] = False
    frame = Frame("a", given(gradient()), camera(5.0), lambda: depth, lambda: mask)
    views = CapturedScene("room", (frame,), depth_kind="dense").views()
    assert views.mask is not None
    assert views.depth is not None
    invalid = [[0, y, x] for y in (0, 1) for x in range(4)] + [[0, 12, 12]]
    invalid += [[0, y, x] for y in (22, 23) for x in (30, 31)]
    assert (~views.mask).nonzero().tolist() == invalid
    torch.testing.assert_close(views.depth[views.mask], torch.full((int(views.mask.sum()),), 2.0, dtype=torch.float64))
    pixels, _ = views.cameras.project(views.points.double())
    torch.testing.assert_close(pixels[0, 5, 9], torch.tensor([9.5, 5.5], dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [(24, 24), (12, 32), (12, 12), (48, 64), (7, 19)])
def test_fitting_keeps_each_pixel_on_its_ray(size: tuple[int, int]) -> None:
    views = CapturedScene("room", (Frame("a", given(gradient()), camera(0.0)),)).views(height=size[0], width=size[1])
    assert views.images.shape == (1, 3, *size)
    # Where the original camera saw the ray through each pixel is what the gradient says.
    points = views.cameras.unproject(torch.ones(1, *size, dtype=torch.float64))
    pixels, _ = camera(0.0).project(points)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    found = views.images.movedim(1, -1)[..., :2].double() * torch.tensor([32.0, 24.0])
    torch.testing.assert_close(
        found[inside], pixels[inside], atol=0.1, rtol=0
    )  # half a pixel's slip would be 0.5 or more


def test_a_camera_for_another_size_of_the_photo() -> None:
    frame = Frame("a", given(gradient(12, 16)), camera(0.0))
    views = CapturedScene("room", (frame,)).views()
    assert views.cameras.intrinsics[0].tolist() == [[15, 0, 8], [0, 15, 6], [0, 0, 1]]
    for wrong in (
        Frame("folder/a.png", given(gradient(32, 24)), camera(0.0)),
        Frame("folder/a.png", given(gradient()), camera(0.0), lambda: torch.ones(32, 24)),
    ):
        with pytest.raises(ValueError, match=r"folder/a.png: .*24x32.*; accepted is one shape for both"):
            CapturedScene("room", (wrong,)).views()


def test_several_sizes_are_one_when_a_size_is_wanted() -> None:
    frames = (
        Frame("a.png", given(gradient()), camera(0.0)),
        Frame("b.png", given(gradient(30, 40)), camera(1.0, 30, 40)),
    )
    scene = CapturedScene("room", frames)
    with pytest.raises(ValueError, match=r"b.png: 30x40 pixels but a.png has 24x32"):
        scene.views()
    with pytest.raises(ValueError, match="cameras for images of 24x32, 30x40"):
        _ = scene.cameras
    assert scene.views(height=12, width=16).images.shape == (2, 3, 12, 16)


def test_what_is_no_scene() -> None:
    with pytest.raises(ValueError, match="room: found no photos"):
        CapturedScene("room", ())
    frames = (Frame("a", given(gradient()), camera(0.0)), Frame("b", given(gradient())))
    with pytest.raises(ValueError, match="cameras for all or for none"):
        CapturedScene("room", frames)
    with pytest.raises(ValueError, match="1 places on a path for 2 photos"):
        CapturedScene("room", frames[:1] * 2, path=camera(0.0), at=(0,))
    with pytest.raises(ValueError, match="no frames chosen"):
        CapturedScene("room", frames[:1]).views([])
