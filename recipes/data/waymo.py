"""Waymo Open Dataset v1 as captures to be read: waymo.py SEGMENT.tfrecord... OUT [--camera 1 2 3 4 5].

OUT/<segment>_<camera>/ gets the JPEG bytes as they are and a transforms.json with OpenCV axes; the lens is undone when
the capture is read. Neither TensorFlow nor Waymo's package is needed: a TFRecord is a length, two checksums and a
message, of which a few fields are read, by their numbers in Waymo's dataset.proto. Without depth, which is in the
segments as range images. The pose of a rolling shutter's photo is that of its `pose_timestamp`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAX_RECORD = 2**28  # bytes of one frame; some 10 MB are usual
# Waymo's camera looks along x, with y left and z up: theirs = matrix @ ours.
FLU = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])

Fields = dict[int, list[Any]]  # of a message: numbers as int, everything else as bytes


def records(path: Path) -> Iterator[bytes]:
    """The messages of a TFRecord; ValueError where it is cut short or promises too much. Checksums are not compared."""
    with path.open("rb") as file:
        while head := file.read(12):
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12 or length > MAX_RECORD:
                raise ValueError(f"{path}: found a record of {length} bytes; accepted are TFRecords, uncompressed")
            data = file.read(length + 4)
            if len(data) < length + 4:
                raise ValueError(f"{path}: cut short; accepted are whole segments")
            yield data[:length]


def fields(message: bytes) -> Fields:
    """What a message of protocol buffers holds, by field number; ValueError for what is none."""
    found: Fields = {}
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7 == 0:
            value, place = _varint(message, place)
        else:
            if key & 7 == 2:
                size, place = _varint(message, place)
            elif key & 7 in (1, 5):
                size = 8 if key & 7 == 1 else 4
            else:
                raise ValueError(f"found a field of kind {key & 7}; accepted is a message of protocol buffers")
            value, place = message[place : place + size], place + size
            if len(value) < size:
                raise ValueError("found a field cut short; accepted are whole messages")
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("found a number cut short; accepted are whole messages")
        value |= (message[place] & 127) << shift
        place += 1
        if message[place - 1] < 128:
            return value, place
    raise ValueError("found a number of more than ten bytes; accepted is a message of protocol buffers")


def doubles(values: list[bytes]) -> np.ndarray:
    """Repeated doubles, packed or not."""
    return np.frombuffer(b"".join(values), "<f8")


def transform(values: list[bytes]) -> np.ndarray:
    """A Transform's 4x4 matrix; ValueError where it has none."""
    numbers = doubles(fields(values[0]).get(1, [])) if values else np.empty(0)
    if numbers.size != 16 or not np.isfinite(numbers).all():
        raise ValueError(f"found a transform of {numbers.size} numbers; accepted are 16 finite ones")
    return numbers.reshape(4, 4)


def frames(message: bytes) -> Iterator[tuple[int, int, bytes, dict[str, Any]]]:
    """For each camera of a frame: its number, its microsecond, JPEG bytes, and what transforms.json says."""
    frame = fields(message)
    context = fields(frame[1][0])
    lenses = {}
    for calibration in map(fields, context.get(2, [])):
        numbers = doubles(calibration.get(2, []))
        if numbers.size != 9:
            raise ValueError(f"found intrinsics of {numbers.size} numbers; accepted are 9")
        named = dict(zip(("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2", "k3"), numbers.tolist(), strict=True))
        sides = {"w": calibration[4][0], "h": calibration[5][0], "camera_model": "OPENCV"}
        lenses[calibration[1][0]] = (named | sides, transform(calibration.get(3, [])))
    for image in map(fields, frame.get(4, [])):
        lens, to_vehicle = lenses[image[1][0]]
        vehicle = transform(image.get(3) or frame.get(3, []))
        pose = vehicle @ to_vehicle @ FLU
        yield image[1][0], frame[2][0], image[2][0], lens | {"transform_matrix": pose.tolist()}


def write(segment: Path, out: Path, cameras: tuple[int, ...]) -> list[Path]:
    """The captures of one segment, one folder for each camera."""
    found: dict[int, list[dict[str, Any]]] = {}
    name = segment.name.removesuffix(".tfrecord")
    for number, message in enumerate(records(segment)):
        try:
            for camera, stamp, photo, frame in frames(message):
                if camera in cameras:
                    folder = out / f"{name}_{camera}"
                    (folder / "images").mkdir(parents=True, exist_ok=True)
                    (folder / "images" / f"{stamp}.jpg").write_bytes(photo)
                    found.setdefault(camera, []).append({"file_path": f"images/{stamp}.jpg", **frame})
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{segment}: frame {number}: {error}; accepted are segments of Waymo's v1") from error
    for camera, listed in found.items():
        document = {"axes": "opencv", "frames": listed}
        (out / f"{name}_{camera}" / "transforms.json").write_text(json.dumps(document))
    return [out / f"{name}_{camera}" for camera in sorted(found)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("segments", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    parser.add_argument("--camera", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    chosen = parser.parse_args(arguments)
    for segment in chosen.segments:
        try:
            written = write(segment, chosen.out, tuple(chosen.camera))
        except (ValueError, OSError) as error:
            sys.exit(str(error))
        print(*(f"diorama data check {folder}" for folder in written), sep="\n")


if __name__ == "__main__":
    main()
