"""nerfstudio's captures: axes, lenses, depth, masks, splits, and what is missing."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from diorama.data.readers.nerfstudio import read_nerfstudio

INTRINSICS = {"fl_x": 30.0, "fl_y": 31.0, "cx": 15.0, "cy": 11.0, "w": 32, "h": 24}


def poses(count: int) -> np.ndarray:
    """OpenCV camera-to-world."""
    random = np.random.default_rng(0)
    matrices = np.tile(np.eye(4), (count, 1, 1))
    matrices[:, :3, :3] = Rotation.random(count, rng=random).as_matrix()
    matrices[:, :3, 3] = random.normal(size=(count, 3))
    return matrices


def written(folder: Path, changes: dict[str, Any] | None = None, each: dict[str, Any] | None = None) -> Path:
    """Three photos with cameras in OpenGL's axes; `each` goes into every frame, {} in it being the frame's number."""
    frames = []
    for number, pose in enumerate(poses(3) @ np.diag([1, -1, -1, 1])):
        photo(folder / f"images/{number}.png", number)
        frame = {"file_path": f"images/{number}.png", "transform_matrix": pose.tolist()}
        more = {key: v.format(number) if isinstance(v, str) else v for key, v in (each or {}).items()}
        frames.append(frame | more)
    document = INTRINSICS | {"frames": frames} | (changes or {})
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def photo(path: Path, number: int, size: tuple[int, int] = (32, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10 * number, 0, 0)).save(path)


def test_poses_keep_double_precision(tmp_path: Path) -> None:
    scene = read_nerfstudio(written(tmp_path))
    assert scene.cameras is not None
    np.testing.assert_array_equal(scene.cameras.camera_to_world.numpy(), poses(3))
    assert (scene.ordered, scene.metric, scene.depth_kind, scene.at) == (True, False, "none", (0, 1, 2))


def test_gen3rs_training_layout(tmp_path: Path) -> None:
    folder = written(tmp_path, {"axes": "opencv"}, INTRINSICS)
    (folder / "captions.txt").write_text("A hall.\n\n A long hall. \n")
    scene = read_nerfstudio(folder)
    np.testing.assert_allclose(scene.cameras.camera_to_world, poses(3) @ np.diag([1, -1, -1, 1]), atol=1e-15)
    assert scene.captions == ("A hall.", "A long hall.")


def test_depth_masks_and_their_unit(tmp_path: Path) -> None:
    each = {"depth_file_path": "depth/{}.png", "mask_path": "masks/{}.png"}
    for changes, unit in (({}, 0.001), ({"depth_unit_scale_factor": 0.5}, 0.5)):
        folder = written(tmp_path, changes, each)
        for number in range(3):
            codes = np.full((24, 32), 2000 + number, np.uint16)
            codes[0, 0] = 0
            mask = np.full((24, 32), 255, np.uint8)
            mask[5, 6] = 0
            for place, values in (("depth", codes), ("masks", mask)):
                (folder / place).mkdir(exist_ok=True)
                Image.fromarray(values).save(folder / place / f"{number}.png")
        views = read_nerfstudio(folder).views()
        assert views.depth[:, 7, 7].tolist() == pytest.approx([unit * (2000 + number) for number in range(3)])
        assert (~views.mask[1]).nonzero().tolist() == [[0, 0], [5, 6]]
    assert read_nerfstudio(folder).depth_kind == "dense"
    (folder / "depth/1.png").unlink()
    assert [frame.depth is None for frame in read_nerfstudio(folder).frames] == [False, True, False]


def test_the_lens_of_each_frame_is_undone(tmp_path: Path) -> None:
    folder = written(tmp_path, {"camera_model": "OPENCV", "k1": 0.2})
    scene = read_nerfstudio(folder)
    assert scene.cameras.intrinsics[0, 0, 0] > 30.5
    assert scene.path.intrinsics[0, 0, 0] == scene.cameras.intrinsics[0, 0, 0]
    # Each column has its number's shade; where the lens images a straight pixel's ray is by OpenCV's formula.
    ramp = np.tile(np.arange(32, dtype=np.uint8)[:, None] * 8, (1, 24)).T
    Image.fromarray(ramp).save(folder / "images/0.png")
    bent = scene.frames[0].image(10**6)[0] * 255 / 8
    matrix = scene.cameras.intrinsics[0]
    x, y = (29.5 - 15) / float(matrix[0, 0]), (11.5 - 11) / float(matrix[1, 1])
    assert float(bent[11, 29]) == pytest.approx(15 + 30 * x * (1 + 0.2 * (x * x + y * y)) - 0.5, abs=0.02)
    fisheye = read_nerfstudio(written(tmp_path, {"camera_model": "OPENCV_FISHEYE"}))
    Image.fromarray(ramp).save(folder / "images/0.png")
    shown = fisheye.frames[0].image(10**6)[0, 11] * 255 / 8
    angle = np.arctan((28.5 - 15) / 30)
    assert float(shown[28]) == pytest.approx(15 + 30 * angle - 0.5, abs=0.05)


def test_frames_of_several_sizes(tmp_path: Path) -> None:
    folder = written(tmp_path)
    document = json.loads((folder / "transforms.json").read_text())
    document["frames"][1] |= {"w": 64, "h": 48, "fl_x": 60.0}
    (folder / "transforms.json").write_text(json.dumps(document))
    photo(folder / "images/1.png", 1, (64, 48))
    scene = read_nerfstudio(folder)
    assert scene.path is None
    assert scene.views(height=24, width=32).cameras.intrinsics[:, 0, 0].tolist() == [30, 30, 30]


def test_missing_and_wanted_frames_and_splits(tmp_path: Path) -> None:
    names = ["images/0.png", "images/1.png", "images/2.png"]
    folder = written(tmp_path, {"train_filenames": names[:2], "test_filenames": names[2:]})
    document = json.loads((folder / "transforms.json").read_text())
    pose = document["frames"][0]["transform_matrix"]
    document["frames"] += [{"file_path": None, "transform_matrix": pose}]
    (folder / "transforms.json").write_text(json.dumps(document))
    (folder / "train_test_split_2.json").write_text(json.dumps({"train_ids": [1], "test_ids": [0]}))
    (folder / "images/1.png").unlink()
    scene = read_nerfstudio(folder)
    assert (len(scene), scene.missing, scene.path.views, scene.at) == (2, 1, 4, (0, 2))
    assert scene.splits == {"train": (0,), "test": (1,), "train 2": (1,), "test 2": (0,)}


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_nerfstudio(folder).views()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_what_is_refused(tmp_path: Path) -> None:
    for changes, message in (
        ({"camera_model": "EQUIRECTANGULAR"}, "camera model 'EQUIRECTANGULAR'; accepted are PINHOLE"),
        ({"camera_model": "OPENCV", "k4": 0.1}, "found k4 0.1"),
        ({"camera_model": "OPENCV", "k1": "0.1"}, "accepted are finite numbers"),
        ({"k1": -9.0}, "folds its image over"),
        ({"depth_unit_scale_factor": 0}, "`depth_unit_scale_factor` is '0'"),
        ({"w": 24, "h": 32}, "a camera of 32x24 for images of 24x32"),
    ):
        assert message in refused(written(tmp_path, changes))
    for each, message in (
        ({"depth_file_path": "../{}.png"}, "accepted are files inside its folder"),
        ({"mask_path": "/etc/hostname"}, "accepted are files inside its folder"),
        ({"depth_file_path": "transforms.json"}, "found depth in another format"),
    ):
        assert message in refused(written(tmp_path, {}, each))
    written(tmp_path)
    (tmp_path / "train_test_split_1.json").write_text('{"train_ids": [3], "test_ids": []}')
    assert "`train_ids` is no list of numbers from 0 to 2" in refused(tmp_path)


def test_a_json_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "transforms.json").open("wb") as file:
        file.truncate(2**30)
    assert "found 1073741824 bytes; accepted is a JSON file of at most" in refused(tmp_path)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=4), v, max_size=3))
DOCUMENT_KEYS = ("fl_x", "cx", "w", "h", "k1", "k4", "p1", "camera_model", "axes", "applied_transform", "frames")
MORE_KEYS = ("depth_unit_scale_factor", "train_filenames", "is_fisheye", "camera_angle_x")
FRAME_KEYS = ("file_path", "transform_matrix", "depth_file_path", "mask_path", "fl_x", "w", "k2", "camera_model")
EXAMPLES = int(os.environ.get("DIORAMA_FUZZ", "500"))  # 10000 at night
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    """A capture's transforms.json; its photos are written once."""
    return (written(tmp_path) / "transforms.json").read_bytes()


@FUZZ
@given(
    changes=st.dictionaries(st.sampled_from(DOCUMENT_KEYS + MORE_KEYS), VALUES, max_size=3),
    each=st.dictionaries(st.sampled_from(FRAME_KEYS), VALUES, max_size=3),
)
def test_any_document_is_read_or_refused(
    tmp_path: Path, good: bytes, changes: dict[str, Any], each: dict[str, Any]
) -> None:
    document = json.loads(good)
    document["frames"][1] |= each
    (tmp_path / "transforms.json").write_text(json.dumps(document | changes))
    said = ""
    try:
        scene = read_nerfstudio(tmp_path)
    except ValueError as error:
        said = str(error)
    else:
        assert all(frame.camera.camera_to_world.isfinite().all() for frame in scene.frames)
    assert len(said.splitlines()) <= 1


@FUZZ
@given(data=st.binary(max_size=60), at=st.integers(0, 800))
def test_any_bytes_are_read_or_refused(tmp_path: Path, good: bytes, data: bytes, at: int) -> None:
    (tmp_path / "transforms.json").write_bytes(good[:at] + data + good[at + len(data) :])
    said = ""
    try:
        read_nerfstudio(tmp_path)
    except ValueError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
