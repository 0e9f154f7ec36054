"""ARKitScenes as downloaded: poses between the times they were taken at, and devices held any way up."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from tests.data.profiles import encodings as e

from diorama.data.readers.arkitscenes import ARKitScenesSource, read_arkitscenes

HEIGHT, WIDTH = 24, 32
MATRIX = np.array([[30.0, 0, 15.25], [0, 31, 12.5], [0, 0, 1]])
PHOTOS = 7  # every 30th of a second, from 0.02 s after the first pose
# Looking along the world's x, with z up: a camera's right, down and forward there.
LEVEL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def pose_at(time: float, quarters: int = 0) -> np.ndarray:
    """Camera-to-world of a device that turns and moves evenly, held by so many quarter turns clockwise."""
    pose = np.eye(4)
    held = Rotation.from_euler("z", 90 * quarters, degrees=True).as_matrix()
    pose[:3, :3] = Rotation.from_rotvec([0.02, 0.05, 0.5 * time]).as_matrix() @ LEVEL @ held
    pose[:3, 3] = [0.5 * time, -0.1 * time, 1.4 + 0.2 * time]
    return pose


def write(folder: Path, quarters: int = 0, kind: str = "vga_wide") -> Path:
    """Poses ten times a second, photos thirty times, each by the time in its name."""
    rows = []
    for tenth in range(4):
        inverse = np.linalg.inv(pose_at(tenth / 10, quarters))
        turn = Rotation.from_matrix(inverse[:3, :3]).as_rotvec()
        rows.append([100 + tenth / 10, *e.floats(turn), *e.floats(inverse[:3, 3])])
    e.lines(folder / "lowres_wide.traj", rows)
    for number in range(PHOTOS):
        stamp = f"41048190_{100.02 + number / 30:.3f}"
        seen(folder / f"{kind}/{stamp}.png", quarters)
        e.png(folder / f"lowres_depth/{stamp}.png", np.tile(np.arange(WIDTH) + 1000, (HEIGHT, 1)))
        row = [WIDTH, HEIGHT, *MATRIX.diagonal()[:2], *MATRIX[:2, 2]]
        e.lines(folder / f"{kind}_intrinsics/41048190_{100.021 + number / 30:.3f}.pincam", [e.floats(np.array(row))])
    return folder


def point(time: float) -> np.ndarray:
    """A place ahead, to the left and above, on which every photo has its red pixel."""
    return pose_at(time)[:3, 3] + np.array([4.0, 0.9, 0.8])


def seen(path: Path, quarters: int) -> None:
    time = float(path.stem.rpartition("_")[2]) - 100
    local = np.linalg.inv(pose_at(time, quarters)) @ [*point(time), 1]
    column, row = (MATRIX @ local[:3] / local[2])[:2]
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[int(row), int(column)] = (255, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("quarters", range(4))
def test_every_photo_stands_upright_with_its_camera_and_depth(tmp_path, quarters):
    scene = read_arkitscenes(write(tmp_path, quarters))
    assert (len(scene), scene.missing, scene.metric) == (PHOTOS, 0, True)
    for number, frame in enumerate(scene.frames):
        time = round(0.02 + number / 30, 3)
        camera, image, depth = frame.camera, frame.image(10**6), frame.depth()
        assert image.shape[1:] == depth.shape == (camera.height, camera.width)
        np.testing.assert_allclose(camera.centers[0], pose_at(time)[:3, 3], atol=2e-4)
        assert camera.camera_to_world[0, 2, 1] < -0.9  # the camera's down is the world's down
        pixels, _ = camera.project(torch.from_numpy(point(time))[None])
        red = (image[0] == 1).nonzero()[0]
        assert pixels[0].floor().long().flip(0).tolist() == red.tolist()
        assert red[0] < camera.height / 2 and red[1] < camera.width / 2
        stored = np.tile(np.arange(WIDTH) + 1000, (HEIGHT, 1)) / 1000  # by column, so that every turn is told apart
        np.testing.assert_allclose(depth, np.rot90(stored, -quarters), rtol=1e-6)


def test_rotations_are_interpolated_too(tmp_path):
    for number, frame in enumerate(read_arkitscenes(write(tmp_path)).frames):
        expected = pose_at(round(0.02 + number / 30, 3))
        # Between two poses the true motion is a screw, which differs by its sagitta.
        np.testing.assert_allclose(frame.camera.camera_to_world[0], expected, atol=2e-4)


def test_photos_beyond_the_poses_or_without_intrinsics_are_counted(tmp_path):
    write(tmp_path, kind="lowres_wide")
    seen(tmp_path / "lowres_wide/41048190_100.600.png", 0)
    next((tmp_path / "lowres_wide_intrinsics").iterdir()).unlink()
    scene = read_arkitscenes(tmp_path)
    assert (len(scene), scene.missing) == (PHOTOS - 1, 2)


def test_a_gap_between_poses_is_not_bridged(tmp_path):
    write(tmp_path)
    rows = (tmp_path / "lowres_wide.traj").read_text().splitlines()
    (tmp_path / "lowres_wide.traj").write_text("\n".join([rows[0], rows[1].replace("100.1 ", "109.1 ", 1)]))
    with pytest.raises(ValueError, match="none of its 7 photos has intrinsics and a pose"):
        read_arkitscenes(tmp_path)


def test_videos_of_a_split_are_scenes(tmp_path):
    for name in ("Training/41048190", "Validation/41069021"):
        write(tmp_path / name)
    source = ARKitScenesSource(tmp_path)
    assert [source[index].name for index in range(len(source))] == ["41048190", "41069021"]
    with pytest.raises(ValueError, match="no video of ARKitScenes"):
        ARKitScenesSource(tmp_path / "Training/41048190/vga_wide")


@pytest.mark.parametrize("content", ["", "1 2 3", "1 0 0 0 0 0 nan", "a b c d e f g", "1 0 0 0 0 0 1e300"])
def test_trajectories_that_cannot_be_are_named(tmp_path, content):
    write(tmp_path)
    (tmp_path / "lowres_wide.traj").write_text(content)
    with pytest.raises(ValueError, match="lowres_wide.traj: found .*accepted are lines of 7 finite numbers"):
        read_arkitscenes(tmp_path)


@pytest.mark.parametrize("content", ["", "1 2 3", "32 24 30 31 nan 12", "inf 24 30 31 15 12", "32 24 -30 31 15 12"])
def test_intrinsics_that_cannot_be_are_named(tmp_path, content):
    write(tmp_path)
    next((tmp_path / "vga_wide_intrinsics").iterdir()).write_text(content)
    with pytest.raises(ValueError, match=r"(pincam: found|41048190_100.*png: )") as caught:
        read_arkitscenes(tmp_path)
    assert "\n" not in str(caught.value)
