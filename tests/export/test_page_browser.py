"""The page in a real browser: points on the canvas, sliders that act, a path that plays."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chromium import NEEDED, Page, tab

from diorama.export.page import write_page
from diorama.scene import Scene

pytestmark = NEEDED

# Draws now, and counts the pixels of the canvas that are not background.
PAINTED = """(() => { draw(); const w = canvas.width, h = canvas.height, p = new Uint8Array(4 * w * h);
gl.readPixels(0, 0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, p); let n = 0;
const bright = i => Math.abs(p[i] - 22) + Math.abs(p[i + 1] - 22) + Math.abs(p[i + 2] - 21);
for (let i = 0; i < p.length; i += 4) if (bright(i) > 12) n++;
return n / (w * h); })()"""
INPUT = "(() => {{ const one = at({!r}); one.value = {}; one.dispatchEvent(new Event('input', {{bubbles: true}})) }})()"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with tab(tmp_path / "profile", webgl=True) as page:
        yield page


@pytest.mark.timeout(300)
def test_the_page_at_work(page: Page, stage: Scene, tmp_path: Path) -> None:
    write_page(stage, tmp_path / "a.html")
    page.open(tmp_path / "a.html", 1000)
    assert page.run("at('trouble').hidden"), "no WebGL"
    assert page.run("gl.getError()") == 0
    # From the first camera its whole picture is filled; the canvas is wider than it.
    first = page.run(PAINTED)
    assert first > 0.6
    if folder := os.environ.get("DIORAMA_SCREENSHOTS"):
        page.screenshot(Path(folder) / "page.png")
    page.run("at('paths').click()")
    page.run(INPUT.format("size", 0.25))
    assert page.run(PAINTED) < first
    page.run(INPUT.format("size", 1.6))
    page.run(INPUT.format("trust", 90))
    assert page.run("at('share').value") == "90 %"
    assert page.run(PAINTED) < 0.5 * first
    page.run(INPUT.format("trust", 0))
    # The colour in the middle of the card is the scene's, from the first camera and from the last.
    middle = "(() => {{ show({}); draw(); const p = new Uint8Array(4); gl.readPixels(canvas.width >> 1, canvas.height >> 1, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, p); return [...p].slice(0, 3); }})()"  # noqa: E501
    for number in (0, 3):
        expected = (stage.views.images[number, :, 23:25, 31:33].mean((1, 2)) * 255).tolist()
        assert page.run(middle.format(number)) == pytest.approx(expected, abs=12)
    assert page.run("at('which').textContent") == "view 4 of 4"
    before = page.run("camera.eye.join()")
    page.run("turned(0.3, 0.1); nearer(0.8); shifted(20, 5)")
    assert page.run("camera.eye.join()") != before
    assert page.run(PAINTED) > 0.2
    page.run("show(0); at('play').click()")
    page.run("new Promise(done => { const wait = () => view > 0 ? done() : setTimeout(wait, 50); wait(); })")
    assert page.run("at('play').textContent") == "Pause"
    page.run("at('play').click()")
    assert page.run("timer") == 0
    assert page.complaints() == []
    assert page.requests() == []
