"""One HTML page about one or several evaluation runs: offline, self-contained, the same for the same runs."""

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from diorama.evaluation import tables
from diorama.evaluation.charts import plan, scatter, strip
from diorama.evaluation.published import published_tables
from diorama.evaluation.runs import Run, read_runs
from diorama.evaluation.tables import Cell, Table, metrics_of, settings_of, titled, why, words
from diorama.export.atomic import replacement

STRIPS = 12  # scenes of a setting that are shown in pictures, best and worst: the page stays at a few megabytes


def write_report(runs: Sequence[Path], file: Path) -> Path:
    """Write the page about evaluation runs, of which the first is what the others are compared with; return its path.

    Raises ValueError in one line for a folder that is no evaluation run, OSError where the page cannot be written.
    """
    read = read_runs(runs)
    text = {name: (files("diorama.evaluation") / f"report.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    settings = settings_of(read)
    html = page.from_string(text["html"]).render(
        runs=read,
        notes=notes_of(read),
        css=Markup(text["css"]),
        js=Markup(text["js"]),
        # No other style or script runs and nothing is fetched, whatever a name in a run says.
        allowed={name: base64.b64encode(hashlib.sha256(text[name].encode()).digest()).decode() for name in text},
        headline=tables.headline(read),
        comparison=tables.comparison(read),
        one_benchmark=len({run.about["benchmark"]["hash"] for run in read}) == 1,
        failures=tables.failures(read),
        settings=[setting_part(read, setting, number) for number, setting in enumerate(settings)],
        beside=[table for setting in settings if (table := tables.beside_papers(read, setting)).rows],
        protocols=tables.protocols(read),
        papers=[(table, tables.published_rows(table)) for table in published_tables()],
        provenance=tables.provenance(read),
    )
    with replacement(file, overwrite=True) as path:
        path.write_text(html, encoding="utf-8")
    return Path(file)


def notes_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Each note of the benchmarks, with the runs that it is of unless it is of all."""
    every = dict.fromkeys(note for run in runs for note in run.about["benchmark"]["notes"])
    owners = {note: [run.label for run in runs if note in run.about["benchmark"]["notes"]] for note in every}
    return [("" if len(labels) == len(runs) else ", ".join(labels), note) for note, labels in owners.items()]


def setting_part(runs: Sequence[Run], setting: str, number: int) -> dict[str, Any]:
    """One setting: its scenes in order, pictures of the best and worst, and quality against distance."""
    metrics, scenes = metrics_of(runs), [run.of(setting) for run in runs]
    values = [scene["metrics"] for named in scenes for scene in named.values()]
    # What no scene here has would be a column of dashes; the headline says why.
    metrics = {name: better for name, better in metrics.items() if any(v.get(name) is not None for v in values)}
    by = next(iter(metrics), "")
    ranked = [ranking(named, by, metrics.get(by, "")) for named in scenes]
    each = max(1, STRIPS // (2 * len(runs)))
    pictured = {name for named in scenes for name, scene in named.items() if scene["strip"]}
    # A run may write strips of some scenes only: the best and worst of these, or of all where there is none.
    shown = [[name for name in order if name in pictured or not pictured] for order in ranked]
    chosen = dict.fromkeys(name for order in shown for name in [*order[:each], *order[-each:]])
    ids = {name: f"scene-{number}-{place}" for place, name in enumerate(chosen)}
    caption = f"{setting}: every scene, " + (f"best {by} first" if by else "none has a number")
    table = Table(caption, ["rank", "scene", "method", *titled(metrics)])
    for run, named, order in zip(runs, scenes, ranked, strict=True):
        for place, name in enumerate(order, 1):
            failure, found = named[name]["failure"], named[name]["metrics"]
            absent = "The scene failed; the line is above." if failure is not None else ""
            rows = {metric: run.row("rows", setting, metric) for metric in metrics}
            cells = [table.number(found.get(name), absent or why(run, name, row)) for name, row in rows.items()]
            known = Cell(name, name, opens=ids.get(name, ""))
            table.rows.append([Cell(str(place), place), known, *words(run.label), *cells])
    panels = [panel(runs, setting, name, key) for name, key in ids.items()]
    return {"name": setting, "by": by, "table": table, "panels": panels, "charts": charts(runs, setting)}


def ranking(scenes: dict[str, dict[str, Any]], metric: str, better: str) -> list[str]:
    """Names of the scenes, best first; those without the number last."""

    def key(name: str) -> tuple[bool, float | int, str]:
        value = scenes[name]["metrics"].get(metric)
        if value is None or not math.isfinite(value):
            return True, 0.0, name
        return False, value if better == "lower" else -value, name

    return sorted(scenes, key=key)


def panel(runs: Sequence[Run], setting: str, name: str, key: str) -> dict[str, Any]:
    """One scene: the strip of each run, and the cameras seen from above."""
    found = [(run, scene) for run in runs if (scene := run.of(setting).get(name))]
    cameras = [(run, scene["cameras"]) for run, scene in found if scene["cameras"]]
    estimated = [(run, places["estimated"]) for run, places in cameras if places["estimated"]]
    true, known = cameras[0][1]["true"] if cameras else [], found[0][1]["known"]
    return {
        "id": key,
        "name": name,
        "known": known,
        "views": len(true) or max(len(scene["views"]) for _, scene in found),
        "strips": [(run.label, strip(run.folder, scene["strip"]), scene["failure"]) for run, scene in found],
        "plan": plan([true, *(path for _, path in estimated)], known) if true else None,
        "estimated": [(run.label, list(runs).index(run)) for run, _ in estimated],
    }


def charts(runs: Sequence[Run], setting: str) -> list[dict[str, Any]]:
    """Each metric of the unseen views against their distance from the nearest known camera."""
    better, every = metrics_of(runs), [list(run.of(setting).values()) for run in runs]
    unseen = [[view for scene in scenes for view in scene["views"] if not view["known"]] for scenes in every]
    found = []
    for metric in dict.fromkeys(name for views in unseen for view in views for name in view["metrics"]):
        pairs = [[(view["distance"], view["metrics"].get(metric)) for view in views] for views in unseen]
        points = [[p for p in part if None not in p and all(map(math.isfinite, p))] for part in pairs]
        if any(points):
            found.append({"metric": titled({metric: better.get(metric, "")})[0], **scatter(points)})
    return found
