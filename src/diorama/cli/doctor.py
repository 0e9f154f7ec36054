"""`diorama doctor`: what is installed here and what is missing, or what a published model would need."""

import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

import tyro


@dataclass(frozen=True)
class Arguments:
    """Without options, the doctor looks at everything that is here."""

    plan: str | None = None
    """A published model (gen3r or vggt) whose memory is told instead, stage by stage; needs neither it nor a GPU."""
    views: int = 49
    """How many views, for a plan."""
    size: str = "560x560"
    """Their height and width in pixels, for a plan."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """The weights' precision, for a plan."""
    offload: Literal["none", "stages", "blocks"] = "stages"
    """What is on the device at once, for a plan: all models, the one that works, or of the largest one block."""


class Finding(NamedTuple):
    """One line of the table; `ok` is None where something optional is absent."""

    what: str
    found: str
    ok: bool | None


def run(arguments: list[str]) -> int:
    """Print the table and give 0, or 1 if something that every command needs is missing."""
    about = "Say what is installed and what is missing, or what a published model would need."
    options = tyro.cli(Arguments, args=arguments, prog="diorama doctor", description=about)
    if options.plan is not None:
        return _planned(options)
    from rich import box
    from rich.console import Console
    from rich.table import Table

    findings = [*_machine(), *_torch(), *_requirements(), *_weights(), *_disk()]
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for what, found, ok in findings:
        mark = {True: "[green]ok", False: "[red]missing", None: "[yellow]optional"}[ok]
        table.add_row(what, mark, found.replace("[", r"\["))
    Console().print(table)
    return 0 if all(finding.ok is not False for finding in findings) else 1


def _planned(options: Arguments) -> int:
    """Print a plan: a column a stage, then the most that any stage needs in every way to offload."""
    size = re.fullmatch(r"(\d+)x(\d+)", options.size)
    if size is None:
        raise ValueError(f"--size {options.size!r}: accepted is HEIGHTxWIDTH, like 560x560")
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from diorama.pipelines.plan import DTYPES, Request, plan
    from diorama.pipelines.staging import OFFLOADS

    request = Request(options.views, int(size[1]), int(size[2]), DTYPES[options.dtype])
    stages = plan(str(options.plan), request)
    table = Table("GiB", *(stage.name for stage in stages), box=box.SIMPLE_HEAD)
    rows = {
        "weights": [stage.weights[options.offload] for stage in stages],
        "activations": [stage.activations for stage in stages],
        "together": [stage.together(options.offload) for stage in stages],
    }
    for name, numbers in rows.items():
        table.add_row(name, *(f"{number / 2**30:.2f}" for number in numbers))
    console = Console(width=max(100, Console().width), highlight=False)
    console.print(table)
    for offload in OFFLOADS:
        most = max(stages, key=lambda stage: stage.together(offload))
        console.print(f"peak with --offload {offload}: {most.together(offload) / 2**30:.2f} GiB, in {most.name!r}")
    console.print("Planned, not measured: a device also holds what its libraries and its allocator take.")
    return 0


def _machine() -> list[Finding]:
    return [
        Finding("diorama", f"{version('diorama')} in {Path(__file__).parents[1]}", True),
        Finding("Python", f"{platform.python_version()} ({platform.python_implementation()})", True),
        Finding("system", f"{platform.platform()}, {os.cpu_count()} processors", True),
    ]


def _torch() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a build for another machine fails with either
        return [Finding("torch", f"cannot be imported: {error}", False)]
    findings = [
        Finding("torch", torch.__version__, True),
        Finding("cpu", f"{torch.get_num_threads()} threads", True),
    ]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        findings.append(Finding(f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.1f} GiB", True))
    if not torch.cuda.is_available():
        findings.append(Finding("cuda", "no device", None))
    mps = torch.backends.mps.is_available()
    findings.append(Finding("mps", "available" if mps else "no device", True if mps else None))
    return findings


def _requirements() -> list[Finding]:
    """The packages that pyproject.toml names, core first, then each extra with the line that adds what it lacks."""
    groups: dict[str, list[str]] = {"": []}
    for requirement in requires("diorama") or []:
        wanted, _, marker = requirement.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)", marker)
        groups.setdefault(extra[1] if extra else "", []).append(wanted.strip())
    findings = []
    for extra, wanted in groups.items():
        absent = [requirement for requirement in wanted if not _installed(requirement)]
        if absent:
            line = "pip install " + " ".join(f'"{requirement}"' for requirement in absent)
            findings.append(Finding(extra or "requirements", line, None if extra else False))
        else:
            findings.append(Finding(extra or "requirements", ", ".join(map(_distribution, wanted)), True))
    return findings


def _distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _installed(requirement: str) -> bool:
    try:
        version(_distribution(requirement))
    except PackageNotFoundError:
        return False
    return True


def _weights() -> list[Finding]:
    folders = sorted((Path(__file__).parents[1] / "weights").glob("*/"))
    findings = []
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        findings.append(Finding("weights", f"{folder.name}, {size / 2**20:.1f} MiB", True))
    return findings or [Finding("weights", "none embedded", None)]


def _disk() -> list[Finding]:
    temporary = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"diorama")
        writable = Finding("temporary files", f"{temporary} is writable", True)
    except OSError as error:
        writable = Finding("temporary files", f"{temporary} cannot be written: {error}", False)
    free = shutil.disk_usage(Path.cwd()).free
    return [writable, Finding("free disk", f"{free / 2**30:.1f} GiB here", True)]
