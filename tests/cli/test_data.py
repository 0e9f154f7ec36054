"""`diorama data`: a cache for training, and what a capture is."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diorama.cli import data
from diorama.data.cache import WorldsCache
from diorama.data.worlds import SPLITS

from .conftest import Command, Result, interrupted

SMALL = ("--scenes", 1, "--views", 2, "--size", 8, "--samples", 1)


def test_worlds(command: Command) -> None:
    result = command("data", "worlds", "out/cache", "--split", "validation", "--start", 5, *SMALL)
    assert result.code == 0, result.err
    assert "out/cache: 1 worlds of 2 views" in result.out
    cache = WorldsCache("out/cache")
    assert cache.seeds == [SPLITS["validation"].start + 5]
    assert (cache.views, cache.height, cache.width) == (2, 8, 8)
    # Whole already, so the same again takes no time; other settings are refused.
    assert command("data", "worlds", "out/cache", "--split", "validation", "--start", 5, *SMALL).code == 0
    assert "another views" in command.refused(
        "data", "worlds", "out/cache", "--split", "validation", "--start", 5, *SMALL, "--views", 3
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scenes", 0), "--scenes 0: accepted is 1 or more"),
        (("--views", 0), "--views 0: accepted is 1 or more"),
        (("--size", 4), "--size 4: accepted is 8 or more"),
        (("--samples", 0), "--samples 0"),
        (("--workers", 0), "--workers 0"),
        (("--start", -1), "--start -1"),
        (("--split", "test", "--start", 99_999, "--scenes", 2), "at most 1 from --start 99999 on"),
    ],
)
def test_what_it_refuses(command: Command, arguments, message) -> None:
    assert message in command.refused("data", "worlds", "out", *SMALL, *arguments)


def test_places_that_are_taken_or_too_small(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    Path("folder").mkdir()
    Path("folder/mine.txt").touch()
    for name in ("file", "folder"):
        assert f"{name}: something else" in command.refused("data", "worlds", name, *SMALL)
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(data.shutil, "disk_usage", lambda path: usage._replace(free=100))
    message = command.refused("data", "worlds", "out", *SMALL)
    assert message == "out (0.0 GiB wanted, 0.0 GiB free): the disk is full"


def test_an_interrupted_run_is_continued(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from diorama.cli.progress import Progress

    def interrupted(self: Progress, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", interrupted)
        assert command("data", "worlds", "out", *SMALL).code == 130
    assert not Path("out/meta.json").exists()
    assert command("data", "worlds", "out", *SMALL).code == 0
    assert json.loads(Path("out/meta.json").read_text())["seeds"] == [0]


def test_an_interruption_ends_all_workers_in_one_line_and_keeps_what_is_done(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    program = "import sys; from diorama.cli.main import main\nif __name__ == '__main__': sys.exit(main(sys.argv[1:]))"
    script.write_text(program)
    words = (sys.executable, script, "data", "worlds", tmp_path / "out", *SMALL, "--scenes", 5000, "--workers", 2)
    result = interrupted(words, tmp_path, "out/parts/????????.npz")
    assert result == Result(130, "", "diorama: interrupted\n")
    assert [*tmp_path.glob("out/parts/????????.npz")] and not (tmp_path / "out/meta.json").exists()


def test_actions(command: Command) -> None:
    for words in (("data",), ("data", "--help")):
        assert "worlds" in command(*words).out
    assert command.refused("data", "world") == "unknown action 'world': did you mean 'worlds'?"


def capture(folder: Path, axes: str | None = None) -> Path:
    """Three views of a cube's corner, with depth, in nerfstudio's layout; `axes` are declared, OpenGL's are written."""
    (folder / "depth").mkdir(parents=True)
    frames = []
    for number in range(3):
        pose = np.diag([1.0, -1, -1, 1])
        pose[:3, 3] = 0.2 * number, 0.1 * number, 0.05 * number
        columns, rows = np.meshgrid((np.arange(64) - 31.5) / 50, (np.arange(48) - 23.5) / 50)
        # Two planes, z = 3 and x = 0.5, as a camera that looks along z sees them from its place.
        with np.errstate(divide="ignore"):
            side = (0.5 - pose[0, 3]) / columns
        depth = np.minimum(3 - pose[2, 3], np.where(side > 0, side, np.inf))
        Image.fromarray(np.rint(depth * 1000).astype(np.uint16)).save(folder / f"depth/{number}.png")
        shade = np.uint8(40 * np.sin(3 * (columns * depth + pose[0, 3])) + 40 * np.sin(4 * rows * depth) + 120)
        Image.fromarray(shade).save(folder / f"{number}.png")
        frame = {"file_path": f"{number}.png", "depth_file_path": f"depth/{number}.png"}
        frames.append(frame | {"transform_matrix": (pose @ np.eye(4)).tolist()})
    document = {"fl_x": 50, "cx": 32, "cy": 24, "w": 64, "h": 48, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(document | ({} if axes is None else {"axes": axes})))
    return folder


def test_check_says_what_is_there_and_whether_it_fits(command: Command) -> None:
    capture(Path("room"))
    result = command("data", "check", "room", "--sheet", "room.png")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "room: nerfstudio's transforms.json, 3 photos; the first has 48x64 pixels"
    assert lines[1].startswith(
        "cameras  camera_to_world opengl; 65.2 degrees wide; from the first to the farthest 0.45"
    )
    assert lines[2].startswith("depth    3 of 3 photos; the first's ")
    assert re.fullmatch(
        r"check    error 0\.\d\d% of the depth, median of \d+ pixels in 2 pairs: the cameras fit", lines[3]
    )
    assert lines[4] == "sheet    room.png"
    with Image.open("room.png") as sheet:
        assert sheet.size[0] > 500
    assert "exists already" in command.refused("data", "check", "room", "--sheet", "room.png")


def test_check_names_the_convention_that_fits(command: Command) -> None:
    capture(Path("room"), "opencv")
    result = command("data", "check", "room")
    assert result.code == 1
    assert re.search(r"error \d+\.\d\d% of the depth, .*do not fit; as camera_to_world opengl they would", result.out)


def test_check_of_photos_alone_and_of_what_is_nothing(command: Command) -> None:
    Path("photos").mkdir()
    Image.new("RGB", (64, 48)).save("photos/a.png")
    result = command("data", "check", "photos")
    assert (result.code, result.out.splitlines()[1]) == (0, "cameras  none")
    assert "nothing to test" in result.out
    assert "no such file or folder" in command.refused("data", "check", "nowhere")
    assert "--pairs 0" in command.refused("data", "check", "photos", "--pairs", 0)
    assert "accepted is a .png" in command.refused("data", "check", "photos", "--sheet", "a.jpg")
    assert "no such profile" in command.refused("data", "check", "photos", "--profile", "nothing")


def test_check_of_a_data_set_looks_at_one_scene(command: Command) -> None:
    for name in ("a", "b"):
        folder = Path("clips") / name
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(folder / "1000.png")
        row = "1000 0.5 0.9 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0"
        (Path("clips") / f"{name}.txt").write_text(f"https://example.org/{name}\n{row}\n")
    result = command("data", "check", "clips", "--scene", 1)
    assert result.code == 0, result.err
    first, second, third, _, _ = result.out.splitlines()
    assert first == "clips: 2 scenes; number 1:"
    assert second.startswith("b: RealEstate10K's text, 1 photo;") and third.startswith("cameras  world_to_camera")
    result = command("data", "check", "clips/a.txt")
    assert result.out.splitlines()[1].startswith("cameras  world_to_camera opencv; 90.0 degrees wide")
    assert "--scene 2: accepted is 0 to 1" in command.refused("data", "check", "clips", "--scene", 2)
    assert "--scene 0" in command.refused("data", "check", "clips/a", "--scene", 0)


def test_pack_verify_and_info(command: Command) -> None:
    for name in ("a", "b"):
        capture(Path("rooms") / name)
    result = command("data", "pack", "rooms", "packed", "--licence", "CC BY 4.0", "--size", 24)
    assert result.code == 0, result.err
    assert re.fullmatch(r"packed: 2 scenes, 6 frames, 1 shards, \d+\.\d s\n", result.out)
    assert "packed/train.scenes.jsonl: exists already" in command.refused("data", "pack", "rooms", "packed")
    result = command("data", "verify", "packed")
    assert (result.code, result.out) == (0, "packed: 2 scenes, all as they were packed\n")
    lines = command("data", "info", "packed").out.splitlines()
    assert re.fullmatch(r"packed, train: 2 scenes of 3 to 3 frames, 6 in all; 0\.\d MB in 1 shards", lines[0])
    assert lines[1] == "  a: packed shards, 3 photos; the first has 24x32 pixels"
    assert lines[-2:] == ["  from rooms, by nerfstudio's transforms.json", "  licence  CC BY 4.0"]
    # The second scene's cameras are the last but two of its 1024-byte end, so that cutting there costs it alone.
    tar = Path("packed/train-000000.tar")
    with tar.open("r+b") as file:
        file.truncate(tar.stat().st_size - 1024 - 512 - 1)
    result = command("data", "verify", "packed")
    assert result.code == 1
    assert "train-000000.tar: 000001-b: " in result.out and "000000-a" not in result.out
    assert result.out.splitlines()[-1] == "packed: 1 scenes cannot be read; the others can"
    result = command("data", "check", "packed")
    assert result.out.splitlines()[:2] == [
        "packed: 2 scenes; number 0:",
        "a: packed shards, 3 photos; the first has 24x32 pixels",
    ]


def test_pack_says_what_it_left_out(command: Command) -> None:
    for name in ("a", "b"):
        capture(Path("rooms") / name)
    for photo in Path("rooms/b").glob("?.png"):
        photo.write_bytes(b"")
    result = command("data", "pack", "rooms", "packed")
    assert result.code == 1
    assert result.out.splitlines()[1].startswith("left out  ")
    assert "b/0.png: found an empty file" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pack", "nowhere", "out"), "nowhere: no such file or folder"),
        (("pack", "rooms", "out", "--size", 4), "--size 4: accepted is 8 or more"),
        (("pack", "rooms", "out", "--megabytes", 0), "--megabytes 0"),
        (("pack", "rooms", "out", "--workers", 0), "--workers 0"),
        (("pack", "rooms", "out", "--split", "a/b"), "split 'a/b'"),
        (("pack", "rooms", "out", "--profile", "nothing"), "no such profile"),
        (("pack", "empty", "out"), "empty: found no folder"),
        (("verify", "rooms"), "rooms: found no *.scenes.jsonl"),
        (("info", "rooms"), "rooms: found no *.scenes.jsonl"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_the_shards_refuse(command: Command, arguments, message) -> None:
    Path("empty").mkdir()
    capture(Path("rooms"))
    assert message in command.refused("data", *arguments)
