"""Write a trained pipeline in half precision, small enough for the package: embed.py RUN/model MEMORY/model TARGET."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from diorama.models.checkpoints import check_weights
from diorama.models.observed_memory import ObservedMemory
from diorama.pipelines.base import load


def ship(pipeline: Any, target: Path) -> None:
    """Write a pipeline in half precision as others may have it, without where it lay; say how large it is."""
    pipeline.save_pretrained(target)
    for file in target.rglob("config.json"):  # where it lay when it was trained is nobody's business
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in target.rglob("*.safetensors"):
        # What is read in single precision again is written in half all the same.
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
        file.chmod(0o644)  # written for their owner alone
    print(f"{target}: {sum(file.stat().st_size for file in target.rglob('*') if file.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    source, memory, target = map(Path, sys.argv[1:])
    pipeline = load(source, "cpu")
    check_weights(ObservedMemory, memory)
    pipeline.register_modules(memory=ObservedMemory.from_pretrained(memory))
    for model in (pipeline.autoencoder, pipeline.denoiser, pipeline.memory):
        model.to(torch.float16)
    ship(pipeline, target)
