"""Published checkpoints on disk: their files found, checked by name and shape, read straight into models."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diorama.models.checkpoints import convert
from diorama.models.published_names import KINDS

GEN3R = {  # our component -> folder of the published layout, kind of `convert`
    "transformer": ("transformer", "gen3r_transformer"),
    "vae": ("wan_vae", "wan_vae"),
    "adapter": ("geo_adapter", "geometry_adapter"),
    "vggt": ("vggt", "vggt"),
    "text_encoder": ("text_encoder", "umt5"),
    "image_encoder": ("clip_image_encoder", "clip_vision"),
}
GEN3R_MORE = ("tokenizer", "scheduler")  # components without weights, of the same names in both layouts
PICKLES = (".pth", ".pt", ".bin")
HALF = (torch.bfloat16, torch.float16)


def is_gen3r(folder: Path) -> bool:
    """Whether a folder is Gen3R as published, or what is left of it: ours has other names for three of its folders."""
    return any((folder / place).is_dir() for name, (place, _) in GEN3R.items() if place != name)


def read_gen3r(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    only: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Components of Gen3R's published layout: the models in GEN3R, `tokenizer` and `scheduler`, or `only` some of them.

    All files are looked at before any weight is read; then weights go one by one from disk to `dtype` and `device`.
    What loses by half precision stays in float32: VGGT's heads, norms and times of the transformer. ValueError, in
    one line, for files that are missing or truncated, and for weights missing, unknown or of another shape or dtype.
    """
    wanted = (*GEN3R, *GEN3R_MORE) if only is None else tuple(only)
    places, looked = _looked_at_gen3r(Path(folder), wanted)
    made: dict[str, Any] = {}
    for name in sorted(wanted, key=GEN3R.__contains__):  # what is quick may fail first
        if name == "tokenizer":
            made[name] = read_tokenizer(places[name])
        elif name == "scheduler":
            config = read_config(places[name] / "scheduler_config.json")
            made[name] = FlowMatchEulerDiscreteScheduler.from_config(config)
        else:
            made[name] = _built(GEN3R[name][1], *looked.pop(name), dtype=dtype, device=device)
    return made


def check_gen3r(folder: str | Path) -> None:
    """ValueError, in one line, unless a folder holds all of Gen3R with the right names and shapes; reads no weight."""
    _looked_at_gen3r(Path(folder), (*GEN3R, *GEN3R_MORE))


def read_model(
    kind: str, folder: str | Path, *, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu"
) -> nn.Module:
    """One model from a folder of a published config.json and weights; kinds and errors are those of `convert`."""
    return _built(kind, *_looked_at(kind, Path(folder)), dtype=dtype, device=device)


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError where there is none."""
    if not file.is_file():
        raise ValueError(f"{file}: missing; accepted is the file as it was published")
    try:
        config = json.loads(file.read_text())
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: not a JSON object; accepted is the file as it was published")
    return config


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in a folder; nothing is fetched."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers says anything of a file that is missing or broken
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder}: no tokenizer ({line[:200]}); accepted are the files of google/umt5-xxl") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's files, which stay on disk until they are used.

    One safetensors file or several, with an index that names them or without; else pickles that hold nothing but
    tensors. ValueError for files that are missing, unreadable or hold the same weight twice.
    """
    state: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        found = _tensors(file)
        if twice := state.keys() & found.keys():
            raise ValueError(f"{file}: {min(twice)!r} stands in another file there too; accepted is each weight once")
        state |= found
    return state


def _weight_files(folder: Path) -> list[Path]:
    for index in sorted(folder.glob("*.safetensors.index.json")):
        names = read_config(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ValueError(f"{index}: no 'weight_map'; accepted is the index as it was published")
        files = [folder / name for name in sorted(set(names.values()))]
        for file in files:
            if not file.is_file():
                raise ValueError(f"{file}: missing; {index.name} names it")
        return files
    files = sorted(folder.glob("*.safetensors")) or sorted(f for f in folder.iterdir() if f.suffix in PICKLES)
    if not files:
        raise ValueError(f"{folder}: no weights; accepted are *.safetensors and, with nothing but tensors, *.pth")
    return files


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file}: not a readable safetensors file ({error})") from None
    try:
        state = torch.load(file, "cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a broken or foreign pickle may end in anything
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: not a readable file of tensors ({line})") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{file}: something else than names with tensors; accepted is a plain state dict")
    return state


def _looked_at_gen3r(folder: Path, wanted: Sequence[str]) -> tuple[dict[str, Path], dict[str, Any]]:
    """Where the wanted components lie, and of those with weights what `_looked_at` gives."""
    if unknown := [name for name in wanted if name not in (*GEN3R, *GEN3R_MORE)]:
        raise ValueError(f"component {unknown[0]!r}: accepted are {', '.join((*GEN3R, *GEN3R_MORE))}")
    places = {name: folder / (GEN3R[name][0] if name in GEN3R else name) for name in wanted}
    for place in places.values():
        if not place.is_dir():
            names = [told[0] for told in GEN3R.values()] + list(GEN3R_MORE)
            raise ValueError(f"{place}: missing; a published Gen3R holds the folders {', '.join(names)}")
    return places, {name: _looked_at(GEN3R[name][1], place) for name, place in places.items() if name in GEN3R}


def _looked_at(kind: str, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and weights under our names, still on disk."""
    file = folder / "config.json"
    try:
        return convert(kind, read_weights(folder), read_config(file), source=file)
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None


def _built(
    kind: str, arguments: dict[str, Any], state: dict[str, Tensor], *, dtype: torch.dtype, device: str | torch.device
) -> nn.Module:
    with init_empty_weights():
        model = KINDS[kind].build(arguments)
    told = getattr(model, "_keep_in_fp32_modules", None) or ()
    exact = set(told) if dtype == torch.float16 or (dtype in HALF and isinstance(model, ModelMixin)) else set()
    done: dict[tuple[int, torch.Size], Tensor] = {}  # what two names share stays one tensor
    for name in list(state):
        tensor = state.pop(name)  # or its pages would stay in memory beside the copy
        place = (tensor.data_ptr(), tensor.shape)
        if place not in done:
            kept = torch.float32 if exact.intersection(name.split(".")) else dtype
            done[place] = tensor.to(device, kept, copy=True)
        state[name] = done[place]
    model.load_state_dict(state, assign=True)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[call-arg]
    return model.to(device).eval()  # buffers, which no file holds  # type: ignore[arg-type]
