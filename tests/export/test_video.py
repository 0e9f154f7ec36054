"""Videos read back by PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from diorama.export.video import write_video


def frames(path: Path) -> tuple[np.ndarray, av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), stream


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((256, 320), (256, 320)),
        ((64, 64), (256, 256)),
        ((257, 301), (258, 302)),
        ((9, 24), (262, 696)),
        ((100, 200), (300, 600)),
    ],
)
def test_size_rate_and_kind(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    write_video(torch.rand(3, 3, *size), tmp_path / "a.mp4", fps=10)
    found, stream = frames(tmp_path / "a.mp4")
    assert found.shape == (3, *expected, 3)
    assert stream.average_rate == Fraction(10)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


def test_pixels_are_repeated_and_colours_kept(tmp_path: Path) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    images = torch.stack([torch.stack([x, y, torch.full_like(x, shade)]) for shade in (0.2, 0.5, 0.8)])
    write_video(images, tmp_path / "a.mp4")
    found = torch.from_numpy(frames(tmp_path / "a.mp4")[0]).movedim(-1, 1) / 255
    assert (torch.nn.functional.avg_pool2d(found, 4) - images).abs().mean() < 0.01


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    write_video(torch.rand(1, 3, 256, 256), tmp_path / "a.mp4")
    assert len(frames(tmp_path / "a.mp4")[0]) == 1


@pytest.mark.parametrize(("codec", "name"), [("h265", "hevc"), ("av1", "libdav1d")])
def test_other_codecs(tmp_path: Path, codec: str, name: str) -> None:
    images = torch.linspace(0, 1, 256).expand(2, 3, 256, 256)
    write_video(images, tmp_path / "a.mp4", fps=23.976, codec=codec)
    found, stream = frames(tmp_path / "a.mp4")
    assert name in (stream.codec_context.name, stream.codec_context.codec.name)
    assert float(stream.average_rate) == pytest.approx(23.976, abs=1e-3)
    assert np.abs(found[0, :, :, 0] / 255 - images[0, 0].numpy()).mean() < 0.02


def test_what_it_refuses(tmp_path: Path) -> None:
    for choices, message in (({"codec": "vp9"}, "accepted are h264, h265, av1"), ({"fps": 0}, "frames per second")):
        with pytest.raises(ValueError, match=message):
            write_video(torch.rand(1, 3, 256, 256), tmp_path / "a.mp4", **choices)
    assert list(tmp_path.iterdir()) == []
