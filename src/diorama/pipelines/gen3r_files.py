"""Gen3R's parts from disk: the published layout, and ours, which `save_pretrained` writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler

from diorama.models.checkpoints import check_weights, convert
from diorama.models.gen3r_transformer import Gen3RTransformer
from diorama.models.geometry_adapter import GeometryAdapter
from diorama.models.published import is_gen3r, read_config, read_gen3r, read_tokenizer, read_weights
from diorama.models.vggt import VGGT
from diorama.pipelines.prompts import identity_of

OURS = {"transformer": Gen3RTransformer, "vae": AutoencoderKLWan, "adapter": GeometryAdapter, "vggt": VGGT}
PUBLISHED = {
    "title": "Gen3R",
    "licence": "non-commercial (VGGT-1B: CC BY-NC 4.0; Gen3R: MIT; Wan2.1: Apache-2.0)",
}


def read_parts(folder: Path, dtype: torch.dtype) -> tuple[dict[str, Any], Callable[[], Any], str]:
    """Arguments of Gen3RPipeline but for the text encoder, what reads that one, and what tells it from others.

    ValueError, in one line, for whatever is missing, unreadable or does not fit.
    """
    place = folder / "text_encoder"
    if not place.is_dir():
        raise ValueError(f"{place}: missing; a Gen3R folder holds it")
    weights = read_weights(place)  # looked at now, read when a prompt is new
    identity = identity_of([*place.glob("*.json"), *place.glob("*.safetensors*"), *place.glob("*.pth")], dtype)
    if is_gen3r(folder):
        file = place / "config.json"
        convert("umt5", weights, read_config(file), source=file)
        names = [*OURS, "image_encoder", "tokenizer", "scheduler"]
        parts = read_gen3r(folder, dtype=dtype, only=names) | PUBLISHED
        return parts, lambda: read_gen3r(folder, dtype=dtype, only=["text_encoder"])["text_encoder"], identity
    return _saved(folder, dtype), lambda: _of_transformers("UMT5EncoderModel", place, dtype), identity


def _saved(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    index = json.loads((folder / "model_index.json").read_text())
    options = {key: value for key, value in index.items() if key[0] != "_" and not isinstance(value, list)}
    for name, kind in OURS.items():
        check_weights(kind, folder / name)
    config = read_config(folder / "scheduler/scheduler_config.json")
    parts: dict[str, Any] = {
        "image_encoder": _of_transformers("CLIPVisionModel", folder / "image_encoder", dtype),
        "tokenizer": read_tokenizer(folder / "tokenizer"),
        "scheduler": FlowMatchEulerDiscreteScheduler.from_config(config),
    }
    for name, kind in OURS.items():
        parts[name] = kind.from_pretrained(folder / name, torch_dtype=dtype)
    return parts | options


def _of_transformers(name: str, folder: Path, dtype: torch.dtype) -> Any:
    """A model of transformers, in this precision from the disk on; nothing is fetched, no weight is made up."""
    import transformers

    try:
        model, told = getattr(transformers, name).from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers says anything of a file that is missing or broken
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder}: no {name} ({line[:200]})") from None
    for word in ("missing", "unexpected", "mismatched"):
        if wrong := sorted(map(str, told[f"{word}_keys"])):
            raise ValueError(f"{folder}: {len(wrong)} weights {word}, first {wrong[0]!r}")
    return model.eval()
