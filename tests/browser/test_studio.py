"""The studio in a real browser: a photo goes up, a scene is made, cancelled, made again, saved; bad files are told."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.browser.test_viewer import until
from tests.chromium import NEEDED, Page, tab

from diorama.data.open import open
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Scene
from diorama.viewer.desk import Desk
from diorama.viewer.job import Job
from diorama.viewer.route import pose_now
from diorama.viewer.studio import Studio
from diorama.viewer.wish import KEYFRAMES

pytestmark = NEEDED
LIMIT = 100_000  # bytes of an upload
BUTTON = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {!r} && b.offsetParent)"
STEPS = (
    "document.getElementById([...document.querySelectorAll('label')].find(l => l.innerText.trim() === {!r}).htmlFor)"
)


@pytest.fixture(scope="module")
def hurry() -> Iterator[threading.Event]:
    """Until it is set the small model is as slow as a large one: there is time to see it work, on any machine."""
    denoise, hurry = TokenPipeline.denoise, threading.Event()

    def slow(self: TokenPipeline, *rest: Any) -> Any:
        hurry.wait(0.1)
        return denoise(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenPipeline, "denoise", slow)
        yield hurry


@pytest.fixture(scope="module")
def studio(
    tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory, hurry: threading.Event
) -> Iterator[Studio]:
    out = tmp_path_factory.mktemp("studio") / "scenes"
    studio = Studio([str(tiny_pipeline_folder)], out, port=0, device="cpu", upload=LIMIT)
    yield studio
    studio.stop()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, studio: Studio) -> Iterator[Page]:
    with tab(tmp_path_factory.mktemp("profile"), webgl=True) as page:
        page.call("Emulation.setDeviceMetricsOverride", width=800, height=700, deviceScaleFactor=1, mobile=False)
        page.call("Page.navigate", url=studio.url)
        yield page


class Visitor:
    """What somebody does and sees on the page."""

    def __init__(self, page: Page, tmp_path: Path) -> None:
        self.page, self.folder = page, Path(os.environ.get("DIORAMA_SCREENSHOTS") or tmp_path)

    def sees(self, words: str, seconds: float = 100) -> bool:
        return until(lambda: words in self.page.run("document.body ? document.body.innerText : ''"), seconds)

    def press(self, label: str) -> None:
        assert until(lambda: self.page.run(f"!!{BUTTON.format(label)}"), 100), f"no button {label}"
        self.page.run(f"{BUTTON.format(label)}.click()")

    def send(self, *files: Path) -> None:
        document = self.page.call("DOM.getDocument")["root"]["nodeId"]
        node = self.page.call("DOM.querySelector", nodeId=document, selector=".diorama-drop input")["nodeId"]
        self.page.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def type(self, label: str, value: int) -> None:
        """Into a field for numbers, as a person does: all that stands there is replaced."""
        self.page.run(f"{STEPS.format(label)}.focus(); {STEPS.format(label)}.select()")
        self.page.call("Input.insertText", text=str(value))
        self.page.press("Enter", 13)

    def keep(self, name: str) -> None:
        self.page.screenshot(self.folder / f"studio-{name}.png")


@pytest.fixture
def visitor(page: Page, tmp_path: Path) -> Visitor:
    return Visitor(page, tmp_path)


@pytest.fixture
def desk(studio: Studio, visitor: Visitor) -> Desk:
    assert until(lambda: studio.visits and visitor.sees("Generate", 1), 300), "no controls"
    (desk,) = studio.visits.values()
    return desk


@pytest.mark.timeout(900)
def test_a_scene_is_made_cancelled_made_again_and_saved(
    studio: Studio, visitor: Visitor, desk: Desk, hurry: threading.Event, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "room.png")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    (tmp_path / "huge.png").write_bytes(bytes(LIMIT + 1))
    visitor.send(tmp_path / "huge.png", tmp_path / "room.png", tmp_path / "broken.jpg")
    assert until(lambda: [photo.name for photo in desk.photos] == ["room.png"], 100), "the photo did not arrive"
    assert visitor.sees("broken.jpg: found 8 bytes that are no image; accepted are JPEG")
    assert visitor.sees("huge.png: 0.1 MB; accepted are up to")
    assert visitor.page.run("!!document.querySelector('img[src^=\"blob:\"]')"), "the photo is not shown"
    visitor.keep("request")

    visitor.type("steps", 1000)
    assert until(lambda: desk.steps.value == 1000)
    visitor.press("Generate")
    assert visitor.sees("Sampling, ")
    bar = "document.querySelector('[role=progressbar]')?.getAttribute('aria-valuenow')"
    before = float(visitor.page.run(bar))
    assert until(lambda: float(visitor.page.run(bar) or 0) > before, 100), "the bar stands still"
    with pytest.raises(ValueError, match="a job is running"):
        studio.workshop.begin("tiny", desk.wish(), desk.ended, None)
    visitor.keep("progress")
    visitor.press("Cancel")
    assert visitor.sees("Cancelled.")
    assert desk.result is None and studio.workshop.worker.job is None

    hurry.set()
    visitor.type("steps", 2)
    assert until(lambda: desk.steps.value == 2)
    visitor.press("Generate")
    assert visitor.sees("Made with seed 0.")
    first = desk.result
    assert first is not None and first.scene.condition.at == (0,)
    assert visitor.sees("Keep the scene")
    visitor.press("Another seed")
    assert visitor.sees("Made with seed 1.")
    assert desk.result is not None and desk.result is not first
    assert not desk.result.scene.views.images.equal(first.scene.views.images)
    visitor.keep("made")

    visitor.press("Save")
    assert visitor.sees("Written: ")
    saved = open(studio.workshop.shelf.folder / "scene")
    assert isinstance(saved, Scene) and saved.provenance.seed == 1
    visitor.press("Save")
    assert visitor.sees("exists already")

    desk.route.path.value = KEYFRAMES
    visitor.press("add here")
    assert visitor.sees("1 keyframe after the start")
    assert desk.route.keyframes == [pose_now(desk.client)] and desk.preview.rig is not None
    assert desk.wish().cameras.views == 16
    visitor.press("remove last")
    assert visitor.sees("0 keyframes after the start")
    requests = [url for url in visitor.page.requests() if not url.startswith(("blob:", "data:", studio.url))]
    assert requests == [], "something was asked for elsewhere"


@pytest.mark.timeout(900)
def test_a_second_visitor_is_told_of_the_job_and_refused(studio: Studio, tmp_path: Path) -> None:
    ends = threading.Event()

    def work(job: Job) -> None:
        job.tell("sampling", 12, 50)
        ends.wait(800)

    job = studio.workshop.worker.start(work, lambda outcome: None, owner=SimpleNamespace(gone=False))
    try:
        with tab(tmp_path / "profile", webgl=True) as page:
            page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
            page.call("Page.navigate", url=studio.url)
            visitor = Visitor(page, tmp_path)
            assert visitor.sees("Another job is running: sampling, 12 of 50", 300)
            assert not page.run(f"!!{BUTTON.format('Cancel')}"), "another's job could be cancelled"
            visitor.press("Generate")
            assert visitor.sees("a job is running (sampling, 12 of 50)")
            visitor.keep("second")
            assert studio.workshop.worker.job is job
    finally:
        ends.set()
        studio.workshop.worker.stop(100.0)
