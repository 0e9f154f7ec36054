"""torch.compile for what a pipeline asks most: denoiser and decoder, at static shapes, as CUDA graphs if there are."""

import logging
import os
import time
from collections.abc import Callable
from functools import partial, wraps
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from diorama.models.perceptual import cache_folder
from diorama.models.rae3d import Decoded
from diorama.pipelines.base import ScenePipeline

BACKEND = "inductor"  # of torch.compile
SHAPES = 64  # for which one function may be compiled
ARTEFACTS = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps what it compiled, for later processes
_log = logging.getLogger(__name__)


def no_compiler(device: torch.device, backend: str | Callable[..., Any] = BACKEND) -> str:
    """Why torch.compile does not work on this device; nothing if it does. Several shapes are expected from now on."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    try:
        torch.compile(lambda x: (x * 2).sin(), backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds, by what is missing: a C++ compiler, Triton, Python's headers
        return reason_of(error)
    return ""


def reason_of(error: Exception) -> str:
    """What went wrong while compiling, in one line."""
    inner = getattr(error, "inner_exception", error)
    lines = str(inner).strip().splitlines() or [type(inner).__name__]
    why = [line.strip() for line in lines if line.strip().startswith("Explanation: ")]  # of what cannot be traced
    return "; ".join([lines[0], *why[:1]])


def own_artefacts() -> Path:
    """Where torch keeps what it compiles, from now on: the user's cache folder, unless the environment names one.

    ValueError where others could put something there: what it holds is run.
    """
    if ARTEFACTS not in os.environ:
        folder = cache_folder("compiled").absolute()
        folder.mkdir(0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
            accepted = f"accepted is a folder of your own that nobody else can write to, or one named by {ARTEFACTS}"
            raise ValueError(f"{folder}: others can write compiled code there, which would be run; {accepted}")
        os.environ[ARTEFACTS] = str(folder)
    return Path(os.environ[ARTEFACTS])


class Compilation:
    """What of a pipeline is compiled: each function anew for every shape it meets.

    `seconds` is what the first call at each shape took, compiling and one run. Once anything cannot be compiled,
    `reason` tells why, which was logged in one line, and all runs as it was before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.reason = no_compiler(device, BACKEND)
        if self.reason:
            self._refused(self.reason)

    def _refused(self, reason: str) -> None:
        self.reason = reason
        _log.warning("compile: not possible here (%s); goes on without", reason)

    def compiled(self, plain: Callable[..., Any], *, graphs: bool) -> Callable[..., Any]:
        """`plain`, compiled while that is possible; with `graphs` every shape becomes one CUDA graph."""
        graphs = graphs and self.device.type == "cuda"
        fast = torch.compile(
            plain, fullgraph=True, dynamic=False, backend=BACKEND, mode="reduce-overhead" if graphs else None
        )
        seen: set[tuple[Any, ...]] = set()

        def run(*inputs: Any, **named: Any) -> Any:
            if not graphs:
                return fast(*inputs, **named)
            torch.compiler.cudagraph_mark_step_begin()
            # A graph writes its result to the same place every time, so that callers get a copy to keep.
            return tree_map_only(Tensor, torch.clone, fast(*inputs, **named))

        @wraps(plain)
        def function(*inputs: Any, **named: Any) -> Any:
            if self.reason:
                return plain(*inputs, **named)
            if (key := shapes((inputs, named))) in seen:
                return run(*inputs, **named)
            began = time.perf_counter()
            try:
                result = run(*inputs, **named)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler's errors are of many kinds; an error of `plain` comes again
                result = plain(*inputs, **named)
                self._refused(reason_of(error))
                return result
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds += time.perf_counter() - began
            seen.add(key)
            return result

        return function


def shapes(values: Any) -> tuple[Any, ...]:
    """What a function is compiled for: shape and type of every tensor, and everything else as it is."""
    return tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in tree_leaves(values))


def whole_count(views: int) -> int:
    """So many views are decoded instead, that few shapes are enough for all: 1, 2, 4, 8, 16, 24, 32, ..."""
    return 1 << (views - 1).bit_length() if views <= 8 else -8 * (-views // 8)


def in_whole_counts(decode: Callable[..., Decoded], scene: Any, rays: Tensor) -> Decoded:
    """`decode` of rays whose last view is repeated up to a whole count; views do not see each other."""
    views = rays.shape[1]
    more = rays[:, -1:].expand(-1, whole_count(views) - views, *rays.shape[2:])
    made = decode(scene, torch.cat([rays, more], 1).contiguous())
    return Decoded(*(None if x is None else x[:, :views] for x in made))  # type: ignore[arg-type]


# Of each class of pipeline: function, whether it becomes a CUDA graph, and what stands between it and its callers.
# A step of Gen3R takes so long that launching its kernels does not matter; by block, step caches go on working.
PARTS: dict[str, tuple[tuple[str, bool, Callable[..., Any] | None], ...]] = {
    "TokenPipeline": (
        ("denoiser.forward", True, None),
        ("autoencoder.cache", True, None),
        ("autoencoder.decode", True, in_whole_counts),
    ),
    "Gen3RPipeline": (("transformer.blocks.forward", False, None),),
}


def compile_pipeline(pipeline: ScenePipeline, device: torch.device) -> ScenePipeline:
    """The same pipeline, which compiles its denoiser and decoder when they first meet a shape; see `Compilation`.

    ValueError for a pipeline that has no such parts or whose blocks come and go.
    """
    kind = type(pipeline).__name__
    if kind not in PARTS:
        raise ValueError(f"a {kind} is not compiled; accepted are {', '.join(PARTS)} only, leave compile out")
    if getattr(pipeline, "offload", "none") == "blocks":
        raise ValueError("compile with offload 'blocks', which moves what is compiled; accepted are none and stages")
    own_artefacts()
    pipeline.compilation = compilation = Compilation(device)
    if compilation.reason:
        return pipeline
    for path, graphs, between in PARTS[kind]:
        place, _, name = path.rpartition(".")
        owner = attrgetter(place)(pipeline)
        for part in owner if isinstance(owner, nn.ModuleList) else [owner]:
            function = compilation.compiled(getattr(part, name), graphs=graphs)
            setattr(part, name, function if between is None else partial(between, function))
    return pipeline
