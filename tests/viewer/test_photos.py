"""Bytes that a visitor sends: photos within limits, or one line."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diorama.data import images
from diorama.viewer.photos import MOST_PIXELS, Photo, plain_name, read_photo, strip


def packed(height: int, width: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_a_photo_is_read_under_its_own_name() -> None:
    photo = read_photo("C:\\photos\\my room.png", packed(20, 30))
    assert (photo.name, tuple(photo.image.shape), photo.fov) == ("my room.png", (3, 20, 30), None)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", packed(20, 30)[:100], packed(20, 30, "JPEG")[:400], packed(4, 30)],
    ids=["empty", "text", "cut", "cut jpeg", "too narrow"],
)
def test_what_is_no_photo_is_one_line_with_the_visitors_name_and_no_path_of_ours(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^room\.png: .*accepted") as refused:
        read_photo("../../etc/room.png", content)
    assert "\n" not in str(refused.value) and "/" not in str(refused.value).replace("room.png", "")


def test_pixels_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    large = read_photo("a.png", packed(3000, 2000))
    assert 0.2 * MOST_PIXELS < large.image[0].numel() <= MOST_PIXELS
    monkeypatch.setattr(images, "MAX_PIXELS_IN_FILE", 500)
    with pytest.raises(ValueError, match=r"^a\.png: 30x20 pixels are too many"):
        read_photo("a.png", packed(20, 30))


def test_names_lose_what_a_page_should_not_show() -> None:
    assert plain_name("a/b\x00\n.jpg") == "b.jpg"
    assert plain_name("") == "photo"
    assert len(plain_name("x" * 500)) == 60


@pytest.mark.parametrize("count", [1, 3])
def test_the_strip_shows_them_all_as_bytes(count: int) -> None:
    photos = [Photo("a", torch.full((3, 200, 300), 0.5), None) for _ in range(count)]
    shown = strip(photos)
    assert shown.dtype == np.uint8 and shown.ndim == 3 and shown.shape[2] == 3 and shown.shape[0] <= 200
    assert (abs(shown.astype(int) - 127) < 3).all(-1).sum() >= 0.9 * count * 100 * 150
