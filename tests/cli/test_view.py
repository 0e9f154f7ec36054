"""`diorama view`: serves until it is interrupted, refuses what it cannot."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from .conftest import Command


def test_what_it_refuses(command: Command, photo, scene: Path) -> None:
    assert "gone: no such file" in command.refused("view", "gone")
    assert "--points 0" in command.refused("view", scene, "--points", 0)
    assert "port 70000: accepted is 0" in command.refused("view", scene, "--port", 70000)
    assert "no address of that name" in command.refused("view", scene, "--host", "no such host")
    assert "neither an embedded model" in command.refused("view", scene, "--model", "nothing", "--port", 0)
    photo("photos/a.png")
    assert "photos: views without cameras" in command.refused("view", "photos", "--port", 0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = command.refused("view", scene, "--port", port)
    assert message == f"port {port} of 127.0.0.1 is taken by another program; give another, or 0 for any free one"


def test_without_viser_it_says_what_to_install(command: Command, scene: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    assert "viser" in command.refused("view", scene)


@pytest.mark.parametrize("live", [True, False])
def test_it_serves_this_machine_only_and_ends_politely(command: Command, scene: Path, live: bool) -> None:
    words = [sys.executable, "-c", "import sys; from diorama.cli.main import main; sys.exit(main())", "view", scene]
    words += ["--port", "0", "--model", command.model] if live else ["--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("made: 3 views of 32×32 pixels; model miniature")
            line = process.stdout.readline()
            if not live:
                assert "no live view: give the folder" in line
                line = process.stdout.readline()
            url = line.split()[1]
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert b"<html" in answer.read()[:1000]
            process.send_signal(signal.SIGTERM)  # as Ctrl-C, which background jobs of a shell ignore
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "ended\n", "")
