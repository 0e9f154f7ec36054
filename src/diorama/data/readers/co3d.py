"""CO3Dv2 as downloaded: annotations of a whole category in gzipped JSON, PyTorch3D cameras, depth as float16 bits."""

import gzip
import json
import math
import zlib
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from diorama.data.images import read_image
from diorama.data.readers.depths import read_depth, read_grey
from diorama.data.readers.frames import to_opencv
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.cameras import Cameras

MAX_JSON = 2**30  # bytes of one category's frames, unpacked
MIN_QUALITY = 0.5  # of a sequence's viewpoints, below which its cameras are not to be trusted
QUANTILE = 0.9


class CO3DSource:
    """The sequences of one category's folder, such as co3d/apple, whose cameras are good enough, in order of names.

    Sequences without photos on disk are left out. ValueError for annotations that are none, and where nothing is left.
    """

    def __init__(self, category: str | Path, min_quality: float = MIN_QUALITY) -> None:
        self.folder = Path(category)
        self.name = f"co3d/{self.folder.name}"
        self._frames: dict[str, list[dict[str, Any]]] = {}
        good = _good_sequences(self.folder, min_quality)
        for frame in _annotations(self.folder / "frame_annotations.jgz"):
            name = frame.get("sequence_name")
            if isinstance(name, str) and name in good:
                self._frames.setdefault(name, []).append(frame)
        self._names = sorted(name for name in self._frames if (self.folder / name / "images").is_dir())
        if not self._names:
            found = f"{len(good)} sequences of quality above {min_quality}"
            raise ValueError(f"{self.folder}: found {found} but photos of none; accepted is a category with its images")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> CapturedScene:
        return _scene(self.folder, self._names[index], self._frames[self._names[index]])

    def index(self, sequence: str) -> int:
        """The place of a sequence by its name; ValueError where it is not here."""
        if sequence not in self._names:
            raise ValueError(f"{self.folder}: found no usable sequence {sequence}; accepted are {len(self)} others")
        return self._names.index(sequence)


def read_co3d(sequence: str | Path) -> CapturedScene:
    """One sequence's folder, such as co3d/apple/110_13051_23361, with the annotations of its category beside it."""
    folder = Path(sequence)
    source = _category(folder.parent)
    return source[source.index(folder.name)]


@lru_cache(maxsize=2)  # a category's annotations take seconds to read
def _category(folder: Path) -> CO3DSource:
    return CO3DSource(folder, -math.inf)


def _scene(folder: Path, name: str, annotations: list[dict[str, Any]]) -> CapturedScene:
    frames = []
    for annotation in sorted(annotations, key=lambda annotation: _place(folder, annotation)):
        where = f"{folder / 'frame_annotations.jgz'}: {name}, frame {annotation.get('frame_number')}"
        image, depth = (_table(annotation.get(key)) for key in ("image", "depth"))
        path = _inside(folder, image.get("path"), where)
        if not path.is_file():
            continue
        camera = _camera(annotation.get("viewpoint"), image.get("size"), where)
        file = _inside(folder, depth["path"], where) if depth.get("path") else None
        mask = _inside(folder, depth["mask_path"], where) if depth.get("mask_path") else None
        scale = depth.get("scale_adjustment", 1.0)
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ValueError(f"{where}: scale_adjustment is {scale!r}; accepted is a finite number")
        reading = partial(_depth, file, mask, float(scale)) if file is not None and file.is_file() else None
        frames.append(Frame(str(path), partial(_photo, path), camera, reading, encoded=path.read_bytes))
    return CapturedScene(
        f"{folder.name}/{name}",
        tuple(frames),
        depth_kind="mvs",
        quantile=QUANTILE,
        missing=len(annotations) - len(frames),
    )


def _place(folder: Path, annotation: dict[str, Any]) -> int:
    number = annotation.get("frame_number")
    if not isinstance(number, int):
        raise ValueError(
            f"{folder / 'frame_annotations.jgz'}: frame_number is {number!r:.40}; accepted is a whole number"
        )
    return number


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _good_sequences(folder: Path, min_quality: float) -> set[str]:
    good = set()
    for sequence in _annotations(folder / "sequence_annotations.jgz"):
        quality = sequence.get("viewpoint_quality_score")
        if min_quality == -math.inf or (isinstance(quality, int | float) and quality > min_quality):
            good.add(sequence.get("sequence_name"))
    return good


def _annotations(path: Path) -> list[dict[str, Any]]:
    """A gzipped JSON list of objects; ValueError for anything else, and for what unpacks to more than 1 GB."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise ValueError(f"it unpacks to more than {MAX_JSON} bytes")
        document = json.loads(data)
    except (ValueError, EOFError, RecursionError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: no gzipped JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise ValueError(f"{path}: found a JSON {type(document).__name__}; accepted is a list of annotations")
    return document


def _inside(folder: Path, name: object, where: str) -> Path:
    """A path of the annotations, which starts with the category's name."""
    parts = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    if parts.is_absolute() or ".." in parts.parts or "\0" in str(parts) or parts.parts[:1] != (folder.name,):
        raise ValueError(f"{where} names {name!r:.80}; accepted are files below {folder.name}/")
    return folder.parent / parts


def _camera(viewpoint: Any, size: Any, where: str) -> Cameras:
    try:
        height, width = (int(side) for side in size)
        numbers = {key: np.array(viewpoint[key], np.float64) for key in ("R", "T", "focal_length", "principal_point")}
        kind = viewpoint.get("intrinsics_format", "ndc_norm_image_bounds")
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{where}: found no viewpoint of R, T, focal_length, principal_point, and size") from error
    if [found.shape for found in numbers.values()] != [(3, 3), (3,), (2,), (2,)] or kind not in tuple(_HALVES):
        raise ValueError(f"{where}: found a viewpoint of {kind!r:.40}; accepted are {', '.join(_HALVES)}")
    matrix = intrinsics(numbers["focal_length"], numbers["principal_point"], (height, width), kind)
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3], world_to_camera[:3, 3] = numbers["R"].T, numbers["T"]  # row vectors: x R + T
    try:
        pose = to_opencv(np.linalg.inv(world_to_camera), "pytorch3d")
        return Cameras(torch.from_numpy(pose)[None], torch.from_numpy(matrix)[None], height, width).checked()
    except (ValueError, np.linalg.LinAlgError) as error:
        raise ValueError(f"{where}: {error}") from error


def intrinsics(
    focal: Float64[np.ndarray, "2"], principal: Float64[np.ndarray, "2"], size: tuple[int, int], kind: str
) -> Float64[np.ndarray, "3 3"]:
    """Pixels from PyTorch3D's normalised coordinates, whose x points left and y up from the image's middle.

    Half the image is 1 along each side (`ndc_norm_image_bounds`) or along the shorter one (`ndc_isotropic`).
    """
    height, width = size
    half = np.array(_HALVES[kind](height, width))
    (fx, fy), (cx, cy) = focal * half, np.array([width, height]) / 2 - principal * half
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


_HALVES = {
    "ndc_isotropic": lambda height, width: (min(height, width) / 2, min(height, width) / 2),
    "ndc_norm_image_bounds": lambda height, width: (width / 2, height / 2),
}


def _photo(path: Path, max_pixels: int) -> Float[Tensor, "3 height width"]:
    return read_image(path, max_pixels=max_pixels, upright=False)


def _depth(path: Path, mask: Path | None, scale: float) -> Float[Tensor, "height width"]:
    values = read_depth(path, "png float16", scale)
    valid: Bool[np.ndarray, "height width"] = np.isfinite(values) & (values > 0)
    if mask is not None and mask.is_file():
        marked = read_grey(mask)
        if marked.shape != values.shape:
            raise ValueError(f"{mask}: another size than {path.name}; accepted is the same")
        valid = valid & (marked > 0)
    return torch.from_numpy(np.where(valid, values, np.float32(0)))
