"""Numbers kept beside photos: matrices in npz, text, tables, trajectory logs, MVSNet and JSON files."""

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from diorama.data.readers.profiles import Named, Pattern, Reader, Stored

Values = Float64[np.ndarray, "_"]

MAX_BYTES = 2**26  # of one file, and of one array in an archive: a million poses as text

_TEXT_HEADER = 5  # lines of one record of a trajectory log: its numbers, then a matrix of four lines


def read_stored(folder: Path, stored: Stored, frames: Sequence[Named]) -> list[Values | None]:
    """For each frame the numbers that its files hold, flat; None where there are none.

    ValueError for a file that is not what `stored` says, or larger than 64 MB.
    """
    if stored.read in ("rows", "log", "stack"):
        return _together(folder, stored, frames)
    pattern, known, found = Pattern(stored.file, str(folder)), {}, []
    reader = _READERS[stored.read]
    for named in frames:
        path = pattern.file(folder, named)
        if path is not None and path not in known:
            known = {path: _read(path, lambda p=path: reader(p, stored.key))}  # the last one: often one for all
        found.append(None if path is None else known[path])
    return found


def npz_arrays(path: Path | io.BytesIO, keys: Iterable[str]) -> list[np.ndarray]:
    """Arrays of an archive, in the order of `keys`; no pickles, and no more memory than the archive declares.

    ValueError for absent keys, object arrays, and arrays that do not fill what their header promises.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        arrays = []
        for key in keys:
            member = f"{key}.npy"
            if member not in sizes:
                raise ValueError(f"the arrays {', '.join(name[:-4] for name in sorted(sizes)[:8])} but no {key!r}")
            if sizes[member] > MAX_BYTES:
                raise ValueError(f"{sizes[member]} bytes of {key!r}, more than {MAX_BYTES}")
            arrays.append(_npy(archive.read(member), key))
    return arrays


def _npy(data: bytes, key: str) -> np.ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = header(file)
    rest = data[file.tell() :]
    if kind.hasobject or kind.itemsize * int(np.prod(shape, dtype=object)) != len(rest):
        raise ValueError(f"{len(rest)} bytes of {key!r} that are no array of {kind}{list(shape)}")
    return np.frombuffer(rest, kind).reshape(shape, order="F" if fortran else "C")


def numbers(array: np.ndarray) -> Values:
    """Any array of real numbers, flat, in double precision."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"an array of {array.dtype}")
    return array.astype(np.float64).reshape(-1)


def text(path: Path) -> str:
    """A text file of at most 64 MB."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return data.decode("utf-8", "replace")


def _from_npz(path: Path, keys: Sequence[str]) -> Values:
    arrays = npz_arrays(path, keys)
    if [array.size for array in arrays] == [9, 3]:  # a rotation and a translation, which make 3x4
        return numbers(np.hstack([arrays[0].reshape(3, 3), arrays[1].reshape(3, 1)]))
    return np.concatenate([numbers(array) for array in arrays])


def _from_text(path: Path, keys: Sequence[str]) -> Values:
    return np.array(text(path).split(), dtype=np.float64)


def _from_mvsnet(path: Path, keys: Sequence[str]) -> Values:
    """`extrinsic` 4x4, then `intrinsic` 3x3, each under its word."""
    words = text(path).split()
    key = keys[0] if keys else "extrinsic"
    start, count = words.index(key) + 1, 16 if key == "extrinsic" else 9
    return np.array(words[start : start + count], dtype=np.float64)


def _from_named(path: Path, keys: Sequence[str]) -> Values:
    """Lines of `KEY: numbers`, as KITTI's calibrations are."""
    lines = dict(line.split(":", 1) for line in text(path).splitlines() if ":" in line)
    return np.array([word for key in keys for word in lines[key].split()], dtype=np.float64)


def _from_json(path: Path, keys: Sequence[str]) -> Values:
    document = json.loads(text(path))
    if not isinstance(document, dict) or any(key not in document for key in keys):
        raise ValueError(f"no object with {', '.join(keys)}")
    return np.concatenate([np.array(document[key], dtype=np.float64).reshape(-1) for key in keys])


_READERS: dict[Reader, Callable[[Path, Sequence[str]], Values]] = {
    "npz": _from_npz,
    "text": _from_text,
    "named": _from_named,
    "mvsnet": _from_mvsnet,
    "json": _from_json,
}


def _together(folder: Path, stored: Stored, frames: Sequence[Named]) -> list[Values | None]:
    """Frames whose numbers are rows of one file, or of one for each sequence."""
    pattern, of_file = Pattern(stored.file, str(folder)), {}
    for place, named in enumerate(frames):
        of_file.setdefault(pattern.file(folder, named), []).append(place)
    found: list[Values | None] = [None] * len(frames)
    for path, places in of_file.items():
        if path is not None:
            chosen = [frames[place] for place in places]
            rows = _read(path, lambda p=path, chosen=chosen: _chosen_rows(p, stored, chosen))
            for place, row in zip(places, rows, strict=True):
                found[place] = row
    return found


def _chosen_rows(path: Path, stored: Stored, frames: Sequence[Named]) -> list[Values | None]:
    if stored.read == "stack":
        names, values = npz_arrays(path, [stored.names, *stored.key[:1]])
        if names.dtype.kind not in "US" or names.shape != values.shape[:1]:
            raise ValueError(f"{names.dtype}{list(names.shape)} names of {list(values.shape)} rows")
        texts = (name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names.tolist())
        table = {Path(name).stem: numbers(row) for name, row in zip(texts, values, strict=True)}
        return [table.get(named["frame"]) for named in frames]
    lines = [line for line in text(path).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if stored.read == "log":
        joined = [" ".join(lines[at + 1 : at + _TEXT_HEADER]) for at in range(0, len(lines), _TEXT_HEADER)]
    else:
        joined = lines[stored.skip :]
    rows = [np.array(line.split(), dtype=np.float64) for line in joined]
    if stored.match:
        count = len(stored.match)
        marked = {tuple(row[:count].tolist()): row[count:] for row in rows}
        return [marked.get(tuple(_number(named[key]) for key in stored.match)) for named in frames]
    if stored.first is None:
        if len(rows) != len(frames):
            raise ValueError(f"{len(rows)} rows for {len(frames)} photos, so that none can be told whose it is")
        return list(rows)
    places = [int(_number(named["frame"])) - stored.first for named in frames]
    return [rows[place] if 0 <= place < len(rows) else None for place in places]


def _number(name: str) -> float:
    if not (name.isascii() and name.isdigit()):
        raise ValueError(f"no row for a frame called {name!r}: accepted are numbers")
    return float(name)


def _read(path: Path, reading: Callable[[], Any]) -> Any:
    """Whatever goes wrong in a bad file, as one ValueError of one line."""
    try:
        return reading()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: found {reason}; accepted is what the profile says of this file") from error
