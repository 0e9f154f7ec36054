"""Every kind of photo and video that people have, and every kind that is broken."""

import io
import itertools
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from diorama.data import images
from diorama.data.images import Encoded, field_of_view, image_size, read_image, read_video, resize


def gradient(height: int = 24, width: int = 32) -> np.ndarray:
    """RGB whose three channels tell left from right, top from bottom and a corner from the rest."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y < 10) * 255], -1).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def refused(path: Path) -> str:
    """The one line that `read_image` says."""
    with pytest.raises(ValueError, match=path.name) as error:
        read_image(path)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_eight_bit_colours_are_exact(tmp_path: Path) -> None:
    pixels = gradient()
    for suffix in ("png", "bmp", "tif", "ppm"):
        image = read_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(pixels)))
        assert image.dtype == torch.float32
        assert torch.equal(image, torch.from_numpy(pixels).movedim(-1, 0).float() / 255)


def test_lossy_formats_come_close(tmp_path: Path) -> None:
    expected = torch.from_numpy(gradient()).movedim(-1, 0) / 255
    for suffix in ("jpg", "webp", "avif"):
        image = read_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(gradient()), quality=95))
        assert (image - expected).abs().mean() < 0.05


def test_grey_has_three_equal_channels(tmp_path: Path) -> None:
    grey = gradient()[..., 0]
    for mode in ("L", "1"):
        source = Image.fromarray(grey).convert(mode)
        image = read_image(saved(tmp_path / f"{mode}.png", source))
        expected = torch.from_numpy(np.asarray(source.convert("L")).copy()) / 255
        assert torch.equal(image, expected.expand(3, -1, -1))


def test_transparency_shows_white(tmp_path: Path) -> None:
    pixels = np.concatenate([gradient(), gradient()[..., :1]], -1)
    alpha = torch.from_numpy(pixels[..., 3:]).float() / 255
    expected = (torch.from_numpy(pixels[..., :3]).float() / 255 * alpha + 1 - alpha).movedim(-1, 0)
    assert torch.allclose(read_image(saved(tmp_path / "a.png", Image.fromarray(pixels, "RGBA"))), expected, atol=1e-6)
    grey = Image.fromarray(np.stack([np.zeros((16, 16)), np.full((16, 16), 51)], -1).astype(np.uint8), "LA")
    assert torch.allclose(read_image(saved(tmp_path / "b.png", grey)), torch.full((3, 16, 16), 0.8))


def test_palette_with_and_without_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert read_image(saved(tmp_path / "a.gif", image))[:, 0, 0].tolist() == [1, 0, 0]
    assert read_image(saved(tmp_path / "a.png", image, transparency=1))[:, 0, 0].tolist() == [1, 1, 1]


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = read_image(saved(tmp_path / "a.jpg", image, quality=100)).mean((1, 2)).tolist()
    assert red < 0.02
    assert min(green, blue) > 0.98


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 32 * 16).astype(np.uint16).reshape(16, 32)
    image = read_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    assert torch.equal(image[1], torch.from_numpy(values.astype(np.float32)) / 65535)


def test_sixteen_bit_colour_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype(">u2")
    rows = b"".join(
        b"\0" + row.tobytes() for row in values
    )  # Pillow cannot write this kind, so it is put together here
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows), b"IEND")
    data = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    expected = torch.from_numpy(values.astype(np.float32)).movedim(-1, 0) / 65535
    assert (read_image(tmp_path / "a.png") - expected).abs().max() < 1 / 250


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70000)])
def test_values_of_unknown_range_are_refused(tmp_path: Path, mode: str, value: float) -> None:
    assert "decoded" in refused(saved(tmp_path / "a.tif", Image.new(mode, (16, 16), value)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(gradient())
    # The inverse of each turn: 6 and 8 undo each other, the others undo themselves.
    turns = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # Pillow's Transpose numbers
    turns[6], turns[8] = 2, 4
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", stored, exif=exif)
    assert torch.equal(read_image(path), torch.from_numpy(gradient()).movedim(-1, 0) / 255)
    assert read_image(path, upright=False).shape[1:] == (stored.height, stored.width)
    assert image_size(path) == (stored.height, stored.width)


def test_a_photo_with_broken_exif_is_still_a_photo(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.jpg", Image.fromarray(gradient()), exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + b"\xee" * 30
    )
    assert read_image(path).shape == (3, 24, 32)
    assert field_of_view(path) is None


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_very_wide_image_is_reduced_while_reading(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.new("RGB", (20000, 1500), (0, 128, 255)))
    image = read_image(path)
    assert image.shape == (3, 750, 10000)
    assert torch.allclose(image.mean((1, 2)), torch.tensor([0, 128, 255]) / 255, atol=0.01)


def test_reducing_averages(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(gradient(32, 32)))
    expected = torch.nn.functional.avg_pool2d(read_image(path), 2)
    assert (read_image(path, max_pixels=256) - expected).abs().max() <= 1 / 255
    grey = saved(tmp_path / "b.png", Image.fromarray(gradient(32, 32)[..., 0].astype(np.uint16) * 257))
    assert torch.allclose(read_image(grey, max_pixels=256), expected[:1].expand(3, -1, -1), atol=1e-6)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 9) + b"IDAT"
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert "pixels" in refused(tmp_path / "bomb.png")
    monkeypatch.setattr(images, "MAX_PIXELS_IN_FILE", 100)
    assert "32x24 pixels" in refused(saved(tmp_path / "b.png", Image.fromarray(gradient())))


def test_what_is_no_whole_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    assert "an empty file" in refused(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("hello")
    assert "5 bytes that are no image" in refused(tmp_path / "text.jpg")
    (tmp_path / "folder.png").mkdir()
    assert "a folder" in refused(tmp_path / "folder.png")
    with pytest.raises(FileNotFoundError, match="missing.png: no such image file"):
        read_image(tmp_path / "missing.png")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n")
    assert "no image" in refused(tmp_path / "script.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif", "bmp"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    whole = saved(tmp_path / f"whole.{suffix}", Image.fromarray(noise)).read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: int(len(whole) * share)])
        refused(tmp_path / f"cut.{suffix}")


def test_tiny_images_are_refused_with_the_smallest_size(tmp_path: Path) -> None:
    assert "1x1 pixels; accepted are at least 8 a side" in refused(saved(tmp_path / "a.png", Image.new("RGB", (1, 1))))
    assert read_image(saved(tmp_path / "b.png", Image.new("RGB", (8, 8)))).shape == (3, 8, 8)


def test_field_of_view_comes_from_the_equivalent_focal_length(tmp_path: Path) -> None:
    def photo(width: int, height: int, focal: object) -> Path:
        exif = Image.Exif()
        if focal is not None:
            exif.get_ifd(0x8769)[0xA405] = focal
        return saved(tmp_path / "a.jpg", Image.new("RGB", (width, height)), exif=exif)

    # 36 mm of film, the longer side of a 3:2 photo, at 18 mm: 90 degrees, whichever way the photo is held.
    assert field_of_view(photo(300, 200, 18)) == pytest.approx(90)
    assert field_of_view(photo(200, 300, 18)) == pytest.approx(90)
    assert field_of_view(photo(400, 300, 26)) == pytest.approx(67.3, abs=0.1)  # a phone's main camera
    assert field_of_view(photo(300, 200, 0)) is None
    assert field_of_view(photo(300, 200, "wide")) is None
    assert field_of_view(photo(300, 200, None)) is None


def video(path: Path, count: int = 12, height: int = 32, width: int = 48) -> Path:
    """A video whose frames get brighter from 0 to 1."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for shade in np.linspace(0, 255, count).round():
            frame = np.full((height, width, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_video_frames_are_all_read_or_evenly_spaced(tmp_path: Path, suffix: str) -> None:
    path = video(tmp_path / f"a.{suffix}")
    frames = read_video(path)
    assert frames.shape == (12, 3, 32, 48)
    assert torch.allclose(frames.mean((1, 2, 3)), torch.linspace(0, 1, 12), atol=0.02)
    assert torch.equal(read_video(path, 3), frames[[0, 6, 11]])
    assert torch.equal(read_video(path, 1), frames[[0]])
    for views in (0, 13):
        with pytest.raises(ValueError, match="of 12 frames; accepted are 1 to 12"):
            read_video(path, views)


def test_a_video_filmed_sideways_stands_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        frame = np.zeros((32, 48, 3), np.uint8)
        frame[:, 24:] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    track = data.index(b"tkhd")  # its matrix says how a player turns the picture
    path.write_bytes(data[:track] + data[track:].replace(upright, clockwise, 1))
    video = read_video(path)
    assert video.shape == (1, 3, 48, 32)
    assert video[..., :20, :].mean() < 0.1
    assert video[..., 28:, :].mean() > 0.9


def test_large_videos_are_reduced_but_not_to_stamps(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", 4, 512, 768)
    assert read_video(path, max_pixels=4 * 256 * 384).shape == (4, 3, 256, 384)
    with pytest.raises(ValueError, match="fewer `views`"):
        read_video(path, max_pixels=4 * 64 * 96)
    assert read_video(path, 1, max_pixels=4 * 64 * 96 * 9).shape == (1, 3, 256, 384)


def test_broken_videos_are_refused(tmp_path: Path) -> None:
    whole = video(tmp_path / "a.mp4").read_bytes()
    sound = io.BytesIO()
    with av.open(sound, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for name, data in (
        ("cut", whole[: len(whole) // 2]),
        ("empty", b""),
        ("text", b"hello"),
        ("sound", sound.getvalue()),
    ):
        (tmp_path / f"{name}.mp4").write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}.mp4: .*accepted are") as error:
            read_video(tmp_path / f"{name}.mp4")
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match="found a folder"):
        read_video(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_video(tmp_path / "missing.mp4")


def test_a_video_that_lost_frames_is_refused(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mov")
    data = path.read_bytes()
    start = data.index(b"stsz")  # the count of frames and their sizes, of which half are now nothing
    sizes = struct.unpack(">12i", data[start + 16 : start + 64])
    kept = struct.pack(">12i", *sizes[:6], *[0] * 6)
    path.write_bytes(data[: start + 16] + kept + data[start + 64 :])
    with pytest.raises(ValueError, match=r"a.mov: .*accepted are whole video files"):
        read_video(path)


def test_resize_keeps_constants_and_means() -> None:
    image = torch.rand(2, 3, 32, 48)
    half = resize(image, 16, 24)
    assert half.shape == (2, 3, 16, 24)
    assert torch.allclose(half.mean(), image.mean(), atol=0.01)
    for height, width in itertools.product((8, 32, 50), repeat=2):
        assert torch.allclose(resize(torch.full((3, 32, 32), 0.3), height, width), torch.tensor(0.3))


def test_a_photo_in_memory_is_read_as_its_file_is(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(file, quality=95)
    held = Encoded(file.read_bytes(), "shard: a photo")
    assert torch.equal(read_image(held), read_image(file))
    assert image_size(held) == (16, 24)
    for data in (b"", b"nothing", held.data[:-200]):
        with pytest.raises(ValueError, match="^shard: a photo: "):
            read_image(Encoded(data, "shard: a photo"))
