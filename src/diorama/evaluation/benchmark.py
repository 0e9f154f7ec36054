"""A method through a benchmark: asked in batches, scored, written down line by line, so that a killed run continues."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diorama.evaluation.asking import PARTS, Asking, Benchmark
from diorama.evaluation.asking import device_name as device_name
from diorama.evaluation.methods import Oracle
from diorama.evaluation.outside import vbench_scores
from diorama.evaluation.splits import Question, Scenes
from diorama.evaluation.summaries import Line, by_setting, place, pooled, rows, slug, timings
from diorama.runner.spread import Here, telling
from diorama.runner.work import Failed
from diorama.scene import Views

RUN, LINES, SUMMARY, REPORT = "run.json", "scenes.jsonl", "summary.json", "report.html"


def run(
    benchmark: Benchmark,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    who: Here | None = None,
    again: Callable[[str], Benchmark] | None = None,
) -> dict[str, Any]:
    """Ask, score and write everything into `out`, or what an earlier run left to do; gives the summary.

    `who` asks, this process by default; a cluster makes the benchmark `again` in each of its processes. ValueError,
    before anything is asked, for a folder that holds something else or a run with other settings; afterwards for
    questions whose answer was none, nor a failure of the method: these are asked again when the run is continued.
    """
    who = who or Here(benchmark.device)
    questions = benchmark.scenes.questions()
    if isinstance(benchmark.method, Oracle):
        benchmark.method.told([_first(benchmark.scenes, questions)])  # refuses scenes that lack what it needs
    with who.first():
        if who.leads:
            _begin(out, benchmark.about())
        lines = _lines(out)
    # Always the same batches: what is generated together differs in its last digits from what is generated alone.
    parts = _batches(questions, benchmark.method.batch)
    parts = [part for part in parts if any(_key(question) not in lines for question in part)]
    tell = telling(progress if who.leads else None, len(questions) - sum(map(len, parts)), len(questions))
    new: dict[tuple[str, str], Line] = {}
    missed: list[str] = []
    file = out / (f"scenes.{who.rank}.jsonl" if who.rank else LINES)  # no two processes write into one

    def kept(part: Sequence[Question], found: Sequence[Line | Failed]) -> None:
        for question, line in zip(part, found, strict=True):
            if isinstance(line, Failed):
                missed.append(f"{question.setting}, {question.scene}: {line.reason}")
            elif _key(question) not in lines:
                new[_key(question)] = line
        _append(file, [new[_key(question)] for question in part if _key(question) in new])
        tell(len(part))

    make = again if who.remote else lambda _: benchmark
    assert make is not None, "a cluster needs to be told how it is made"
    who.run(Asking(make, out), parts, kept)
    lines |= {key: line for found in who.together(new) for key, line in found.items()}
    if lost := [why for found in who.together(missed) for why in found]:
        left = f"{len(lost)} of {len(questions)} questions have no answer ({lost[0]})"
        raise ValueError(f"{out}: {left}; the same command asks them again")
    with who.first():
        if who.leads:
            _finish(benchmark, out, [lines[_key(question)] for question in questions])
        return json.loads((out / SUMMARY).read_text())


def _finish(benchmark: Benchmark, out: Path, ordered: Sequence[Line]) -> None:
    """All lines in order, the summary and the report."""
    if benchmark.vbench is not None:
        _add_vbench(benchmark.vbench, out, ordered)
    _gather(out, ordered)
    summary = {
        "rows": rows(ordered, benchmark.tools),
        "pooled": pooled(ordered, benchmark.tools, out / PARTS),
        "timing": timings(ordered),
    }
    _replace(out / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    _report(out)


def _begin(out: Path, about: dict[str, Any]) -> None:
    """A new folder with run.json, or an earlier run's with these settings, whose lines are whole and in one file."""
    if (out / RUN).is_file():
        earlier = json.loads((out / RUN).read_text())
        for part in ("method", "benchmark"):
            now, then = about[part], earlier.get(part, {})
            odd = [key for key in now if now[key] != then.get(key) and key != "notes"]
            if odd:
                found = json.dumps(then.get(odd[0]))[:80]
                raise ValueError(f"{out}: holds a run with another {part} {odd[0]} ({found}); accepted is a new folder")
    elif os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: something else; accepted is a new folder or an unfinished run")
    else:
        out.mkdir(parents=True, exist_ok=True)
        _replace(out / RUN, json.dumps(about, indent=1) + "\n")
    _gather(out, list(_lines(out).values()))  # a killed run may have left half a line, and a file for each process


def _lines(out: Path) -> dict[tuple[str, str], Line]:
    """What earlier runs found."""
    texts = [file.read_text() for file in sorted(out.glob("scenes*.jsonl"))]
    whole = [line for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {(line["setting"], line["scene"]): line for line in map(json.loads, whole)}


def _gather(out: Path, lines: Sequence[Line]) -> None:
    """These lines in one file."""
    _replace(out / LINES, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    for file in out.glob("scenes.*.jsonl"):
        file.unlink()


def _first(scenes: Scenes, questions: Sequence[Question]) -> Views:
    """The first true views that can be read; ValueError or OSError where none can."""
    for question in questions[:-1]:
        try:
            return scenes.load(question)
        except (ValueError, OSError):
            continue
    return scenes.load(questions[-1])


def _batches(questions: Sequence[Question], size: int | None) -> list[list[Question]]:
    """Questions of one setting, `size` at a time, so that each setting has its own time; all at once for None."""
    if size is None:
        return [list(questions)]
    settings: dict[str, list[Question]] = {}
    for question in questions:
        settings.setdefault(question.setting, []).append(question)
    return [part[start : start + size] for part in settings.values() for start in range(0, len(part), size)]


def _add_vbench(program: Path, out: Path, lines: Sequence[Line]) -> None:
    """VBench's scores among the lines' metrics; those of an earlier run are kept."""
    for setting, part in by_setting(lines).items():
        name = slug(setting)
        file = out / "vbench" / f"{name}.json"
        if not file.is_file() and (out / "videos" / name).is_dir():
            found = vbench_scores(program, out / "videos" / name, out / "vbench" / name)
            _replace(file, json.dumps(found, indent=1) + "\n")
        scores = json.loads(file.read_text()) if file.is_file() else {}
        for line in part:
            line["metrics"] |= scores.get(place(setting, line["scene"], "").name, {})


def _key(question: Question) -> tuple[str, str]:
    return question.setting, question.scene


def _append(file: Path, lines: Sequence[Line]) -> None:
    with file.open("a") as stream:
        stream.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        stream.flush()
        os.fsync(stream.fileno())


def _replace(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.draft")
    draft.write_text(text)
    os.replace(draft, file)


def _report(out: Path) -> None:
    try:
        from diorama.evaluation.report import write_report
    except ModuleNotFoundError:  # its template engine is optional
        return
    write_report([out], out / REPORT)
