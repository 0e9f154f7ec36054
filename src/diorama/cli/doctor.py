"""`diorama doctor`: what is installed here and what is missing."""

import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import tyro


@dataclass(frozen=True)
class Arguments:
    """No options: the doctor looks at everything."""


class Finding(NamedTuple):
    """One line of the table; `ok` is None where something optional is absent."""

    what: str
    found: str
    ok: bool | None


def run(arguments: list[str]) -> int:
    """Print the table and give 0, or 1 if something that every command needs is missing."""
    tyro.cli(Arguments, args=arguments, prog="diorama doctor", description="Say what is installed and what is missing.")
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
