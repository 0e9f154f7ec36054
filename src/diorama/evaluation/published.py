"""What the two papers report, as data: their tables with method, number of known views, data set and protocol."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """How a column is read."""

    unit: str  # empty for a bare number
    better: str  # "higher" or "lower"


class Row(NamedTuple):
    """One method with one number of known views on one data set."""

    method: str
    known: int
    dataset: str
    values: dict[str, float | None]  # metric -> number; None where the paper has none


@dataclass(frozen=True)
class PublishedTable:
    """One table, or the part of one that shares its columns."""

    paper: str
    source: str
    table: str  # its number in the paper
    part: str  # empty where the whole table is one
    caption: str
    protocol: dict[str, str | int]  # field -> what the paper states, or that it does not
    notes: tuple[str, ...]
    own: tuple[str, ...]  # the rows that stand for the paper's method beside other numbers; none in most ablations
    metrics: dict[str, Measure]
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Paper and number, as one would cite it."""
        return f"{self.paper}, {self.table}" + (f" ({self.part})" if self.part else "")


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """Every table of 3DRAE + 3DDiT (arXiv 2604.11331) and of Gen3R (arXiv 2601.04090), in the papers' order."""
    folder = files("diorama.evaluation") / "published"
    papers = [json.loads((folder / name).read_text(encoding="utf-8")) for name in ("3drae.json", "gen3r.json")]
    return tuple(_table(paper, table) for paper in papers for table in paper["tables"])


def _table(paper: dict, table: dict) -> PublishedTable:
    metrics = {name: Measure(**measure) for name, measure in table["metrics"].items()}
    rows = (
        Row(method, known, dataset, dict(zip(metrics, values, strict=True)))
        for method, known, dataset, *values in table["rows"]
    )
    words: dict[str, Any] = {key: table[key] for key in ("table", "part", "caption", "protocol")}
    lists: dict[str, Any] = {key: tuple(table[key]) for key in ("notes", "own")}
    places: dict[str, Any] = {"paper": paper["paper"], "source": paper["source"]}
    return PublishedTable(**places, **words, **lists, metrics=metrics, rows=tuple(rows))
