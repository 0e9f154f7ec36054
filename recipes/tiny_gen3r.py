"""Put a tiny Gen3R together: `join RUNS TARGET` before its denoiser is trained, `half MODEL TARGET` after it."""

import sys
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from embed import ship
from transformers import ByT5Tokenizer, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from diorama.models.gen3r_transformer import SIZES, Gen3RTransformer
from diorama.pipelines.base import load
from diorama.pipelines.gen3r import Gen3RPipeline
from diorama.training.parts import adapter_in, vggt_in, video_vae_in

WIDTH = 64  # of text and image tokens


def join(runs: Path, target: Path) -> None:
    """Write a pipeline of trained parts, of random encoders that stay random, and of a denoiser to be trained."""
    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer()  # bytes: no vocabulary to learn or to ship
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    image = CLIPVisionConfig(  # 224 pixels in patches of 56: 17 tokens, where the published one has 257
        hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, projection_dim=WIDTH,
        image_size=224, patch_size=56,
    )  # fmt: skip
    Gen3RPipeline(
        transformer=Gen3RTransformer(**SIZES["tiny"], text_dim=WIDTH, image_dim=WIDTH),
        vae=video_vae_in(runs / "video_vae/model"),
        adapter=adapter_in(runs / "adapter/model"),
        vggt=vggt_in(runs / "vggt/model"),
        text_encoder=UMT5EncoderModel(text),
        tokenizer=tokenizer,
        image_encoder=CLIPVisionModel(image),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        licence="Apache-2.0",
    ).save_pretrained(target)


def half(model: Path, target: Path) -> None:
    """Write a trained pipeline in half precision."""
    ship(load(model, "cpu", dtype=torch.float16, offload="none"), target)


if __name__ == "__main__":
    {"join": join, "half": half}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
