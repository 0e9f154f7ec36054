"""What is asked of a method, batch by batch, and scored: the work of a benchmark, wherever it is done."""

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from diorama.evaluation.methods import WANTED, Failure, Lazy, Method, Oracle
from diorama.evaluation.outside import Outside
from diorama.evaluation.protocols import Protocol
from diorama.evaluation.scoring import Instruments, Measured, failed, measured
from diorama.evaluation.splits import Question, Scenes
from diorama.evaluation.summaries import Line, place
from diorama.export.depth import png
from diorama.export.video import write_video
from diorama.geometry.cameras import Cameras
from diorama.runner.work import Do
from diorama.scene import Condition, Scene, Shot, Views

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


@dataclass(frozen=True)
class Asking:
    """The line of each question, once what belongs to it is on disk: `diorama.runner.work.Work`."""

    make: Callable[[str], Benchmark]  # for a device; pickled where others ask
    out: Path

    def open(self, device: str) -> Do:
        """Load the method and what it is measured with."""
        benchmark = self.make(device)
        return partial(self.lines, benchmark, _shown(benchmark.scenes.questions()))

    def lines(self, benchmark: Benchmark, shown: set[Question], questions: Sequence[Question]) -> list[Line]:
        """A line for each question; ValueError where the method cannot answer them together."""
        return [_written(benchmark, self.out, answer, shown) for answer in _answers(benchmark, questions)]


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
    """The method's answers; ValueError where they cannot be given together, and a failure where not even one alone."""
    count = len(questions)
    conditions = Lazy(count, lambda row: _condition(questions[row], truths[row]))
    wanted = Lazy(count, lambda row: _wanted(questions[row], truths[row]))
    try:
        teller = method.told(truths) if isinstance(method, Oracle) else method
        return teller.generate(conditions, wanted, [question.seed for question in questions])
    except ValueError as error:
        if count > 1:
            raise
        return [Failure(str(error))]


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
