"""HDF5 files that are none, are too large, or lead elsewhere."""

import sys

import numpy as np
import pytest

from diorama.data.readers.hdf5 import read_hdf5


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    """The command makes one line of it, as of every package that is not installed."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        read_hdf5(tmp_path / "a.h5", "depth")
    assert caught.value.name == "h5py"


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py", reason="h5py is not installed: pip install 'diorama[data]'")


def test_an_array_comes_back(h5py, tmp_path):
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("depth", data=values, compression="gzip")
    np.testing.assert_array_equal(read_hdf5(tmp_path / "a.h5", "depth"), values)
    with pytest.raises(FileNotFoundError, match="b.h5"):
        read_hdf5(tmp_path / "b.h5", "depth")


@pytest.mark.parametrize("kind", ["large", "linked", "external", "virtual", "group", "text", "absent", "cut", "none"])
def test_what_is_no_array_of_the_file_is_refused_in_one_line(h5py, tmp_path, kind):
    path = tmp_path / "a.h5"
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["depth"] = np.ones((3, 4))
    (tmp_path / "raw").write_bytes(bytes(96))
    with h5py.File(path, "w") as file:
        if kind == "large":  # nothing is stored, everything is promised
            file.create_dataset("depth", (2**20, 2**20), np.float32, chunks=(64, 64))
        elif kind == "linked":
            file["depth"] = h5py.ExternalLink("other.h5", "depth")
        elif kind == "external":
            file.create_dataset("depth", (12,), np.float64, external=[(str(tmp_path / "raw"), 0, 96)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3, 4), np.float64)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "depth", (3, 4))
            file.create_virtual_dataset("depth", layout)
        elif kind == "group":
            file.create_group("depth")
        elif kind == "text":
            file["depth"] = ["a", "b"]
        elif kind in ("cut", "none"):
            file["depth"] = np.ones((30, 40))
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:600])
    if kind == "none":
        path.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="a.h5: found .*accepted is HDF5 with the array 'depth'") as caught:
        read_hdf5(path, "depth")
    assert "\n" not in str(caught.value)
