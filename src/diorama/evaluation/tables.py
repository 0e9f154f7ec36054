"""The tables of a report: what runs measured, how they differ, and what the papers report beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from diorama.evaluation.metrics import paired_bootstrap
from diorama.evaluation.published import PublishedTable, published_tables
from diorama.evaluation.runs import Run

ARROWS = {"higher": " ↑", "lower": " ↓"}
POSES = ("ate_", "auc_", "rra_", "rta_")  # one note speaks of them all
SECONDS, MEMORY = "seconds_per_16_views", "peak_memory_mib"


@dataclass(frozen=True)
class Cell:
    """What stands in a table's cell and what it sorts by: a number, words, or None for a blank, which comes last."""

    text: str
    value: float | int | str | None
    small: str = ""
    mark: str = ""  # a word beside the number, so that no colour is needed to read it
    opens: str = ""  # id of what a click shows
    note: int = 0  # number of a blank's reason, from 1


@dataclass
class Table:
    """Cells under columns, with the reasons of the blanks."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def number(self, value: float | int | None, reason: str, small: str = "") -> Cell:
        """A number in four significant digits; where there is none, a dash with the reason."""
        if value is not None and math.isfinite(value):
            return Cell(shown(value), float(value), small)
        return self.blank(reason if value is None else f"The value is {value}, no finite number.")

    def blank(self, reason: str) -> Cell:
        """A dash with its reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return Cell("—", None, note=self.reasons.index(reason) + 1)


def shown(value: float | int) -> str:
    """A number in four significant digits, with commas from a thousand."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def printed(table: Table, value: float | None) -> Cell:
    """A number as a paper prints it, without the digits that it does not have."""
    return table.blank("Not in the paper's tables.") if value is None else Cell(str(value), value)


def words(*texts: str) -> list[Cell]:
    """Cells of plain text."""
    return [Cell(text, text) for text in texts]


def settings_of(runs: Sequence[Run]) -> list[str]:
    """Names of the settings in the order of their first appearance."""
    return list(dict.fromkeys(scene["setting"] for run in runs for scene in run.scenes))


def metrics_of(runs: Sequence[Run], part: str = "rows") -> dict[str, str]:
    """Metric -> "higher", "lower" or "" (not stated), in the order of the summaries."""
    return {row["metric"]: row.get("better", "") for run in runs for row in run.summary[part]}


def titled(metrics: dict[str, str]) -> list[str]:
    """Names of metrics with an arrow towards the better."""
    return [name + ARROWS.get(better, "") for name, better in metrics.items()]


def why(run: Run, metric: str, row: dict[str, Any]) -> str:
    """Why the row of a metric has no value: what the benchmark's notes say of it, if they do."""
    if not row:
        return f"{run.label} was not scored on this."
    if "images" in row:
        return f"{run.label} gave no value for {row['images']} images."
    subject = "poses" if metric.startswith(POSES) else metric
    notes = [note for note in run.about["benchmark"]["notes"] if subject.lower() in note.lower()]
    return " ".join(notes) or f"{run.label} could not measure this; its notes give no reason."


def interval(row: dict[str, Any]) -> str:
    """The 95 % interval of a summary's row, if it has one."""
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None else f"[{shown(low)}, {shown(high)}]"


def headline(runs: Sequence[Run]) -> Table:
    """Settings against metrics with intervals, counts, time, memory and device; a row for each run."""
    metrics, pooled = metrics_of(runs), metrics_of(runs, "pooled")
    pooled = {name: better or "lower" for name, better in pooled.items()}  # Fréchet and kernel distances
    rest = ["scenes", "failures", "s per 16 views ↓", "peak memory, MiB ↓", "device"]
    columns = ["setting", "method", *titled(metrics), *titled(pooled), *rest]
    table = Table("Means over scenes, with 95 % intervals", columns)
    for setting in settings_of(runs):
        for run in (run for run in runs if run.of(setting)):
            scenes = len(run.of(setting))
            failed = sum(scene["failure"] is not None for scene in run.of(setting).values())
            cells = words(setting, run.label)
            for metric in metrics:
                row = run.row("rows", setting, metric)
                fewer = f" of {row['scenes']}" if row and row["scenes"] != scenes - failed else ""
                cells.append(table.number(row.get("mean"), why(run, metric, row), interval(row) + fewer))
            for metric in pooled:
                row = run.row("pooled", setting, metric)
                images = f"{interval(row)} {row['images']} images".strip() if row else ""
                cells.append(table.number(row.get("value"), why(run, metric, row), images))
            timing, absent = run.row("timing", setting), f"{run.label} wrote no such number for this setting."
            cells += [Cell(str(scenes), scenes), Cell(str(failed), failed)]
            cells += [table.number(timing.get(key), absent) for key in (SECONDS, MEMORY)]
            device = timing.get("device")
            table.rows.append([*cells, *(words(device) if device else [table.blank(absent)])])
    return table


def comparison(runs: Sequence[Run]) -> Table:
    """Runs side by side, with differences from the first."""
    first, others = runs[0], runs[1:]
    columns = ["setting", "metric", *(run.label for run in runs), *(f"{run.label} − {first.label}" for run in others)]
    table = Table("Means side by side, and differences over the scenes that both have, with 95 % intervals", columns)
    for setting in settings_of(runs) if others else ():
        for metric, title in zip(metrics_of(runs), titled(metrics_of(runs)), strict=True):
            rows = [(run, run.row("rows", setting, metric)) for run in runs]
            if all(row.get("mean") is None for _, row in rows):
                continue  # the headline says why
            means = [table.number(row.get("mean"), why(run, metric, row)) for run, row in rows]
            gaps = [difference(table, (first, run), setting, metric) for run in others]
            table.rows.append([*words(setting, title), *means, *gaps])
    return table


def difference(table: Table, pair: tuple[Run, Run], setting: str, metric: str) -> Cell:
    """The second run minus the first over scenes that both have, or why there is none."""
    if len({run.about["benchmark"]["hash"] for run in pair}) > 1:
        return table.blank("The two runs measured different benchmarks, so their scenes do not pair.")
    first, second = ({name: scene["metrics"].get(metric) for name, scene in run.of(setting).items()} for run in pair)
    both = [(first[name], second[name]) for name in first if name in second and None not in (first[name], second[name])]
    both = [values for values in both if all(map(math.isfinite, values))]
    if len(both) < 2:
        return table.blank("Fewer than two scenes have this number in both runs.")
    values = torch.tensor(both, dtype=torch.float64)
    found, better = paired_bootstrap(values[:, 1], values[:, 0]), metrics_of(pair)[metric]
    mark = "better" if (found.mean > 0) == (better == "higher") else "worse"
    if found.low <= 0 <= found.high or better not in ARROWS:
        mark = "no clear difference" if better in ARROWS else ""
    small = f"[{found.low:+#.3g}, {found.high:+#.3g}] {len(both)} scenes"
    return Cell(f"{found.mean:+#.3g}", found.mean, small, mark)


def failures(runs: Sequence[Run]) -> Table:
    """Every scene that failed, with the line that says why."""
    table = Table("Scenes that failed", ["setting", "scene", "method", "failure"])
    for run in runs:
        failed = [scene for scene in run.scenes if scene["failure"] is not None]
        table.rows += [words(scene["setting"], scene["scene"], run.label, scene["failure"]) for scene in failed]
    return table


def provenance(runs: Sequence[Run]) -> Table:
    """What made each run: method, settings, benchmark, machine and versions, one line a field."""
    table = Table("What made these numbers", ["field", *(run.label for run in runs)])
    flat = [flattened(run.about) | {"folder": run.folder.name} for run in runs]
    for name in dict.fromkeys(name for fields in flat for name in fields if name != "benchmark.notes"):
        values = [fields.get(name) for fields in flat]
        cells = [table.blank("The run does not say.") if value is None else Cell(value, value) for value in values]
        table.rows.append([Cell(name, name, mark="differs" if len(set(values)) > 1 else ""), *cells])
    return table


def flattened(record: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested fields under dotted names; lists and single values as text."""
    found: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, dict) and value:
            found |= flattened(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value if isinstance(value, str) else str(value)
    return found


def blind(run: Run, setting: str) -> bool:
    """Whether the method was not told the wanted cameras in that setting."""
    asked = run.about["benchmark"]["protocol"].get("settings")
    parts = [part for part in asked if isinstance(part, dict)] if isinstance(asked, list) else []
    return any(part.get("name") == setting and part.get("cameras") is False for part in parts)


def beside_papers(runs: Sequence[Run], setting: str) -> Table:
    """Ours above the papers' own methods with as many known views, in the metrics that both have; may be empty."""
    having = [run for run in runs if run.of(setting)]
    known = len(next(iter(having[0].of(setting).values()))["known"])
    told = "not given" if blind(having[0], setting) else "given"
    papers = [table for table in published_tables() if table.protocol["cameras"] == told]
    rows = [(t, row) for t in papers for row in t.rows if row.method in t.own and row.known == known]
    measured = metrics_of(runs) | {SECONDS: "lower"}
    theirs = dict.fromkeys(name for table, _ in rows for name in table.metrics)
    # An LPIPS of ours names its network after the word, while a paper's does not say.
    pairs = {name: key for name in measured for key in theirs if name == key or name.startswith(f"{key}_")}
    table = Table(
        f"{setting}: these runs, then the papers' own methods",
        ["method", "data", *titled({name: measured[name] for name in pairs})],
    )
    merged: dict[tuple[str, str, str], dict[str, float | None]] = {}
    for paper, row in rows:
        if set(pairs.values()) & paper.metrics.keys():
            merged.setdefault((row.method, paper.source, row.dataset), {}).update(row.values)
    for run in having if merged else ():
        rows_of = {name: run.row("rows", setting, name) for name in pairs} | {SECONDS: run.row("timing", setting)}
        cells = [
            table.number(row.get(SECONDS if name == SECONDS else "mean"), why(run, name, row))
            for name, row in rows_of.items()
        ]
        table.rows.append([Cell(run.label, run.label, mark="this run"), *words(run.about["benchmark"]["name"]), *cells])
    for (method, source, dataset), values in merged.items():
        cells = [printed(table, values.get(key)) for key in pairs.values()]
        table.rows.append([Cell(method, method, source), *words(dataset), *cells])
    return table


def protocols(runs: Sequence[Run]) -> Table:
    """What the papers state of their protocols beside what the first run states of its own."""
    run = runs[0]
    about, settings = run.about["benchmark"], settings_of([run])
    size = about["protocol"].get("size")
    size = size if isinstance(size, dict) else {}
    known = {name: next(iter(run.of(name).values()))["known"] for name in settings}
    ours = {
        "dataset": about["name"],
        "scenes": about["scenes"],
        "views": about["protocol"].get("views"),
        "known views": "; ".join(f"{name}: {', '.join(map(str, places)) or 'none'}" for name, places in known.items()),
        "scored views": {False: "those that are not known", True: "all"}.get(about["protocol"].get("score_known")),
        "pixels": "{height}x{width}".format_map(size) if size.get("height") and size.get("width") else None,
        "cameras": ", ".join(dict.fromkeys("not given" if blind(run, name) else "given" for name in settings)),
        "lpips network": ", ".join(name for name in metrics_of([run]) if name.startswith("lpips")) or None,
    }
    papers = {table.paper: table.protocol for table in published_tables() if table.table == "Table 1"}
    table = Table("What was measured on what", ["field", about["name"], *papers])
    for name, value in ours.items():
        theirs = (str(stated.get(name, "not stated")) for stated in papers.values())
        table.rows.append(words(name, "not stated" if value is None else str(value), *theirs))
    return table


def published_rows(published: PublishedTable) -> Table:
    """A published table as a table of the page."""
    columns = titled({name: measure.better for name, measure in published.metrics.items()})
    table = Table(f"{published.name}: {published.caption}", ["method", "known views", "data", *columns])
    for row in published.rows:
        cells = [printed(table, value) for value in row.values.values()]
        table.rows.append([*words(row.method), Cell(str(row.known), row.known), *words(row.dataset), *cells])
    return table
