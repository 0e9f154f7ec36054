"""DINO's and DINOv2's checkpoints as they are published, at any size: names, shapes, random weights."""

from pathlib import Path

import torch
from torch import Tensor

from diorama.models import discriminator

# A trunk that looks at once, and what its weights' file is called.
TRUNK = dict(patch=8, dim=16, layers=3, heads=2, taps=(0, 2), side=32, layer_scale=None, gelu="tanh")
FILE = ("miniature.pth", "nowhere.example")


def published(dim: int, layers: int, patch: int, grid: int, *, second: bool = False) -> dict[str, list[int]]:
    """Names and shapes of a DINO checkpoint, or of a DINOv2's."""
    shapes = {"cls_token": [1, 1, dim], "pos_embed": [1, 1 + grid**2, dim], "patch_embed.proj.bias": [dim]}
    shapes |= {"patch_embed.proj.weight": [dim, 3, patch, patch], "norm.weight": [dim], "norm.bias": [dim]}
    for layer in range(layers):
        for name, after, before in (
            *(("attn.qkv", 3 * dim, dim), ("attn.proj", dim, dim)),
            *(("mlp.fc1", 4 * dim, dim), ("mlp.fc2", dim, 4 * dim)),
        ):
            shapes |= {f"blocks.{layer}.{name}.weight": [after, before], f"blocks.{layer}.{name}.bias": [after]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{layer}.{name}.{part}": [dim] for part in ("weight", "bias")}
        if second:
            shapes |= {f"blocks.{layer}.{name}.gamma": [dim] for name in ("ls1", "ls2")}
    return shapes | ({"mask_token": [1, dim]} if second else {})


def state(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, Tensor]:
    """Random weights that keep a signal's size."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: x / max(1, x[0].numel()) ** 0.5 if x.ndim > 1 else 1 + 0.1 * x for name, x in made.items()}


def in_cache(monkeypatch, folder: Path, grid: int = 4) -> Path:
    """A user's cache that holds the trunk `miniature`, known by that name; the file."""
    (folder / "dino").mkdir(parents=True)
    file = folder / "dino" / FILE[0]
    torch.save(state(published(TRUNK["dim"], TRUNK["layers"], TRUNK["patch"], grid)), file)
    monkeypatch.setitem(discriminator.TRUNKS, "miniature", TRUNK)
    monkeypatch.setitem(discriminator.TRUNK_FILES, "miniature", FILE)
    monkeypatch.setenv("DIORAMA_CACHE", str(folder))
    return file
