"""The one decoder of photos and videos: files in, RGB in [0, 1] out."""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from PIL import ExifTags, Image
from torch import Tensor

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".avif")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")
MIN_SIDE = 8  # pixels; below it there is nothing to see and no model takes it
MIN_REDUCED_SIDE = 256  # pixels along the longer side: a long video is not reduced to stamps unasked
MAX_PIXELS = 2**24  # of one photo after reading, more is reduced; 200 MB as float32
MAX_PIXELS_TOGETHER = 2**27  # of all views of one video or folder; 1.6 GB as float32
MAX_PIXELS_IN_FILE = 2**27  # refused before decoding: a small file can unpack to any size

# Only formats that decode on their own: EPS, for one, would start another program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
# What EXIF's orientation asks for, on "3 height width". Pillow's own turn also rewrites the tags, which odd tags break.
_TURNS: dict[int | None, Callable[[torch.Tensor], torch.Tensor]] = {
    2: lambda image: image.flip(-1),
    3: lambda image: image.rot90(2, (-2, -1)),
    4: lambda image: image.flip(-2),
    5: lambda image: image.mT,
    6: lambda image: image.rot90(-1, (-2, -1)),
    7: lambda image: image.rot90(2, (-2, -1)).mT,
    8: lambda image: image.rot90(1, (-2, -1)),
}
_FILM_DIAGONAL = math.hypot(36, 24)  # millimetres; 35 mm equivalents compare diagonals (CIPA DCG-001)


@dataclass(frozen=True)
class Encoded:
    """A photo's file in memory, with the name that messages give it."""

    data: bytes
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self.data)


def read_image(
    path: str | Path | Encoded, *, max_pixels: int = MAX_PIXELS, upright: bool = True
) -> Float[Tensor, "3 height width"]:
    """RGB in [0, 1] of a photo, turned as its EXIF tag says if `upright`, transparency over white.

    More than `max_pixels` are reduced by a whole factor while reading. What is no image, not whole, narrower than
    8 pixels or larger than 2**27 raises ValueError.
    """
    path = path if isinstance(path, Encoded) else Path(path)
    with _opened(path) as image:
        width, height = image.size
        factor = math.ceil(math.sqrt(width * height / max_pixels))
        size = (width // factor, height // factor)
        if min(size) < MIN_SIDE:
            raise ValueError(f"{path}: the image has {width}x{height} pixels; accepted are at least {MIN_SIDE} a side")
        with _decoding(path):
            if factor > 1:
                image.draft(None, size)  # a JPEG decodes at a fraction of its size, for a fraction of the memory
            pixels = _rgb(image, max(size))
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation)) if upright else None
    tensor = torch.from_numpy(pixels).movedim(-1, 0)
    return (tensor if turn is None else turn(tensor)).contiguous()


def image_size(path: str | Path | Encoded) -> tuple[int, int]:
    """Height and width in the file, before any EXIF turn, without decoding the image."""
    with _opened(path if isinstance(path, Encoded) else Path(path)) as image:
        return image.height, image.width


def field_of_view(path: str | Path) -> float | None:
    """Degrees along the longer side, from the focal length in EXIF (35 mm equivalent); None where it is absent."""
    with _opened(Path(path)) as image:
        with _decoding(Path(path)):
            tags = image.getexif().get_ifd(ExifTags.IFD.Exif)
        try:
            focal = float(tags.get(ExifTags.Base.FocalLengthIn35mmFilm) or 0)
        except (TypeError, ValueError):
            return None
        longer = _FILM_DIAGONAL * max(image.size) / math.hypot(*image.size)
    degrees = 2 * math.degrees(math.atan2(longer / 2, focal))
    return degrees if 1 < degrees < 170 else None  # 0 means unknown in EXIF and would be 180 degrees


def read_video(
    path: str | Path, views: int | None = None, *, max_pixels: int = MAX_PIXELS_TOGETHER
) -> Float[Tensor, "view 3 height width"]:
    """RGB in [0, 1] of a video: all frames, or `views` of them evenly spaced from the first to the last.

    Where they hold more than `max_pixels` together they are reduced by a whole factor. ValueError if it cannot be
    decoded, is cut short or has fewer than `views` frames.
    """
    import av  # 0.2 s that photos need not pay
    from av.error import FFmpegError

    path = Path(path)
    _check_file(path, "video")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: holds no video stream; accepted are {', '.join(VIDEO_SUFFIXES)}")
            stream = container.streams.video[0]
            # Counted by decoding: what a header announces may be cut away by an edit list, or never have arrived.
            count = sum(1 for _ in container.decode(stream))
            if count < max(1, 0.9 * stream.frames):
                raise ValueError(f"{path}: {count} of {stream.frames} frames are there; accepted are whole video files")
            chosen = _spread(path, count, views)
            container.seek(0)
            factor = math.ceil(math.sqrt(len(chosen) * stream.width * stream.height / max_pixels))
            width, height = stream.width // factor, stream.height // factor
            if min(width, height) < MIN_SIDE or (factor > 1 and max(width, height) < MIN_REDUCED_SIDE):
                found = f"{count} frames of {stream.width}x{stream.height} pixels"
                raise ValueError(
                    f"{path}: {found}; accepted are at least {MIN_SIDE} a side, and fewer `views` of long videos"
                )
            kept = {}
            for index, frame in enumerate(container.decode(stream)):
                if index in chosen:
                    picture = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
                    kept[index] = np.rot90(picture, frame.rotation // 90)  # phones film sideways and leave a note
    except FFmpegError as error:
        raise ValueError(
            f"{path}: cannot be decoded as a video ({error.strerror}); accepted are whole video files"
        ) from error
    return torch.from_numpy(np.stack(list(kept.values()))).movedim(-1, -3).float() / 255


def resize(
    image: Float[Tensor, "*view 3 old_height old_width"], height: int, width: int
) -> Float[Tensor, "*view 3 height width"]:
    """Antialiased images of another size."""
    batch = image.reshape(-1, *image.shape[-3:])
    resized = F.interpolate(batch, (height, width), mode="bilinear", antialias=True)
    return resized.clamp(0, 1).reshape(*image.shape[:-2], height, width)


def _spread(path: Path, count: int, views: int | None) -> set[int]:
    if views is None:
        return set(range(count))
    if not 1 <= views <= count:
        raise ValueError(f"{path}: {views} views wanted of a video of {count} frames; accepted are 1 to {count}")
    return {round(index) for index in np.linspace(0, count - 1, views)}


def _check_file(path: Path | Encoded, kind: str) -> None:
    if isinstance(path, Encoded):
        return
    if path.is_dir():
        raise ValueError(f"{path}: found a folder; accepted is one {kind} file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such {kind} file")


@contextmanager
def _opened(path: Path | Encoded) -> Iterator[Image.Image]:
    _check_file(path, "image")
    Image.init()
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused, or read all the same
        with _decoding(path):
            image = Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])
        if image.width * image.height > MAX_PIXELS_IN_FILE:
            raise ValueError(
                f"{path}: {image.width}x{image.height} pixels are too many; accepted are {MAX_PIXELS_IN_FILE}"
            )
        yield image


@contextmanager
def _decoding(path: Path | Encoded) -> Iterator[None]:
    """Whatever the decoder makes of a bad file, as one ValueError of one line."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        size = len(path.data) if isinstance(path, Encoded) else path.stat().st_size
        found = f"{size} bytes that are no image" if size else "an empty file"
        raise ValueError(f"{path}: found {found}; accepted are {', '.join(_FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too many pixels; accepted are {MAX_PIXELS_IN_FILE}") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: the image cannot be decoded ({reason}); accepted are whole image files") from error


def _rgb(image: Image.Image, longer: int) -> Float32[np.ndarray, "height width 3"]:
    """Values in [0, 1] of an image of any mode, its longer side reduced to `longer` where it exceeds that."""
    present = max(image.size)
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers without a range")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float32) / 65535
        if grey.min() < 0 or grey.max() > 1:
            raise ValueError("its values need more than 16 bits")
        image = Image.fromarray(grey)
    else:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if longer < present:
        size = (round(image.width * longer / present), round(image.height * longer / present))
        image = image.resize(size, Image.Resampling.BOX)
    values = np.asarray(image, dtype=np.float32)
    if image.mode == "F":
        return values[..., None].repeat(3, -1)
    values = values / 255
    if image.mode == "RGBA":
        alpha = values[..., 3:]
        values = values[..., :3] * alpha + (1 - alpha)
    return values
