"""`diorama data worlds`: a cache for training."""

import json
import shutil
import sys
from pathlib import Path

import pytest

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
