"""Trained parts of Gen3R from their folders, as published or as our stages save them; frozen unless trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import nn

from diorama.models.checkpoints import check_weights, convert
from diorama.models.gen3r_transformer import Gen3RTransformer
from diorama.models.geometry_adapter import GeometryAdapter
from diorama.models.published import read_config, read_model, read_weights
from diorama.models.vggt import VGGT
from diorama.pipelines.vggt import read_vggt

Model = TypeVar("Model", bound=nn.Module)


def vggt_in(folder: Path) -> VGGT:
    """A VGGT, published or saved alone or as a pipeline."""
    return read_vggt(folder / "vggt" if (folder / "vggt").is_dir() else folder)


def video_vae_in(folder: Path) -> AutoencoderKLWan:
    """A video VAE in diffusers' layout, or Wan's own."""
    return _read(AutoencoderKLWan, "z_dim", lambda: read_model("wan_vae", folder, dtype=torch.float32), folder)


def adapter_in(folder: Path) -> GeometryAdapter:
    """A geometry adapter, ours or published."""
    return _read(GeometryAdapter, "dim", lambda: read_model("geometry_adapter", folder, dtype=torch.float32), folder)


def transformer_in(folder: Path, channels: int = 36) -> Gen3RTransformer:
    """A denoiser, ours or published; of Wan-Fun, which has no mask, the missing input channels are zero.

    They stand last (noise, condition, mask), so that nothing of what it says changes.
    """

    def published() -> Gen3RTransformer:
        file = folder / "config.json"
        arguments, state = convert("gen3r_transformer", read_weights(folder), read_config(file), source=file)
        missing = channels - arguments["in_channels"]
        if missing < 0:
            raise ValueError(f"{file}: {arguments['in_channels']} channels in; accepted are at most {channels}")
        name = "patch_embedding.weight"
        state[name] = F.pad(state[name], (0, 0) * 3 + (0, missing))
        model = Gen3RTransformer(**{**arguments, "in_channels": channels})  # type: ignore[arg-type]
        model.load_state_dict({key: tensor.float() for key, tensor in state.items()})
        return model

    return _read(Gen3RTransformer, "attention_head_dim", published, folder)


def frozen(model: Model, device: torch.device) -> Model:
    """A model that learns nothing, on a device where the loop, which moves what it trains, leaves it."""
    return nn.Module.to(model.eval().requires_grad_(False), device)  # type: ignore[return-value]


def _read(kind: Any, ours: str, published: Callable[[], Any], folder: Path) -> Any:
    """Our layout where the config has its key, else what `published` reads."""
    if ours not in read_config(folder / "config.json"):
        return published()
    check_weights(kind, folder)
    return kind.from_pretrained(folder, torch_dtype=torch.float32)
