"""The report in a real browser: opened from disk, at desk and phone width, in light and dark, with mouse and keyboard.

Chromium is driven over its own debugging pipe, so nothing but a browser is needed: Debian's package `chromium`, or any
Chromium or Chrome named by CHROME. DIORAMA_SCREENSHOTS names a folder that keeps the screenshots.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.fake_run import HOSTILE, SCENES, SETTINGS, fake_run

from diorama.evaluation.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell", "chrome")
CHROME = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome on this machine")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --remote-debugging-pipe"
)
WIDTHS = {"desk": 1280, "phone": 360}


class Page:
    """One tab, spoken to in the DevTools protocol: messages are JSON ended by a null byte."""

    def __init__(self, write: int, read: int):
        self.write, self.read, self.rest, self.number, self.session = write, read, b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command; what happens meanwhile goes to `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def message(self) -> dict[str, Any]:
        """The next thing that the browser says."""
        while b"\0" not in self.rest:
            received = os.read(self.read, 2**20)
            assert received, "the browser has gone"
            self.rest += received
        first, self.rest = self.rest.split(b"\0", 1)
        return json.loads(first)

    def open(self, file: Path, width: int, *, scheme: str = "light") -> None:
        """Load a file from disk at a width in CSS pixels and wait until it is whole."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """One stroke of a key."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if kind == "keyDown" and text else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """Errors, warnings and refused things since the page was opened."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"])[:500] for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Whatever was asked for since then, but the page itself and what it carries."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in sent if params.get("type") != "Document"]
        return [url for url in urls if not url.startswith("data:")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser's tab, shared by the tests of this file."""
    profile = tmp_path_factory.mktemp("profile")
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    assert min(to_read, from_write) > 4, "moving one would close another"
    # The browser listens on descriptor 3 and answers on 4.
    move = f"import os, sys; os.dup2({to_read}, 3); os.dup2({from_write}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-I", "-c", move, str(CHROME), *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as browser:
        os.close(to_read)
        os.close(from_write)
        try:
            yield Page(to_write, from_read)
        finally:
            os.close(to_write)  # with its pipe closed the browser leaves
            try:
                browser.wait(20)
            except subprocess.TimeoutExpired:
                browser.kill()
            os.close(from_read)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page about one run, and about two."""
    folder = tmp_path_factory.mktemp("reports")
    runs = [fake_run(folder / "first"), fake_run(folder / "second", name="nearest view", lift=-1.0)]
    return {"one": write_report(runs[:1], folder / "one.html"), "two": write_report(runs, folder / "two.html")}


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("DIORAMA_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["one", "two"])
def test_it_opens_whole_and_fits(page, reports, screenshots, which, width, scheme):
    page.open(reports[which], WIDTHS[width], scheme=scheme)
    page.run("document.querySelectorAll('[hidden]').forEach(one => { one.hidden = false })")
    pictures = page.run("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth, () => 0)))")
    assert len(pictures) == (len(SETTINGS) * len(SCENES) - 1) * (2 if which == "two" else 1)
    assert min(pictures) >= 500
    scrolled, seen = page.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert scrolled <= seen, "the page scrolls sideways"
    assert page.run("innerWidth") == WIDTHS[width]
    page.open(reports[which], WIDTHS[width], scheme=scheme)
    file = screenshots / f"{which}-{width}-{scheme}.png"
    page.screenshot(file)
    assert file.stat().st_size > 20_000
    assert page.complaints() == []
    assert page.requests() == []


HEADLINE = "document.querySelector('#results table')"
COLUMN = f"[...{HEADLINE}.tBodies[0].rows].map(row => row.cells[2].dataset.value)"
SORT = f"{HEADLINE}.querySelectorAll('th')[2]"


def test_a_click_on_a_header_sorts_and_another_turns_it_round(page, reports):
    page.open(reports["two"], 1280)
    before = list(map(float, page.run(COLUMN)))
    page.run(f"{SORT}.firstElementChild.click()")
    assert list(map(float, page.run(COLUMN))) == sorted(before) != before
    assert page.run(f"{SORT}.getAttribute('aria-sort')") == "ascending"
    page.run(f"{SORT}.firstElementChild.click()")
    assert list(map(float, page.run(COLUMN))) == sorted(before, reverse=True)
    assert page.run(f"{SORT}.getAttribute('aria-sort')") == "descending"
    assert page.run(f"{HEADLINE}.querySelectorAll('[aria-sort]:not([aria-sort=none])').length") == 1


@pytest.mark.parametrize(("key", "code"), [("Enter", 13), (" ", 32)])
def test_the_keyboard_reaches_a_header_and_sorts(page, reports, key, code):
    page.open(reports["two"], 1280)
    before = list(map(float, page.run(COLUMN)))
    page.run("document.querySelector('#results .scroll').focus()")
    for _ in range(3):
        page.press("Tab", 9)
    assert page.run(f"document.activeElement === {SORT}.firstElementChild")
    page.press(key, code)
    assert list(map(float, page.run(COLUMN))) == sorted(before)


def test_blanks_stay_last_in_both_directions(page, reports):
    page.open(reports["one"], 1280)
    table = "document.querySelectorAll('#scenes .scroll.tall')[1]"
    for _ in range(2):
        page.run(f"{table}.querySelectorAll('thead button')[3].click()")
        values = page.run(f"[...{table}.querySelectorAll('tbody tr')].map(row => row.cells[3].dataset.value)")
        assert [value == "" for value in values] == [False] * 4 + [True]


def test_a_scene_shows_its_pictures_when_clicked(page, reports):
    page.open(reports["two"], 360)
    shown = "[...document.querySelector('.panels').children].filter(one => !one.hidden).map(one => one.id)"
    assert len(page.run(shown)) == 1
    buttons = "[...document.querySelectorAll('.opens')].filter(one => one.getAttribute('aria-controls') === {!r})"
    wanted = page.run("document.querySelector('.panels').lastElementChild.id")
    page.run(buttons.format(wanted) + "[0].click()")
    assert page.run(shown) == [wanted] == [page.run("document.activeElement.id")]
    assert page.run(buttons.format(wanted) + "[0].getAttribute('aria-expanded')") == "true"


def test_a_hostile_name_is_words_and_the_policy_stops_what_is_not(page, reports):
    page.open(reports["one"], 1280)
    assert page.run("document.scripts.length") == 1
    assert HOSTILE in page.run("document.body.innerText")
    intruder = '<img src="https://example.org/x.png" onerror="window.hit = 1">'
    page.run(f"document.body.insertAdjacentHTML('beforeend', {intruder!r})")
    page.run("new Promise(done => setTimeout(done, 300))")
    assert page.run("window.hit === undefined")
    assert any("Content Security Policy" in complaint for complaint in page.complaints())


CONTRAST = """
[...document.querySelectorAll('body *')].filter(one => [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim())
    && one.getClientRects().length && !one.closest('svg, script, style')).map(one => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  let back = one;
  while (back && (channels(getComputedStyle(back).backgroundColor)[3] === 0)) back = back.parentElement;
  const [a, b] = [getComputedStyle(one).color, back ? getComputedStyle(back).backgroundColor : 'rgb(255,255,255)']
    .map(text => light(channels(text))).sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), one.tagName + ' ' + one.textContent.slice(0, 30)];
}).sort((x, y) => x[0] - y[0])[0]
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_asks(page, reports, scheme):
    """At least 4.5 between a text and what lies behind it (WCAG 2.2, 1.4.3), by its own formula."""
    page.open(reports["two"], 1280, scheme=scheme)
    lowest, where = page.run(CONTRAST)
    assert lowest >= 4.5, where
