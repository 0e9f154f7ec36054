"""Published weight names to ours, and the strict look at a weights file before anything is built from it."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
State = dict[str, Tensor]
Rules = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]  # arguments of re.sub

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

# VGGT's parts -> the published ones, rules applied in this order to each of our names.
VGGT_RULES = (
    (r"^encoder\.embed\b", "aggregator.patch_embed.patch_embed.proj"),
    (r"^encoder\.class_token", "encoder.cls_token"),
    (r"^encoder\.position", "encoder.pos_embed"),
    (r"^encoder\.registers", "encoder.register_tokens"),
    (r"^encoder\.", "aggregator.patch_embed."),
    (r"^(camera_token|register_token|frame_blocks|global_blocks)\b", r"aggregator.\1"),
    (r"\b(attention|mlp)_norm\.", lambda part: f"norm{1 + (part[1] == 'mlp')}."),
    (r"\b(attention|mlp)_scale\.", lambda part: f"ls{1 + (part[1] == 'mlp')}."),
    (r"\.attention\.", ".attn."),
    (r"\bmlp\.(0|2)\.", lambda part: f"mlp.fc{1 + int(part[1]) // 2}."),
    (r"^readout\.camera\.", "camera_head."),
    (r"^camera_head\.empty_code", "camera_head.empty_pose_tokens"),
    (r"^camera_head\.embed_code", "camera_head.embed_pose"),
    (r"^camera_head\.modulation", "camera_head.poseLN_modulation.1"),
    (r"^camera_head\.code_branch\.(0|2)", lambda part: f"camera_head.pose_branch.fc{1 + int(part[1]) // 2}"),
    (r"^readout\.(depth|points)\.", lambda part: f"{part[1].removesuffix('s')}_head."),
    (r"_head\.project\.", "_head.projects."),
    (r"_head\.rescale\.", "_head.resize_layers."),
    (r"_head\.level\.(\d)", lambda part: f"_head.scratch.layer{1 + int(part[1])}_rn"),
    (r"_head\.narrow", "_head.scratch.output_conv1"),
    (r"_head\.out\.", "_head.scratch.output_conv2."),
    (r"_head\.fuse\.(\d)", lambda part: f"_head.scratch.refinenet{1 + int(part[1])}"),
    (r"\.lateral\.", ".resConfUnit1."),
    (r"\.unit\.", ".resConfUnit2."),
    (r"(refinenet\d)\.out\.", r"\1.out_conv."),
)
VGGT_IGNORED = ("track_head.",)  # point tracks: nothing here asks for any
VGGT_CONFIG = {  # the published constructors' defaults, by part; a flat config speaks of the aggregator
    "aggregator": {
        "img_size": 518, "patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16, "num_register_tokens": 4,
        "mlp_ratio": 4.0, "rope_freq": 100, "qk_norm": True, "patch_embed": "dinov2_vitl14_reg",
    },
    "camera_head": {"trunk_depth": 4, "num_heads": 16},
    "dpt_head": {
        "features": 256, "out_channels": (256, 512, 1024, 1024), "intermediate_layer_idx": (4, 11, 17, 23),
    },
}  # fmt: skip
VGGT_FIXED = {"mlp_ratio": 4.0, "rope_freq": 100, "qk_norm": True}
VGGT_ENCODERS = {  # depth and heads by the name of DINOv2's size
    "dinov2_vits14_reg": (12, 6), "dinov2_vitb14_reg": (12, 12), "dinov2_vitl14_reg": (24, 16),
}  # fmt: skip

# Gen3R's adapter and denoiser -> the published names, rules applied in this order to each of our names.
# fmt: off
GEOMETRY_ADAPTER_RULES = (
    (r"^encoder\.stem\b", "encoder.init_block.resample.1"), (r"\.tokens_out\b", ".out_block.resample.2"),
    (r"^encoder\.blocks\b", "encoder.downsamples"), (r"^decoder\.blocks\b", "decoder.upsamples"),
    (r"\.norm1\b", ".residual.0"), (r"\.conv1\b", ".residual.2"),
    (r"\.norm2\b", ".residual.3"), (r"\.conv2\b", ".residual.6"), (r"\.conv\b", ".resample.0"),
    (r"\.conv_in\b", ".conv1"), (r"\.norm_out\b", ".head.0"), (r"\.conv_out\b", ".head.2"),
    (r"^quant_conv\b", "conv1"), (r"^post_quant_conv\b", "conv2"),
)
GEOMETRY_ADAPTER_IGNORED = ("mean", "std")  # the trainer's export adds them, the published code never reads them
GEOMETRY_ADAPTER_CONFIG: dict[str, str] = dict.fromkeys(
    ("latent_channels", "hidden_dim", "input_dim", "output_dim", "resample_scale"), "a number"
)
GEN3R_TRANSFORMER_RULES = (  # ours are diffusers' but for the control
    (r"^condition_embedder\.", ""), (r"^time_embedder\.linear_1\b", "time_embedding.0"),
    (r"^time_embedder\.linear_2\b", "time_embedding.2"), (r"^time_proj\b", "time_projection.1"),
    (r"^text_embedder\.linear_1\b", "text_embedding.0"), (r"^text_embedder\.linear_2\b", "text_embedding.2"),
    (r"^image_embedder\.norm1\b", "img_emb.proj.0"), (r"^image_embedder\.ff\.net\.0\.proj\b", "img_emb.proj.1"),
    (r"^image_embedder\.ff\.net\.2\b", "img_emb.proj.3"), (r"^image_embedder\.norm2\b", "img_emb.proj.4"),
    (r"^patch_embedding\.control\.conv\b", "control_adapter.conv"),
    (r"^patch_embedding\.control\b", "control_adapter.residual_blocks.0"),
    (r"\.attn1\.", ".self_attn."), (r"\.attn2\.", ".cross_attn."), (r"\.to_(q|k|v)\b", r".\1"),
    (r"\.to_out\.0\b", ".o"), (r"\.add_(k|v)_proj\b", r".\1_img"), (r"\.norm_added_k\b", ".norm_k_img"),
    (r"\.norm2\b", ".norm3"),
    (r"\.ffn\.net\.0\.proj\b", ".ffn.0"), (r"\.ffn\.net\.2\b", ".ffn.2"), (r"\.scale_shift_table$", ".modulation"),
    (r"^scale_shift_table$", "head.modulation"), (r"^proj_out\b", "head.head"),
)
GEN3R_TRANSFORMER_CONFIG: dict[str, str] = dict.fromkeys((
    "in_dim", "dim", "ffn_dim", "freq_dim", "text_dim", "out_dim", "num_heads", "num_layers", "eps",
    "in_dim_control_adapter",
), "a number")
# fmt: on


def convert(
    kind: str, state: Mapping[str, Tensor], config: Mapping[str, Any], *, source: str | Path | None = None
) -> tuple[dict[str, Any], State]:
    """Our keyword arguments and state dict from a published state dict and its config, which was read from `source`.

    Kinds: `dit_ddt` (RAE's DiTwDDTHead without rotary table; config keys of its constructor), `vggt` (facebook's
    VGGT-1B, without its track head; a flat config as published, or one of the parts in VGGT_CONFIG),
    `geometry_adapter` and `gen3r_transformer` (Gen3R's folders geo_adapter and transformer). Strict both ways:
    ValueError names weights that are unknown or missing, and the source with the key that it lacks.
    """
    kinds = {"dit_ddt": _dit_ddt, "vggt": _vggt}
    kinds |= {"geometry_adapter": _geometry_adapter, "gen3r_transformer": _gen3r_transformer}
    if kind not in kinds:
        raise ValueError(f"checkpoint kind {kind!r}: accepted are {', '.join(kinds)}")
    return kinds[kind](state, config, str(source or f"{kind}'s config"))


def _dit_ddt(state: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], State]:
    _check_config(source, config, DIT_DDT_CONFIG)
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


def _vggt(state: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], State]:
    arguments = _vggt_arguments(config, source)
    if state and all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(VGGT_IGNORED)}
    from diorama.models.vggt import VGGT

    try:
        with torch.device("meta"):
            VGGT(**arguments)
    except Exception as error:  # a constructor may say anything of values that it cannot use
        raise ValueError(f"{source}: no config of VGGT ({str(error).splitlines()[0]})") from None
    return arguments, _renamed("vggt", state, VGGT, arguments, VGGT_RULES)


def _vggt_arguments(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Ours from the published constructors' keywords."""
    given = {"aggregator": {k: v for k, v in config.items() if k in VGGT_CONFIG["aggregator"]}} | dict(config)
    for part in (*VGGT_CONFIG, "dino"):
        if not isinstance(given.get(part, {}), Mapping):
            raise ValueError(f"{source}: {part!r} is {given[part]!r}; accepted is a table of keywords")
    aggregator, camera, dpt = (VGGT_CONFIG[part] | given.get(part, {}) for part in VGGT_CONFIG)
    for key, value in VGGT_FIXED.items():
        if aggregator[key] != value:
            raise ValueError(f"{source}: {key!r} is {aggregator[key]!r}; accepted is {value!r}")
    if "dino" in config:
        encoder = config["dino"]
        _check_config(source, encoder, dict.fromkeys(("img_size", "depth", "num_heads"), "a number"))
    else:
        name = str(aggregator["patch_embed"])
        if name not in VGGT_ENCODERS:
            raise ValueError(f"{source}: 'patch_embed' is {name!r}; accepted are {', '.join(VGGT_ENCODERS)}")
        depth, heads = VGGT_ENCODERS[name]
        encoder = {"img_size": aggregator["img_size"], "depth": depth, "num_heads": heads}
    _check_config(source, aggregator, dict.fromkeys(list(VGGT_CONFIG["aggregator"])[:6], "a number"))
    return {
        "patch": aggregator["patch_size"], "dim": aggregator["embed_dim"], "layers": aggregator["depth"],
        "heads": aggregator["num_heads"], "registers": aggregator["num_register_tokens"],
        "taps": config.get("intermediate_layer_idx", dpt["intermediate_layer_idx"]),
        "encoder_layers": encoder["depth"], "encoder_heads": encoder["num_heads"],
        "encoder_grid": encoder["img_size"] // aggregator["patch_size"],
        "camera_layers": camera["trunk_depth"], "camera_heads": camera["num_heads"],
        "features": dpt["features"], "channels": dpt["out_channels"],
    }  # fmt: skip


def _geometry_adapter(
    state: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], State]:
    from diorama.models.geometry_adapter import GeometryAdapter

    _check_config(source, config, GEOMETRY_ADAPTER_CONFIG)
    arguments = {
        "channels": config["input_dim"], "latent_channels": config["latent_channels"], "dim": config["hidden_dim"],
        "reduction": config["resample_scale"],
    }  # fmt: skip
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if name not in GEOMETRY_ADAPTER_IGNORED}
    return arguments, _renamed("geometry_adapter", state, GeometryAdapter, arguments, GEOMETRY_ADAPTER_RULES)


def _gen3r_transformer(
    state: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], State]:
    from diorama.models.gen3r_transformer import Gen3RTransformer

    _check_config(source, config, GEN3R_TRANSFORMER_CONFIG)
    if not config["num_heads"] or config["dim"] % config["num_heads"]:
        raise ValueError(
            f"{source}: 'num_heads' is {config['num_heads']!r}; accepted are divisors of {config['dim']!r}"
        )
    arguments = {
        "num_attention_heads": config["num_heads"], "attention_head_dim": config["dim"] // config["num_heads"],
        "in_channels": config["in_dim"], "out_channels": config["out_dim"], "text_dim": config["text_dim"],
        "freq_dim": config["freq_dim"], "ffn_dim": config["ffn_dim"], "num_layers": config["num_layers"],
        "eps": config["eps"], "added_kv_proj_dim": config["dim"], "control_channels": config["in_dim_control_adapter"],
    }  # fmt: skip
    return arguments, _renamed("gen3r_transformer", state, Gen3RTransformer, arguments, GEN3R_TRANSFORMER_RULES)


def _renamed(kind: str, state: Mapping[str, Tensor], model: type, arguments: dict[str, Any], rules: Rules) -> State:
    """A published state under the names of model(**arguments), which `rules` turn into the published ones."""
    with torch.device("meta"):
        expected = model(**arguments).state_dict()
    published = {}
    for name in expected:
        published[name] = name
        for pattern, replacement in rules:
            published[name] = re.sub(pattern, replacement, published[name])
    shapes = {published[name]: tuple(tensor.shape) for name, tensor in expected.items()}
    _compare(kind, {name: tuple(tensor.shape) for name, tensor in state.items()}, shapes)
    return {name: state[published[name]] for name in expected}


def _check_config(source: str, config: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """ValueError, in one line, for the first key that is absent or holds something else."""
    for key, kind in kinds.items():
        if key not in config:
            raise ValueError(f"{source}: {key!r} is missing; accepted are {', '.join(kinds)}")
        value = config[key]
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        if pair != (kind == "a pair") or not (pair or isinstance(value, (int, float))):
            raise ValueError(f"{source}: {key!r} is {value!r}; accepted is {kind}")


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
        raise ValueError(f"{config_file}: no config of {kind.__name__} ({str(error).splitlines()[0]})") from None
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
