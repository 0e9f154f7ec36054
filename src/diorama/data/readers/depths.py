"""Depth as data sets store it: 16-bit codes, float16 in disguise, arrays, PFM, EXR; z in stored units out."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from diorama.data.images import MAX_PIXELS_IN_FILE

DepthFormat = Literal["png", "png float16", "npy", "pfm", "exr"]
DEPTH_FORMATS: tuple[str, ...] = get_args(DepthFormat)


def read_depth(path: Path, stored: DepthFormat, scale: float = 1.0) -> Float32[np.ndarray, "height width"]:
    """Stored values times `scale`, not finite where the file says so; ValueError for what is no such depth map."""
    with _decoding(path, f"a {stored} depth map"):
        if stored == "npy":
            values = _array(path)
        elif stored == "exr":
            values = _exr(path)
        else:
            values = _pixels(path, "PPM" if stored == "pfm" else "PNG")
            if stored == "png float16":
                values = values.astype(np.uint16).view(np.float16)
        if values.ndim == 3 and values.shape[-1] == 1:
            values = values[..., 0]
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise ValueError(f"an array of {values.dtype}{list(values.shape)}")
        with np.errstate(all="ignore"):  # what leaves the range becomes inf, which is no depth either
            return values.astype(np.float32) * np.float32(scale)


def read_grey(path: Path) -> UInt8[np.ndarray, "height width"]:
    """An 8-bit mask as stored; ValueError for anything else."""
    with _decoding(path, "an 8-bit grey PNG"):
        values = _pixels(path, "PNG")
        if values.ndim != 2 or values.dtype not in (np.uint8, np.bool_):
            raise ValueError(f"an image of {values.dtype}{list(values.shape)}")
        return values.astype(np.uint8) * (255 if values.dtype == np.bool_ else 1)


def _pixels(path: Path, kind: str) -> np.ndarray:
    with path.open("rb") as file, Image.open(file, formats=[kind]) as image:
        _bounded(image.height, image.width)
        return np.asarray(image)


def _array(path: Path) -> np.ndarray:
    """Mapped, not read: a header that promises more than the file holds costs nothing."""
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise ValueError("an archive of arrays")
    _bounded(*values.shape[:2])
    return values


def _exr(path: Path) -> np.ndarray:
    import av  # 0.2 s that only EXR pays

    with av.open(str(path), format="exr_pipe") as container:
        frame = next(container.decode(video=0))
        _bounded(frame.height, frame.width)
        if not frame.format.name.startswith("gray") and not frame.format.name.startswith("gbr"):
            raise ValueError(f"pixels of {frame.format.name}")
        values = frame.to_ndarray(format=frame.format.name)
    return values if values.ndim == 2 else values[..., 0]


def _bounded(*sides: int) -> None:
    if np.prod(sides, dtype=object) > MAX_PIXELS_IN_FILE:
        raise ValueError(f"{'x'.join(map(str, sides))} pixels, more than {MAX_PIXELS_IN_FILE}")


@contextmanager
def _decoding(path: Path, accepted: str) -> Iterator[None]:
    """Whatever a decoder makes of a bad file, as one ValueError of one line; a missing file stays what it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused, or read all the same
            yield
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: found {reason}; accepted is {accepted}") from error
