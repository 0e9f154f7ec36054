"""Photos that a visitor sends: bytes of unknown origin, decoded within limits or refused in one line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from diorama.data.images import field_of_view, read_image, resize
from diorama.export.sheet import contact_sheet

MOST_PHOTOS = 16
MOST_PIXELS = 2**22  # of one photo, more is reduced: sixteen times what models are trained at, 50 MB as float32
ALONE = 120  # pixels of its height in the panel


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo, ready to be known."""

    name: str  # as the visitor's file is called
    image: Float[Tensor, "3 height width"]  # RGB in [0, 1]
    fov: float | None  # degrees along the longer side, from EXIF


def read_photo(name: str, content: bytes) -> Photo:
    """The photo in a file's bytes; ValueError, in one line with the file's name, for what is none."""
    name = plain_name(name)
    with TemporaryDirectory(prefix="diorama-") as folder:
        file = Path(folder) / "photo"
        file.write_bytes(content)
        try:
            return Photo(name, read_image(file, max_pixels=MOST_PIXELS), field_of_view(file))
        except (ValueError, OSError) as error:
            raise ValueError(" ".join(str(error).replace(str(file), name).split())) from None


def plain_name(name: str) -> str:
    """A visitor's file name without folders, unprintable letters or excess."""
    last = PurePath(name.replace("\\", "/")).name
    return "".join(letter for letter in last if letter.isprintable())[-60:] or "photo"


def strip(photos: Sequence[Photo]) -> Any:
    """All photos small in one picture, as viser takes it: bytes, "height width 3"."""
    image = photos[0].image
    if len(photos) > 1:
        return np.asarray(contact_sheet([photo.image for photo in photos], None))
    share = min(1.0, ALONE / image.shape[-2])
    small = resize(image, *(max(1, round(share * side)) for side in image.shape[-2:]))
    return small.mul(255).round().byte().movedim(0, -1).numpy()
