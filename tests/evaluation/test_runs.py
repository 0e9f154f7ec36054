"""Reading a run's folder: what is there comes back, and what is wrong is one line that says where."""

import json

import pytest
from tests.evaluation.fake_run import SCENES, SETTINGS, fake_run

from diorama.evaluation.runs import read_runs


def test_a_run_comes_back_as_it_was_written(tmp_path):
    folder = fake_run(tmp_path / "run")
    (run,) = read_runs([folder])
    assert run.label == "tiny"
    assert run.about == json.loads((folder / "run.json").read_text())
    assert [(scene["setting"], scene["scene"]) for scene in run.scenes] == [(a, b) for a in SETTINGS for b in SCENES]
    assert list(run.of("2 known")) == list(SCENES)
    assert run.row("rows", "2 known", "ssim")["mean"] == pytest.approx(
        sum(scene["metrics"]["ssim"] for scene in run.of("2 known").values() if scene["failure"] is None) / 4
    )
    assert run.row("timing", "4 known")["device"] == "cpu"
    assert run.row("rows", "2 known", "no such metric") == {}


def test_labels_are_the_methods_names_and_unique(tmp_path):
    folders = [fake_run(tmp_path / part / "run") for part in "abc"]
    assert [run.label for run in read_runs(folders)] == ["tiny", "tiny, run", "tiny, run (3)"]


def rewritten(folder, file, change):
    """Change the JSON of a run's file in place; of scenes.jsonl, that of its second line."""
    path = folder / file
    lines = path.read_text().split("\n")
    at = 1 if file == "scenes.jsonl" else 0
    record = json.loads(lines[at])
    change(record)
    lines[at] = json.dumps(record)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("run.json", lambda r: r.pop("method"), "run.json: lacks 'method'"),
        ("run.json", lambda r: r["method"].update(name=7), "run.json, method, name: found 7, accepted is text"),
        ("run.json", lambda r: r["benchmark"].update(notes="no"), "notes: found 'no', accepted is a list"),
        ("scenes.jsonl", lambda r: r.pop("setting"), "scenes.jsonl, line 2: lacks 'setting'"),
        ("scenes.jsonl", lambda r: r["metrics"].update(psnr="<b>"), "line 2, metrics, 'psnr': found '<b>'"),
        ("scenes.jsonl", lambda r: r["metrics"].update(psnr=True), "found True, accepted is a number or null"),
        ("scenes.jsonl", lambda r: r["known"].append(1.5), "known, entry 1: found 1.5, accepted is a whole number"),
        ("scenes.jsonl", lambda r: r["views"][3].update(known=0), "views, entry 3, known: found 0"),
        ("scenes.jsonl", lambda r: r["cameras"].update(true=[["x"]]), "true, entry 0, entry 0: found 'x'"),
        ("scenes.jsonl", lambda r: r.update(strip=["a"]), "strip: found \\['a'\\], accepted is text or null"),
        ("summary.json", lambda r: r.update(rows={}), "rows: found {}, accepted is a list"),
        ("summary.json", lambda r: r["pooled"][0].pop("images"), "pooled, entry 0: lacks 'images'"),
    ],
)
def test_what_is_no_run_is_one_line_that_says_where(tmp_path, file, change, message):
    folder = fake_run(tmp_path / "run")
    rewritten(folder, file, change)
    with pytest.raises(ValueError, match=message) as caught:
        read_runs([folder])
    assert "\n" not in str(caught.value)
    assert str(folder / file) in str(caught.value)


@pytest.mark.parametrize("file", ["run.json", "scenes.jsonl", "summary.json"])
@pytest.mark.parametrize(
    ("text", "found"), [(None, "No such file"), (b"{", "accepted is JSON"), (b"\xff", "not UTF-8")]
)
def test_a_file_that_is_absent_or_cut_off_is_named(tmp_path, file, text, found):
    folder = fake_run(tmp_path / "run")
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_bytes(text)
    with pytest.raises(ValueError, match=f"{file}.*{found}"):
        read_runs([folder])


def test_deep_json_is_refused_like_any_other(tmp_path):
    folder = fake_run(tmp_path / "run")
    (folder / "run.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"run\.json"):
        read_runs([folder])


def test_no_run_at_all_is_refused():
    with pytest.raises(ValueError, match="no evaluation run"):
        read_runs([])
