"""Write a trained pipeline in half precision, small enough to travel in the package: embed.py RUN/model TARGET."""

import sys
from pathlib import Path

import torch

from diorama.pipelines.base import load

if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    pipeline = load(source, "cpu")
    for model in (pipeline.autoencoder, pipeline.denoiser):
        model.to(torch.float16)
    pipeline.save_pretrained(target)
    for file in target.rglob("*.safetensors"):  # written for their owner alone
        file.chmod(0o644)
    print(f"{target}: {sum(file.stat().st_size for file in target.rglob('*') if file.is_file()) / 1e6:.1f} MB")
