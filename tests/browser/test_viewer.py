"""The viewer in a real browser: points on the canvas, a slider that acts, a path that plays, a live view that draws."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import miniature
from tests.chromium import NEEDED, Page, tab

from diorama.scene import Views
from diorama.viewer.server import Viewer, view

pytestmark = NEEDED
CONTROL = (
    "document.getElementById([...document.querySelectorAll('label')].find(l => l.innerText.trim() === {!r}).htmlFor)"
)


@pytest.fixture(scope="module")
def viewer() -> Iterator[Viewer]:
    pipeline = miniature.pipeline(memory=miniature.observed_memory())
    path = miniature.path(5)
    scene = pipeline.reconstruct(Views(miniature.images(5), path))
    viewer = view(scene, model=pipeline, port=0, wait=False)
    yield viewer
    viewer.stop()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, viewer: Viewer) -> Iterator[Page]:
    with tab(tmp_path_factory.mktemp("profile"), webgl=True) as page:
        page.call("Emulation.setDeviceMetricsOverride", width=800, height=500, deviceScaleFactor=1, mobile=False)
        page.call("Page.navigate", url=viewer.url)
        yield page


def until(true: Callable[[], object], seconds: float = 90) -> bool:
    """Whether it comes true in that time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.3)
    return bool(true())


@pytest.mark.timeout(600)
def test_the_viewer_at_work(viewer: Viewer, page: Page, tmp_path: Path) -> None:
    def said(words: str) -> bool:
        return words in page.run("document.body ? document.body.innerText : ''")

    def click(label: str) -> None:
        page.run(f"{CONTROL.format(label)}.click()")

    def keep(name: str) -> None:
        folder = Path(os.environ.get("DIORAMA_SCREENSHOTS") or tmp_path)
        page.screenshot(folder / f"viewer-{name}.png")

    assert until(lambda: viewer.visits and said("camera size")), "no controls"
    assert until(lambda: said(" ms")), "no live picture"
    keep("live")
    click("live view")
    assert until(lambda: said("5,120 of 5,120 points"))
    keep("points")
    (visit,) = viewer.visits.values()
    # The keyboard moves a slider: 10 steps of 1 % to the right.
    thumb = "[...document.querySelectorAll('[role=slider]')].find(one => one.ariaValueMax === '99')"
    page.run(f"{thumb}.focus()")
    for _ in range(10):
        page.press("ArrowRight", 39)
    assert until(lambda: visit.drop.value == 10)
    assert until(lambda: said("4,608 of 5,120 points"))
    before = tuple(visit.client.camera.position)
    click("play")
    assert until(lambda: visit.view.value >= 2), "the path does not play"
    assert tuple(visit.client.camera.position) != before, "the camera does not fly along"
    click("play")
    keep("path")
    requests = [url for url in page.requests() if not url.startswith(("blob:", viewer.url))]
    assert requests == [], "something was asked for elsewhere"
