"""Gen3R as it is published, in miniature: its folders, file names, configurations and weight names, at tiny sizes.

All that hangs together does so here too: text and image tokens fit the transformer, VGGT's tokens fit the adapter.
"""

import json
import math
import string

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from transformers import T5Tokenizer

from diorama.models.published_names import KINDS

from .miniature import lively

WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT, IMAGE, TOKEN = 32, 32, 16  # channels of umT5, CLIP and VGGT
VOCABULARY = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)] + [
    (letter, -3.0) for letter in string.ascii_lowercase + string.digits + ".,"
]

# fmt: off
CONFIGS = {  # folder -> config.json, keywords of the published constructors
    "transformer": {
        "_class_name": "WanTransformer3DModel", "model_type": "i2v", "patch_size": [1, 2, 2], "text_len": 512,
        "in_dim": 36, "dim": 24, "ffn_dim": 32, "freq_dim": 16, "text_dim": TEXT, "out_dim": 16, "num_heads": 2,
        "num_layers": 2, "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "add_control_adapter": True,
        "in_dim_control_adapter": 24,
    },
    "wan_vae": {
        "_class_name": "AutoencoderKLWan", "latent_channels": 16, "temporal_compression_ratio": 4,
        "spatial_compression_ratio": 8,
    },
    "geo_adapter": {
        "_class_name": "GeometryAdapter", "latent_channels": 16, "hidden_dim": 8, "input_dim": 10 * TOKEN,
        "output_dim": 10 * TOKEN, "resample_scale": 10,
    },
    "vggt": {
        "aggregator": {"img_size": 518, "patch_size": 14, "embed_dim": TOKEN, "depth": 4, "num_heads": 4},
        "dino": {"img_size": 56, "depth": 1, "num_heads": 4}, "intermediate_layer_idx": [0, 1, 2, 3],
        "camera_head": {"trunk_depth": 1, "num_heads": 4}, "dpt_head": {"features": 8, "out_channels": [8, 8, 8, 8]},
    },
    "text_encoder": {
        "_class_name": "WanT5EncoderModel", "vocab": 48, "dim": TEXT, "dim_attn": 24, "dim_ffn": 40, "num_heads": 3,
        "num_layers": 2, "num_buckets": 8, "shared_pos": False, "dropout": 0.0,
    },
    "clip_image_encoder": {
        "_class_name": "CLIPModel", "vision_dim": IMAGE, "vision_heads": 4, "vision_layers": 3, "vision_mlp_ratio": 2,
        "embed_dim": 20,
    },
}
KINDS_OF = {  # folder -> kind of `convert`
    "transformer": "gen3r_transformer", "wan_vae": "wan_vae", "geo_adapter": "geometry_adapter", "vggt": "vggt",
    "text_encoder": "umt5", "clip_image_encoder": "clip_vision",
}
# fmt: on
PREFIXED = ("wan_vae", "geo_adapter", "clip_image_encoder")


def state(folder, seed=0):
    """Published names to random weights of one folder, without any prefix."""
    config, kind = CONFIGS[folder], KINDS_OF[folder]
    if folder == "text_encoder":
        return _random(text_encoder_shapes(**{k: v for k, v in config.items() if k[0] != "_"}), seed)
    if folder == "clip_image_encoder":
        return _random(clip_shapes(**{k: v for k, v in config.items() if k[0] != "_"}), seed)
    told = KINDS[kind]
    width = {"encoder.conv1.weight": torch.empty(8, 3, 3, 3, 3)} if folder == "wan_vae" else {}
    image = {"img_emb.proj.0.weight": torch.empty(IMAGE)} if folder == "transformer" else {}
    arguments = told.arguments(config, folder, width | image)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = lively(told.build(arguments), seed)
    return {told.published(name, arguments)[0]: tensor for name, tensor in model.state_dict().items()}


def text_encoder_shapes(vocab, dim, dim_attn, dim_ffn, num_heads, num_layers, num_buckets, **_):
    """Every weight of Wan's umT5 encoder."""
    block = {
        "norm1.weight": (dim,), "norm2.weight": (dim,), "pos_embedding.embedding.weight": (num_buckets, num_heads),
        "attn.o.weight": (dim, dim_attn), "ffn.gate.0.weight": (dim_ffn, dim), "ffn.fc1.weight": (dim_ffn, dim),
        "ffn.fc2.weight": (dim, dim_ffn), **{f"attn.{name}.weight": (dim_attn, dim) for name in "qkv"},
    }  # fmt: skip
    blocks = {f"blocks.{i}.{name}": shape for i in range(num_layers) for name, shape in block.items()}
    return {"token_embedding.weight": (vocab, dim), "norm.weight": (dim,)} | blocks


def clip_shapes(vision_dim, vision_layers, vision_mlp_ratio, embed_dim, image_size=224, patch_size=14, **_):
    """Every weight of the image tower of Wan's CLIP, and some of the text tower, which nothing reads."""
    dim, wide = vision_dim, vision_dim * vision_mlp_ratio
    shapes = {
        "patch_embedding.weight": (dim, 3, patch_size, patch_size), "cls_embedding": (1, 1, dim),
        "pos_embedding": (1, 1 + (image_size // patch_size) ** 2, dim), "head": (dim, embed_dim),
        **{f"{norm}.{leaf}": (dim,) for norm in ("pre_norm", "post_norm") for leaf in ("weight", "bias")},
    }  # fmt: skip
    linear = {"attn.to_qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.0": (wide, dim), "mlp.2": (dim, wide)}
    for name in (f"transformer.{i}" for i in range(vision_layers)):
        shapes |= {f"{name}.{layer}.weight": shape for layer, shape in linear.items()}
        shapes |= {f"{name}.{layer}.bias": shape[:1] for layer, shape in linear.items()}
        shapes |= {f"{name}.norm{i}.{leaf}": (dim,) for i in (1, 2) for leaf in ("weight", "bias")}
    text = {"textual.token_embedding.weight": (6, 4), "textual.head.0.weight": (5, 4), "log_scale": ()}
    return {f"visual.{name}": shape for name, shape in shapes.items()} | text


def write(folder, seed=0):
    """The whole checkpoint in `folder`, text encoder in three shards, all in float32; gives the folder."""
    for place, config in CONFIGS.items():
        (folder / place).mkdir(parents=True)
        (folder / place / "config.json").write_text(json.dumps(config))
        weights = state(place, seed)
        if place in PREFIXED:
            weights = {f"model.{name}": tensor for name, tensor in weights.items()}
        if place == "text_encoder":
            write_shards(folder / place, weights, 3)
        else:
            save_file(weights, folder / place / ("model.safetensors" if place == "vggt" else WEIGHTS))
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(folder / "scheduler")
    T5Tokenizer(vocab=VOCABULARY, extra_ids=0).save_pretrained(folder / "tokenizer")
    classes = {name: [f"gen3r.models.{name}", config.get("_class_name")] for name, config in CONFIGS.items()}
    more = {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "tokenizer": ["transformers", "T5Tokenizer"]}
    index = {"_class_name": "Gen3RPipeline", "_diffusers_version": "0.31.0"} | classes | more | {"vggt": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_shards(folder, weights, count):
    """One state dict in several files with the index that says where each weight is."""
    names, places = sorted(weights), {}
    for i in range(count):
        file = f"diffusion_pytorch_model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({name: weights[name] for name in names[i::count]}, folder / file)
        places |= dict.fromkeys(names[i::count], file)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def _random(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: _weight(name, shape, generator) for name, shape in shapes.items()}


def _weight(name, shape, generator):
    noise = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        return 0.1 * noise + ("norm" in name and name.endswith("weight"))
    return noise / math.sqrt(math.prod(shape[1:]))
