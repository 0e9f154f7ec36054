"""Who does the work: this process alone, the processes that torchrun started, or a cluster."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from diorama.runner.work import Kept, Work, attempted

FOREVER = timedelta(days=365)  # one process may have much more to do than another that waits for it


class Here:
    """This process, batch after batch."""

    rank, world = 0, 1
    remote = False  # whether the work is pickled and loaded elsewhere

    def __init__(self, device: str = "auto") -> None:
        self.device = device

    @property
    def leads(self) -> bool:
        """Whether this process writes what all share, and speaks."""
        return self.rank == 0

    def share(self, batches: Sequence[Any]) -> Sequence[Any]:
        """Those that this process is told the results of."""
        return batches[self.rank :: self.world]

    @contextmanager
    def first(self) -> Iterator[None]:
        """In this block the leading process goes before all others, which wait for it."""
        yield

    def together(self, value: Any) -> list[Any]:
        """This value of every process, in all of them."""
        return [value]

    def run(self, work: Work, batches: Sequence[Sequence[Any]], kept: Kept) -> None:
        """Do this process's share; what fails alone is a `Failed` among the results."""
        mine = self.share(batches)
        if not mine:
            return
        do = work.open(self.device)
        for batch in mine:
            kept(batch, attempted(do, batch))


class Processes(Here):
    """The processes that torchrun started, each with its share by rank; they talk on the CPU."""

    def __init__(self, device: str = "auto") -> None:
        import torch

        super().__init__(device)
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if device in ("auto", "cuda") and torch.cuda.is_available():
            self.device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"

    @contextmanager
    def first(self) -> Iterator[None]:
        """In this block the leading process goes before all others, which wait for it."""
        import torch.distributed as dist

        if not self.leads:
            dist.barrier()
        yield
        if self.leads:
            dist.barrier()
        dist.barrier()

    def together(self, value: Any) -> list[Any]:
        """This value of every process, in all of them."""
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


@contextmanager
def spread(device: str, ray: str | None = None, workers: int | None = None) -> Iterator[Here]:
    """Whoever does the work in this block: a cluster where `ray` names one, torchrun's processes where it started this.

    ValueError where both are asked for, or what there is not.
    """
    import torch.distributed as dist

    launched = dist.is_available() and dist.is_torchelastic_launched()
    if ray is not None:
        if launched:
            raise ValueError(f"--ray {ray} under torchrun: accepted is one of the two")
        from diorama.runner.cluster import cluster

        with cluster(ray, device, workers) as found:
            yield found
    elif launched:
        with _group(), contextlib.ExitStack() as stack:
            processes = Processes(device)
            if not processes.leads:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # what one says is enough
            yield processes
    else:
        yield Here(device)


@contextmanager
def _group() -> Iterator[None]:
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=FOREVER)
    try:
        yield
    finally:
        dist.destroy_process_group()


def telling(progress: Callable[[int, int], None] | None, done: int, total: int) -> Callable[[int], None]:
    """Tells `progress`, which is called with how many more are done."""
    count = done

    def more(number: int) -> None:
        nonlocal count
        count += number
        if progress:
            progress(count, total)

    return more
