"""`diorama train STAGE`: every field of the stage's Config is a flag."""

import logging
import os
import signal
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

from diorama.cli.requests import CONFIG

# Module in diorama.training, which holds Config and this Stage -> what it trains.
STAGES = {
    "rae3d": ("RAE3DStage", "the autoencoder: views to 3D latent tokens and back"),
    "observed_memory": ("ObservedMemoryStage", "the memory that keeps known views sharp, on a trained autoencoder"),
    "dit3d": ("DiT3DStage", "the denoiser of those tokens, on a trained autoencoder"),
    "distill": ("DistillStage", "a trained denoiser that needs few steps and no guidance"),
    "lora": ("LoRAStage", "a small change of a trained denoiser, on your own captures"),
    "vggt": ("VGGTStage", "cameras, depth and points of photos, in one pass"),
    "video_vae": ("VideoVAEStage", "a video VAE: clips to latents and back"),
    "adapter": ("AdapterStage", "Gen3R's adapter: VGGT's tokens to latents like a video VAE's, and back"),
    "gen3r": ("Gen3RStage", "Gen3R's denoiser of video and geometry, on trained parts"),
}
OF_A_RUN = (
    "checkpoint.pt",
    "checkpoint",
    "log.jsonl",
    "tensorboard",
    "latents.safetensors",
    "latents.part",
    "trajectories",
)


def run(arguments: list[str]) -> int:
    """Train a stage, from where the folder left off if it did."""
    # Started by the first process, which answers to Ctrl-C and ends it; torchrun ends all of its own by such a signal.
    if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ:
        for request in (signal.SIGINT, signal.SIGTERM):
            signal.signal(request, signal.SIG_IGN)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *flags = arguments
    if name not in STAGES:
        close = get_close_matches(name, STAGES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"accepted are {', '.join(STAGES)}"
        raise ValueError(f"unknown stage {name!r}: {hint}")
    module = import_module(f"diorama.training.{name}")
    options = tyro.cli(
        module.Config, args=flags, prog=f"diorama train {name}", description=f"Train {STAGES[name][1]}.", config=CONFIG
    )
    _check(options, getattr(module, "SIZES", None))
    from diorama.training.trainer import Diverged, Trainer

    for greeter in ("lightning.fabric", "lightning.pytorch"):  # which say nothing about what a user asked for
        logging.getLogger(greeter).setLevel(logging.WARNING)
    with Trainer(getattr(module, STAGES[name][0])(options), options) as trainer:
        leads = trainer.fabric.is_global_zero
        if leads and trainer.step:
            print(f"{options.out}: continues after step {trainer.step} of {options.steps}")
        try:
            trainer.train()
        except KeyboardInterrupt:
            if leads:
                print(f"stopped after step {trainer.step}; the same command continues from the last checkpoint")
            raise
        except Diverged:
            if not leads:  # the first process says it
                raise SystemExit(2) from None
            raise
    if leads:
        print(f"{options.out}: {trainer.step} steps done, the model is in {options.out / 'model'}")
    return 0


def _check(options: Any, sizes: dict[str, Any] | None) -> None:
    """ValueError for what would otherwise fail after a while."""
    from diorama.models.checkpoints import check_weights
    from diorama.models.rae3d import RAE3D
    from diorama.pipelines.base import pick_device
    from diorama.training.strategies import processes

    if sizes is not None and options.size not in sizes:
        raise ValueError(f"--size {options.size}: accepted are {', '.join(sizes)}")
    for flag in ("steps", "batch", "devices", "nodes", "accumulate", "log_every", "save_every", "validate_every"):
        if getattr(options, flag) < 1:
            raise ValueError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: accepted is 1 or more")
    processes(options)
    pick_device(options.device)
    if hasattr(options, "autoencoder"):
        check_weights(RAE3D, options.autoencoder)
    out: Path = options.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file; accepted is a new folder or that of an earlier run")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in OF_A_RUN):
        raise ValueError(f"{out}: a folder of something else; accepted is a new folder or that of an earlier run")


def _help() -> str:
    return "\n".join(
        [
            "usage: diorama train STAGE [options]",
            "",
            "Train a model. A run that was stopped continues where it was when its command is given again.",
            "",
            *(f"  {name}  {meaning}" for name, (_, meaning) in STAGES.items()),
            "",
            "'diorama train STAGE --help' lists a stage's options.",
            "'diorama data worlds' renders what they train on.",
        ]
    )
