"""One piece of work at a time, in a thread of its own, which tells how far it is and can be cancelled."""

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from diorama.pipelines.base import Cancelled


class Busy(ValueError):
    """A job runs already; in one line, which says how far it is."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    result: Any = None  # None unless it ended well
    error: str = ""  # in one line
    cancelled: bool = False


class Job:
    """Work under way: its thread tells the phase and the step, any other thread reads them or cancels it."""

    def __init__(self, owner: Any, changed: Callable[[], None]) -> None:
        self.owner, self.phase, self.done, self.total = owner, "beginning", 0, 0
        self._changed, self._cancelled = changed, threading.Event()

    def tell(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Say what is done now, step `done` of `total` where they are counted; `Cancelled` if that was asked for."""
        self.check()
        self.phase, self.done, self.total = phase, done, total
        self._changed()

    def check(self) -> None:
        """Raise `Cancelled` if that was asked for."""
        if self._cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """End it at its next step, or before the next layer of a network: see `interruptible`."""
        self._cancelled.set()
        self._changed()

    @property
    def share(self) -> float | None:
        """How much of the counted steps is done, 0 to 1; None where nothing is counted."""
        return self.done / self.total if self.total else None

    @property
    def words(self) -> str:
        """What it does now."""
        phase = f"{self.phase}, {self.done} of {self.total}" if self.total else self.phase
        return f"cancelling ({phase})" if self._cancelled.is_set() else phase


class Worker:
    """Runs one job at a time and refuses the others: nothing waits in a queue."""

    def __init__(self, changed: Callable[[Job | None], None]) -> None:
        """`changed` is called, by any thread, whenever the job or its phase is another; with None if there is none."""
        self.job: Job | None = None
        self._changed, self._turn = changed, threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[Job], Any], ended: Callable[[Outcome], None], owner: Any = None) -> Job:
        """Begin `work`, and call `ended` from its thread when another job may begin; `Busy` while one runs."""
        with self._turn:
            if self.job is not None:
                raise Busy(f"a job is running ({self.job.words}): one at a time, so wait for its end")
            job = self.job = Job(owner, lambda: self._changed(self.job))
            self._thread = threading.Thread(target=self._run, args=(job, work, ended), daemon=True, name="job")
            self._thread.start()
        return job

    def stop(self, seconds: float = 10.0) -> None:
        """Cancel what runs, and wait for its end so long at most."""
        job, thread = self.job, self._thread
        if job is not None:
            job.cancel()
        if thread is not None:
            thread.join(seconds)

    def _run(self, job: Job, work: Callable[[Job], Any], ended: Callable[[Outcome], None]) -> None:
        self._changed(job)
        outcome = _outcome(job, work)
        with self._turn:
            self.job = None
        ended(outcome)
        self._changed(self.job)


def _outcome(job: Job, work: Callable[[Job], Any]) -> Outcome:
    try:
        with interruptible(job.check):
            result = work(job)
        job.check()  # what came too late for the last step counts all the same
        return Outcome(result)
    except Cancelled:
        return Outcome(cancelled=True)
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, (ValueError, OSError)):
            return Outcome(error=text or type(error).__name__)
        traceback.print_exc()  # a defect of ours, or too little memory: the terminal has the rest
        return Outcome(error=f"{type(error).__name__}: {text}"[:500])


@contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """In this block `check` runs before every layer of a network that this thread computes; it may raise."""
    thread = threading.get_ident()

    def before(*_: Any) -> None:
        if threading.get_ident() == thread:
            check()

    hook = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()
