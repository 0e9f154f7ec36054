"""What is written to disk and must still be read by later versions: names in model_index.json, configs and weights.

A failure here means that models saved before can no longer be loaded: write a conversion, or do not rename.
"""

import json
import re

import pytest
from safetensors import safe_open

WEIGHTS = {
    "autoencoder": {
        "": "queries latent_mean latent_std",
        "image_embed.": "weight bias",
        "ray_embed.": "map.weight map.bias fourier.weight",
        "neck.N.": "BLOCK",
        "decoder.": "input_norm.weight",
        "decoder.blocks.N.": "BLOCK",
        "output_norm.": "weight",
        "output.": "weight bias",
        "point_decoder.": "input_norm.weight",
        "point_decoder.blocks.N.": "BLOCK",
        "point_head.": "norm.weight norm.bias project.N.weight project.N.bias rescale.N.weight rescale.N.bias "
        "level.N.weight narrow.weight narrow.bias out.N.weight out.N.bias",
        "point_head.fuse.N.": "lateral.conv1.weight lateral.conv1.bias lateral.conv2.weight lateral.conv2.bias "
        "unit.conv1.weight unit.conv1.bias unit.conv2.weight unit.conv2.bias out.weight out.bias",
    },
    "denoiser": {
        "": "table head_table",
        "input.": "weight bias",
        "head_input.": "weight bias",
        "time.": "frequencies mlp.N.weight mlp.N.bias",
        "blocks.N.": "MODULATED",
        "state_projection.": "weight bias",
        "head_blocks.N.": "MODULATED",
        "output_norm.": "weight",
        "output_modulation.": "weight bias",
        "output.": "weight bias",
    },
    "memory": {
        f"{name}.": "weight bias"
        for name in (
            *("trunk.N.N", "known.N", "wanted.N", "blending.N"),
            *(f"searches.N.{part}" for part in ("mix", "layers.N.N", "score", "choice.N")),
        )
    },
}
ATTENTION = "attention_norm.weight mlp_norm.weight attention.q_norm.weight attention.k_norm.weight "
PARTS = {
    "BLOCK": ATTENTION + "attention.qkv.weight attention.proj.weight mlp.N.weight",
    "MODULATED": ATTENTION
    + " ".join(
        f"{name}.{leaf}"
        for name in ("attention.qkv", "attention.proj", "mlp.gate_value", "mlp.out", "modulation")
        for leaf in ("weight", "bias")
    ),
}
CONFIGS = {
    "autoencoder": "patch tokens dim heads neck_layers decoder_layers point_layers point_taps point_features "
    "point_channels ray_frequencies ray_products attention",
    "denoiser": "tokens channels dim layers heads head_dim head_layers head_heads mlp_ratio condition classes qk_norm "
    "head_index",
    "memory": "widths channels hidden layers hypotheses reach blend",
}


def test_the_index_of_a_saved_pipeline(tiny_pipeline_folder):
    index = json.loads((tiny_pipeline_folder / "model_index.json").read_text())
    assert index.pop("_diffusers_version").startswith("0.")
    assert index == {
        "_class_name": "TokenPipeline",
        "autoencoder": ["diorama.models.rae3d", "RAE3D"],
        "denoiser": ["diorama.models.dit3d", "DiT3D"],
        "memory": ["diorama.models.observed_memory", "ObservedMemory"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "title": "miniature",
        "licence": "CC0-1.0",
        "pixels": 1024,
        "encoder_views": 16,
        "steps": 3,
        "guidance": 2.0,
    }


@pytest.mark.parametrize("part", CONFIGS)
def test_the_keys_of_a_config(tiny_pipeline_folder, part):
    config = json.loads((tiny_pipeline_folder / part / "config.json").read_text())
    assert {key for key in config if not key.startswith("_")} == set(CONFIGS[part].split())


@pytest.mark.parametrize("part", WEIGHTS)
def test_the_names_of_weights(tiny_pipeline_folder, part):
    expected = {
        stem + name
        for stem, names in WEIGHTS[part].items()
        for name in PARTS.get(names, names).split()
    }  # fmt: skip
    with safe_open(tiny_pipeline_folder / part / "diffusion_pytorch_model.safetensors", "pt") as file:
        found = {re.sub(r"(?<=\.)\d+(?=\.)", "N", name) for name in file.keys()}  # noqa: SIM118
    assert found == expected
