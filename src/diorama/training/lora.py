"""A trained DiT3D learns one's own captures by small changes of its matrices (LoRA, arXiv 2106.09685)."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from diorama.data.open import open_scenes
from diorama.data.scenes import CapturedScene
from diorama.data.sources import OpenScenes
from diorama.models.dit3d import DiT3D
from diorama.pipelines.base import find_model
from diorama.pipelines.tokens import TokenPipeline
from diorama.training import dit3d
from diorama.training.trainer import Run

PROBED = 8  # captures of each folder that tell size and number of views
LAYERS = {"attention": ("attention.qkv", "attention.proj"), "mlp": ("mlp.gate_value", "mlp.out")}  # of every block
WEIGHTS = "adapter_model.safetensors"  # peft's own name


@dataclass(frozen=True)
class Config(Run):
    """Fine-tuning; the defaults suit one capture, on a CPU or one GPU."""

    model: str = field(kw_only=True)
    """An embedded model's name, or the folder of a trained 3DRAE + 3DDiT pipeline; only its denoiser learns."""
    data: Path | tuple[Path, ...] = field(kw_only=True)
    """What to learn from: a capture with cameras, a folder of captures, shards, worlds; one or several."""
    validation: Path | None = None
    """What is looked at while learning; by default --data (the first of several), which the model has then seen."""
    weights: tuple[str, ...] = ()
    """How often each of several is drawn, whatever its size: numbers, such as 3 1."""
    rank: int = 16
    """Rank of each matrix's change; what is learnt and shared grows with it."""
    alpha: int = 16
    """A change counts alpha / rank times."""
    layers: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")
    """Which matrices of the blocks change."""
    image_size: tuple[int, int] | None = None
    """Height and width of captures; by default the model's own area in the first capture's proportions."""
    encoder_views: int | None = None
    """Views of each sample; by default as many as the model reads, or as the captures have."""
    visible: tuple[int, ...] = (1, 1, 2, 3, 4)
    """Numbers of views that may be known, of which one is drawn; those that leave no view to generate are left out."""
    window: int = 0
    """Take a sample's views from so many neighbouring ones of its capture; 0: all."""
    blind_probability: float = 0.1
    """Share of samples with nothing known, which is what guidance compares with."""
    decoders: int = 4
    """Threads of each process that decode captures."""
    title: str | None = None
    """Name of the saved pipeline; by default the model's own with "+ LoRA"."""
    steps: int = 500
    batch: int = 4
    learning_rate: float = 3e-4
    warmup: int = 20
    ema: float = 0.99
    save_every: int = 100
    validate_every: int = 250


class LoRAStage(dit3d.DiT3DStage):
    """DiT3D's own training on views that are encoded at every step, of an adapter alone."""

    def __init__(self, config: Config) -> None:
        if min(config.rank, config.alpha) < 1 or not config.layers:
            found = f"--rank {config.rank} --alpha {config.alpha} --layers {' '.join(config.layers)}"
            raise ValueError(f"{found}: accepted are numbers of 1 or more, and at least one of {', '.join(LAYERS)}")
        kind, self.folder = find_model(config.model)
        if kind is not TokenPipeline:
            found = f"--model {config.model}: found a {kind.__name__}"
            raise ValueError(f"{found}; accepted are embedded models and folders of 3DRAE + 3DDiT")
        self.options = config
        self.trained = TokenPipeline.load_folder(self.folder)
        if self.trained.denoiser.config.classes:
            raise ValueError(f"--model {config.model}: made for single images by class; accepted is one of many views")
        settings = _settings(config, self.trained, self.folder)
        torch.manual_seed(config.seed)
        adapted(self.trained.denoiser, config)
        super().__init__(settings, self.trained)
        if config.validation is None and os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
            print(f"{settings.validation}: learnt from and validated on, since there is no --validation")

    def pipeline(self) -> TokenPipeline:
        """The whole model with the adapter beside its matrices."""
        nn.Module.to(self.autoencoder, self.model.device)
        if self.trained.memory is not None:
            nn.Module.to(self.trained.memory, self.model.device)
        self.model.eval()
        return self.trained

    def save(self, folder: Path) -> None:
        """Write the pipeline with the adapter merged into its denoiser, and beside it the adapter as peft does."""
        whole = TokenPipeline.load_folder(self.folder)  # anew: merging would change what is in training
        adapter = adapted(whole.denoiser, self.options)
        whole.denoiser.load_state_dict(self.model.state_dict())
        write_adapter(adapter, folder.parent / "adapter")
        adapter.merge_and_unload()
        whole.register_to_config(title=self.config.title)
        whole.save_pretrained(folder)
        whole.autoencoder.save_encoder(folder / "autoencoder")
        if self.online is not None:
            self.online.batches.close()


def adapted(model: DiT3D, config: Config) -> PeftModel:
    """Put a new adapter beside the blocks' matrices, in place; it changes nothing yet, and it alone takes gradients.

    The modulation (adaLN) stays: it says what noise and time do, which is no matter of what is photographed.
    """
    targets = [name for layer in config.layers for name in LAYERS[layer]]
    return PeftModel(model, LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets))


def write_adapter(adapter: PeftModel, folder: Path) -> None:
    """An adapter's weights and config under peft's names."""
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / WEIGHTS)
    about = adapter.peft_config["default"]
    about.inference_mode = True
    about.save_pretrained(str(folder))


def _settings(config: Config, trained: TokenPipeline, folder: Path) -> dit3d.Config:
    """What DiT3D's own stage is told; ValueError for data that cannot be used."""
    folders = config.data if isinstance(config.data, tuple) else (config.data,)
    validation = config.validation or folders[0]
    scenes = {place: _opened(place) for place in (*folders, validation)}
    longest = {place: max(map(len, found)) for place, found in scenes.items()}
    short = min(longest, key=longest.__getitem__)
    if longest[short] < 2:
        raise ValueError(f"{short}: found one view of each place; accepted are captures of 2 views or more")
    views = config.encoder_views or min(trained.config.encoder_views, longest[short])
    visible = tuple(count for count in config.visible if 1 <= count < views)
    if not visible:
        found = f"--visible {' '.join(map(str, config.visible))} with samples of {views} views"
        raise ValueError(f"{found}: accepted are numbers from 1 to {views - 1}")
    camera = scenes[folders[0]][0].frames[0].camera
    assert camera is not None  # OpenScenes refuses those without
    less = (trained.config.pixels / (camera.height * camera.width)) ** 0.5
    return dit3d.Config(
        **{one.name: getattr(config, one.name) for one in fields(Run)},
        **{name: getattr(config, name) for name in ("data", "weights", "window", "blind_probability", "decoders")},
        autoencoder=folder / "autoencoder",
        validation=validation,
        online=True,
        scale_token=bool(trained.denoiser.config.get("scale")),
        image_size=config.image_size or trained.size_near(less * camera.height, less * camera.width),
        encoder_views=views,
        visible=visible,
        title=config.title or f"{trained.config.title} + LoRA",
    )


def _opened(folder: Path) -> list[CapturedScene]:
    """The first captures of a folder."""
    source = OpenScenes(open_scenes(folder))
    return [source[index] for index in range(min(PROBED, len(source)))]
