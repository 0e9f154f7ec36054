"""Arrays of HDF5 files, which Hypersim and MegaDepth keep; h5py comes with `pip install "diorama[data]"`."""

from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 2**28  # of one array, unpacked: 1.5 times Hypersim's largest photos in single precision, and more


def read_hdf5(path: Path, key: str) -> np.ndarray:
    """One array of real numbers of a file, by its name.

    ValueError for what is no such file or array, for links to other files, and for more than 256 MB.
    ModuleNotFoundError without h5py.
    """
    import h5py  # type: ignore[import-not-found]

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            return _array(h5py, file, key)
    except Exception as error:  # h5py raises whatever its C library says: OSError, KeyError, RuntimeError, TypeError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: found {reason[:200]}; accepted is HDF5 with the array {key!r}") from error


def _array(h5py: Any, file: Any, key: str) -> np.ndarray:
    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise ValueError(f"the names {', '.join(sorted(file)[:8]) or 'none'} but no {key!r} of its own")
    values = file[key]
    if not isinstance(values, h5py.Dataset) or values.external or values.is_virtual:
        raise ValueError(f"{key!r} that is no array, or keeps its numbers in another file")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"an array of {values.dtype}")
    size = values.dtype.itemsize * int(np.prod(values.shape, dtype=object))
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes of {key!r}, more than {MAX_BYTES}")
    return np.asarray(values[()])
