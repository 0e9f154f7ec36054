"""COLMAP's models, written here as its documentation describes them, are read back."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from diorama.data.readers.colmap import find_model, read_colmap

NAMES = ("9.png", "10.png", "walk/1.png")
IDS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV_FISHEYE": 5, "FOV": 7}
EXAMPLES = int(os.environ.get("DIORAMA_FUZZ", "500"))  # 10000 at night
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def poses(count: int = 3) -> np.ndarray:
    """OpenCV camera-to-world."""
    random = np.random.default_rng(0)
    matrices = np.tile(np.eye(4), (count, 1, 1))
    matrices[:, :3, :3] = Rotation.random(count, rng=random).as_matrix()
    matrices[:, :3, 3] = random.normal(size=(count, 3))
    return matrices


def rows(matrices: np.ndarray) -> np.ndarray:
    """COLMAP's quaternion w x y z and translation, of the inverse."""
    inverse = np.linalg.inv(matrices)
    quaternions = Rotation.from_matrix(inverse[:, :3, :3]).as_quat(scalar_first=True)
    return np.concatenate([quaternions, inverse[:, :3, 3]], 1)


def photos(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (10 * number, 0, 0)).save(folder / name)
    return folder


def text(folder: Path, camera: str = "PINHOLE 32 24 30 31 15 11", points: str = "1 2 -1 3.5 4 7") -> Path:
    model = folder / "sparse/0"
    model.mkdir(parents=True, exist_ok=True)
    (model / "cameras.txt").write_text(f"# Camera list\n7 {camera}\n")
    lines = ["# Image list with two lines of data per image:"]
    for number, (row, name) in enumerate(zip(rows(poses()), NAMES, strict=True)):
        lines += [" ".join([str(number + 1), *map(repr, map(float, row)), "7", name]), points]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    return folder


def binary(folder: Path, model: str = "PINHOLE", parameters: tuple[float, ...] = (30, 31, 15, 11)) -> Path:
    place = folder / "sparse/0"
    place.mkdir(parents=True, exist_ok=True)
    camera = struct.pack("<iiQQ", 7, IDS[model], 32, 24) + struct.pack(f"<{len(parameters)}d", *parameters)
    (place / "cameras.bin").write_bytes(struct.pack("<Q", 1) + camera)
    data = struct.pack("<Q", len(NAMES))
    for number, (row, name) in enumerate(zip(rows(poses()), NAMES, strict=True)):
        data += struct.pack("<I7dI", number + 1, *row, 7) + name.encode() + b"\0"
        data += struct.pack("<Q", number) + struct.pack("<ddq", 1.0, 2.0, -1) * number
    (place / "images.bin").write_bytes(data)
    return folder


@pytest.mark.parametrize("write", [text, binary])
def test_a_model_is_read_in_double_precision(tmp_path: Path, write) -> None:
    write(tmp_path)
    photos(tmp_path / "images")
    scene = read_colmap(tmp_path)
    assert [Path(frame.name).name for frame in scene.frames] == ["9.png", "10.png", "1.png"]
    assert scene.cameras is not None
    np.testing.assert_allclose(scene.cameras.camera_to_world.numpy(), poses(), atol=1e-14)
    assert scene.cameras.intrinsics[0].tolist() == [[30, 0, 15], [0, 31, 11], [0, 0, 1]]
    assert (scene.views().images[:, 0, 0, 0] * 255).round().tolist() == [0, 10, 20]


@pytest.mark.parametrize("points", ["", None, "1 2 -1"])
def test_lines_of_points_may_be_empty_or_absent(tmp_path: Path, points: str | None) -> None:
    text(tmp_path, points=points or "")
    photos(tmp_path / "images")
    file = tmp_path / "sparse/0/images.txt"
    if points is None:
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines() if line))
    assert len(read_colmap(tmp_path)) == 3


def test_smaller_copies_missing_photos_and_other_places(tmp_path: Path) -> None:
    binary(tmp_path)
    for name in NAMES[:2]:
        (tmp_path / "images_2").mkdir(exist_ok=True)
        Image.new("RGB", (16, 12)).save(tmp_path / "images_2" / name)
    scene = read_colmap(tmp_path)
    assert (len(scene), scene.missing) == (2, 1)
    assert scene.views().cameras.intrinsics[0].tolist() == [[15, 0, 7.5], [0, 15.5, 5.5], [0, 0, 1]]
    photos(tmp_path / "images_2")
    photos(tmp_path / "mine")
    assert Path(read_colmap(tmp_path, "mine").frames[0].name).parent.name == "mine"
    (tmp_path / "sparse/0").rename(tmp_path / "model")
    assert find_model(tmp_path) is None
    assert find_model(tmp_path / "model") == tmp_path / "model"


def test_of_several_models_the_largest_is_read(tmp_path: Path) -> None:
    binary(tmp_path)
    (tmp_path / "sparse/0").rename(tmp_path / "sparse/1")
    binary(tmp_path)
    image_file = tmp_path / "sparse/0/images.bin"
    image_file.write_bytes(struct.pack("<Q", 0))
    assert find_model(tmp_path) == tmp_path / "sparse/1"


def test_the_lens_is_undone_and_masks_are_read(tmp_path: Path) -> None:
    binary(tmp_path, "SIMPLE_RADIAL", (30, 15, 11, 0.2))
    photos(tmp_path / "images")
    mask = Image.new("L", (32, 24), 255)
    mask.paste(0, (0, 0, 16, 24))
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks/9.png.png")
    scene = read_colmap(tmp_path)
    assert scene.cameras.intrinsics[0, 0, 0] > 30.5
    assert scene.frames[1].mask is None
    valid = scene.frames[0].mask()
    assert (valid[:, :12].any().item(), valid[:, 20:].all().item()) == (False, True)


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_colmap(folder)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_what_is_refused(tmp_path: Path) -> None:
    photos(tmp_path / "images")
    assert "found no cameras and images" in refused(tmp_path)
    assert "cameras.txt: camera 7: found the camera model FOV" in refused(text(tmp_path, "FOV 32 24 30 30 15 11 1"))
    assert "found 3 parameters of PINHOLE" in refused(text(tmp_path, "PINHOLE 32 24 30 31 15"))
    assert "has 0x24 pixels" in refused(text(tmp_path, "PINHOLE 0 24 30 31 15 11"))
    assert "is no camera" in refused(text(tmp_path, "PINHOLE wide 24 30 31 15 11"))
    assert "focal length that is not positive" in refused(text(tmp_path, "PINHOLE 32 24 -30 31 15 11"))
    text(tmp_path)
    file = tmp_path / "sparse/0/images.txt"
    good = file.read_text()
    for old, new, message in (
        ("9.png", "../9.png", "accepted are files inside its folder"),
        (" 7 9.png", " 8 9.png", "has camera 8; cameras.txt does not list it"),
        (" 7 9.png", " x 9.png", "is no image"),
        (good, "# nothing\n", "found no images"),
    ):
        file.write_text(good.replace(old, new, 1))
        assert message in refused(tmp_path)
    values = good.splitlines()[1].split()
    for broken in (["nan", *values[2:]], ["0", "0", "0", "0", *values[5:]]):
        file.write_text(" ".join([values[0], *broken]) + "\n\n")
        assert "pose that is not finite" in refused(tmp_path)
    file.write_text(good.replace("png", "gif"))
    assert "none of its 3 images" in refused(tmp_path)


def test_binary_models_cut_anywhere_are_refused(tmp_path: Path) -> None:
    binary(tmp_path)
    photos(tmp_path / "images")
    file = tmp_path / "sparse/0/images.bin"
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        file.write_bytes(whole[:length])
        assert "cut short" in refused(tmp_path)
    file.write_bytes(struct.pack("<Q", 2**63) + whole[8:])
    assert "cut short" in refused(tmp_path)
    file.write_bytes(whole)
    binary(tmp_path, "FOV", (1, 2, 3, 4))
    assert "camera model FOV" in refused(tmp_path)


@pytest.fixture
def good(tmp_path: Path) -> dict[Path, bytes]:
    """A text and a binary model; their photos are written once."""
    folders = [text(tmp_path / "text"), binary(tmp_path / "binary")]
    return {
        file: file.read_bytes()
        for folder in folders
        for file in (photos(folder / "images").parent / "sparse/0").iterdir()
    }


@FUZZ
@given(data=st.binary(max_size=300), number=st.integers(0, 3), at=st.integers(0, 400))
def test_any_bytes_are_read_or_refused(good: dict[Path, bytes], data: bytes, number: int, at: int) -> None:
    file, whole = sorted(good.items())[number]
    file.write_bytes(whole[:at] + data + whole[at + len(data) :])
    said = ""
    try:
        scene = read_colmap(file.parent.parent.parent)
    except ValueError as error:
        said = str(error)
    else:
        assert all(torch.isfinite(frame.camera.camera_to_world).all() for frame in scene.frames)
    file.write_bytes(whole)
    assert len(said.splitlines()) <= 1
