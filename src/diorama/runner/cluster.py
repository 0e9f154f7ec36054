"""Work on a cluster, by Ray: one process for each device, which loads once; one that dies is replaced."""

import contextlib
import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from diorama.runner.spread import Here
from diorama.runner.work import Do, Failed, Kept, Work, attempted

LOCAL = "local"  # the address of a cluster of this machine alone, which ends with the command
DEATHS = 3  # of workers at a batch until its items are tried alone, and at an item until that is given up
STORE = 128 * 2**20  # bytes of shared memory of a local cluster: only requests and a few numbers pass through it
STARTS = 3  # of a local cluster: on a busy machine Ray's own parts may not find each other in the 30 s that they wait
SETTINGS = {  # read by Ray when it is first imported; what a user has set stays
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns about workers without a GPU
}
ALONE = {  # of a local cluster
    "RAY_AUTH_MODE": "token",  # other users of this machine may not send it work
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too, what this does is to listen on 127.0.0.1 only
}


class Task(NamedTuple):
    """A batch, and how many workers died of it."""

    items: Sequence[Any]
    deaths: int = 0


class Worker:
    """A process of the cluster: loads the work when it is first asked whether it is ready."""

    def __init__(self, work: Work, device: str, threads: int, folder: str) -> None:
        self.work, self.device, self.threads, self.folder = work, device, threads, folder
        self.do: Do | None = None

    def ready(self) -> None:
        """Load what all items need."""
        import torch

        if os.path.isdir(self.folder):
            os.chdir(self.folder)  # what the command's relative paths begin at
        if self.threads:
            torch.set_num_threads(self.threads)
        self.do = self.work.open(self.device)

    def results(self, items: Sequence[Any]) -> list[Any]:
        """The results of a batch."""
        assert self.do is not None
        return attempted(self.do, items)


class Cluster(Here):
    """Processes anywhere that Ray reaches, with the same files and the same packages."""

    remote = True

    def __init__(self, device: str, workers: int | None = None) -> None:
        import ray

        super().__init__(device)
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0))
        if device.startswith("cuda") and not gpus:
            raise ValueError(f"--device {device}: the cluster has no GPU; accepted are auto and cpu")
        self.gpu = gpus > 0 and device.startswith(("auto", "cuda"))
        self.workers = workers or (gpus if self.gpu else max(1, int(found.get("CPU", 1))))

    def run(self, work: Work, batches: Sequence[Sequence[Any]], kept: Kept) -> None:
        """Give batches to workers as these become free. OSError where workers die before they have done anything."""
        import ray

        kind: Any = ray.remote(num_cpus=0 if self.gpu else 1, num_gpus=int(self.gpu))(Worker)
        shared, device = ray.put(work), "cuda" if self.gpu else self.device
        queue = deque(Task(batch) for batch in batches)
        waiting: dict[Any, tuple[Any, Task | None]] = {}  # what was asked of which worker; None: to be ready
        lost = 0  # workers in a row that died, none doing anything meanwhile

        def start() -> None:
            """As many workers as there is work for."""
            loading = sum(task is None for _, task in waiting.values())
            for _ in range(min(self.workers - len(waiting), len(queue) - loading)):
                worker = kind.remote(shared, device, 0 if self.gpu else 1, os.getcwd())
                waiting[worker.ready.remote()] = (worker, None)

        start()
        try:
            while waiting:
                (answer, *_), _ = ray.wait(list(waiting))
                worker, task = waiting.pop(answer)
                try:
                    results = ray.get(answer)
                except ray.exceptions.RayActorError as error:  # type: ignore[attr-defined]
                    ray.kill(worker)  # it may only be out of reach
                    lost += 1
                    if lost > DEATHS * (1 + self.workers):
                        raise OSError(f"{lost} workers died one after the other: {_first_line(error)}") from None
                    if task is not None:
                        queue.extend(after_death(task, kept))
                    start()
                    continue
                except ray.exceptions.RayTaskError as error:  # type: ignore[attr-defined]
                    raise error.cause if isinstance(error.cause, Exception) else error from None
                lost = 0
                if task is not None:
                    kept(task.items, results)
                if queue:
                    task = queue.popleft()
                    waiting[worker.results.remote(task.items)] = (worker, task)
                else:
                    ray.kill(worker)
        finally:
            for worker, _ in waiting.values():
                ray.kill(worker)


def after_death(task: Task, kept: Kept) -> list[Task]:
    """What is still to be done after a worker died of it: the same again, its items alone, or nothing more."""
    deaths = task.deaths + 1
    if deaths < DEATHS:
        return [Task(task.items, deaths)]
    if len(task.items) > 1:
        return [Task([item]) for item in task.items]
    kept(task.items, [Failed(f"{deaths} workers died of it")])
    return []


@contextmanager
def cluster(address: str, device: str, workers: int | None) -> Iterator[Cluster]:
    """The cluster at an address, or one started here for this block; OSError where there is none.

    Within a program that has connected to Ray already, its cluster, whatever the address.
    """
    for name, value in (SETTINGS | (ALONE if address == LOCAL else {})).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield Cluster(device, workers)
        return
    quiet: dict[str, Any] = dict(log_to_driver=False, configure_logging=False, logging_level="ERROR")
    try:
        if address == LOCAL:
            _start(workers, quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        raise OSError(f"--ray {address}: {_first_line(error)}") from None
    try:
        yield Cluster(device, workers)
    finally:
        ray.shutdown()


def _start(workers: int | None, quiet: dict[str, Any]) -> None:
    """A cluster of this machine, without dashboard."""
    import psutil  # Ray and accelerate bring it
    import ray

    others = set(psutil.Process().children(recursive=True))
    for attempt in range(STARTS):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # how to turn the token off
                ray.init(address=LOCAL, num_cpus=workers, include_dashboard=False, object_store_memory=STORE, **quiet)
            return
        except Exception as error:  # Ray raises no narrower one
            ray.shutdown()
            for left in set(psutil.Process().children(recursive=True)) - others:  # of a start that failed
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            if "timed out during startup" not in str(error) or attempt == STARTS - 1:
                raise OSError(f"--ray {LOCAL}: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
