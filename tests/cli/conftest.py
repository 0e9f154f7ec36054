"""Commands as a user gives them, in an empty folder."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from diorama.cli.main import main


class Result(NamedTuple):
    """What a command answers."""

    code: int
    out: str
    err: str


class Command:
    """Runs `diorama` in this process with the small random model."""

    def __init__(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model, self.capsys = model, capsys

    def __call__(self, *arguments: str | Path | int) -> Result:
        self.capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *self.capsys.readouterr())

    def small(self, *arguments: str | Path | int) -> Result:
        """With the small random model."""
        return self(*arguments, "--model", self.model)

    def done(self, *arguments: str | Path | int) -> str:
        """What it says when all goes well."""
        code, out, err = self.small(*arguments)
        assert code == 0, err
        return out

    def refused(self, *arguments: str | Path | int, code: int = 2) -> str:
        """The one line it says when it cannot; nothing is written or changed."""
        before = tree()
        result = self(*arguments)
        assert result.code == code, (result.out, result.err)
        assert result.err.startswith("diorama: ")
        assert result.err.count("\n") == 1
        assert tree() == before
        return result.err.removeprefix("diorama: ").strip()


def interrupted(words: Sequence[str | Path | int], folder: Path, begun: str, patience: float = 100) -> Result:
    """What a process answers when the terminal interrupts it and all it started, once `begun` is in the folder."""
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    # a shell's background job ignores interrupts, and so does all it starts
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([str(word) for word in words], **options) as process:  # type: ignore[call-overload]
        try:
            assert until(lambda: any(folder.glob(begun)) or process.poll() is not None, patience)
            os.killpg(process.pid, signal.SIGINT)
            result = Result(process.wait(60), *process.communicate())
            assert until(lambda: not _lives(process.pid), 10), "a process was left"
            return result
        finally:
            if _lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes true in that time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def tree() -> dict[str, int]:
    """Every file and folder here, with its time of change."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(Path().rglob("*"))}


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_pipeline_folder: Path
) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(tiny_pipeline_folder, capsys)


@pytest.fixture
def photo(tmp_path: Path) -> Callable[..., Path]:
    """Writes a photo of noise."""

    def write(name: str = "photo.png", height: int = 48, width: int = 64, seed: int = 0) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        return Path(name)

    return write


@pytest.fixture
def scene(command: Command) -> Path:
    """A generated scene of three views."""
    command.done("generate", "--views", 3, "--out", "made")
    return Path("made")
