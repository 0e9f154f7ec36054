"""The flags of commands with more to do than one process need do."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from diorama.cli.requests import check


@dataclass(frozen=True)
class WorkerFlags:
    """Who does the work: this process, those that torchrun started, or a cluster."""

    ray: Annotated[str | None, arg(metavar="local|auto|HOST:PORT", help_behavior_hint="")] = None
    """Let a Ray cluster do it: one of this machine, the one it belongs to, or the one at an address."""
    workers: Annotated[int | None, arg(help_behavior_hint="(default: one for each GPU, else for each core)")] = None
    """Processes of the cluster."""

    def check(self) -> None:
        """ValueError for what means nothing."""
        check("--workers", self.workers, self.workers is None or self.workers >= 1, "1 or more")
        if self.workers is not None and self.ray is None:
            raise ValueError(f"--workers {self.workers}: only a cluster has them; leave it out, or give --ray")
