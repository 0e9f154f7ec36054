"""The report in a real browser: opened from disk, at desk and phone width, in light and dark, with mouse and keyboard.

DIORAMA_SCREENSHOTS names a folder that keeps the screenshots.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chromium import NEEDED, Page, tab
from tests.evaluation.fake_run import HOSTILE, SCENES, SETTINGS, fake_run

from diorama.evaluation.report import write_report

pytestmark = NEEDED
WIDTHS = {"desk": 1280, "phone": 360}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser's tab, shared by the tests of this file."""
    with tab(tmp_path_factory.mktemp("profile")) as page:
        yield page


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
