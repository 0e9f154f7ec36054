"""What published weights are called: their configurations to our arguments, our names to theirs."""

import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor, nn

Config = Mapping[str, Any]
Rules = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]  # arguments of re.sub

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

# Gen3R's adapter and denoiser, and what diffusers and transformers call the parts of Wan, -> the published names.
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
WAN_VAE_CONFIG = {  # the published wrapper says only `latent_channels`; these are the constructor's inside it
    "dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True],
}
WAN_VAE_RULES = (
    (r"\.mid_block\.resnets\.(\d)", lambda part: f".middle.{2 * int(part[1])}"),
    (r"\.mid_block\.attentions\.0", ".middle.1"),
    (r"\.norm1\b", ".residual.0"), (r"\.conv1\b", ".residual.2"), (r"\.norm2\b", ".residual.3"),
    (r"\.conv2\b", ".residual.6"), (r"\.conv_shortcut\b", ".shortcut"), (r"\.down_blocks\b", ".downsamples"),
    (r"\.conv_in\b", ".conv1"), (r"\.norm_out\b", ".head.0"), (r"\.conv_out\b", ".head.2"),
    (r"^quant_conv\b", "conv1"), (r"^post_quant_conv\b", "conv2"),
)
UMT5_CONFIG = {
    "vocab": 256384, "dim": 4096, "dim_attn": 4096, "dim_ffn": 10240, "num_heads": 64, "num_layers": 24,
    "num_buckets": 32,
}
UMT5_RULES = (
    (r"^(shared|encoder\.embed_tokens)\b", "token_embedding"), (r"^encoder\.final_layer_norm\b", "norm"),
    (r"^encoder\.block\b", "blocks"), (r"\.layer\.0\.layer_norm\b", ".norm1"), (r"\.layer\.1\.layer_norm\b", ".norm2"),
    (r"\.layer\.0\.SelfAttention\.relative_attention_bias\b", ".pos_embedding.embedding"),
    (r"\.layer\.0\.SelfAttention\b", ".attn"), (r"\.layer\.1\.DenseReluDense\b", ".ffn"),
    (r"\.wi_0\b", ".gate.0"), (r"\.wi_1\b", ".fc1"), (r"\.wo\b", ".fc2"),
)
CLIP_VISION_CONFIG = {
    "vision_dim": 1280, "vision_mlp_ratio": 4, "vision_heads": 16, "vision_layers": 32, "embed_dim": 1024,
    "image_size": 224, "patch_size": 14,
}
CLIP_VISION_RULES = (  # a third of a published weight is written @ and its number
    (r"^embeddings\.class_embedding$", "cls_embedding"), (r"^embeddings\.position_embedding\.weight", "pos_embedding"),
    (r"^embeddings\.", ""), (r"^pre_layrnorm\b", "pre_norm"), (r"^post_layernorm\b", "post_norm"),
    (r"^encoder\.layers\b", "transformer"), (r"\.layer_norm(1|2)\b", r".norm\1"), (r"\.mlp\.fc1\b", ".mlp.0"),
    (r"\.mlp\.fc2\b", ".mlp.2"), (r"\.self_attn\.out_proj\b", ".attn.proj"),
    (r"\.self_attn\.(q|k|v)_proj\.(\w+)", lambda part: f".attn.to_qkv.{part[2]}@{'qkv'.index(part[1])}"),
    (r"^", "visual."),
)
CLIP_VISION_IGNORED = ("textual.", "log_scale", "visual.head")  # what compares images with text
# fmt: on


def _vggt(config: Config, source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
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
        check_config(source, encoder, dict.fromkeys(("img_size", "depth", "num_heads"), "a number"))
    else:
        name = str(aggregator["patch_embed"])
        if name not in VGGT_ENCODERS:
            raise ValueError(f"{source}: 'patch_embed' is {name!r}; accepted are {', '.join(VGGT_ENCODERS)}")
        depth, heads = VGGT_ENCODERS[name]
        encoder = {"img_size": aggregator["img_size"], "depth": depth, "num_heads": heads}
    check_config(source, aggregator, dict.fromkeys(list(VGGT_CONFIG["aggregator"])[:6], "a number"))
    return {
        "patch": aggregator["patch_size"], "dim": aggregator["embed_dim"], "layers": aggregator["depth"],
        "heads": aggregator["num_heads"], "registers": aggregator["num_register_tokens"],
        "taps": config.get("intermediate_layer_idx", dpt["intermediate_layer_idx"]),
        "encoder_layers": encoder["depth"], "encoder_heads": encoder["num_heads"],
        "encoder_grid": encoder["img_size"] // aggregator["patch_size"],
        "camera_layers": camera["trunk_depth"], "camera_heads": camera["num_heads"],
        "features": dpt["features"], "channels": dpt["out_channels"],
    }  # fmt: skip


def _geometry_adapter(config: Config, source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    check_config(source, config, GEOMETRY_ADAPTER_CONFIG)
    return {
        "channels": config["input_dim"], "latent_channels": config["latent_channels"], "dim": config["hidden_dim"],
        "reduction": config["resample_scale"],
    }  # fmt: skip


def _gen3r_transformer(config: Config, source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    check_config(source, config, GEN3R_TRANSFORMER_CONFIG)
    heads = _divisor(source, config, "num_heads", "dim")
    image = state.get("img_emb.proj.0.weight")  # the published code knows but one image encoder and says no width
    return {
        "num_attention_heads": heads, "attention_head_dim": config["dim"] // heads,
        "in_channels": config["in_dim"], "out_channels": config["out_dim"], "text_dim": config["text_dim"],
        "freq_dim": config["freq_dim"], "ffn_dim": config["ffn_dim"], "num_layers": config["num_layers"],
        "eps": config["eps"], "added_kv_proj_dim": config["dim"], "control_channels": config["in_dim_control_adapter"],
        "image_dim": 1280 if image is None else image.numel(),
    }  # fmt: skip


def _wan_vae(config: Config, source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    first = state.get("encoder.conv1.weight")  # its width is in no published config
    width = {} if first is None else {"dim": len(first)}
    latent = {"z_dim": config["latent_channels"]} if "latent_channels" in config else {}
    given = WAN_VAE_CONFIG | width | latent | {key: config[key] for key in WAN_VAE_CONFIG if key in config}
    check_config(source, given, dict.fromkeys(("dim", "z_dim", "num_res_blocks"), "a number"))
    if given["z_dim"] != WAN_VAE_CONFIG["z_dim"]:
        raise ValueError(f"{source}: latents of {given['z_dim']} channels; accepted are 16, whose statistics are known")
    return {"base_dim": given["dim"]} | {key: value for key, value in given.items() if key != "dim"}


def _umt5(config: Config, source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    given = UMT5_CONFIG | {key: config[key] for key in UMT5_CONFIG if key in config}
    check_config(source, given, dict.fromkeys(UMT5_CONFIG, "a number"))
    if config.get("shared_pos"):
        raise ValueError(
            f"{source}: 'shared_pos' is {config['shared_pos']!r}; accepted is False, positions in each block"
        )
    heads = _divisor(source, given, "num_heads", "dim_attn")
    return {
        "vocab_size": given["vocab"], "d_model": given["dim"], "d_kv": given["dim_attn"] // heads,
        "d_ff": given["dim_ffn"], "num_layers": given["num_layers"], "num_heads": heads,
        "relative_attention_num_buckets": given["num_buckets"], "feed_forward_proj": "gated-gelu",
    }  # fmt: skip


def _clip_vision(config: Config, source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    given = CLIP_VISION_CONFIG | {key: config[key] for key in CLIP_VISION_CONFIG if key in config}
    check_config(source, given, dict.fromkeys(CLIP_VISION_CONFIG, "a number"))
    return {
        "hidden_size": given["vision_dim"], "intermediate_size": int(given["vision_dim"] * given["vision_mlp_ratio"]),
        "num_hidden_layers": given["vision_layers"], "num_attention_heads": given["vision_heads"],
        "projection_dim": given["embed_dim"], "image_size": given["image_size"], "patch_size": given["patch_size"],
        "hidden_act": "gelu",
    }  # fmt: skip


class Kind(NamedTuple):
    """How one kind of published weights becomes a model."""

    model: tuple[str, str]  # module and class
    arguments: Callable[[Config, str, Mapping[str, Tensor]], dict[str, Any]]  # of the class, or of its configuration
    rules: Callable[[dict[str, Any]], Rules]  # in order, to each of the class's names
    ignored: tuple[str, ...] = ()  # published names, or beginnings of some, that nothing here reads
    batched: Mapping[str, int] = {}  # published names whose shapes have that many 1s in front

    def build(self, arguments: dict[str, Any]) -> nn.Module:
        """The model itself, on torch's default device."""
        made = getattr(import_module(self.model[0]), self.model[1])
        config = getattr(made, "config_class", None)  # transformers' models take one, diffusers' take keywords
        return made(**arguments) if config is None else made(config(**arguments))

    def published(self, name: str, arguments: dict[str, Any]) -> tuple[str, int | None]:
        """What one of our names is called there, and which third of that it is if it is not all."""
        for pattern, replacement in self.rules(arguments):
            name = re.sub(pattern, replacement, name)
        name, _, third = name.partition("@")
        return name, int(third) if third else None


def _wan_vae_rules(arguments: dict[str, Any]) -> Rules:
    """The published decoder counts layers straight through: those of a level, then what enlarges."""
    level = arguments["num_res_blocks"] + 2

    def straight(part: re.Match[str]) -> str:
        return f".upsamples.{level * int(part[1]) + (int(part[3]) if part[2] == 'resnets' else level - 1)}"

    return ((r"\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)", straight), *WAN_VAE_RULES)


KINDS = {
    "vggt": Kind(("diorama.models.vggt", "VGGT"), _vggt, lambda _: VGGT_RULES, VGGT_IGNORED),
    "geometry_adapter": Kind(
        ("diorama.models.geometry_adapter", "GeometryAdapter"), _geometry_adapter,
        lambda _: GEOMETRY_ADAPTER_RULES, GEOMETRY_ADAPTER_IGNORED,
    ),
    "gen3r_transformer": Kind(
        ("diorama.models.gen3r_transformer", "Gen3RTransformer"), _gen3r_transformer, lambda _: GEN3R_TRANSFORMER_RULES
    ),
    "wan_vae": Kind(("diffusers", "AutoencoderKLWan"), _wan_vae, _wan_vae_rules),
    "umt5": Kind(("transformers", "UMT5EncoderModel"), _umt5, lambda _: UMT5_RULES),
    "clip_vision": Kind(
        ("transformers", "CLIPVisionModel"), _clip_vision, lambda _: CLIP_VISION_RULES, CLIP_VISION_IGNORED,
        {"visual.cls_embedding": 2, "visual.pos_embedding": 1},
    ),
}  # fmt: skip


def _divisor(source: str, config: Config, key: str, of: str) -> int:
    """The number under `key`; ValueError unless it divides the one under `of`."""
    if not config[key] or config[of] % config[key]:
        raise ValueError(f"{source}: {key!r} is {config[key]!r}; accepted are divisors of {config[of]!r}")
    return config[key]


def check_config(source: str, config: Config, kinds: Mapping[str, str]) -> None:
    """ValueError, in one line, for the first key that is absent or holds something else."""
    for key, kind in kinds.items():
        if key not in config:
            raise ValueError(f"{source}: {key!r} is missing; accepted are {', '.join(kinds)}")
        value = config[key]
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        if pair != (kind == "a pair") or not (pair or isinstance(value, (int, float))):
            raise ValueError(f"{source}: {key!r} is {value!r}; accepted is {kind}")
