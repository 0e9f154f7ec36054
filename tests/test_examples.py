"""Every example runs, with settings small enough for a test, and says what it claims to."""

import runpy
from pathlib import Path

import pytest
import torch

from diorama.data.images import read_image
from diorama.evaluation.outside import write_request
from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import trajectory
from diorama.scene import Condition, Views

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples write where they are started."""
    monkeypatch.chdir(tmp_path)


def example(name: str):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_has_a_test_here(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"python examples/{path.name}" in text.split('"""')[1]
    assert f'example("{path.stem}")' in Path(__file__).read_text()


def test_one_photo(tiny_pipeline_folder: Path) -> None:
    scene = example("01_one_photo")(model=str(tiny_pipeline_folder), views=3)
    assert len(scene.views) == 3
    assert Path("room/transforms.json").is_file()
    assert Path("room.ply").is_file()


def test_camera_path(tiny_pipeline_folder: Path) -> None:
    written = example("02_camera_path")(model=str(tiny_pipeline_folder), views=3)
    assert {path.stem for path in written} == {"dolly", "truck", "pan", "tour"}
    assert all(path.stat().st_size for path in written)


def test_your_capture(tiny_pipeline_folder: Path) -> None:
    scores = example("03_your_capture")(model=str(tiny_pipeline_folder), known=2, views=4)
    assert all(3 < score < 60 for score in scores.values())
    assert scores.keys() == {"reconstructed", "generated"}


def test_toy_flow() -> None:
    before, after = example("04_toy_flow")(steps=300)
    assert after < 0.5 * before
    assert Path("toy_flow.png").is_file()


def test_train_tiny() -> None:
    for _ in range(2):  # the second time nothing is left to train
        scene = example("05_train_tiny")(scenes=2, steps=2, batch=2)
        assert scene.provenance.model == "my first"
    assert Path("tiny_run/scene/scene.json").is_file()


def test_evaluate_outside_method(tmp_path: Path) -> None:
    cameras = trajectory("truck", Cameras.from_fov(60.0, 16, 16), 4)
    views = Views(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), cameras)
    write_request(tmp_path / "00000", Condition(views[[0, 3]], (0, 3)), cameras, seed=0)
    assert example("evaluate_outside_method")(tmp_path) == 1
    for place, nearest in ((1, 0), (2, 3)):
        shown = read_image(tmp_path / f"00000/answer/images/{place:05d}.png")
        torch.testing.assert_close(shown, views.images[nearest], atol=0.5 / 255 + 1e-6, rtol=0)
    assert not (tmp_path / "00000/answer/images/00000.png").exists()
