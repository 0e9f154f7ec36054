"""`diorama download` against a server of our own, which speaks like the publisher's; nothing leaves this machine."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests import published_gen3r

import diorama.models.downloads as downloads
from diorama.models.downloads import DOWNLOADS

from .conftest import until

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"img_size": 518}',
    "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n",
    "model.safetensors": bytes(range(256)) * 12_000,  # 3 MB, which is three pieces
    "model.pt": b"the same again, not wanted",
}
WANTED = {name: content for name, content in FILES.items() if name != "model.pt"}
BIG = "model.safetensors"


class Hub(ThreadingHTTPServer):
    """Lists and serves FILES; behaves badly where it is told to."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked, self.listed = dict(FILES), [], None
        self.cut: list[int] = []  # bytes after which the next answers for the big file end
        self.ranges, self.slow = True, threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def siblings(self):
        told = []
        for name, content in FILES.items():
            file = {"rfilename": name, "size": len(content)}
            if name == BIG:
                file["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            else:
                file["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            told.append(file)
        return told


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        place, hub = DOWNLOADS["vggt"].repository, self.server
        name = self.path.removeprefix(f"/{place}/resolve/{REVISION}/")
        if self.path == f"/api/models/{place}/revision/main?blobs=true":
            card = {"sha": REVISION, "siblings": hub.siblings(), "cardData": {"license": "cc-by-nc-4.0"}}
            return self.say(200, json.dumps(card).encode() if hub.listed is None else hub.listed)
        if name in hub.files:  # the real one sends elsewhere too
            self.send_response(307)
            self.send_header("Location", f"/elsewhere/{name}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        name = self.path.removeprefix("/elsewhere/")
        if name not in hub.files:
            return self.say(404, b"")
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if hub.ranges else 0
        hub.asked.append((name, self.headers.get("Range")))
        return self.say(206 if start else 200, hub.files[name][start:], name == BIG)

    def say(self, status, content, big=False):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if big and self.server.cut:
            content = content[: self.server.cut.pop(0)]
        if big and self.server.slow.is_set():
            self.wfile.write(content[: 2**20])
            self.wfile.flush()
            until(lambda: not self.server.slow.is_set(), 60)
            return
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch):
    with Hub() as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(downloads, "PAUSE", 0.0)
        yield server
        server.slow.clear()
        server.shutdown()
        thread.join()


def found(folder="got"):
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def test_size_and_licence_come_first_and_nothing_without_a_yes(command, hub):
    assert command.refused("download", "vggt", "--out", "got").endswith(
        "nothing was fetched; --yes agrees to size and licence"
    )
    assert not hub.asked


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 2), ("n", 2)])
def test_who_can_be_asked_is_asked(command, hub, monkeypatch, answer, code):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    result = command("download", "vggt", "--out", "got")
    assert result.code == code and Path("got").exists() == (code == 0)
    lines = result.out.splitlines()
    assert lines[:4] == [
        f"vggt: facebook/VGGT-1B at {REVISION[:12]}, from {hub.url}",
        "  licence: no commercial use (CC-BY-NC-4.0); its page says: cc-by-nc-4.0",
        "  3 files, 3.1 MB, to got",
        "  3 of them to fetch, 3.1 MB",
    ]


def test_what_is_wanted_comes_and_what_is_whole_stays(command, hub):
    assert command("download", "vggt", "--out", "got", "--yes").code == 0
    assert found() == WANTED and len(hub.asked) == 3
    again = command("download", "vggt", "--out", "got")  # nothing to agree to
    assert again.code == 0 and len(hub.asked) == 3
    assert again.out.splitlines()[-1] == "got: all files are there and whole; use it as --model got"
    Path("got/config.json").write_bytes(b'{"img_size": 519}')  # as long as the right one
    Path("got/README.md").unlink()
    assert command("download", "vggt", "--out", "got", "--yes").code == 0
    assert found() == WANTED and sorted(name for name, _ in hub.asked[3:]) == ["README.md", "config.json"]


def test_its_place_is_the_cache_unless_said(command, hub, monkeypatch):
    monkeypatch.setenv("DIORAMA_CACHE", "kept")
    assert command("download", "vggt", "--yes").code == 0
    assert found("kept/vggt") == WANTED


def test_a_connection_that_ends_is_opened_again_from_there(command, hub):
    hub.cut = [1_000_000, 0, 500_000]
    assert command("download", "vggt", "--out", "got", "--yes").code == 0
    assert found() == WANTED
    assert [part for name, part in hub.asked if name == BIG] == [
        None, "bytes=1000000-", "bytes=1000000-", "bytes=1500000-",
    ]  # fmt: skip


def test_after_too_many_ends_the_next_run_goes_on(command, hub):
    hub.cut = [1_000_000, *[0] * downloads.ATTEMPTS]
    result = command("download", "vggt", "--out", "got", "--yes")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "no connection (it ends early); run the command again, it goes on where it stopped" in result.err
    assert BIG not in found() and len(found()[f".{BIG}.part"]) == 1_000_000
    asked = len(hub.asked)
    result = command("download", "vggt", "--out", "got", "--yes")
    assert "  1 of them to fetch, 2.1 MB" in result.out
    assert hub.asked[asked:] == [(BIG, "bytes=1000000-")] and found() == WANTED


def test_a_killed_download_is_resumed(command, hub, tmp_path):
    hub.slow.set()
    program = "import sys; from diorama.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "download", "vggt", "--out", "got", "--yes"]
    part = tmp_path / f"got/.{BIG}.part"
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ.copy()
    ) as process:
        assert until(lambda: part.is_file() and part.stat().st_size == 2**20, 60)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    hub.slow.clear()
    asked = len(hub.asked)
    assert command("download", "vggt", "--out", "got", "--yes").code == 0
    assert hub.asked[asked:] == [(BIG, f"bytes={2**20}-")] and found() == WANTED


def test_a_server_that_knows_no_ranges_sends_all_again(command, hub):
    hub.cut, hub.ranges = [1_000_000], False
    assert command("download", "vggt", "--out", "got", "--yes").code == 0
    assert found() == WANTED


def test_a_remainder_longer_than_the_file_is_dropped(command, hub):
    Path("got").mkdir()
    Path(f"got/.{BIG}.part").write_bytes(FILES[BIG] + b"more")
    assert command("download", "vggt", "--out", "got", "--yes").code == 0 and found() == WANTED


@pytest.mark.parametrize("wrong", [b"\1" * len(FILES[BIG]), FILES[BIG] + b"more"])
def test_a_wrong_hash_is_told_and_leaves_nothing(command, hub, wrong):
    hub.files[BIG] = wrong
    result = command("download", "vggt", "--out", "got", "--yes")
    assert (
        result.code == 2 and "model.safetensors: what came is not what was published (its hash is wrong)" in result.err
    )
    assert found() == {name: content for name, content in WANTED.items() if name != BIG}
    hub.files[BIG] = FILES[BIG]
    assert command("download", "vggt", "--out", "got", "--yes").code == 0 and found() == WANTED


def test_what_is_refused(command, hub, monkeypatch):
    assert "nothing to download by that name; accepted are gen3r, vggt" in command.refused("download", "dust3r")
    Path("file").write_text("")
    assert "file: a file; accepted is a folder" in command.refused("download", "vggt", "--out", "file")
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 10})())
    assert "10 bytes are free; accepted is a place with 3.1 MB" in command.refused("download", "vggt", "--out", "got")
    for text in (b"<html>", b"[]", b'{"siblings": [{"rfilename": "config.json"}], "sha": "1"}'):
        hub.listed = text
        assert "no list of files with sizes and hashes came" in command.refused("download", "vggt", "--out", "got")
    hub.listed = b'{"siblings": [], "sha": "1"}'
    assert "lists none of config.json, model.safetensors" in command.refused("download", "vggt", "--out", "got")
    assert "the server answers 404" in command.refused("download", "gen3r", "--out", "got")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "no connection (" in command.refused("download", "vggt", "--out", "got")


@pytest.mark.parametrize("name", ["vggt/../../evil", "vggt/..\\evil"])
def test_a_list_may_not_write_elsewhere(command, hub, monkeypatch, name):
    monkeypatch.setitem(DOWNLOADS, "vggt", replace(DOWNLOADS["vggt"], files=("vggt/*",)))
    hub.listed = json.dumps({"sha": REVISION, "siblings": [{"rfilename": name, "size": 1, "blobId": "0"}]}).encode()
    assert "no list of files" in command.refused("download", "vggt", "--out", "got")


def test_gen3rs_patterns_take_every_file_that_is_read_and_no_other():
    kept = {"model_index.json", "README.md", *(f"{place}/config.json" for place in published_gen3r.CONFIGS)}
    kept |= {
        "text_encoder/diffusion_pytorch_model-00002-of-00003.safetensors",
        "tokenizer/spiece.model",
        "vggt/README.md",
    }
    told = [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in (*kept, ".gitattributes", "assets/a.mp4")]
    assert {file.name for file in downloads._files(told, DOWNLOADS["gen3r"].files)} == kept
