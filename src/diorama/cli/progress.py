"""What a command shows while it works and says afterwards."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diorama.scene import Scene

PATIENCE = 2.0  # seconds before a bar appears


class Progress:
    """A bar for work that takes a while, on terminals only; called with (done, all), as `on_step` is."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.began = self.stepped = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        self.began = self.stepped = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` are done."""
        self.stepped = time.monotonic()
        if self._bar is None and self.stepped - self.began > PATIENCE and done < total and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.add_task(self.what)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(0, completed=done, total=total)

    @property
    def seconds(self) -> tuple[float, float]:
        """From the beginning to the last step, and since then."""
        return self.stepped - self.began, time.monotonic() - self.stepped


def describe(scene: "Scene", out: Path, seconds: dict[str, float]) -> None:
    """Print what was written where, by which model, and how long each part took."""
    views, known, made = scene.views, scene.condition.views, scene.provenance
    height, width = views.images.shape[-2:]
    source = "" if known is None else f" from {len(known)} photo{'s' if len(known) > 1 else ''}"
    seed = "" if made.seed is None else f", seed {made.seed}"
    print(f"{out}: {len(views)} views of {height}x{width} pixels{source}")
    print(f"  model {made.model} (weights: {made.licence}){seed}")
    print("  " + ", ".join(f"{what} {value:.1f} s" for what, value in seconds.items()))


def compiling(pipeline: Any) -> dict[str, float]:
    """How long the first calls took for which a model was compiled, if it was."""
    made = pipeline.compilation
    return {} if made is None or made.reason else {"of these compiling": made.seconds}


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
