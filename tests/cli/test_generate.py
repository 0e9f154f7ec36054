"""`diorama generate`: what is known, what is wanted, what is written, and what is refused."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diorama
from diorama import Scene
from diorama.cli import demo, generate, progress, reconstruct, render
from diorama.cli.progress import Progress
from diorama.cli.requests import parsed_size, thinned
from diorama.data.cameras import read_cameras
from diorama.export import folder as folder_writer

from .conftest import Command

PHOTOS = "cameras fov poses views size out model device"
PARTS = "dtype offload tiling points step-cache negative-prompt scale"


def opened(path: str | Path) -> Scene:
    made = diorama.open(path)
    assert isinstance(made, Scene)
    return made


def nerfstudio(path: Path, count: int, photos: int = 0, **changes: object) -> Path:
    """A transforms.json beside photos/0.png, ...: cameras one unit apart along x."""
    frames = []
    for i in range(count):
        pose = np.eye(4)
        pose[0, 3] = i
        frames.append({"file_path": f"photos/{i}.png" if i < photos else None, "transform_matrix": pose.tolist()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"fl_x": 60.0, "w": 64, "h": 48, "frames": frames} | changes))
    return path


def gen3r(path: Path, count: int) -> Path:
    world_to_camera = np.tile(np.eye(4), (count, 1, 1))
    world_to_camera[:, 0, 3] = -np.arange(count)
    lens = [[500.0, 0, 280], [0, 500, 280], [0, 0, 1]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"extrinsics": world_to_camera.tolist(), "intrinsics": [lens] * count}))
    return path


def test_a_preset_of_speed_holds_where_nothing_else_is_asked_for(command: Command) -> None:
    command.done("generate", "--views", 2, "--out", "a", "--speed", "fast", "--steps", 2)
    told = opened("a").provenance.settings
    assert told["memory"] is False and told["steps"] == 2


def test_without_photos_a_scene_is_invented(command: Command) -> None:
    said = command.done("generate")
    made = opened("scene")
    assert made.views.images.shape == (16, 3, 32, 32)
    assert made.condition.views is None
    assert made.views.cameras.fov.tolist() == pytest.approx([60] * 16, abs=1e-3)
    assert (made.provenance.model, made.provenance.seed) == ("miniature", 0)
    assert "scene: 16 views of 32x32 pixels" in said
    assert "sampling" in said and "decoding" in said
    command.done("generate", "--fov", 40, "--views", 2, "--seed", 1)  # under the next free name
    assert opened("scene-2").views.cameras.fov[0].item() == pytest.approx(40, abs=1e-3)


def test_a_seed_gives_the_same_scene_again(command: Command) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        command.done("generate", "--views", 2, "--out", name, "--seed", seed, "--steps", 2, "--guidance", 1)
    a, b, c = (opened(name) for name in "abc")
    assert torch.equal(a.latents, b.latents)
    assert not torch.equal(a.latents, c.latents)
    assert a.provenance.settings["steps"] == 2 and a.provenance.settings["guidance"] == 1


def test_one_photo_is_the_first_view(command: Command, photo) -> None:
    command.done("generate", photo(), "--trajectory", "dolly:0.25", "--views", 4, "--out", "a/b/scene")
    made = opened("a/b/scene")
    assert made.condition.at == (0,)
    assert made.condition.views.images.shape == (1, 3, 48, 64)  # its own pixels
    assert made.views.cameras.centers[-1].tolist() == pytest.approx([0, 0, 0.25])
    assert made.views.cameras.fov[0].item() == pytest.approx(60, abs=1e-3)
    command.done("generate", "photo.png", "--fov", 35, "--views", 2, "--out", "narrow")
    assert opened("narrow").views.cameras.fov[0].item() == pytest.approx(35, abs=1e-3)


def test_a_path_from_a_file_begins_at_the_photo(command: Command, photo) -> None:
    """Gen3R's cameras are those of the square in the photo's middle; the photo keeps its sides."""
    command.done("generate", photo(), "--trajectory", gen3r(Path("cameras.json"), 7), "--views", 3, "--out", "a")
    made, cameras = opened("a"), read_cameras("cameras.json")
    assert torch.equal(made.views.cameras.camera_to_world, cameras[[0, 3, 6]].camera_to_world)
    whole = made.condition.views.cameras
    assert torch.allclose(whole.cropped(0, 8, 48, 48).resized(560, 560).intrinsics, cameras[0].intrinsics.float())
    assert made.condition.at == (0,)
    assert "leave --fov out" in command.refused(
        "generate", "photo.png", "--fov", 50, "--trajectory", "cameras.json", "--out", "b"
    )
    command.done("generate", "--trajectory", "cameras.json", "--out", "c")  # nothing known, all seven
    assert len(opened("c").views) == 7


def test_several_photos_with_a_camera_each(command: Command, photo) -> None:
    files = [photo(f"{i}.png", seed=i) for i in range(3)]
    cameras = nerfstudio(Path("transforms.json"), 3)
    command.done("generate", *files, "--cameras", cameras, "--views", 5, "--out", "a")
    made = opened("a")
    assert made.condition.at == (0, 2, 4)
    assert made.views.cameras.centers[:, 0].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert len(made.condition.views) == 3
    message = command.refused("generate", *files[:2], "--cameras", cameras)
    assert message == "transforms.json: 3 cameras for 2 photos; accepted is one for each"
    message = command.refused("generate", *files)
    assert "3 photos without cameras; accepted is --cameras FILE" in message
    assert "leave one out" in command.refused("generate", files[0], "--cameras", cameras, "--fov", 50)


def test_a_capture_without_more_cameras_is_interpolated(command: Command, photo) -> None:
    for i in range(3):
        photo(f"room/photos/{i}.png", seed=i)
    nerfstudio(Path("room/transforms.json"), 3, 3)
    for name, given_as in (("a", "room"), ("b", "room/transforms.json")):
        command.done("generate", given_as, "--views", 4, "--out", name)
        assert opened(name).condition.at == (0, 2, 3)
    assert command.refused("generate", "room", "--views", 2) == "--views 2: 3 photos are known; accepted is 3 or more"
    assert "leave --fov out" in command.refused("generate", "room", "--fov", 50)


def test_a_capture_with_more_cameras_keeps_its_own_path(command: Command, photo) -> None:
    for i in range(2):
        photo(f"room/photos/{i}.png", seed=i)
    nerfstudio(Path("room/transforms.json"), 9, 2)
    command.done("generate", "room", "--views", 5, "--out", "a")
    made = opened("a")
    assert made.views.cameras.centers[:, 0].tolist() == [0, 1, 4, 6, 8]
    assert made.condition.at == (0, 1)
    for name in ("first.png", "last.png"):
        photo(f"gen3r/{name}")
    gen3r(Path("gen3r/cameras.json"), 49)
    command.done("generate", "gen3r", "--out", "b")
    made = opened("b")
    assert (len(made.views), made.condition.at) == (16, (0, 15))
    command.done("generate", "gen3r", "--views", 49, "--out", "c")
    assert opened("c").condition.at == (0, 48)


def test_photos_beside_the_path_come_before_it(command: Command, photo) -> None:
    for i in range(2):
        photo(f"room/photos/{i}.png", seed=i)
    nerfstudio(Path("room/transforms.json"), 2, 2)
    said = command.done("generate", "room", "--trajectory", "pedestal:0.5", "--views", 3, "--out", "a")
    made = opened("a")
    assert "1 of 2 photos are not on the path" in said
    assert made.condition.at == (1, 0)
    assert made.views.cameras.centers.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0.25, 0], [0, 0.5, 0]]  # OpenGL's up
    said = command.done("generate", "room", "--trajectory", "room/transforms.json", "--out", "b")
    assert opened("b").condition.at == (0, 1)
    assert "not on the path" not in said


def test_a_folder_or_video_of_photos_without_cameras(command: Command, photo) -> None:
    photo("one/a.png")
    command.done("generate", "one", "--views", 2, "--out", "a")
    assert opened("a").views.cameras.fov[0].item() == pytest.approx(60, abs=1e-3)
    photo("one/b.png")
    assert "2 photos without cameras" in command.refused("generate", "one")
    command.done("generate", "one", "--cameras", nerfstudio(Path("two.json"), 2), "--views", 2, "--out", "b")
    assert opened("b").condition.at == (0, 1)


def test_sizes(command: Command, photo) -> None:
    photo()
    for size, expected, said in (
        ("32", (24, 32), ""),
        ("32x32", (32, 32), "photos of 48x64 pixels are cropped to 48x48"),
        ("24x48", (24, 48), "cropped to 32x64"),
        ("30", (32, 40), "22x30 pixels become 24x32"),
    ):
        text = command.done("generate", "photo.png", "--views", 2, "--size", size, "--out", f"s{size}")
        made = opened(f"s{size}")
        if size != "30":
            assert made.views.images.shape[-2:] == expected
        assert said.split(" become ")[0] in text
        known = made.condition.views
        across = 2 * math.degrees(math.atan(known.cameras.width / 2 / known.cameras.intrinsics[0, 0, 0]))
        assert made.views.cameras.fov[0].item() == pytest.approx(across, abs=1e-2)
        focal = made.views.cameras.intrinsics[0, [0, 1], [0, 1]].tolist()
        assert focal[0] == pytest.approx(focal[1], rel=0.01)  # photos are cropped, not squeezed
    command.done("generate", "--views", 2, "--size", "16x48", "--out", "wide")
    assert opened("wide").views.images.shape[-2:] == (16, 48)
    assert opened("wide").views.cameras.fov[0].item() == pytest.approx(60, abs=1e-3)


def test_a_video_alone(command: Command) -> None:
    command.done("generate", "--views", 2, "--out", "scene.mp4")
    assert [path.name for path in Path().iterdir()] == ["scene.mp4"]


def test_an_existing_place_is_kept_unless_told(command: Command) -> None:
    command.done("generate", "--views", 2, "--out", "scene")
    assert "scene: exists already" in command.refused("generate", "--views", 2, "--out", "scene")
    command.done("generate", "--views", 3, "--out", "scene", "--overwrite")
    assert len(opened("scene").views) == 3
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("mine")
    assert "no saved scene" in command.refused("generate", "--out", "notes", "--overwrite")
    assert "no folder that can be written to" in command.refused("generate", "--out", "notes/mine.txt/scene")
    assert "found the suffix .obj" in command.refused("generate", "--out", "scene.obj")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--views", 0), "--views 0: accepted is 1 or more"),
        (("--steps", 0), "--steps 0: accepted is 1 or more"),
        (("--guidance", "nan"), "--guidance nan: accepted is 0 or more"),
        (("--seed", -1), "--seed -1: accepted is 0 to 2**63 - 1"),
        (("--size", "0"), "--size 0: accepted are 64"),
        (("--size", "12x0"), "--size 12x0: accepted are 64"),
        (("--size", "big"), "--size big: accepted are 64"),
        (("--trajectory", "orbti"), "did you mean 'orbit'?"),
        (("--trajectory", "orbit:far"), "'far' is no number"),
        (("--trajectory", "static:1"), "static has no amplitude"),
        (("--trajectory", "orbit:inf"), "accepted is a finite number"),
        (("--trajectory", "gone.json"), "gone.json: no such camera file"),
        (("--fov", 0), "field of view 0.0 degrees"),
        (("--fov", 200), "field of view 200.0 degrees"),
        (("--cameras", "x.json"), "no photos given"),
        (("gone.jpg",), "gone.jpg: no such file or folder"),
        (("gone.jpg", "gone2.jpg"), "gone.jpg: no such image file"),
        (("broken.jpg",), "bytes that are no image"),
        (("empty",), "empty: found a folder of nothing"),
        (("photo.png", "large.png"), "large.png: 96x128 pixels but photo.png has 48x64; accepted is one size"),
        (("photo.png", "--cameras", "portrait.json"), "cameras of 64x48 for photos of 48x64"),
        (("photo.png", "--cameras", "nan.json"), "nan.json: frame 0: transform_matrix is no matrix of 4x4 finite"),
        (("photo.png", "--cameras", "negative.json"), "focal length that is not positive"),
        (("--trajectory", "nan.json"), "nan.json: frame 0: transform_matrix is no matrix"),
        (("--trajectory", "text.json"), "text.json: not a JSON file"),
        (("--trajectory", "negative.json"), "focal length that is not positive"),
    ],
)
def test_what_cannot_be_is_one_line(command: Command, photo, arguments, message) -> None:
    photo()
    photo("large.png", 96, 128)
    Path("broken.jpg").write_bytes(b"no photo")
    Path("text.json").write_text("no JSON")
    Path("empty").mkdir()
    nerfstudio(Path("portrait.json"), 1, w=48, h=64)
    nerfstudio(Path("negative.json"), 1, fl_x=-60.0)
    nerfstudio(Path("nan.json"), 1, frames=[{"transform_matrix": [[math.nan] * 4] * 4}])
    assert message in command.refused("generate", *arguments, "--model", "never-reached", "--out", "made")


def test_what_a_model_refuses_is_one_line(command: Command, photo, scene: Path) -> None:
    model = ("--model", command.model)
    assert "trained without text" in command.refused("generate", "--prompt", "a room", *model)
    assert "neither an embedded model" in command.refused("generate", "--model", "gone")
    assert "device 'tpu'" in command.refused("generate", "--device", "tpu", *model)
    assert "made already; 'diorama render'" in command.refused("generate", scene, *model)


def test_broken_models(command: Command) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(command.model, name))

    weights = "denoiser/diffusion_pytorch_model.safetensors"
    cut = broken("cut")
    whole = (cut / weights).read_bytes()
    (cut / weights).write_bytes(whole[: len(whole) // 2])
    assert "not a readable safetensors file" in command.refused("generate", "--model", cut)
    swapped = broken("swapped")
    shutil.copy(swapped / weights.replace("denoiser", "autoencoder"), swapped / weights)
    assert "weights missing" in command.refused("generate", "--model", swapped)
    foreign = broken("foreign")
    index = json.loads((foreign / "model_index.json").read_text())
    (foreign / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    assert "pipeline 'StableDiffusionPipeline', accepted are" in command.refused("generate", "--model", foreign)
    (foreign / "model_index.json").write_text("{")
    assert "not a pipeline's index" in command.refused("generate", "--model", foreign)
    unscheduled = broken("unscheduled")
    shutil.rmtree(unscheduled / "scheduler")
    assert "scheduler_config.json: missing" in command.refused("generate", "--model", unscheduled)


def test_an_interruption_leaves_nothing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Progress, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "__call__", interrupted)
    assert command.refused("generate", "--model", command.model, code=130) == "interrupted"


def test_a_full_disk_leaves_nothing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, tensors: object) -> None:
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr(folder_writer, "_write_tensors", full)
    assert command.refused("generate", "--model", command.model) == "scene: the disk is full"


def test_a_request_to_end_leaves_nothing(command: Command) -> None:
    """SIGTERM, as batch systems send it, to a process of its own that is writing."""
    program = (
        "import os, signal, sys, pathlib; from diorama.export import folder; from diorama.cli.main import main\n"
        "def stop(*_): pathlib.Path('reached').touch(); os.kill(os.getpid(), signal.SIGTERM)\n"
        "folder._write_tensors = stop; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "generate", "--views", "2", "--model", str(command.model)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert (result.returncode, result.stderr) == (130, "diorama: interrupted\n")
    assert [path.name for path in Path().iterdir()] == ["reached"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_bar_appears_on_a_terminal_only_and_late(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for patience, terminal, expected in ((0.0, True, True), (0.0, False, False), (60.0, True, False)):
        monkeypatch.setattr(progress, "PATIENCE", patience)
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=terminal: answer)
        with Progress("sampling") as bar:
            time.sleep(0.01)
            bar(1, 2)
            assert (bar._bar is not None) == expected
            bar(2, 2)
        assert sum(bar.seconds) >= 0.01
        assert ("sampling" in capsys.readouterr().err) == expected


@given(count=st.integers(1, 60), most=st.integers(1, 60), data=st.data())
def test_thinning_keeps_what_it_must(count: int, most: int, data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=min(most, count)))
    places = thinned(count, most, tuple(keep))
    assert places == sorted(set(places))
    assert len(places) == min(count, most)
    assert set(keep) <= set(places)
    if not keep and most > 1:
        assert (places[0], places[-1]) == (0, count - 1)


def test_what_a_size_means() -> None:
    assert parsed_size("64", 480, 640) == (48, 64)
    assert parsed_size(" 24X40 ", 480, 640) == (24, 40)


@pytest.mark.parametrize(
    ("verb", "groups", "flags"),
    [
        (generate, "photo camera output model parts", f"{PHOTOS} {PARTS} seed speed steps guidance prompt"),
        (reconstruct, "photo camera output model parts", f"{PHOTOS} {PARTS} seed speed steps guidance prompt"),
        (render, "camera output model", "trajectory views size out overwrite model device"),
        (demo, "output model", "out overwrite model device seed"),
    ],
    ids=["generate", "reconstruct", "render", "demo"],
)
def test_help_tells_the_flags_in_groups(verb: ModuleType, groups: str, flags: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        verb.run(["--help"])
    text = capsys.readouterr().out
    assert not stop.value.code
    assert all(f"{group} options" in text for group in groups.split())
    assert all(f"--{flag} " in text for flag in flags.split())
    assert "None" not in text and "''" not in text
    made_it = "the one that made the scene" if verb is render else "tiny"
    assert f"(default: {made_it})" in " ".join(text.replace("│", " ").split())
