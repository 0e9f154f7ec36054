"""Every shipped profile against a scene written in its data set's true layout and encoding."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from diorama.data.readers.frames import FramesSource, find_profile, read_frames
from diorama.data.readers.profiles import load_profile, parse_profile, profiles

from . import encodings as e
from .layouts import LAYOUTS, cut3r_waymo, dtu, wildrgbd

STEP = 0.0101  # scene units; the coarsest code here is of centimetres
OWN_INTRINSICS = {  # of data sets whose cameras are not free to choose, in pixels of the small photos
    "tartanair": np.array([[8.0, 0, 8], [0, 8, 6], [0, 0, 1]]),
    "tanks_and_temples": np.array([[9.6, 0, 8], [0, 9.6, 6], [0, 0, 1]]),
    "cut3r_mvimgnet": np.array([[14.25, 0, 8.25], [0, 14.25, 6.5], [0, 0, 1]]),
}
WITH_SKY = {"cut3r_dl3dv", "cut3r_tartanair", "cut3r_vkitti2", "mvs_synth", "tartanair", "vkitti2"}


def test_every_profile_has_its_layout_here():
    assert set(LAYOUTS) == set(profiles())


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_scene_comes_back_as_it_was_written(name, tmp_path):
    scene = read_frames(LAYOUTS[name](tmp_path), load_profile(name))
    frames = scene.frames[: e.FRAMES]
    assert len(scene) == (2 * e.FRAMES if name == "vkitti2" else e.FRAMES)
    assert scene.missing == (1 if name in ("scannet", "kitti360") else 0)
    for n, (frame, pose) in enumerate(zip(frames, e.poses(), strict=True)):
        np.testing.assert_allclose(frame.camera.camera_to_world[0], pose, atol=2e-6)
        camera = frame.camera.resized(e.HEIGHT, e.WIDTH)
        np.testing.assert_allclose(camera.intrinsics[0], OWN_INTRINSICS.get(name, e.INTRINSICS), atol=1e-6)
        image = frame.image(10**6)
        assert image.shape == (3, e.HEIGHT, e.WIDTH) and abs(float(image[0].mean()) - (40 * n + 20) / 255) < 0.02
        if frame.depth is not None:
            check_depth(frame.depth().numpy(), n, name)
    assert (frames[0].depth is None) == (load_profile(name).depth is None)


def check_depth(found: np.ndarray, number: int, name: str) -> None:
    expected = e.depth(number)
    assert found[e.INVALID] == 0
    assert (found[e.SKY] == np.inf) == (name in WITH_SKY)
    plain = found > 0
    plain[e.SKY] = False
    if load_profile(name).depth.percentile < 100:
        assert (found[-1, -3:] == 0).all()  # the farthest two per hundred
    assert plain.mean() > 0.95
    assert np.abs(found - expected)[plain].max() < STEP / 2


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_layout_is_recognised_by_looking(name, tmp_path):
    assert find_profile(LAYOUTS[name](tmp_path)).name == name


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_data_set_lists_its_scenes(name, tmp_path):
    folder = LAYOUTS[name](tmp_path)
    source = FramesSource(tmp_path, load_profile(name))
    names = [source[index].name for index in range(len(source))]
    place = folder.relative_to(tmp_path).as_posix()
    expected = {"vkitti2": [f"{place}/0", f"{place}/1"], "cut3r_waymo": [f"{place}/1"]}
    expected |= {"kitti360": ["2013_05_28_drive_0000_sync"], "dtu": ["scan1"]}
    assert names == expected.get(name, [place])
    assert all(len(source[index]) == e.FRAMES for index in range(len(source)))


def test_places_that_share_a_folder_are_scenes_of_their_own(tmp_path):
    dtu(tmp_path)
    for file in sorted((tmp_path / "Rectified/scan1_train").iterdir())[:4]:
        (tmp_path / "Rectified/scan10_train").mkdir(exist_ok=True)
        (tmp_path / "Rectified/scan10_train" / file.name).write_bytes(file.read_bytes())
    source = FramesSource(tmp_path, load_profile("dtu"))
    assert [(source[index].name, len(source[index])) for index in range(2)] == [("scan1", 3), ("scan10", 2)]
    assert [frame.depth is None for frame in source[1].frames] == [True, True]
    with pytest.raises(ValueError, match="2 scenes of DTU.*--profile dtu --scene 0"):
        read_frames(tmp_path, load_profile("dtu"))


def test_a_scene_that_its_data_set_disowns_is_left_out(tmp_path):
    for number in ("scene_257", "scene_258"):
        (tmp_path / "box/scenes").mkdir(parents=True, exist_ok=True)
        wildrgbd(tmp_path).rename(tmp_path / "box/scenes" / number)
    source = FramesSource(tmp_path, load_profile("wildrgbd"))
    assert [source[index].name for index in range(len(source))] == ["box/scenes/scene_258"]


def test_a_lens_that_a_data_set_left_in_its_photos_is_undone(tmp_path):
    """Red is the column that a pixel was photographed at; straightened, the column that its ray was bent to."""
    folder, bends = cut3r_waymo(tmp_path), (-0.3, 0.05, 0.004, -0.002, 0.0)
    height, width, focal = 48, 64, 40.0
    columns = np.tile(np.arange(width, dtype=np.uint8) * 4, (height, 1))
    Image.fromarray(np.stack([columns] * 3, -1)).save(folder / "00000_1.jpg", quality=100)
    matrix = np.array([[focal, 0, 31.5], [0, focal, 23.5], [0, 0, 1]])  # of pixels with whole-numbered centres
    e.npz(folder / "00000_1.npz", cam2world=e.poses()[0], intrinsics=matrix, distortion=np.array(bends))
    frame = read_frames(folder, load_profile("cut3r_waymo"), "1").frames[0]
    zoom = float(frame.camera.intrinsics[0, 0, 0]) / focal
    assert zoom >= 1 and float(frame.camera.intrinsics[0, 0, 2]) == 32
    x = (np.arange(width) + 0.5 - 32) / (zoom * focal)
    y = np.full(width, (10.5 - 24) / (zoom * focal))
    square = x**2 + y**2
    radial = 1 + bends[0] * square + bends[1] * square**2
    bent = x * radial + 2 * bends[2] * x * y + bends[3] * (square + 2 * x**2)
    expected, found = bent * focal + 32 - 0.5, frame.image(10**6)[0, 10].numpy() * 255 / 4
    assert np.abs(found - expected)[1:-1].max() < 0.5 and np.abs(expected - np.arange(width)).max() > 2


def test_a_photo_without_its_lens_is_named(tmp_path):
    folder = cut3r_waymo(tmp_path)
    e.npz(folder / "00000_1.npz", cam2world=e.poses()[0], intrinsics=e.INTRINSICS, distortion=np.zeros(4))
    with pytest.raises(ValueError, match="00000_1.jpg: no lens of 5 finite numbers"):
        read_frames(folder, load_profile("cut3r_waymo"))


def test_the_profile_in_the_docs_reads_what_it_describes(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text().split("```toml\n", 1)[1].split("```", 1)[0]
    rows = []
    for n, pose in enumerate(e.poses()):
        e.photo(tmp_path / f"left/{n + 7:04d}.png", n)
        e.png(tmp_path / f"depth/{n + 7:04d}.png", e.depth(n) * 1000)
        forward_left_up = np.stack([pose[:3, 2], -pose[:3, 0], -pose[:3, 1]], -1)
        turn = Rotation.from_matrix(forward_left_up).as_quat()
        rows.append([n + 7, *e.floats(pose[:3, 3]), *e.floats(turn)])
    e.lines(tmp_path / "poses.txt", rows[::-1])
    scene = read_frames(tmp_path, parse_profile(text, "docs"))
    assert scene.metric and scene.depth_kind == "lidar"
    for n, (frame, pose) in enumerate(zip(scene.frames, e.poses(), strict=True)):
        np.testing.assert_allclose(frame.camera.camera_to_world[0], pose, atol=1e-9)
        np.testing.assert_allclose(frame.depth(), e.depth(n), atol=1e-5)
