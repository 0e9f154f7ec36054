"""`diorama studio`: serves until it is interrupted, refuses what it cannot."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from .conftest import Command


def test_what_it_refuses(command: Command) -> None:
    assert "--upload 0" in command.refused("studio", "--upload", 0)
    assert "neither an embedded model" in command.refused("studio", "nothing", "--port", 0)
    assert "port 70000: accepted is 0" in command.refused("studio", "--port", 70000)
    assert "device 'abacus'" in command.refused("studio", "--port", 0, "--device", "abacus")
    Path("taken").write_text("")
    assert "taken: found a file" in command.refused("studio", "--port", 0, "--out", "taken")


def test_without_viser_it_says_what_to_install(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    assert "viser" in command.refused("studio")


def test_it_serves_this_machine_only_and_ends_politely(command: Command, tmp_path: Path) -> None:
    program = "import sys; from diorama.cli.main import main; sys.exit(main())"
    words = [sys.executable, "-c", program, "studio", str(command.model), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == "models: miniature, tiny; scenes are kept below scenes\n"
            url = process.stdout.readline().split()[1]
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert b"<html" in answer.read()[:1000]
            process.send_signal(signal.SIGTERM)  # as Ctrl-C, which background jobs of a shell ignore
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "ended\n", "")
    assert not (tmp_path / "scenes").exists()
