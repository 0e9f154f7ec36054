"""Gen3R's training layout: OpenCV cameras in a file that looks like nerfstudio's, captions, lists that line up."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from diorama.data.readers.gen3r_training import Gen3RSource, read_gen3r_training

HEIGHT, WIDTH = 16, 20


def pose(number):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [5, 10 * number, -20], degrees=True).as_matrix()
    matrix[:3, 3] = [number, -0.5, 0.25]
    return matrix


def write(root, scene, count=3, elsewhere="images"):
    folder = root / "re10k" / scene
    (folder / elsewhere).mkdir(parents=True)
    frames = []
    for number in range(count):
        name = f"frame{number:05d}.png"
        Image.new("RGB", (WIDTH, HEIGHT), (60 * number, 5, 5)).save(folder / elsewhere / name)
        size = {"w": WIDTH, "h": HEIGHT, "fl_x": 18.0 + number, "fl_y": 19.0, "cx": 10.5, "cy": 7.0}
        frames.append(size | {"file_path": f"/data/of/someone/{name}", "transform_matrix": pose(number).tolist()})
    (folder / "transforms.json").write_text(json.dumps({"frames": frames}))
    (folder / "captions.txt").write_text(f"A {scene}.\nThe same {scene}.\n")
    return folder


def write_lists(root, scenes, split="train"):
    (root / f"{split}_cameras_paths.txt").write_text("".join(f"re10k/{s}/transforms.json\n" for s in scenes))
    (root / f"{split}_captions_paths.txt").write_text("".join(f"re10k/{s}/captions.txt\n" for s in scenes))
    (root / f"{split}_videos_dirs.txt").write_text("".join(f"{root}/re10k/{s}/images\n" for s in scenes))


def test_cameras_are_taken_as_opencv(tmp_path):
    scene = read_gen3r_training(write(tmp_path, "hall") / "transforms.json")
    assert scene.name == "hall" and len(scene) == 3 and scene.captions == ("A hall.", "The same hall.")
    for number, frame in enumerate(scene.frames):
        np.testing.assert_array_equal(frame.camera.camera_to_world[0], pose(number))
        np.testing.assert_array_equal(frame.camera.intrinsics[0], [[18 + number, 0, 10.5], [0, 19, 7], [0, 0, 1]])
        assert float(frame.image(10**6)[0].mean()) == pytest.approx(60 * number / 255)


def test_lists_name_the_clips_in_their_order(tmp_path):
    for scene in ("attic", "hall", "stairs"):
        write(tmp_path, scene)
    write_lists(tmp_path, ["stairs", "attic"])
    write_lists(tmp_path, ["hall"], "test")
    assert [scene.name for scene in Gen3RSource(tmp_path)] == ["stairs", "attic"]
    assert [scene.captions[0] for scene in Gen3RSource(tmp_path, "test")] == ["A hall."]


def test_lists_that_do_not_line_up_are_refused(tmp_path):
    write_lists(tmp_path, ["a", "b"])
    (tmp_path / "train_captions_paths.txt").write_text("one\n")
    with pytest.raises(ValueError, match="1 in train_captions_paths.txt.*as many lines"):
        Gen3RSource(tmp_path)
    with pytest.raises(ValueError, match="no test_cameras_paths.txt"):
        Gen3RSource(tmp_path, "test")


def test_photos_that_are_not_there_are_counted(tmp_path):
    folder = write(tmp_path, "hall")
    (folder / "images/frame00001.png").unlink()
    scene = read_gen3r_training(folder / "transforms.json")
    assert len(scene) == 2 and scene.missing == 1
    with pytest.raises(ValueError, match="none of its 3 frames"):
        read_gen3r_training(folder / "transforms.json", images=tmp_path)


@pytest.mark.parametrize("name", ["", "..", "images/..", "a\0b", "x" * 300])
def test_names_lead_nowhere_else(tmp_path, name):
    folder = write(tmp_path, "hall")
    document = json.loads((folder / "transforms.json").read_text())
    document["frames"][0]["file_path"] = name
    (folder / "transforms.json").write_text(json.dumps(document))
    assert read_gen3r_training(folder / "transforms.json").missing == 1


def test_a_pose_that_cannot_be_is_named(tmp_path):
    folder = write(tmp_path, "hall")
    document = json.loads((folder / "transforms.json").read_text())
    document["frames"][1]["transform_matrix"][0][0] = float("nan")
    (folder / "transforms.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="transforms.json: frame 1"):
        read_gen3r_training(folder / "transforms.json")
