"""Which data set a folder is of, as downloaded: by looking, without opening its photos."""

from pathlib import Path

import pytest
from tests.data.readers import test_arkitscenes, test_idr, test_megadepth, test_omnidata

from diorama.data.readers.native import native_source, read_native


def arkitscenes(root: Path) -> tuple[Path, Path]:
    return test_arkitscenes.write(root / "Training/41048190"), root


def megadepth(root: Path) -> tuple[Path, Path]:
    return test_megadepth.write(root), root


def omnidata(root: Path) -> tuple[Path, Path]:
    folder = test_omnidata.write(root)
    return folder, folder.parent


def idr(root: Path) -> tuple[Path, None]:
    return test_idr.write(root)[0], None


LAYOUTS = {"ARKitScenes": arkitscenes, "MegaDepth": megadepth, "Omnidata": omnidata, "IDR's cameras.npz": idr}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_download_is_recognised_by_looking(tmp_path, layout):
    scene, data = LAYOUTS[layout](tmp_path)
    opened = read_native(scene)
    assert opened.layout == layout
    if data is not None:
        source = native_source(data)
        assert len(source) == 1 and len(source[0]) == len(opened)


def test_nothing_is_recognised_in_an_empty_folder(tmp_path):
    assert read_native(tmp_path) is None and native_source(tmp_path) is None
