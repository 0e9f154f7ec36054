"""Parts of a pipeline take turns on the device: each visits for its own stage and waits in main memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from diorama.pipelines.base import ScenePipeline

OFFLOADS = ("none", "stages", "blocks")


class StagedPipeline(ScenePipeline):
    """A pipeline of models that are too large to be on a device together.

    `offload` is "none" (all stay on the device), "stages" (one model at a time) or "blocks" (as stages, and the models
    in `by_block` bring one block at a time, which is slower and needs least).
    """

    staged = True
    loads = ("dtype", "offload")
    by_block: tuple[str, ...] = ()
    offload: str = "none"
    place: torch.device = torch.device("cpu")  # where work is done

    def offloaded(self, offload: str) -> Any:
        """This pipeline, with its models placed in that way from the next `to` on; ValueError for unknown ways."""
        if offload not in OFFLOADS:
            raise ValueError(f"offload {offload!r}: accepted are {', '.join(OFFLOADS)}")
        if self.offload == "blocks" and offload != "blocks":
            raise ValueError(f"offload {offload!r}: this pipeline's blocks are offloaded already; load it again")
        self.offload = offload
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Work on another device; the models go there themselves only where nothing is offloaded."""
        device = kwargs.get("device") or next((x for x in args if isinstance(x, (str, torch.device))), None)
        self.place = self.place if device is None else torch.device(device)
        if self.offload == "none" or self.place.type == "cpu":
            return super().to(*args, **kwargs)
        if self.offload == "blocks":
            for name in self.by_block:
                self.by_blocks(getattr(self, name))
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str = "cuda") -> None:
        """Diffusers' name for `offloaded("stages")`, whose hooks would miss what is called beside `forward`."""
        place = torch.device(device)
        self.offloaded("stages").to(place if gpu_id is None else torch.device(place.type, gpu_id))

    def by_blocks(self, module: nn.Module | None) -> None:
        """Let a module fetch its blocks one by one while it works."""
        if module is None or hasattr(module, "fetches_blocks"):
            return
        streams = self.place.type == "cuda" and hasattr(module, "blocks")  # streams pin a copy of all that they move
        kind = {"offload_type": "block_level", "num_blocks_per_group": 1} if streams else {"offload_type": "leaf_level"}
        apply_group_offloading(module, self.place, use_stream=streams, **kind)  # type: ignore[arg-type]
        module.fetches_blocks = True  # type: ignore[assignment]

    @contextmanager
    def visiting(self, *modules: nn.Module) -> Iterator[None]:
        """The modules on the device, and back in main memory afterwards unless they stay there."""
        moved = [m for m in modules if self.offload != "none" and not hasattr(m, "fetches_blocks")]
        try:
            for module in moved:
                module.to(self.place)
            yield
        finally:
            for module in moved:
                module.to("cpu")
            if moved and self.place.type == "cuda":
                torch.cuda.empty_cache()
