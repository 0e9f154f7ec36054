"""A tiny VGGT as facebook publishes it: official weight names with the track head, in one file beside config.json."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from .parity.golden import load, weights

NAMES = ("model.safetensors", "model.pt", "vggt_1B_commercial.pt")
SIDE = 56
CARD = "---\nlicense: cc-by-nc-4.0\ntags:\n- image-to-3d\n---\n# VGGT\n"


def config():
    """The constructors' keywords; its photos have 56 pixels along the longer side, for 518 of the published one."""
    told = load("vggt_tiny").config["constructor"]
    return told | {"dino": told["dino"] | {"img_size": SIDE}}


def state():
    """Its weights, which are the same in every run."""
    told, table = load("vggt_tiny").config, "aggregator.patch_embed.pos_embed"
    named = weights(told["weights"]["entries"], told["prefix"])
    named |= {table: named[table][:, : 1 + (SIDE // 14) ** 2], "track_head.tracker.norm.weight": torch.ones(3)}
    return {name: tensor.contiguous() for name, tensor in named.items()}


def write(folder: Path, name="model.safetensors", *, card=CARD, **changes):
    """The folder with the file `name`; weights in `changes` replace published ones, None leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {key: tensor for key, tensor in (state() | changes).items() if tensor is not None}
    (folder / "config.json").write_text(json.dumps(config()))
    (folder / "README.md").write_text(card)
    if name.endswith(".pt"):
        torch.save(named, folder / name)
    else:
        save_file(named, folder / name)
    return folder
