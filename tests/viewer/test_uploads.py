"""Files as they come: whole ones arrive in their order, no visitor can make the server hold more than is accepted."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from diorama.viewer.uploads import TOGETHER, Intake

viser = pytest.importorskip("viser")
LIMIT = 100


class Sender:
    """A visitor's browser, which speaks to viser's own handlers of a server that has no other visitor."""

    def __init__(self) -> None:
        from viser import _messages

        self.messages = _messages
        self.server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
        self.gui = self.server.gui
        self.files: list[tuple[str, bytes]] = []
        self.refusals: list[str] = []
        self.news = threading.Condition()
        self.intake = Intake(SimpleNamespace(gui=self.gui), LIMIT, self.arrived, self.refusals.append)
        self.button = self.intake.button._impl.uuid

    def arrived(self, name: str, content: bytes) -> None:
        with self.news:
            self.files.append((name, content))
            self.news.notify()

    def handle(self, kind: str, **fields: Any) -> None:
        """What viser does with a message: calls every handler of its kind."""
        message = getattr(self.messages, kind)(source_component_uuid=self.button, **fields)
        for handler in list(self.gui._websock_interface._incoming_handlers[type(message)]):
            handler(0, message)

    def begin(self, name: str, size: int, parts: int = 1) -> None:
        self.handle(
            "FileTransferStartUpload",
            transfer_uuid=name, filename=name, mime_type="image/png", part_count=parts, size_bytes=size,
        )  # fmt: skip

    def part(self, name: str, content: bytes, place: int = 0) -> None:
        self.handle("FileTransferPart", transfer_uuid=name, part_index=place, content=content)

    def waits_for(self, count: int) -> list[tuple[str, bytes]]:
        with self.news:
            assert self.news.wait_for(lambda: len(self.files) >= count, 60)
        return self.files

    @property
    def held(self) -> int:
        """Bytes that the server keeps of files that are not whole."""
        states = self.gui._current_file_upload_states.values()
        return sum(len(part) for state in states for part in state["parts"].values())


@pytest.fixture
def sender(capsys: pytest.CaptureFixture[str]) -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.intake.end()
    sender.server.stop()


def test_files_that_are_whole_at_once_arrive_each_with_its_own_bytes(sender: Sender) -> None:
    for name in "ab":
        sender.begin(name, 4, parts=2)
    for name in "ba":  # parts of several files mix, and come in any order
        sender.part(name, name.encode() * 2, place=1)
    for name in "ba":
        sender.part(name, name.upper().encode() * 2, place=0)
    sender.begin("empty", 0, parts=0)
    assert sender.waits_for(3) == [("b", b"BBbb"), ("a", b"AAaa"), ("empty", b"")]
    assert sender.refusals == [] and sender.held == 0 and sender.intake.coming == {}


def test_a_file_that_is_too_large_is_refused_when_it_is_announced(sender: Sender) -> None:
    sender.begin("large.png", LIMIT + 1)
    sender.part("large.png", b"x" * (LIMIT + 1))
    assert sender.held == 0
    (words,) = sender.refusals
    assert words.startswith("large.png: 0 MB; accepted are up to")
    sender.begin("exact", LIMIT)
    sender.part("exact", b"x" * LIMIT)
    assert sender.waits_for(1) == [("exact", b"x" * LIMIT)]


def test_a_file_that_brings_more_than_it_announced_is_dropped(sender: Sender) -> None:
    sender.begin("liar", 4, parts=1000)
    sender.part("liar", b"xxxx")
    assert sender.held == 4
    sender.part("liar", b"x", place=1)
    sender.part("liar", b"x" * 1000, place=2)
    assert sender.held == 0 and sender.files == []


def test_files_under_way_together_are_limited(sender: Sender) -> None:
    for number in range(TOGETHER + 1):
        sender.begin(f"{number}", LIMIT, parts=2)
    assert len(sender.refusals) == 1 and "at once" in sender.refusals[0]
    sender.part("0", b"x" * 50)
    sender.part("0", b"x" * 50, place=1)
    sender.waits_for(1)
    sender.begin("again", LIMIT)
    assert len(sender.refusals) == 1
