"""The page of numbers says what the files say, and the scripts behind it measure what they claim."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """A script by name, found beside its own modules as when it is run."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def performance(script) -> ModuleType:
    return script("performance")


def test_the_page_is_what_the_committed_numbers_give(performance) -> None:
    docs = FOLDER.parent / "docs"
    stale = [name for name, text in performance.page(FOLDER / "results").items() if (docs / name).read_text() != text]
    assert not stale, "run python benchmarks/performance.py"


def test_a_number_that_changes_changes_the_page_and_none_is_guessed(performance, tmp_path) -> None:
    empty = performance.page(tmp_path)["performance.md"]
    assert empty.count(performance.OPEN) == 1 + len(performance.CLAIMS) + len(performance.TABLES)
    found = {"command": "python benchmarks/limits.py --x", "machine": {"gpu": "a chip", "cores": 3}}
    for seconds, verdict in ((0.39, "0.39, reached"), (0.41, "0.41, missed")):
        numbers = {"generate, seconds": seconds, "decode, batched, views/s": 1499.0}
        (tmp_path / "limits-cuda.json").write_text(json.dumps(found | {"numbers": numbers}))
        text = performance.page(tmp_path)["performance.md"]
        assert f"| at most 0.4 | {verdict} | `python benchmarks/limits.py --x` |" in text
        assert "| at least 1500 | 1,499, missed |" in text
        assert "`python benchmarks/limits.py --x`: a chip, 3 cores.\n" in text


def test_every_script_that_is_asked_for_is_there(performance) -> None:
    results = {path.stem for path in (FOLDER / "results").glob("*.json")}
    for claim in performance.CLAIMS:
        stem = claim.file.removesuffix("-cuda")
        assert (FOLDER / f"{stem}.py").is_file(), claim
        if claim.file in results:
            assert claim.number in json.loads((FOLDER / "results" / f"{claim.file}.json").read_text())["numbers"], claim


def test_commands_are_told_without_the_folders_of_a_machine(script) -> None:
    words = ["/home/me/diorama/benchmarks/speed.py", "--views", "8", "--out", "/tmp/x.json", "--model", "/home/me/mine"]
    assert script("machine").command(words) == "python benchmarks/speed.py --views 8 --model mine"
    assert script("machine").command(["benchmarks/speed.py", "--out=x.json"]) == "python benchmarks/speed.py"


def test_curves_stand_where_their_logarithms_are(script) -> None:
    plots = script("plots")
    curve = [(1.0, 1.0), (10.0, 10.0), (100.0, 100.0)]
    picture = ElementTree.fromstring(plots.drawn([plots.Panel("a & b", "views", {"<one>": curve})]))
    dots = [(float(x.get("cx")), float(x.get("cy"))) for x in picture.iter("{http://www.w3.org/2000/svg}circle")]
    (left, low), middle, (right, high) = dots
    assert left < right and high < low
    assert middle == pytest.approx(((left + right) / 2, (low + high) / 2), abs=0.1)
    words = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "views", "<one>", "1", "10", "100"} <= set(words)


def test_counted_growth_has_the_exponents_of_its_kind(script) -> None:
    """Operations of the tiny sizes: the hub's and the decoders' grow as views do, full attention's faster."""
    growth = script("growth")
    scale = growth.SMALL._replace(views=(32, 64), decoded=(8, 16), tokens=(64,), sides=(32,), steps=(1, 2), frames=(5,))
    found: dict[str, float] = {}
    with torch.device("meta"):
        for axis, rows in growth.curves(scale):
            for name, places, work in rows:
                if len(places) > 1 and axis in ("views", "steps"):
                    counts = [growth.operations(work(place)) for place in places]
                    found[name] = growth.exponent(places, counts)
    assert found["encode, hub"] == pytest.approx(1, abs=0.1) and found["encode, full attention"] > 1.2
    assert found["decode, mutual"] == pytest.approx(1, abs=1e-6) and 0.3 < found["decode, one-way"] < 1
    assert 0 < found["generate, guided"] < 1
    assert growth.exponent((2, 4), (3, 12)) == pytest.approx(2)
