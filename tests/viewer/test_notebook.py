"""`diorama.view` where it must not wait: in a notebook and an interactive session."""

import re
import sys
import threading
import types
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from tests import miniature

import diorama
from diorama.viewer.server import Viewer


@pytest.fixture
def shown() -> Iterator[Callable[..., Viewer]]:
    """Shows two posed pictures, and ends what was shown with the test."""
    viewers = []

    def show(**more) -> Viewer:
        views = diorama.Views(miniature.images(2), miniature.path(2))
        viewers.append(diorama.view(views, port=0, **more))
        return viewers[-1]

    yield show
    for viewer in viewers:
        viewer.stop()


def page(viewer: Viewer) -> bytes:
    with urllib.request.urlopen(viewer.url, timeout=60) as answer:
        return answer.read(2000)


@pytest.mark.parametrize("place", ["notebook", "interactive"])
def test_it_returns_at_once_and_serves(shown, monkeypatch: pytest.MonkeyPatch, capsys, place: str) -> None:
    if place == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    else:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    viewer = shown()  # would wait for good, and this test for its time limit
    assert b"<html" in page(viewer)
    assert capsys.readouterr().out == "", "what is shown in place needs no address printed"
    assert not viewer.over.is_set()


def test_a_notebook_shows_it_in_place(shown) -> None:
    viewer = shown(wait=False)
    (address,) = re.findall(r'<iframe src="(http://127\.0\.0\.1:\d+)" [^>]*></iframe>', viewer._repr_html_())
    assert address == viewer.url
    assert b"<html" in page(viewer)


def test_a_script_waits_until_it_is_stopped(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delattr(sys, "ps1", raising=False)
    waiting, let_go = threading.Event(), threading.Event()

    def wait(viewer: Viewer) -> None:
        waiting.set()
        assert let_go.wait(60)

    monkeypatch.setattr(Viewer, "wait", wait)
    done = threading.Event()
    script = threading.Thread(target=lambda: (shown(), done.set()), daemon=True)
    script.start()
    assert waiting.wait(60)
    assert not done.is_set(), "a script would end, and the viewer with it"
    let_go.set()
    assert done.wait(60)
