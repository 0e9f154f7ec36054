"""Files that no honest program wrote, for parsers that have no such test of their own: read, or refused in one line.

500 inputs each, or as many as DIORAMA_FUZZ says. Half are valid files with one value changed, half with bytes changed.
"""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.profiles import encodings as e
from tests.data.readers import test_arkitscenes, test_gen3r_training, test_hypersim, test_idr, test_omnidata
from tests.data.test_camera_files import gen3r, nerfstudio, poses

from diorama.data.cameras import read_cameras
from diorama.data.readers.arkitscenes import read_arkitscenes
from diorama.data.readers.gen3r import read_gen3r
from diorama.data.readers.gen3r_training import Gen3RSource, read_gen3r_training
from diorama.data.readers.idr import read_idr
from diorama.data.readers.imagenet import SIDECAR, SingleViewSource
from diorama.data.readers.nerfstudio import read_nerfstudio
from diorama.data.readers.omnidata import read_omnidata
from diorama.data.saved import read_folder
from diorama.evaluation.splits import read_index, read_split
from diorama.export.save import save
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.scene import Condition, Provenance, Scene, Views

EXAMPLES = int(os.environ.get("DIORAMA_FUZZ", "500"))  # 10000 at night
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is
)
Reading = Callable[[], object]

ODD = st.recursive(
    st.sampled_from(
        [None, True, -1, 0, 10**30, 1e300, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd", "\0"]
    )
    | st.integers()
    | st.floats()
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["frames", "x"]), inner, max_size=2),
    max_leaves=5,
)


def paths(document: Any, at: tuple = ()) -> list[tuple]:
    """Every place in a JSON document."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [at, *(place for key, value in inner for place in paths(value, (*at, key)))]


def replaced(document: Any, at: tuple, value: Any) -> Any:
    if not at:
        return value
    changed = copy.deepcopy(document)
    place = changed
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    return changed


def survives(reading: Reading) -> None:
    """Only ValueError and OSError may leave a parser, and those on one line."""
    said = ""
    try:
        reading()
    except (ValueError, OSError) as error:
        said = str(error)
    assert "\n" not in said and len(said) < 2000, said


def changed(file: Path, reading: Reading) -> None:
    """Read a file after every change of its bytes and, of JSON, of its values."""
    honest = file.read_bytes()
    reading()  # which shows that it was honest
    edits = st.tuples(st.just("bytes"), st.integers(0, len(honest)), st.integers(0, 40), st.binary(max_size=12))
    if file.suffix in (".json", ".jsonl"):
        document = json.loads(honest.splitlines()[0] if file.suffix == ".jsonl" else honest)
        edits = edits | st.tuples(st.just("value"), st.sampled_from(paths(document)), ODD, st.none())

    @fuzzed
    @given(edits)
    def read(edit: tuple) -> None:
        kind, at, what, data = edit
        text = honest[:at] + data + honest[at + what :] if kind == "bytes" else None
        file.write_bytes(json.dumps(replaced(document, at, what)).encode() if text is None else text)
        survives(reading)

    read()


def camera_path() -> dict[str, Any]:
    items = [{"camera_to_world": pose.reshape(-1).tolist(), "fov": 90, "aspect": 2} for pose in poses()]
    return {"camera_path": items, "render_height": 100, "render_width": 200, "camera_type": "perspective"}


DOCUMENTS = {
    "transforms.json": lambda: nerfstudio(poses()) | {"applied_transform": np.eye(4)[:3].tolist()},
    "camera_path.json": camera_path,
    "cameras.json": lambda: gen3r(poses()),
}


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_trajectories(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(DOCUMENTS[name]()))
    changed(tmp_path / name, lambda: read_cameras(tmp_path / name))


def test_gen3rs_examples(tmp_path):
    (tmp_path / "cameras.json").write_text(json.dumps(gen3r(poses())))
    for number in range(len(poses())):
        e.photo(tmp_path / f"{number}.png", number)
    changed(tmp_path / "cameras.json", lambda: read_gen3r(tmp_path))


def test_gen3rs_training_layout(tmp_path):
    file = test_gen3r_training.write(tmp_path, "hall") / "transforms.json"
    changed(file, lambda: read_gen3r_training(file))


def test_gen3rs_lists(tmp_path):
    test_gen3r_training.write(tmp_path, "hall")
    test_gen3r_training.write_lists(tmp_path, ["hall"])
    changed(tmp_path / "train_cameras_paths.txt", lambda: Gen3RSource(tmp_path)[0])


def test_intrinsics_of_single_photos(tmp_path):
    row = {"file": "a.png", "fx": 14, "fy": 14.5, "cx": 8.25, "cy": 6.5, "height": e.HEIGHT, "width": e.WIDTH}
    (tmp_path / SIDECAR).write_text(json.dumps(row) + "\n")
    e.photo(tmp_path / "a.png", 0)
    changed(tmp_path / SIDECAR, lambda: SingleViewSource(tmp_path)[0].views())


def test_splits_of_a_capture(tmp_path):
    (tmp_path / "transforms.json").write_text(json.dumps(nerfstudio(poses())))
    for number in range(len(poses())):
        e.photo(tmp_path / f"images/{number}.png", number)
    file = tmp_path / "train_test_split_1.json"
    file.write_text('{"train_ids": [0], "test_ids": [1]}')
    changed(file, lambda: read_nerfstudio(tmp_path))


def test_splits_of_benchmarks(tmp_path):
    (tmp_path / "split.json").write_text('{"train_ids": [0], "test_ids": [1, 2]}')
    changed(tmp_path / "split.json", lambda: read_split(tmp_path / "split.json"))
    (tmp_path / "index.json").write_text('{"a": {"context": [0, 9], "target": [3, 4]}, "b": null}')
    changed(tmp_path / "index.json", lambda: read_index(tmp_path / "index.json"))


@pytest.mark.parametrize("name", ["scene.json", "geometry.safetensors", "latents.safetensors"])
def test_saved_scenes(tmp_path, name):
    cameras = Cameras.from_fov(60.0, 8, 10, torch.eye(4).repeat(2, 1, 1))
    views = Views(torch.rand(2, 3, 8, 10), cameras, cameras.unproject(torch.rand(2, 8, 10) + 1), torch.rand(2, 8, 10))
    latents = (torch.rand(4, 8), Similarity.identity())
    folder = save(Scene(views, Condition(views[0], (0,), "a room"), *latents, Provenance("tiny")), tmp_path / "scene")
    changed(folder / name, lambda: read_folder(folder))


@pytest.mark.parametrize("pattern", ["lowres_wide.traj", "vga_wide_intrinsics/*.pincam"])
def test_arkitscenes_texts(tmp_path, pattern):
    folder = test_arkitscenes.write(tmp_path)
    for photo in sorted((folder / "vga_wide").iterdir())[2:]:  # as many poses to interpolate are the same to a parser
        photo.unlink()
    changed(sorted(folder.glob(pattern))[0], lambda: read_arkitscenes(folder))


def test_omnidatas_cameras(tmp_path):
    folder = test_omnidata.write(tmp_path)
    file = tmp_path / "point_info/taskonomy/airport/point_2_view_0_domain_point_info.json"
    changed(file, lambda: read_omnidata(folder))


def test_idrs_archives(tmp_path):
    folder, _ = test_idr.write(tmp_path)
    changed(folder / "cameras.npz", lambda: read_idr(folder))


@pytest.mark.parametrize("name", ["_detail/metadata_scene.csv", "../metadata_camera_parameters.csv", "positions"])
def test_hypersims_tables_and_arrays(tmp_path, name):
    folder = test_hypersim.write(tmp_path)
    file = folder / ("_detail/cam_00/camera_keyframe_positions.hdf5" if name == "positions" else name)
    changed(file, lambda: test_hypersim.read_hypersim(folder))
