"""The files of one scene in a packed shard, both ways: photos, depth, masks, cameras, and what is told of it."""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Shaped, UInt16
from PIL import Image
from torch import Tensor

from diorama.data.images import MAX_PIXELS, Encoded, read_image, resize
from diorama.data.readers.stored import npz_arrays
from diorama.data.scenes import CapturedScene, DepthKind, Frame, camera_at
from diorama.geometry.cameras import Cameras

SKY = 65535  # code of what is infinitely far
QUALITY = 95  # of JPEG, without subsampling of colour
MAX_BYTES = 2**26  # of one file
MAX_JSON = 2**23  # bytes: parsed, they may take fifty times as many

PhotoFormat = Literal["jpg", "png"]

_STEPS = SKY - 2  # between the codes of the nearest and the farthest depth
_STORED = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png"}  # first bytes of files that are kept as they are
_ARRAYS = {"c2w": "f8", "K": "f4", "hw": "i4", "pose_ok": "b1", "depth_log_range": "f4"}
_SHAPES = {"c2w": (4, 4), "K": (3, 3), "hw": (2,), "pose_ok": (), "depth_log_range": (2,)}


class Placed(NamedTuple):
    """What cameras.npz keeps of a frame."""

    camera: Cameras | None  # of the photo
    size: tuple[int, int]  # height and width of the photo
    span: tuple[float, float] = (0.0, 0.0)  # logarithms of the nearest and the farthest depth


def encode_frame(frame: Frame, shorter: int, photos: PhotoFormat) -> tuple[dict[str, bytes], Placed]:
    """A frame's files by their endings, its photo's shorter side reduced to `shorter` pixels where it has more.

    Where it has not, and the photo's own file decodes to just this image, that file is kept. ValueError for a frame
    that cannot be decoded.
    """
    image = frame.image(MAX_PIXELS)
    height, width = image.shape[-2:]
    camera = camera_at(frame, height, width)
    members = None
    if min(height, width) > shorter:
        scale = shorter / min(height, width)
        height, width = round(height * scale), round(width * scale)
        image = resize(image, height, width)
        camera = None if camera is None else camera.resized(height, width)
    else:
        members = _untouched(frame, image)
    members = members or {f"rgb.{photos}": _photo_file(image, photos)}
    span = (0.0, 0.0)
    if frame.depth is not None:
        codes, span = encode_depth(_at_most(frame.depth(), height, width))
        members["depth.png"] = _png(codes)
    if frame.mask is not None:
        members["mask.png"] = _png(_at_most(frame.mask(), height, width).numpy().astype(np.uint8) * 255)
    return members, Placed(camera, (height, width), span)


def encode_depth(
    depth: Float[Tensor, "height width"],
) -> tuple[UInt16[np.ndarray, "height width"], tuple[float, float]]:
    """Codes of z-depth and the logarithms that they span: 0 = invalid, 65535 = sky, equal steps of log z between.

    A step is (far's log - near's) / 65533; decoded depth is off by half a step and 2e-6 of the depth at most.
    """
    values = depth.double().numpy()
    valid = (values > 1e-37) & (values < 1e38)  # what single precision can give back
    codes = np.where(np.isposinf(values), np.uint16(SKY), np.uint16(0))
    if not valid.any():
        return codes, (0.0, 0.0)
    logs = np.log(values[valid])
    low, high = float(np.float32(logs.min())), float(np.float32(logs.max()))  # as they are stored
    steps = np.rint((logs - low) / max(high - low, 1e-9) * _STEPS)
    codes[valid] = 1 + steps.clip(0, _STEPS).astype(np.uint16)
    return codes, (low, high)


def decode_depth(
    codes: UInt16[np.ndarray, "height width"], span: tuple[float, float]
) -> Float32[np.ndarray, "height width"]:
    """z-depth in scene units, 0 where it is invalid, inf in the sky."""
    step, middle = (span[1] - span[0]) / _STEPS, _STEPS // 2
    kind = np.float32 if span[1] - span[0] < 20 else np.float64  # where a rounded logarithm would show
    depth = codes.astype(kind)
    depth -= 1 + middle
    depth *= kind(step)
    np.exp(depth, out=depth)
    depth *= kind(np.exp(span[0] + step * middle))
    depth[codes == 0], depth[codes == SKY] = 0, np.inf
    return depth.astype(np.float32, copy=False)


def decode_image(held: Callable[[], Encoded], most: int) -> Float[Tensor, "3 height width"]:
    """A photo, of at most so many pixels."""
    return read_image(held(), max_pixels=most, upright=False)


def photo_bytes(held: Callable[[], Encoded]) -> bytes:
    """A photo's file."""
    return held().data


def decode_depth_file(held: Callable[[], Encoded], span: tuple[float, float]) -> Float[Tensor, "height width"]:
    """Depth of a 16-bit PNG of codes."""
    return torch.from_numpy(decode_depth(_grey(held(), np.uint16), span))


def decode_mask(held: Callable[[], Encoded]) -> Bool[Tensor, "height width"]:
    """A mask of an 8-bit PNG."""
    return torch.from_numpy(_grey(held(), np.uint8) > 127)


def encode_cameras(frames: Sequence[Placed]) -> bytes:
    """The frames' cameras as cameras.npz: poses in double precision, intrinsics in single."""
    known = [frame.camera for frame in frames if frame.camera is not None]
    poses, matrices = np.tile(np.eye(4), (len(frames), 1, 1)), np.tile(np.eye(3), (len(frames), 1, 1))
    if known:  # a scene's frames have cameras all or none
        poses = torch.cat([camera.camera_to_world for camera in known]).double().numpy()
        matrices = torch.cat([camera.intrinsics for camera in known]).double().numpy()
    file = io.BytesIO()
    arrays = {
        "c2w": poses,
        "K": matrices.astype(np.float32),
        "hw": np.array([frame.size for frame in frames], np.int32),
        "time_us": np.full(len(frames), -1, np.int64),  # no reader tells the time yet
        "pose_ok": np.full(len(frames), bool(known)),
        "depth_log_range": np.array([frame.span for frame in frames], np.float32),
    }
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def decode_cameras(data: bytes, where: str) -> list[Placed]:
    """What cameras.npz keeps of each frame, in double precision; ValueError for anything but whole cameras."""
    try:
        arrays = dict(zip(_ARRAYS, npz_arrays(io.BytesIO(data), _ARRAYS), strict=True))
        count = len(arrays["hw"])
        for key, array in arrays.items():
            if array.dtype.str[1:] != _ARRAYS[key] or array.shape != (count, *_SHAPES[key]):
                raise ValueError(f"{key} of {array.dtype}{list(array.shape)} for {count} frames")
        known, spans = arrays["pose_ok"], arrays["depth_log_range"]
        if not count or (arrays["hw"] < 1).any() or not (np.abs(spans) < 88).all():  # e^88 is the largest single number
            raise ValueError("frames without pixels, or depth without bounds")
        poses, matrices = (torch.from_numpy(arrays[key].astype(np.float64)) for key in ("c2w", "K"))
        there = torch.from_numpy(known.copy())
        Cameras(poses[there], matrices[there], 1, 1).checked()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{where}: found {reason[:160]}; accepted is what `diorama data pack` wrote") from error
    rows = (poses.split(1), matrices.split(1), arrays["hw"].tolist(), known.tolist(), spans.tolist())
    return [
        Placed(Cameras(pose, matrix, *size) if ok else None, (*size,), (*span,))
        for pose, matrix, size, ok, span in zip(*rows, strict=True)
    ]


def encode_description(scene: CapturedScene, kept: Sequence[int], more: dict[str, Any]) -> bytes:
    """A scene as meta.json, of which these frames were packed."""
    order = {place: number for number, place in enumerate(kept)}
    told = {
        "name": scene.name,
        "is_metric": scene.metric,
        "ordered": scene.ordered,
        "depth_kind": scene.depth_kind,
        "quantile": float(scene.quantile),
        "captions": list(scene.captions),
        "missing": scene.missing + len(scene) - len(kept),
        "splits": {part: [order[p] for p in places if p in order] for part, places in scene.splits.items()},
        "reader": scene.layout,
    }
    return json.dumps(told | more).encode()


def decode_description(data: bytes, frames: int, where: str) -> dict[str, Any]:
    """What meta.json tells of a scene, under the names that `CapturedScene` has for it; ValueError for what is none."""
    kinds = {"name": str, "is_metric": bool, "ordered": bool, "quantile": float, "missing": int}
    told = parsed(data, where)
    faults = [key for key, kind in kinds.items() if type(told.get(key)) is not kind]
    if told.get("depth_kind") not in get_args(DepthKind):
        faults.append("depth_kind")
    captions, splits = told.get("captions"), told.get("splits")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        faults.append("captions")
    if not isinstance(splits, dict) or not all(
        counts(part) and max(part, default=0) < frames for part in splits.values()
    ):
        faults.append("splits")
    if faults:
        raise ValueError(f"{where}: `{faults[0]}` is {str(told.get(faults[0]))[:40]!r}; accepted is what was packed")
    return {
        "name": told["name"],
        "metric": told["is_metric"],
        "captions": tuple(told["captions"]),
        "splits": {part: tuple(places) for part, places in told["splits"].items()},
        **{key: told[key] for key in ("ordered", "depth_kind", "quantile", "missing")},
    }


def parsed(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object of at most 8 MB; ValueError for anything else."""
    if len(data) > MAX_JSON:
        raise ValueError(f"{where}: {len(data)} bytes of JSON; accepted are at most {MAX_JSON}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{where}: not JSON ({reason[:80]}); accepted is what `diorama data pack` wrote") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: found a JSON {type(found).__name__}; accepted is an object")
    return found


def counts(values: Any, length: int | None = None) -> bool:
    """Whether these are numbers that can count bytes or frames, and so many of them."""
    whole = isinstance(values, list) and all(type(value) is int and 0 <= value < 2**53 for value in values)
    return whole and length in (None, len(values))


def _untouched(frame: Frame, image: Tensor) -> dict[str, bytes] | None:
    """The photo's own file, where a shard can hold it and decoding it gives just this image: no turn, no lens."""
    data = b"" if frame.encoded is None else frame.encoded()
    ending = next((ending for mark, ending in _STORED.items() if data.startswith(mark)), None)
    if ending is None or len(data) > MAX_BYTES:
        return None
    with suppress(ValueError):
        if torch.equal(read_image(Encoded(data, frame.name), max_pixels=MAX_PIXELS, upright=False), image):
            return {f"rgb.{ending}": data}
    return None


def _photo_file(image: Float[Tensor, "3 height width"], ending: PhotoFormat) -> bytes:
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    if ending == "png":
        return _png(pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", compress_level=1)  # much faster than 6, and hardly larger for such codes
    return file.getvalue()


def _at_most(values: Shaped[Tensor, "tall wide"], height: int, width: int) -> Shaped[Tensor, "height width"]:
    """Depth or a mask as it is, or the nearest of its values for a smaller photo."""
    tall, wide = values.shape
    if tall <= height and wide <= width:
        return values
    rows = ((torch.arange(height) + 0.5) * (tall / height)).long()
    columns = ((torch.arange(width) + 0.5) * (wide / width)).long()
    return values[rows][:, columns]


def _grey(held: Encoded, kind: type) -> np.ndarray:
    """The values of a grey PNG of 8 or 16 bits."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(held.open(), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels")
            values = np.asarray(image)
        if values.dtype != kind or values.ndim != 2:
            raise ValueError(f"values of {values.dtype}{list(values.shape)}")
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{held}: found {reason[:80]}; accepted is a grey PNG as packed") from error
    return values
