"""The command line: dispatch, errors in one line, and the doctor."""

import errno
import os
import subprocess
import sys
import types

import pytest

from diorama.cli import doctor
from diorama.cli.main import VERBS, main


def diorama(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it, followed by a line that says whether torch was imported."""
    program = (
        "import sys; from diorama.cli.main import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "print('torch imported:', 'torch' in sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Replace what `diorama demo` runs."""

    def replace(run) -> None:
        module = types.ModuleType("diorama.cli.demo")
        module.run = run
        monkeypatch.setitem(sys.modules, "diorama.cli.demo", module)

    return replace


def raising(error: BaseException):
    def run(arguments: list[str]) -> int:
        raise error

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("--version",), ("doctor", "--help")])
def test_what_only_prints_needs_no_torch(arguments):
    result = diorama(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("torch imported: False\n")
    assert result.stderr == ""


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_tells_its_options_without_torch(name):
    result = diorama(name, "--help")
    assert result.returncode == 0, result.stderr
    assert f"usage: diorama {name}" in result.stdout
    assert result.stdout.endswith("torch imported: False\n")


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_refuses_a_flag_it_does_not_have(name):
    needed = {"evaluate": ("tiny", "worlds"), "download": ("vggt",), "convert": ("a", "b")}.get(name, ())
    result = diorama(name, *needed, "--no-such-flag", "1")
    assert result.returncode == 2
    assert "--no-such-flag" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in VERBS)


@pytest.mark.parametrize(
    ("word", "hint"), [("genrate", "did you mean 'generate'?"), ("qqq", "'diorama --help' lists the commands")]
)
def test_an_unknown_verb_is_one_line(word, hint, capsys):
    assert main([word]) == 2
    assert capsys.readouterr().err == f"diorama: unknown command {word!r}: {hint}\n"


def test_a_verb_gets_what_follows_it_and_its_code_is_returned(verb):
    seen = []
    verb(lambda arguments: seen.extend(arguments) or 7)
    assert main(["demo", "--views", "3"]) == 7
    assert seen == ["--views", "3"]


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("room.jpg: 3 by 0 pixels\n accepted: at least 16 by 16"),
            "room.jpg: 3 by 0 pixels accepted: at le",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.jpg"), "a.jpg: No such file or directory"),
        (FileExistsError("out: exists already"), "out: exists already"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: Not a directory"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x.png"), "out/x.png: the disk is full"),
        (OSError(errno.ENOSPC, "No space left on device"), "writing: the disk is full"),
        (ModuleNotFoundError("No module named 'viser'", name="viser"), "the package 'viser' is not installed"),
        (OutOfMemoryError("tried to allocate 2 GiB"), "the device has too little memory: tried to allocate 2 GiB"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_the_user_can_mend_is_one_line(verb, capsys, error, message):
    verb(raising(error))
    assert main(["demo"]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"diorama: {message}")
    assert text.count("\n") == 1


def test_an_interruption_is_one_line(verb, capsys):
    verb(raising(KeyboardInterrupt()))
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "diorama: interrupted\n"


@pytest.mark.parametrize("arguments", [["--debug", "demo"], ["demo", "--debug"]])
def test_debug_shows_the_traceback_as_well(verb, capsys, arguments):
    verb(raising(ValueError("too small")))
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("diorama: too small\n")


@pytest.mark.parametrize("error", [RuntimeError("a defect"), ModuleNotFoundError("ours", name="diorama.gone")])
def test_a_defect_keeps_its_traceback(verb, error):
    verb(raising(error))
    with pytest.raises(type(error)):
        main(["demo"])


def test_the_doctor_finds_a_working_installation(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("Python", "torch", "cpu", "viewer", "weights", "free disk"):
        assert word in text
    assert "missing" not in text


def test_the_doctor_names_the_line_that_adds_what_is_absent(monkeypatch, capsys):
    absent = {"viser", "scipy"}
    installed = doctor._installed
    monkeypatch.setattr(
        doctor, "_installed", lambda wanted: doctor._distribution(wanted) not in absent and installed(wanted)
    )
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert 'pip install "viser>=' in lines["viewer"]
    assert "optional" in lines["viewer"]
    assert 'pip install "scipy>=' in lines["requirements"]
    assert "missing" in lines["requirements"]


def test_the_doctor_says_when_torch_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor._torch()[0].ok is False


def test_the_doctor_says_when_nothing_can_be_written(monkeypatch):
    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert doctor._disk()[0].ok is False
