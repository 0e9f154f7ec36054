"""Other people's programs: what they are given, what is read back, and that their mistakes stay theirs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import diorama
from diorama.data.open import open_capture
from diorama.evaluation.methods import Failure
from diorama.evaluation.outside import Outside, read_answer, vbench_scores, write_request
from diorama.export.depth import png
from diorama.export.ply import bytes_of
from diorama.scene import Condition, Scene, Shot, Views

from .scenery import plane

EXAMPLE = Path(__file__).parents[2] / "examples/evaluate_outside_method.py"


@pytest.fixture(scope="module")
def views() -> Views:
    return plane(4, 16, 24)


def condition(views: Views, *at: int) -> Condition:
    return Condition(views[at], at)


def answer(folder: Path, views: Views, *places: int, depth: bool = False) -> None:
    """What a perfect method would leave."""
    for kind in ("images", "depth"):
        (folder / "answer" / kind).mkdir(parents=True, exist_ok=True)
    for place in places:
        image = bytes_of(views.images[place]).movedim(0, -1).contiguous().numpy()
        (folder / f"answer/images/{place:05d}.png").write_bytes(png(image))
        if depth:
            np.save(folder / f"answer/depth/{place:05d}.npy", views.depth[place].numpy())


def test_a_request_is_a_nerfstudio_dataset_of_which_only_the_known_images_are_there(
    tmp_path: Path, views: Views
) -> None:
    write_request(tmp_path / "a", condition(views, 2, 0), views.cameras, seed=7)
    found = open_capture(tmp_path / "a")
    assert found.at == (0, 2)
    assert found.cameras.views == 4
    torch.testing.assert_close(found.cameras.camera_to_world.float(), views.cameras.camera_to_world, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.views.images, views.images[[0, 2]], atol=0.5 / 255 + 1e-6, rtol=0)
    request = json.loads((tmp_path / "a/request.json").read_text())
    assert (request["views"], request["height"], request["width"], request["seed"]) == (4, 16, 24, 7)
    assert request["known"] == {"2": "images/00002.png", "0": "images/00000.png"}
    assert list(request["wanted"]) == ["1", "3"]
    torch.testing.assert_close(torch.tensor(request["cameras"]["camera_to_world"]), views.cameras.camera_to_world)
    assert sorted(p.name for p in (tmp_path / "a/images").iterdir()) == ["00000.png", "00002.png"]


def test_cameras_to_be_predicted_are_not_told(tmp_path: Path, views: Views) -> None:
    write_request(tmp_path / "a", condition(views, 0), Shot(4, 16, 24), seed=0)
    assert json.loads((tmp_path / "a/request.json").read_text())["cameras"] is None
    assert not (tmp_path / "a/transforms.json").exists()


def test_an_answer_comes_back_with_its_depth_and_the_known_images(tmp_path: Path, views: Views) -> None:
    answer(tmp_path, views, 1, 2, 3)
    found = read_answer(tmp_path, condition(views, 0), views.cameras)
    torch.testing.assert_close(found.images, views.images, atol=0.5 / 255 + 1e-6, rtol=0)
    assert found.points is None
    answer(tmp_path, views, 0, 1, 2, 3, depth=True)
    found = read_answer(tmp_path, condition(views, 0), views.cameras)
    torch.testing.assert_close(found.points, views.points, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "answer/images/00002.png").unlink(), r"00002.png: missing \(1 of 3"),
        (lambda f: (f / "answer/images/00002.png").write_bytes(b"no image"), "00002.png"),
        (lambda f: np.save(f / "answer/depth/00001.npy", np.zeros((2, 2))), r"00001.npy.*\(2, 2\)"),
        (lambda f: np.save(f / "answer/depth/00001.npy", np.array([{}])), "pickle"),
    ],
)
def test_a_broken_answer_is_named(tmp_path: Path, views: Views, harm, says: str) -> None:
    answer(tmp_path, views, 0, 1, 2, 3, depth=True)
    harm(tmp_path)
    with pytest.raises((ValueError, OSError), match=says):
        read_answer(tmp_path, condition(views, 0), views.cameras)


def outside(program: str, folder: Path) -> Outside:
    (folder / "program.py").write_text(program)
    return Outside(f"{sys.executable} {folder / 'program.py'} {{folder}}", folder / "requests")


def test_a_command_is_started_once_for_all_and_answers_for_each(tmp_path: Path, views: Views) -> None:
    method = Outside(f"{sys.executable} {EXAMPLE} {{folder}}", tmp_path / "requests", licence="CC0-1.0")
    assert (method.name, method.batch, method.settings["command"]) == (EXAMPLE.stem, None, method.command)
    requests = [condition(views, 0), condition(views, 0, 3)]
    found = method.generate(requests, [views.cameras] * 2, [1, 2])
    assert len(found) == 2
    for scene, nearest in zip(found, ([0, 0, 0, 0], [0, 0, 3, 3]), strict=True):
        assert isinstance(scene, Scene)
        torch.testing.assert_close(scene.views.images, views.images[nearest], atol=0.5 / 255 + 1e-6, rtol=0)
    assert found[0].provenance.licence == "CC0-1.0"


def test_what_fails_is_that_scene_alone_and_says_why(tmp_path: Path, views: Views) -> None:
    text = EXAMPLE.read_text().replace("for file in requests:", "for file in requests[1:]:")
    partly = outside(text, tmp_path).generate([condition(views, 0)] * 2, [views.cameras] * 2, [1, 2])
    assert partly[0] == Failure("answer/images/00001.png: missing (3 of 3 wanted views are)")
    assert isinstance(partly[1], Scene)
    broken = outside("print('so far')\nraise SystemExit('no weights here')", tmp_path)
    (failure,) = broken.generate([condition(views, 0)], [views.cameras], [1])
    assert failure == Failure("the command ended with 1: no weights here")
    assert "so far" in (tmp_path / "requests/log.txt").read_text()


def test_a_program_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such program"):
        Outside("no-such-program-here {folder}", tmp_path / "requests")
    with pytest.raises(ValueError, match="no such program"):
        Outside("'unfinished {folder}", tmp_path / "requests")
    assert not list(tmp_path.iterdir())


VBENCH = """
import json, sys
from pathlib import Path
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "evaluate" and options["--mode"] == "custom_input"
videos, name = sorted(Path(options["--videos_path"]).glob("*.mp4")), options["--dimension"]
if name == "motion_smoothness" and len(videos) > 2:
    sys.exit("CUDA is not there")
each = [{"video_path": str(v), "video_results": 50.0 if name == "imaging_quality" else 0.25} for v in videos]
Path(options["--output_path"], "results_now_eval_results.json").write_text(json.dumps({name: [0.5, each]}))
"""


def test_vbench_is_read_video_by_video_and_its_failure_is_one_line(tmp_path: Path, views: Views) -> None:
    program = tmp_path / "vbench"
    program.write_text(f"#!{sys.executable}\n{VBENCH}")
    program.chmod(0o755)
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in "ab":
        (videos / f"{name}.mp4").write_bytes(b"")
    found = vbench_scores(program, videos, tmp_path / "out")
    assert found.keys() == {"a", "b"}
    assert found["b"]["vbench_imaging_quality"] == 0.5
    assert found["b"]["vbench_subject_consistency"] == 0.25
    (videos / "c.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="no motion_smoothness, ended with 1: CUDA is not there"):
        vbench_scores(program, videos, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be started"):
        vbench_scores(tmp_path / "absent", videos, tmp_path / "out")


def test_a_saved_scene_is_a_good_answer(tmp_path: Path, views: Views) -> None:
    """A method that writes our folders need only call its scene `answer`."""
    diorama.save(Scene(replace(views, confidence=views.confidence), Condition()), tmp_path / "answer")
    found = read_answer(tmp_path, condition(views, 0), views.cameras)
    valid = views.mask
    torch.testing.assert_close(found.depth[valid], views.depth[valid], atol=1e-3, rtol=1e-4)
