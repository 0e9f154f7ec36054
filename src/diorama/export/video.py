"""Images as an mp4 that every player and browser shows."""

import io
import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.export.atomic import replacement
from diorama.export.ply import bytes_of

FPS = 12  # Gen3R's rate; sixteen views then last more than a second
MIN_SIDE = 256  # players show smaller videos as a stamp, or blurred


def write_video(
    images: Float[Tensor, "view 3 height width"], path: str | Path, *, fps: int = FPS, overwrite: bool = False
) -> None:
    """Write RGB in [0, 1] as h264 (yuv420p); small images are repeated pixel by pixel up to 256, odd sizes padded."""
    import av  # 0.2 s that a folder of photos need not pay

    frames = bytes_of(images).movedim(1, -1)
    factor = max(1, math.ceil(MIN_SIDE / min(images.shape[-2:])))
    frames = frames.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    for axis in (1, 2):  # yuv420p halves both sides
        if frames.shape[axis] % 2:
            frames = torch.cat([frames, frames.narrow(axis, -1, 1)], axis)
    # In memory first: ffmpeg does not report every failed write, and a video is small.
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")))
        container.mux(stream.encode())
    with replacement(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getvalue())
