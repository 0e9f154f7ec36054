"""Work done to many things in batches: what a process loads once, what it gives, and what one failure costs."""

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

Do = Callable[[Sequence[Any]], Sequence[Any]]  # a batch of items -> a result, or `Failed`, of each
Kept = Callable[[Sequence[Any], Sequence[Any]], None]  # told of each batch and its results, once they are there
FULL = (errno.ENOSPC, errno.EDQUOT)


class Failed(NamedTuple):
    """In place of a result."""

    reason: str  # one line


@runtime_checkable
class Work(Protocol):
    """What is done to every item. A cluster pickles it, and the items and results with it."""

    def open(self, device: str) -> Do:
        """Load, once in a process, what all items need; ValueError or OSError where that cannot be."""
        ...


def attempted(do: Do, items: Sequence[Any]) -> list[Any]:
    """The results of a batch; where it cannot be done together, of each item alone: one that fails stops no other.

    OSError where the disk is full, which every other item would meet too.
    """
    try:
        results = list(do(items))
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results of {len(items)} items")
        return results
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        if len(items) == 1:
            return [Failed(reason(error))]
    return [attempted(do, [item])[0] for item in items]  # outside of `except`, which would keep the batch's tensors


def reason(error: BaseException) -> str:
    """What went wrong, in one line; the kind of error too unless it is one that explains itself."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, ValueError | OSError) and text:
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def batched(items: Iterable[Any], size: int, shape: Callable[[Any], Any]) -> list[list[Any]]:
    """Items of equal shape, `size` of them together at most, each shape in the items' order."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(shape(item), []).append(item)
    return [part[start : start + size] for part in groups.values() for start in range(0, len(part), size)]
