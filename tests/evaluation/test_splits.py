"""Where questions come from: rendered worlds, folders of captures, index and split files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diorama
from diorama.data.worlds import SPLITS, render, world
from diorama.evaluation.protocols import PROTOCOLS, WORLDS, Protocol, Setting, Size
from diorama.evaluation.splits import Folders, Worlds, read_index, read_split, sized
from diorama.geometry.cameras import Cameras
from diorama.scene import Condition, Scene, Views

from .scenery import plane

SMALL = replace(
    WORLDS, hashes={}, size=Size(16, 16), views=4, settings=(Setting("1 known", (0,)), Setting("all", None))
)
CAPTURES = Protocol(
    "captures", "for tests", "folders", (Setting("ends", (0, -1)),), views=3, size=Size(16, 16), score_known=False
)


def capture(folder: Path, frames: int = 7, height: int = 24, width: int = 32, lacks: tuple[int, ...] = ()) -> None:
    """A nerfstudio capture, listed backwards, whose frame n is of brightness n and stands at x = n."""
    (folder / "images").mkdir(parents=True)
    listed = []
    for number in reversed(range(frames)):
        pose = np.eye(4)
        pose[0, 3] = number
        listed.append({"file_path": f"images/{number:03d}.png", "transform_matrix": pose.tolist()})
        if number not in lacks:
            pixels = np.full((height, width, 3), 10 * number, np.uint8)
            Image.fromarray(pixels).save(folder / f"images/{number:03d}.png")
    document = {"fl_x": 30.0, "fl_y": 30.0, "w": width, "h": height, "frames": listed}
    (folder / "transforms.json").write_text(json.dumps(document))


def brightness(views: Views) -> list[int]:
    return (views.images.mean((1, 2, 3)) * 25.5).round().int().tolist()


def test_worlds_are_the_rendered_ones_and_their_hash_is_their_content(tmp_path: Path) -> None:
    scenes = Worlds(SMALL, 2, tmp_path, samples=1)
    asked = scenes.questions()
    assert [(q.setting, q.scene) for q in asked] == [
        (s, str(seed)) for s in ("1 known", "all") for seed in SPLITS["test"][:2]
    ]
    assert asked[0].known == (0,) and asked[0].scored == (1, 2, 3)
    assert asked[2].known == asked[2].scored == (0, 1, 2, 3)
    assert asked[0].seed == asked[2].seed == SPLITS["test"][0]
    place = world(SPLITS["test"][1])
    views, true = scenes.load(asked[1]), render(place, place.path(4, 16, 16), samples=1)
    torch.testing.assert_close(views.images, true.images, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(views.cameras.camera_to_world, true.cameras.camera_to_world)
    assert Worlds(SMALL, 2, tmp_path, samples=1).digest == scenes.digest
    fewer = Worlds(SMALL, 1, tmp_path, samples=1)
    assert fewer.digest != scenes.digest and fewer.notes == []


def test_a_clip_is_the_beginning_of_its_path(tmp_path: Path) -> None:
    scenes = Worlds(replace(SMALL, views=2, path=4), 1, tmp_path, samples=1)
    asked = scenes.questions()
    assert (asked[0].known, asked[0].scored, asked[1].scored) == ((0,), (1,), (0, 1))
    place = world(SPLITS["test"][0])
    true = render(place, place.path(4, 16, 16), samples=1)[:2]
    torch.testing.assert_close(scenes.load(asked[0]).cameras.camera_to_world, true.cameras.camera_to_world)


def test_other_pixels_than_the_published_ones_are_told(tmp_path: Path) -> None:
    true = Worlds(replace(SMALL, views=2), 1, tmp_path, samples=1).digest
    same = Worlds(replace(SMALL, views=2, hashes={1: true}), 1, tmp_path, samples=1)
    other = Worlds(replace(SMALL, views=2, hashes={1: "0" * 64}), 1, tmp_path, samples=1)
    assert same.notes == []
    assert len(other.notes) == 1 and true[:12] in other.notes[0]


def test_captures_are_read_in_the_order_of_their_names_without_absent_frames(tmp_path: Path) -> None:
    capture(tmp_path / "a", lacks=(2,))
    capture(tmp_path / "b", frames=3)
    scenes = Folders(CAPTURES, tmp_path)
    first, second = scenes.questions()
    assert (first.scene, second.scene, first.known, first.scored) == ("a", "b", (0, 2), (1,))
    views = scenes.load(first)  # of 0 1 3 4 5 6 the places 0, 2 (2.5 rounds to the even one), 5
    assert brightness(views) == [0, 3, 6]
    assert views.cameras.centers[:, 0].tolist() == [0, 3, 6]
    assert views.images.shape[-2:] == (16, 16)
    assert brightness(scenes.load(second)) == [0, 1, 2]
    assert Folders(CAPTURES, tmp_path / "b").questions()[0].scene == "b"


def test_saved_scenes_keep_their_points(tmp_path: Path) -> None:
    views = plane(4, 16, 24)
    diorama.save(Scene(views, Condition()), tmp_path / "scenes" / "saved")
    scenes = Folders(replace(CAPTURES, views=4), tmp_path / "scenes")
    found = scenes.load(scenes.questions()[0])
    torch.testing.assert_close(found.cameras.unproject(found.depth), found.points, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.points, views.points[:, :, 4:20])


def test_cropping_keeps_cameras_and_points_in_step() -> None:
    views = plane(2, 24, 32)
    small = sized(views, Size(12, 12))
    assert small.images.shape[-2:] == (12, 12)
    torch.testing.assert_close(small.cameras.fov, views.cameras.cropped(0, 4, 24, 24).fov)
    torch.testing.assert_close(small.cameras.unproject(small.depth), small.points, atol=1e-3, rtol=1e-3)


def test_the_split_files_of_others(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"b": {"context": [5, 1], "target": [2, 4]}, "a": None}))
    capture(tmp_path / "scenes" / "b")
    scenes = Folders(replace(PROTOCOLS["re10k"], size=Size(16, 16)), tmp_path / "scenes", split=index)
    (question,) = scenes.questions()
    assert (question.setting, question.frames) == ("2 known", (1, 2, 4, 5))
    assert (question.known, question.scored) == ((3, 0), (1, 2))
    assert brightness(scenes.load(question)) == [1, 2, 4, 5]
    for count in (3, 1):
        split = {"train_ids": [0, 3, 6][:count], "test_ids": [1, 2]}
        (tmp_path / f"scenes/b/train_test_split_{count}.json").write_text(json.dumps(split))
    scenes = Folders(replace(PROTOCOLS["seva"], size=Size(16, 16)), tmp_path / "scenes")
    assert [(q.setting, q.frames) for q in scenes.questions()] == [("1 known", (0, 1, 2)), ("3 known", (0, 1, 2, 3, 6))]


def test_a_drawn_part_of_the_scenes_is_always_the_same(tmp_path: Path) -> None:
    for name in "edcba":
        capture(tmp_path / name, frames=3, height=16, width=16)
    drawn = [q.scene for q in Folders(CAPTURES, tmp_path, 3).questions()]
    assert len(drawn) == 3 and drawn == sorted(drawn)
    assert drawn == [q.scene for q in Folders(CAPTURES, tmp_path, 3).questions()]
    whole = Folders(CAPTURES, tmp_path)
    assert whole.count == 5
    (tmp_path / "a/images/000.png").write_bytes(b"another")
    assert Folders(CAPTURES, tmp_path).digest != whole.digest


def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        Folders(CAPTURES, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no folders in it"):
        Folders(CAPTURES, tmp_path)
    capture(tmp_path / "short", frames=2)
    with pytest.raises(ValueError, match="short: 2 frames; the benchmark takes 3"):
        Folders(CAPTURES, tmp_path)
    with pytest.raises(ValueError, match="needs --split"):
        Folders(PROTOCOLS["re10k"], tmp_path)
    with pytest.raises(ValueError, match="takes no such file"):
        Folders(CAPTURES, tmp_path, split=tmp_path / "x.json")
    with pytest.raises(ValueError, match="no train_test_split"):
        Folders(PROTOCOLS["seva"], tmp_path)
    (tmp_path / "suite/garden/sparse/0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"garden: found a folder of sparse.*accepted"):
        Folders(PROTOCOLS["mip-nerf-360"], tmp_path / "suite")
    (tmp_path / "suite/garden/sparse/0").rmdir()
    # One scene that cannot be read is the run's to count.
    capture(tmp_path / "whole", frames=3)
    assert Folders(CAPTURES, tmp_path).count == 3  # with suite and short


@pytest.mark.parametrize("text", ['{"a": {"context": [], "target": [1]}}', '{"a": {"target": [1]}}', '{"a": 3}', "[]"])
def test_broken_index_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "index.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="index.json"):
        read_index(file)


def test_broken_split_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train_test_split_1.json"
    file.write_text('{"train_ids": [-1], "test_ids": [2]}')
    with pytest.raises(ValueError, match="train_test_split_1.json.*train_ids"):
        read_split(file)


def test_cameras_of_all_frames_belong_to_the_pictures_that_are_read(tmp_path: Path) -> None:
    capture(tmp_path / "a", frames=3, height=20, width=40)
    views = Folders(CAPTURES, tmp_path).load(Folders(CAPTURES, tmp_path).questions()[0])
    # 20x40 becomes 16x32, and the middle 16 columns are kept: focal length 30 * 0.8.
    expected = Cameras.from_fov(2 * np.degrees(np.arctan(8 / 24)), 16, 16).intrinsics
    torch.testing.assert_close(views.cameras.intrinsics, expected.expand(3, 3, 3), atol=1e-4, rtol=0)
