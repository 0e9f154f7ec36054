"""Write a trained pipeline in half precision, small enough for the package: embed.py RUN/model MEMORY/model TARGET."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from diorama.models.checkpoints import check_weights
from diorama.models.observed_memory import ObservedMemory
from diorama.pipelines.base import load


def ship(pipeline: Any, target: Path) -> None:
    """Write a pipeline as others may have it: without where it lay, readable for all; and say how large it is."""
    pipeline.save_pretrained(target)
    for file in target.rglob("config.json"):  # where it lay when it was trained is nobody's business
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in target.rglob("*.safetensors"):  # written for their owner alone
        file.chmod(0o644)
    print(f"{target}: {sum(file.stat().st_size for file in target.rglob('*') if file.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    source, memory, target = map(Path, sys.argv[1:])
    pipeline = load(source, "cpu")
    check_weights(ObservedMemory, memory)
    pipeline.register_modules(memory=ObservedMemory.from_pretrained(memory))
    for model in (pipeline.autoencoder, pipeline.denoiser, pipeline.memory):
        model.to(torch.float16)
    ship(pipeline, target)
