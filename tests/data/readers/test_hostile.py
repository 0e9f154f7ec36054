"""Files of a gigabyte, of which a part is read or none."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.data.profiles import encodings as e
from tests.data.test_camera_files import gen3r, nerfstudio, poses

from diorama.data.readers.gen3r import read_gen3r
from diorama.data.readers.imagenet import SIDECAR, SingleViewSource
from diorama.data.readers.nerfstudio import read_nerfstudio

GIGABYTE = 2**30


def grown(path: Path) -> Path:
    """The same file, followed by zeros that take no place on disk."""
    with path.open("ab") as file:
        file.truncate(GIGABYTE)
    return path


@pytest.fixture
def bounded():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 2**20


def test_captions_are_read_to_their_first_megabyte(tmp_path, bounded):
    for number in range(len(poses())):
        e.photo(tmp_path / f"images/{number}.png", number)
        e.photo(tmp_path / f"{number}.png", number)
    (tmp_path / "transforms.json").write_text(json.dumps(nerfstudio(poses())))
    (tmp_path / "cameras.json").write_text(json.dumps(gen3r(poses())))
    for name, reading in (("captions.txt", read_nerfstudio), ("prompts.txt", read_gen3r)):
        (tmp_path / name).write_text("A hall.\nA long hall.\n")
        grown(tmp_path / name)
        assert reading(tmp_path).captions[:2] == ("A hall.", "A long hall.")


def test_a_line_without_an_end_is_refused(tmp_path, bounded):
    (tmp_path / SIDECAR).write_text('{"file": "a.png"')
    grown(tmp_path / SIDECAR)
    with pytest.raises(ValueError, match="intrinsics.jsonl: line 1 has 65536 letters or more"):
        SingleViewSource(tmp_path)


@pytest.mark.parametrize("name", ["cameras.json", "transforms.json"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pose_that_is_not_finite_is_refused_in_one_line(tmp_path, name, value):
    document = nerfstudio(poses()) if name == "transforms.json" else gen3r(poses())
    matrix = document["frames"][1]["transform_matrix"] if name == "transforms.json" else document["extrinsics"][1]
    matrix[0][3] = value
    for number in range(len(poses())):
        e.photo(tmp_path / f"images/{number}.png", number)
        e.photo(tmp_path / f"{number}.png", number)
    (tmp_path / name).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"{name}: .*1.* finite numbers") as caught:
        (read_nerfstudio if name == "transforms.json" else read_gen3r)(tmp_path)
    assert "\n" not in str(caught.value)
