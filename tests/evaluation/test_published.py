"""The papers' tables as data: numbers against the papers, and that nothing lacks its protocol."""

import json
from importlib.resources import files

import pytest

from diorama.evaluation.published import published_tables

TABLES = published_tables()


def value(paper: str, number: str, method: str, known: int, dataset: str, metric: str):
    """The one value that these words name, among all parts of a table."""
    found = [
        row.values[metric]
        for table in TABLES
        if (table.paper, table.table) == (paper, number) and metric in table.metrics
        for row in table.rows
        if (row.method, row.known, row.dataset) == (method, known, dataset)
    ]
    assert len(found) == 1, f"{len(found)} values"
    return found[0]


@pytest.mark.parametrize(
    ("number", "method", "known", "dataset", "metric", "expected"),
    [
        ("Table 1", "3DDiT", 1, "DL3DV", "psnr", 14.62),
        ("Table 1", "3DDiT", 1, "RE10K", "ate_t", 0.021),
        ("Table 1", "3DRAE", 2, "ScanNet", "psnr", 19.61),
        ("Table 1", "3DRAE", 1, "CO3D", "fid", 113.4),
        ("Table 1", "SEVA", 2, "CO3D", "seconds_per_16_views", 86.4),
        ("Table 1", "LVSM", 2, "RE10K", "lpips", 0.18),
        ("Table 1", "MotionCtrl", 2, "DL3DV", "fid", None),
        ("Table 2", "3DRAE-DA3", 6, "RE10K", "psnr", 26.38),
        ("Table 2", "3DDiT-ImgOnly", 1, "DL3DV", "ate_r", 1.02),
        ("Table 3", "3DRAE-tok256", 6, "DL3DV", "seconds_per_16_views", 0.10),
        ("Table 3", "3DDiT-S-tok1024", 1, "RE10K", "fid", 28.31),
        ("Table 4", "3DDiT-w/o IN", 1, "DL3DV", "fid", 43.15),
    ],
)
def test_numbers_of_3drae(number, method, known, dataset, metric, expected):
    assert value("3DRAE + 3DDiT", number, method, known, dataset, metric) == expected


@pytest.mark.parametrize(
    ("number", "method", "known", "dataset", "metric", "expected"),
    [
        ("Table 1", "Gen3R", 1, "RealEstate10K", "psnr", 20.51),
        ("Table 1", "LVSM", 2, "DL3DV-10K", "lpips", 0.3575),
        ("Table 2", "Gen3R", 2, "TartanAir", "chamfer", 1.9734),
        ("Table 2", "Aether", 1, "Co3Dv2", "completeness", 2.6366),
        ("Table 3", "VGGT", 49, "WildRGB-D", "chamfer", 0.1165),
        ("Table 4", "Gen3R, 2-stage", 1, "RealEstate10K", "psnr", 17.38),
        ("Table 4", "Gen3R without L_KL", 1, "Co3Dv2", "chamfer", 1.962),
        ("Table 5", "Gen3R", 1, "RealEstate10K", "auc30", 0.7443),
        ("Table 5", "Gen3R without L_KL", 1, "RealEstate10K", "auc30", 0.41),
    ],
)
def test_numbers_of_gen3r(number, method, known, dataset, metric, expected):
    assert value("Gen3R", number, method, known, dataset, metric) == expected


def test_every_file_is_read_and_no_table_is_lost():
    folder = files("diorama.evaluation") / "published"
    listed = [json.loads(file.read_text(encoding="utf-8")) for file in folder.iterdir() if file.name.endswith(".json")]
    assert sum(len(paper["tables"]) for paper in listed) == len(TABLES) == 16
    assert [len(table.rows) for table in TABLES if table.name == "3DRAE + 3DDiT, Table 1"] == [2 * 7 * 4]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_states_its_protocol_and_its_columns(table):
    assert {"dataset", "scenes", "views", "known views", "pixels", "cameras"} <= table.protocol.keys()
    assert all(isinstance(stated, str | int) and str(stated) for stated in table.protocol.values())
    assert table.source.startswith("arXiv 2")
    assert all(measure.better in ("higher", "lower") for measure in table.metrics.values())
    assert table.metrics.keys() >= {name for row in table.rows for name in row.values}
    assert len({row[:3] for row in table.rows}) == len(table.rows), "the same row twice"
    assert set(table.own) <= {row.method for row in table.rows}
    assert all(row.dataset in str(table.protocol["dataset"]) for row in table.rows)


@pytest.mark.parametrize("table", [table for table in TABLES if "chamfer" in table.metrics and len(table.metrics) == 3])
def test_chamfer_is_the_mean_of_its_two_halves(table):
    """The paper's own definition, so a mistyped digit shows; its numbers are rounded to four places."""
    for row in table.rows:
        halves = (row.values["accuracy"] + row.values["completeness"]) / 2
        assert row.values["chamfer"] == pytest.approx(halves, abs=1.01e-4), row


def test_an_ablation_repeats_the_headline_of_its_own_paper():
    for metric in ("fid", "ate_r", "ate_t"):
        headline = value("3DRAE + 3DDiT", "Table 1", "3DDiT", 1, "DL3DV", metric)
        assert value("3DRAE + 3DDiT", "Table 2", "3DDiT-DINOv2", 1, "DL3DV", metric) == headline
        assert value("3DRAE + 3DDiT", "Table 3", "3DDiT-XL-tok1024", 1, "DL3DV", metric) == headline
