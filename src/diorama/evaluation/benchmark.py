"""A method through a benchmark: asked in batches, scored, written down line by line, so that a killed run continues."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from diorama.evaluation.methods import WANTED, Failure, Lazy, Method, Oracle
from diorama.evaluation.outside import Outside, vbench_scores
from diorama.evaluation.protocols import Protocol
from diorama.evaluation.scoring import Instruments, Measured, failed, measured
from diorama.evaluation.splits import Question, Scenes
from diorama.evaluation.summaries import Line, by_setting, place, pooled, rows, slug, timings
from diorama.export.depth import png
from diorama.export.video import write_video
from diorama.geometry.cameras import Cameras
from diorama.scene import Condition, Scene, Shot, Views

RUN, LINES, SUMMARY, REPORT = "run.json", "scenes.jsonl", "summary.json", "report.html"
STRIPS = 12  # scenes of each setting that are shown
PARTS = "parts"  # features of the scored pictures, for distances between sets


@dataclass(frozen=True)
class Benchmark:
    """Everything that a run is made of."""

    method: Method
    protocol: Protocol
    scenes: Scenes
    tools: Instruments
    device: str = "cpu"
    vbench: Path | None = None  # VBench's own command

    def about(self) -> dict[str, Any]:
        """run.json: what the numbers belong to."""
        protocol = {key: value for key, value in asdict(self.protocol).items() if key != "hashes"}
        measures = self.tools.described() | {"vbench": self.vbench is not None}
        names = ("diorama", "torch", "diffusers", "numpy")
        return json.loads(
            json.dumps(
                {
                    "method": {
                        "name": self.method.name,
                        "licence": self.method.licence,
                        "settings": self.method.settings,
                    },
                    "benchmark": {
                        "name": self.protocol.name,
                        "hash": self.scenes.digest,
                        "protocol": protocol | {"measures": measures},
                        "scenes": self.scenes.count,
                        "notes": [*self.scenes.notes, *self.tools.notes],
                    },
                    "hardware": {"device": device_name(self.device), "threads": torch.get_num_threads()},
                    "versions": {"python": platform.python_version()} | {n: metadata.version(n) for n in names},
                }
            )
        )


class Answered(NamedTuple):
    """A question, its true views (None where they cannot be read), what the method gave, and what that cost."""

    question: Question
    truth: Views | None
    answer: Scene | Failure
    seconds: float  # of one answer
    memory: float | None  # MiB at most


def run(benchmark: Benchmark, out: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Ask, score and write everything into `out`, or what an earlier run left to do; gives the summary.

    ValueError, before anything is asked, for a folder that holds something else or a run with other settings.
    """
    questions = benchmark.scenes.questions()
    if isinstance(benchmark.method, Oracle):
        benchmark.method.told([_first(benchmark.scenes, questions)])  # refuses scenes that lack what it needs
    lines = _begin(out, benchmark.about())
    shown, answered = _shown(questions), 0
    # Always the same batches: what is generated together differs in its last digits from what is generated alone.
    for part in _batches(questions, benchmark.method.batch):
        if any(_key(question) not in lines for question in part):
            found = [_written(benchmark, out, answer, shown) for answer in _answers(benchmark, part)]
            new = [line for line in found if (line["setting"], line["scene"]) not in lines]
            _append(out / LINES, new)
            lines |= {(line["setting"], line["scene"]): line for line in new}
        answered += len(part)
        if progress:
            progress(answered, len(questions))
    ordered = [lines[_key(question)] for question in questions]
    if benchmark.vbench is not None:
        _add_vbench(benchmark.vbench, out, ordered)
    _replace(out / LINES, "".join(json.dumps(line, allow_nan=False) + "\n" for line in ordered))
    summary = {
        "rows": rows(ordered, benchmark.tools),
        "pooled": pooled(ordered, benchmark.tools, out / PARTS),
        "timing": timings(ordered),
    }
    _replace(out / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    _report(out)
    return summary


def _begin(out: Path, about: dict[str, Any]) -> dict[tuple[str, str], Line]:
    """The lines of an earlier run with these settings; a new folder with run.json otherwise."""
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
    if not (out / LINES).is_file():
        return {}
    whole = [line for line in (out / LINES).read_text().splitlines(keepends=True) if line.endswith("\n")]
    _replace(out / LINES, "".join(whole))  # a killed run may have left half a line
    lines = [json.loads(line) for line in whole]
    return {(line["setting"], line["scene"]): line for line in lines}


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


def _answers(benchmark: Benchmark, questions: Sequence[Question]) -> Iterator[Answered]:
    """Each question with its true views, the method's answer and what that cost."""
    method, load = benchmark.method, benchmark.scenes.load
    truths: dict[Question, Views | None] = {}
    errors: dict[Question, Failure] = {}
    for question in questions:
        try:
            views = load(question)
            truths[question] = views if method.batch else None  # not all at once, where all are asked together
        except (ValueError, OSError) as error:
            errors[question] = Failure(str(error))
    asked = [question for question in questions if question not in errors]

    def truth(row: int) -> Views:
        return truths[asked[row]] or load(asked[row])

    began = time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    known = Lazy(len(asked), truth)
    answers = _asked(method, asked, known) if asked else []
    seconds, memory = (time.perf_counter() - began) / max(1, len(asked)), _peak_memory(benchmark)
    rows = {question: row for row, question in enumerate(asked)}
    for question in questions:
        if question in errors:
            yield Answered(question, None, errors[question], seconds, memory)
        else:
            yield Answered(question, known[rows[question]], answers[rows[question]], seconds, memory)


def _asked(method: Method, questions: Sequence[Question], truths: Sequence[Views]) -> Sequence[Scene | Failure]:
    """The method's answers; where they cannot be given together, each alone, and a failure where not even that."""
    count = len(questions)
    conditions = Lazy(count, lambda row: _condition(questions[row], truths[row]))
    wanted = Lazy(count, lambda row: _wanted(questions[row], truths[row]))
    try:
        teller = method.told(truths) if isinstance(method, Oracle) else method
        return teller.generate(conditions, wanted, [question.seed for question in questions])
    except ValueError as error:
        if count == 1:
            return [Failure(str(error))]
        return [_asked(method, questions[row : row + 1], [truths[row]])[0] for row in range(count)]


def _condition(question: Question, truth: Views) -> Condition:
    """What the method is told: pictures, and their cameras unless it is to predict them; never points."""
    known = truth[question.known]
    return Condition(Views(known.images, known.cameras if question.cameras else None), question.known)


def _wanted(question: Question, truth: Views) -> Cameras | Shot:
    assert truth.cameras is not None
    return truth.cameras if question.cameras else Shot(len(truth), *truth.images.shape[-2:])


def _written(benchmark: Benchmark, out: Path, answered: Answered, shown: set[Question]) -> Line:
    """The line of one answer, once its features, strip and video are on disk."""
    question, answer = answered.question, answered.answer
    found: Measured | None = None
    if isinstance(answer, Failure) or answered.truth is None:
        line = failed(question, answer.reason if isinstance(answer, Failure) else "no true views")
    else:
        try:
            found = measured(question, answered.truth, answer, benchmark.tools)
            line = found.line
        except ValueError as error:
            line = failed(question, str(error))
    strip = None
    if found is not None and found.features:
        file = out / PARTS / place(question.setting, question.scene, ".npz")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, allow_pickle=False, **{name: values.numpy() for name, values in found.features.items()})
    if found is not None and question in shown:
        strip = "strips" / place(question.setting, question.scene, ".png")
        (out / strip).parent.mkdir(parents=True, exist_ok=True)
        (out / strip).write_bytes(png(found.strip))
    if found is not None and isinstance(answer, Scene) and benchmark.vbench is not None:
        video = out / "videos" / place(question.setting, question.scene, ".mp4")
        write_video(answer.views.images, video, overwrite=True)
    views = len(answer.views) if isinstance(answer, Scene) else WANTED
    timing = {
        "seconds_per_16_views": round(answered.seconds * WANTED / views, 4),
        "peak_memory_mib": answered.memory,
        "device": device_name(benchmark.device),
    }
    failure = line.pop("failure")
    return line | {"strip": None if strip is None else strip.as_posix(), "failure": failure, "timing": timing}


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


def device_name(device: str) -> str:
    """Model name of the processor that does the work."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _peak_memory(benchmark: Benchmark) -> float | None:
    """MiB that the method held at most: of the GPU's, or of this process or the outside one until now."""
    if benchmark.device.startswith("cuda") and not isinstance(benchmark.method, Outside):
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    who = resource.RUSAGE_CHILDREN if isinstance(benchmark.method, Outside) else resource.RUSAGE_SELF
    unit = 1 if platform.system() == "Darwin" else 2**10
    return round(resource.getrusage(who).ru_maxrss * unit / 2**20, 1)


def _shown(questions: Sequence[Question]) -> set[Question]:
    count: dict[str, int] = {}
    shown = set()
    for question in questions:
        count[question.setting] = count.get(question.setting, 0) + 1
        if count[question.setting] <= STRIPS:
            shown.add(question)
    return shown


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
