"""The `diorama` command: finds the verb, runs it, and turns what goes wrong into one line.

A verb is a module `diorama.cli.<verb>`, imported only when it is called:

    @dataclass(frozen=True)
    class Arguments:              # every field a flag, its docstring the flag's help
        photo: Path
        \"\"\"The photo to start from.\"\"\"

    def run(arguments: list[str]) -> int:
        options = tyro.cli(Arguments, args=arguments, prog="diorama verb", description="One sentence.")
        from diorama.pipelines.base import load     # heavy imports here, so that --help stays instant
        ...
        return 0

Its module level imports neither torch nor anything that does. tyro itself prints --help (exit 0) and wrong flags
(exit 2). What the user can mend is raised as `ValueError` or `OSError` with one line for a message; anything else is a
defect and keeps its traceback, except a package or memory that this machine lacks.
"""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module

VERBS = {
    "demo": "make a small scene with the embedded weights and show that everything works",
    "generate": "make a scene from photos, a camera path and a prompt",
    "reconstruct": "make a scene from many photos of it",
    "render": "show a saved scene from other cameras, without sampling again",
    "export": "write a saved scene for other programs: points, mesh, COLMAP, splats, video, a web page",
    "fit-splats": "fit Gaussians to what the model shows of a scene, by gsplat on a GPU",
    "view": "fly through a scene in the browser",
    "studio": "make scenes in the browser: photos, a path, progress, the result to fly through and keep",
    "train": "train the models",
    "evaluate": "score a method on a benchmark, ours or another's, against published protocols",
    "download": "fetch published weights, once their size and licence have been seen",
    "convert": "turn published weights into our smaller layout",
    "data": "render the procedural worlds that training reads",
    "doctor": "say what is installed here and what is missing",
}

# Read by the libraries when they are first imported: their bars and hints are not about what a user asked for.
QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb that `arguments` (the process's own by default) begin with and give its exit code.

    0 is success, 2 a mistake the user can mend, 130 an interruption by the keyboard.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from diorama import __version__

        print(f"diorama {__version__}")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "'diorama --help' lists the commands"
        return _say(f"unknown command {verb!r}: {hint}", 2)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with _ended_politely():
            return import_module(f"diorama.cli.{verb.replace('-', '_')}").run(rest)
    except (Exception, KeyboardInterrupt) as error:
        message = _explanation(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        return _say(message, 130 if isinstance(error, KeyboardInterrupt) else 2)


@contextmanager
def _ended_politely() -> Iterator[None]:
    """A request to end, as batch systems send it, interrupts like the keyboard: what was begun is removed."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _help() -> str:
    width = max(map(len, VERBS))
    return "\n".join(
        [
            "usage: diorama COMMAND [options]",
            "",
            "3D scenes from a few photos, a camera path and text.",
            "",
            *(f"  {verb:<{width}}  {meaning}" for verb, meaning in VERBS.items()),
            "",
            "'diorama COMMAND --help' lists a command's options.",
            "--version says which version this is; --debug, anywhere, shows the whole traceback of an error.",
        ]
    )


def _explanation(error: BaseException) -> str | None:
    """What went wrong, in one line, or None where it is a defect of ours."""
    text = " ".join(str(error).split())
    match error:
        case KeyboardInterrupt():
            return "interrupted"
        case OSError(errno=errno.ENOSPC):
            return f"{error.filename or 'writing'}: the disk is full"
        case OSError(strerror=str(reason)):
            return reason if error.filename is None else f"{error.filename}: {reason}"
        case ValueError() | OSError():
            return text or type(error).__name__
        case ModuleNotFoundError(name=str(name)) if not name.startswith("diorama"):
            return f"the package {name!r} is not installed: 'diorama doctor' shows the line that adds it"
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError":  # torch's, by name: torch stays unimported
            return f"the device has too little memory: {text}"
    return None


def _say(message: str, code: int) -> int:
    print(f"diorama: {message}", file=sys.stderr)
    return code
