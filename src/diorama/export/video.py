"""Images as an mp4 that every player and browser shows."""

import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.export.atomic import replacement
from diorama.export.ply import bytes_of

FPS = 12  # Gen3R's rate; sixteen views then last more than a second
MIN_SIDE = 256  # players show smaller videos as a stamp, or blurred
# Encoder and its options by what people call the codec. x265's reordered frames break videos of two frames.
CODECS = {
    "h264": ("libx264", {"crf": "18"}),
    "h265": ("libx265", {"crf": "20", "x265-params": "log-level=error:bframes=0"}),
    "av1": ("libsvtav1", {"crf": "28", "preset": "8"}),
}


def write_video(
    images: Float[Tensor, "view 3 height width"],
    path: str | Path,
    *,
    fps: float | int = FPS,
    codec: str = "h264",
    overwrite: bool = False,
) -> None:
    """Write RGB in [0, 1] as yuv420p; small images are repeated pixel by pixel up to 256, odd sizes padded.

    ValueError for a codec that is none of CODECS, or that this build of FFmpeg lacks, and for a rate not in (0, 240].
    """
    import av  # 0.2 s that a folder of photos need not pay

    check_video(fps, codec)
    encoder, options = CODECS[codec]
    if encoder not in av.codecs_available:
        raise ValueError(f"codec {codec}: this build of FFmpeg has no {encoder}; h264 is always there")
    frames = bytes_of(images).movedim(1, -1)
    factor = max(1, math.ceil(MIN_SIDE / min(images.shape[-2:])))
    frames = frames.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    for axis in (1, 2):  # yuv420p halves both sides
        if frames.shape[axis] % 2:
            frames = torch.cat([frames, frames.narrow(axis, -1, 1)], axis)
    # In memory first: ffmpeg does not report every failed write, and a video is small.
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        if codec == "h265":
            stream.codec_context.codec_tag = "hvc1"  # Apple's players show no other
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")))
        container.mux(stream.encode())
    with replacement(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getvalue())


def check_video(fps: float | int, codec: str) -> None:
    """ValueError for a rate or codec that `write_video` does not take."""
    if not 0 < fps <= 240:
        raise ValueError(f"{fps} frames per second: accepted is more than 0, up to 240")
    if codec not in CODECS:
        raise ValueError(f"codec {codec!r}: accepted are {', '.join(CODECS)}")
