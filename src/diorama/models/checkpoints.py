"""Published weight names to ours, and the strict look at a weights file before anything is built from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diorama.models.published_names import KINDS, check_config

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
State = dict[str, Tensor]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of weights that need no scales beside them

# RAE's DiTwDDTHead -> DiT3D, outside the blocks. A fixed position table loads into the learned one.
DIT_DDT = {
    "s_embedder.proj": "input",
    "x_embedder.proj": "head_input",
    "s_projector": "state_projection",
    "t_embedder.mlp.0": "time.mlp.0",
    "t_embedder.mlp.2": "time.mlp.2",
    "final_layer.norm_final": "output_norm",
    "final_layer.linear": "output",
    "final_layer.adaLN_modulation.1": "output_modulation",
}
DIT_DDT_BLOCK = {
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "mlp.w12": "mlp.gate_value",
    "mlp.w3": "mlp.out",
    "adaLN_modulation.1": "modulation",
}
DIT_DDT_CONFIG = {  # what each key holds; pairs are of the backbone and of the head
    **dict.fromkeys(("input_size", "patch_size", "in_channels", "num_classes", "mlp_ratio", "use_qknorm"), "a number"),
    **dict.fromkeys(("hidden_size", "depth", "num_heads"), "a pair"),
}


def convert(
    kind: str, state: Mapping[str, Tensor], config: Mapping[str, Any], *, source: str | Path | None = None
) -> tuple[dict[str, Any], State]:
    """Arguments and state dict of our class from a published state dict and its config, which was read from `source`.

    Kinds: `dit_ddt` (RAE's DiTwDDTHead without rotary table; config keys of its constructor), `vggt` (facebook's
    VGGT-1B, without its track head; a flat config as published, or one of the parts in VGGT_CONFIG), and Gen3R's
    folders: `geometry_adapter`, `gen3r_transformer`, `wan_vae` (for diffusers' AutoencoderKLWan), `umt5` and
    `clip_vision` (for the configs of transformers' UMT5EncoderModel and CLIPVisionModel); KINDS builds the model.
    Strict both ways, whether or not all names begin with `model.`: ValueError names weights that are unknown, missing,
    of another shape or no plain floating numbers, and the source with the key that it lacks. No weight is copied.
    """
    where = str(source or f"{kind}'s config")
    if kind == "dit_ddt":
        return _dit_ddt(state, config, where)
    if kind not in KINDS:
        raise ValueError(f"checkpoint kind {kind!r}: accepted are {', '.join(('dit_ddt', *KINDS))}")
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    told = KINDS[kind]
    exact, parts = (tuple(name for name in told.ignored if name.endswith(".") == part) for part in (False, True))
    state = {name: tensor for name, tensor in state.items() if name not in exact and not name.startswith(parts)}
    arguments = told.arguments(config, where, state)
    try:
        with torch.device("meta"):
            expected = told.build(arguments).state_dict()
    except Exception as error:  # a constructor may say anything of values that it cannot use
        raise ValueError(f"{where}: no config of {told.model[1]} ({_first_line(error)})") from None
    return arguments, _renamed(kind, state, expected, arguments)


def _renamed(kind: str, state: State, expected: Mapping[str, Tensor], arguments: dict[str, Any]) -> State:
    """A published state under the expected names."""
    places = {name: KINDS[kind].published(name, arguments) for name in expected}
    shapes = {}
    for name, (published, third) in places.items():
        shape = (1,) * KINDS[kind].batched.get(published, 0) + tuple(expected[name].shape)
        shapes[published] = shape if third is None else (3 * shape[0], *shape[1:])
    _compare(kind, {name: tuple(tensor.shape) for name, tensor in state.items()}, shapes)
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES:
            says = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"{kind}: weight {name!r} of {tensor.dtype}, accepted are {says}".replace("torch.", ""))
    return {
        name: (state[published] if third is None else state[published].chunk(3)[third]).reshape(expected[name].shape)
        for name, (published, third) in places.items()
    }


def _dit_ddt(state: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], State]:
    check_config(source, config, DIT_DDT_CONFIG)
    if config.get("use_rope"):
        raise ValueError(
            "dit_ddt with a rotary table: 3D latents have no grid, so DiT3D has none; accepted is use_rope=False"
        )
    tokens = config["input_size"] ** 2 // config["patch_size"] ** 2
    (dim, head_dim), (layers, head_layers), (heads, head_heads) = (
        config[k] for k in ("hidden_size", "depth", "num_heads")
    )
    arguments = {
        "tokens": tokens, "channels": config["in_channels"], "dim": dim, "layers": layers, "heads": heads,
        "head_dim": head_dim, "head_layers": head_layers, "head_heads": head_heads, "mlp_ratio": config["mlp_ratio"],
        "condition": "none", "classes": config["num_classes"], "qk_norm": config["use_qknorm"], "head_index": False,
    }  # fmt: skip
    ours: State = {"table": torch.zeros(tokens, dim)}
    unknown = []
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".")
        parts = name.split(".")
        known_block = parts[0] == "blocks" and "".join(parts[1:2]) in map(str, range(layers + head_layers))
        if name == "pos_embed":
            ours["table"] = tensor[0]
        elif name == "t_embedder.W":
            ours["time.frequencies"] = tensor
        elif name == "y_embedder.embedding_table.weight":
            ours["label.weight"] = tensor
        elif stem in DIT_DDT:
            ours[f"{DIT_DDT[stem]}.{leaf}"] = tensor.flatten(1) if tensor.ndim == 4 else tensor  # 1x1 convolutions
        elif known_block and ".".join(parts[2:-1]) in DIT_DDT_BLOCK:
            index = int(parts[1])
            place = f"blocks.{index}" if index < layers else f"head_blocks.{index - layers}"
            ours[f"{place}.{DIT_DDT_BLOCK['.'.join(parts[2:-1])]}.{leaf}"] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"dit_ddt: {len(unknown)} unknown weights, first {unknown[0]!r}")
    from diorama.models.dit3d import DiT3D

    with torch.device("meta"):
        expected = DiT3D(**arguments).state_dict()
    _compare("dit_ddt", {n: tuple(t.shape) for n, t in ours.items()}, {n: tuple(t.shape) for n, t in expected.items()})
    return arguments, ours


def check_weights(kind: type, folder: Path) -> None:
    """ValueError, in one line, unless a folder's config and safetensors fit the model class to the last shape."""
    config_file, weights_file = folder / "config.json", folder / WEIGHTS_FILE
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ValueError(f"{file}: missing; a {kind.__name__} folder holds config.json and {WEIGHTS_FILE}")
    try:
        config = json.loads(config_file.read_text())
        if not isinstance(config, dict) or config.get("_class_name", kind.__name__) != kind.__name__:
            raise ValueError(f"found {config.get('_class_name') if isinstance(config, dict) else 'no JSON object'}")
        with torch.device("meta"):
            model = kind.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:  # a constructor may say anything of values that it cannot use
        raise ValueError(f"{config_file}: no config of {kind.__name__} ({_first_line(error)})") from None
    try:
        with safe_open(weights_file, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{weights_file}: not a readable safetensors file ({error})") from None
    _compare(str(weights_file), found, {name: tuple(t.shape) for name, t in model.state_dict().items()})


def _compare(source: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or unknown:
        kinds = [(missing, "missing"), (unknown, "unknown")]
        says = "; ".join(f"{len(names)} weights {word}, first {min(names)!r}" for names, word in kinds if names)
        raise ValueError(f"{source}: {says}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(f"{source}: weight {name!r} of shape {found[name]}, expected {shape}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
