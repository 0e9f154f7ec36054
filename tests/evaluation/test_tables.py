"""What the tables of a report say, against the run that they say it of."""

import json

import pytest
from tests.evaluation.fake_run import FAILED, NOTE, SCENES, SETTINGS, fake_run

from diorama.evaluation.published import published_tables
from diorama.evaluation.runs import read_runs
from diorama.evaluation.tables import (
    Cell,
    Table,
    beside_papers,
    comparison,
    failures,
    headline,
    protocols,
    provenance,
    published_rows,
    shown,
)


def cells(table: Table, row: int) -> dict[str, Cell]:
    """One row under its columns."""
    return dict(zip(table.columns, table.rows[row], strict=True))


def changed(folder, file, change):
    """Change the JSON of a run's file in place."""
    record = json.loads((folder / file).read_text())
    change(record)
    (folder / file).write_text(json.dumps(record))
    return folder


def without(run, metric):
    """The run with no number for a metric."""
    for scene in run.scenes:
        scene["metrics"].pop(metric, None)
    return run


@pytest.mark.parametrize(
    ("value", "text"),
    [(17.1, "17.10"), (0.4412, "0.4412"), (0.0, "0.000"), (1234.4, "1,234"), (-3, "-3.000"), (999.9, "999.9")],
)
def test_numbers_have_four_digits(value, text):
    assert shown(value) == text


def test_the_headline_repeats_the_summary(tmp_path):
    (run,) = read_runs([fake_run(tmp_path / "run")])
    table = headline([run])
    assert [row[0].text for row in table.rows] == list(SETTINGS)
    for place, setting in enumerate(SETTINGS):
        found, row = cells(table, place), run.row("rows", setting, "psnr")
        assert found["psnr ↑"].value == row["mean"]
        assert found["psnr ↑"].text == f"{row['mean']:.2f}"
        assert found["psnr ↑"].small == f"[{row['low']:.2f}, {row['high']:.2f}]"
        assert found["scenes"].value == len(SCENES)
        assert found["failures"].value == (setting == "2 known")
        assert (found["fd_worlds64 ↓"].value, "35 images" in found["fd_worlds64 ↓"].small) == (31.5, True)
        assert (found["s per 16 views ↓"].value, found["device"].text) == (1.2, "cpu")


def test_a_mean_over_fewer_scenes_says_so(tmp_path):
    folder = changed(fake_run(tmp_path / "run"), "summary.json", lambda r: r["rows"][0].update(scenes=3))
    table = headline(read_runs([folder]))
    assert cells(table, 0)["psnr ↑"].small.endswith("of 3")
    assert not cells(table, 1)["psnr ↑"].small.endswith("of 4"), "failures are counted beside it already"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_blank_is_a_dash_with_its_reason_and_sorts_last(value):
    table = Table("caption", ["column"])
    cell = table.number(value, "weights absent")
    assert (cell.text, cell.value, cell.note) == ("—", None, 1)
    assert table.reasons == ["weights absent" if value is None else f"The value is {value}, no finite number."]


def test_reasons_come_from_the_notes_and_are_listed_once(tmp_path):
    folder = fake_run(tmp_path / "run")
    assert headline(read_runs([folder])).reasons == [NOTE]
    changed(folder, "run.json", lambda r: r["benchmark"].update(notes=["of something else"]))
    assert headline(read_runs([folder])).reasons == ["tiny could not measure this; its notes give no reason."]
    changed(folder, "summary.json", lambda r: r["rows"].pop(2))
    assert headline(read_runs([folder])).reasons[0] == "tiny was not scored on this."
    changed(folder, "summary.json", lambda r: r["pooled"][0].update(value=None, low=None, high=None))
    assert "tiny gave no value for 35 images." in headline(read_runs([folder])).reasons


def test_one_note_about_poses_is_the_reason_of_every_pose_metric(tmp_path):
    folder = fake_run(tmp_path / "run")
    changed(folder, "run.json", lambda r: r["benchmark"].update(notes=["Poses are not estimated."]))
    changed(folder, "summary.json", lambda r: [row.update(metric="ate_r", mean=None) for row in r["rows"][2::3]])
    assert headline(read_runs([folder])).reasons == ["Poses are not estimated."]


def test_a_comparison_pairs_the_scenes_that_both_have(tmp_path):
    runs = read_runs([fake_run(tmp_path / "a"), fake_run(tmp_path / "b", name="other", lift=-1.0)])
    table = comparison(runs)
    gap = cells(table, 0)["other − tiny"]
    assert gap.value == pytest.approx(-1)
    assert (gap.text, gap.mark, gap.small) == ("-1.00", "worse", "[-1.00, -1.00] 5 scenes")
    same = comparison([runs[1], runs[0]])
    assert (cells(same, 0)["tiny − other"].text, cells(same, 0)["tiny − other"].mark) == ("+1.00", "better")
    assert cells(table, 2)["setting"].text == "2 known", "what neither has is left to the headline"
    assert cells(table, 2)["other − tiny"].small.endswith("4 scenes"), "the failed scene does not pair"
    assert comparison([runs[0], without(runs[1], "psnr")]).rows[0][-1].text == "—"
    assert comparison(runs[:1]).rows == []


def test_lower_is_better_where_the_run_says_so(tmp_path):
    folders = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", name="other", lift=-1.0)]
    for folder in folders:
        changed(folder, "summary.json", lambda r: [row.update(better="lower") for row in r["rows"]])
    assert cells(comparison(read_runs(folders)), 0)["other − tiny"].mark == "better"


def test_a_difference_that_could_be_none_is_not_called_one(tmp_path):
    runs = read_runs([fake_run(tmp_path / "a"), fake_run(tmp_path / "b", name="other")])
    assert cells(comparison(runs), 0)["other − tiny"].mark == "no clear difference"


def test_different_benchmarks_are_not_subtracted(tmp_path):
    runs = read_runs([fake_run(tmp_path / "a"), fake_run(tmp_path / "b", name="other", hash="e1e1")])
    table = comparison(runs)
    assert {row[-1].text for row in table.rows} == {"—"}
    assert any("different benchmarks" in reason for reason in table.reasons)


def test_every_failure_is_listed(tmp_path):
    table = failures(read_runs([fake_run(tmp_path / "run")]))
    found = [[cell.text for cell in row] for row in table.rows]
    assert found == [["2 known", FAILED, "tiny", "out of memory: 12 GiB asked, 8 GiB there"]]


def test_provenance_says_everything_and_what_differs(tmp_path):
    runs = read_runs([fake_run(tmp_path / "a"), fake_run(tmp_path / "b", name="other")])
    rows = {row[0].text: ([cell.text for cell in row[1:]], row[0].mark) for row in provenance(runs).rows}
    assert rows["method.settings.steps"] == (["50", "50"], "")
    assert rows["method.name"] == (["tiny", "other"], "differs")
    assert rows["benchmark.hash"] == (["5f1d", "5f1d"], "")
    assert rows["versions.torch"] == (["2.13.0", "2.13.0"], "")
    assert rows["folder"] == (["a", "b"], "differs"), "names only: a page that is passed on tells no paths"


def test_ours_stand_above_the_papers_in_what_both_measure(tmp_path):
    runs = read_runs([fake_run(tmp_path / "run")])
    table = beside_papers(runs, "1 known")
    assert table.columns == ["method", "data", "psnr ↑", "ssim ↑", "lpips_vgg ↓", "seconds_per_16_views ↓"]
    assert (cells(table, 0)["method"].text, cells(table, 0)["method"].mark) == ("tiny", "this run")
    assert cells(table, 0)["seconds_per_16_views ↓"].value == 1.2
    rows = {(row[0].text, row[1].text): [cell.text for cell in row[2:]] for row in table.rows}
    assert rows["3DDiT", "DL3DV"] == ["14.62", "—", "0.48", "1.98"]
    assert rows["Gen3R", "RealEstate10K"] == ["20.51", "0.7388", "0.2281", "—"]
    assert {method for method, _ in rows} == {"tiny", "3DRAE", "3DDiT", "Gen3R"}
    assert beside_papers(runs, "4 known").rows == [], "no paper knows 4 views"


def test_a_setting_without_cameras_stands_beside_such_a_table(tmp_path):
    parts = [{"name": "1 known", "cameras": False}, {"name": "2 known", "cameras": True}]
    folder = changed(
        fake_run(tmp_path / "run"), "run.json", lambda r: r["benchmark"]["protocol"].update(settings=parts)
    )
    runs = read_runs([folder])
    assert beside_papers(runs, "1 known").rows == [], "their table without cameras has no number that we have"
    assert beside_papers(runs, "2 known").rows != []


def test_protocols_stand_side_by_side(tmp_path):
    rows = {
        row[0].text: [cell.text for cell in row[1:]] for row in protocols(read_runs([fake_run(tmp_path / "a")])).rows
    }
    assert rows["views"] == ["8", "16", "49"]
    assert rows["pixels"] == ["64x64", "not stated", "560x560"]
    assert rows["scored views"][0] == "those that are not known"
    assert rows["known views"][0] == "1 known: 0; 2 known: 0, 7; 4 known: 0, 2, 5, 7"


@pytest.mark.parametrize("table", published_tables(), ids=lambda table: table.name)
def test_a_published_number_keeps_its_digits(table):
    for row, published in zip(published_rows(table).rows, table.rows, strict=True):
        numbers = [None if cell.text == "—" else float(cell.text) for cell in row[3:]]
        assert numbers == list(published.values.values())
