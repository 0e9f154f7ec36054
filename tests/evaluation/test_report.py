"""The page as a file: self-contained, escaped, whole, and the same for the same runs."""

import base64
import hashlib
import json
from html.parser import HTMLParser

import pytest
from tests.evaluation.fake_run import FAILED, HOSTILE, NOTE, SCENES, SETTINGS, fake_run

from diorama.evaluation import report
from diorama.evaluation.report import charts, ranking, write_report
from diorama.evaluation.runs import read_runs

VOID = {"meta", "img", "br", "link", "input", "hr", "path", "circle"}


class Read(HTMLParser):
    """A page as tags with attributes, and text by the tag around it; asserts that tags close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), "an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str) -> list[dict]:
        """Attributes of every such tag."""
        return [attrs for name, attrs in self.tags if name == tag]

    def words(self) -> str:
        """Everything that is read rather than run."""
        return " ".join(" ".join(parts) for tag, parts in self.text.items() if tag not in ("style", "script"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [fake_run(folder / "first"), fake_run(folder / "second", name="nearest view", lift=-1.0)]


@pytest.fixture(scope="module", params=[1, 2], ids=["one", "two"])
def page(request, runs, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(runs[: request.param], file) == file
    return Read(file.read_text(encoding="utf-8"))


def test_nothing_is_fetched_from_anywhere(page):
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in ("srcset", "background", "action", "data", "poster", "style"), (tag, name)
            assert name != "src" or value.startswith("data:image/jpeg;base64,")
            assert name != "href" or value.startswith("#")
            assert not name.startswith("on"), "a script in an attribute"
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert not any(word in "".join(page.text["style"]) for word in ("url(", "@import", "</"))


def test_the_policy_names_the_hashes_of_what_is_there(page):
    (policy,) = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        assert len(page.all(tag)) == 1
        digest = base64.b64encode(hashlib.sha256("".join(page.text[tag]).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_names_are_words(page):
    assert HOSTILE in page.words()
    assert sum(HOSTILE in label.get("aria-label", "") for label in page.all("div")) > 0
    assert "49}}" not in page.words() and "<script>alert" not in "".join(page.text["script"])


def test_every_link_and_button_leads_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    wanted = {button["aria-controls"] for button in page.all("button") if "aria-controls" in button}
    assert wanted == {name for name in ids if name.startswith("scene-")}
    assert len(wanted) == len(SETTINGS) * len(SCENES) - 1, "the scene that failed has no pictures"


def test_it_can_be_read_without_seeing(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    assert all(
        svg.get("aria-hidden") or (svg["role"], bool(svg["aria-label"])) == ("img", True) for svg in page.all("svg")
    )
    assert {header["aria-sort"] for header in page.all("th")} == {"none"}
    assert all(header["scope"] == "col" for header in page.all("th"))
    assert all(box["aria-label"] and box["tabindex"] == "0" for box in page.all("div") if box.get("role") == "region")


def test_numbers_reasons_and_failures_are_there(page, runs):
    words, summary = page.words(), json.loads((runs[0] / "summary.json").read_text())
    for row in summary["rows"]:
        assert row["mean"] is None or f"{row['mean']:#.4g}" in words
    assert NOTE in words and "out of memory: 12 GiB asked" in words and FAILED in words
    assert "Not the same measurement." in words and "arXiv 2604.11331v1" in words
    sections = {section["id"] for section in page.all("section")}
    assert ("comparison" in sections) == ("nearest view" in words)


def test_the_same_runs_give_the_same_page(runs, tmp_path):
    first = write_report(runs, tmp_path / "a.html").read_bytes()
    assert write_report(runs, tmp_path / "new" / "b.html").read_bytes() == first
    assert write_report(runs[::-1], tmp_path / "c.html").read_bytes() != first


def test_a_warning_tells_that_benchmarks_differ(runs, tmp_path):
    other = fake_run(tmp_path / "other", hash="e1e1")
    warning = "These runs measured different benchmarks."
    assert warning in Read(write_report([runs[0], other], tmp_path / "a.html").read_text()).words()
    assert warning not in Read(write_report(runs, tmp_path / "b.html").read_text()).words()


def test_a_refused_run_leaves_an_older_page_as_it_was(runs, tmp_path):
    file = tmp_path / "report.html"
    file.write_text("older")
    with pytest.raises(ValueError, match=r"run\.json: No such file"):
        write_report([*runs, tmp_path], file)
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


def test_scenes_are_ranked_in_the_metrics_direction_and_blanks_are_last():
    values = {"a": 2.0, "b": None, "c": 9, "d": float("nan")}
    scenes = {name: {"metrics": {"psnr": value}} for name, value in values.items()}
    assert ranking(scenes, "psnr", "higher") == ["c", "a", "b", "d"]
    assert ranking(scenes, "psnr", "lower") == ["a", "c", "b", "d"]


@pytest.mark.parametrize(("count", "shown"), [(1, 4), (2, 4)])
def test_only_the_best_and_the_worst_are_shown_in_pictures(runs, monkeypatch, count, shown):
    monkeypatch.setattr(report, "STRIPS", 4)
    read = read_runs(runs[:count])
    part = report.setting_part(read, "1 known", 0)
    order = ranking(read[0].of("1 known"), "psnr", "higher")
    each = 2 // count
    assert [panel["name"] for panel in part["panels"]][: 2 * each] == [*order[:each], *order[-each:]]
    assert len(part["panels"]) <= shown
    assert len(part["table"].rows) == count * len(SCENES)
    named = {cells[1].text for cells in part["table"].rows if cells[1].opens}
    assert named == {panel["name"] for panel in part["panels"]}


def test_without_strips_scenes_still_show_their_cameras(tmp_path):
    folder = fake_run(tmp_path / "run")
    lines = [json.loads(line) | {"strip": None} for line in (folder / "scenes.jsonl").read_text().splitlines()]
    (folder / "scenes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Read(write_report([folder], tmp_path / "report.html").read_text())
    cameras = [svg for svg in page.all("svg") if svg.get("aria-label", "").startswith("Cameras of")]
    assert len(cameras) == len(SETTINGS) * len(SCENES) - 1
    assert page.words().count("The run wrote no strip of this scene.") == len(SETTINGS) * len(SCENES)
    assert page.words().count("The run wrote no cameras of this scene.") == 1


def test_a_column_that_no_scene_fills_is_left_to_the_headline(runs):
    part = report.setting_part(read_runs(runs), "1 known", 0)
    assert part["table"].columns == ["rank", "scene", "method", "psnr ↑", "ssim ↑"]


def test_charts_hold_the_unseen_views_that_have_a_number(runs):
    read = read_runs(runs)
    drawn = charts(read, "2 known")
    assert [chart["metric"] for chart in drawn] == ["psnr ↑", "ssim ↑"], "lpips_vgg has no number"
    assert [one["count"] for one in drawn[0]["series"]] == [(len(SCENES) - 1) * 6] * 2


def test_a_run_in_which_everything_failed_still_has_a_page(tmp_path):
    folder = fake_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    for line in lines:
        nothing = {"views": [], "cameras": None, "strip": None, "failure": "no device", "metrics": {}}
        line.update(nothing)
    (folder / "scenes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text('{"rows": [], "pooled": [], "timing": []}')
    page = Read(write_report([folder, folder], tmp_path / "report.html").read_text())
    assert page.words().count("no device") >= len(lines) and page.all("img") == []


def test_a_run_without_scenes_still_has_a_page(tmp_path):
    folder = fake_run(tmp_path / "run")
    (folder / "scenes.jsonl").write_text("")
    assert "0 settings" in Read(write_report([folder], tmp_path / "report.html").read_text()).words()
