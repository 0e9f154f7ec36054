"""What `ablations.py` trains: small autoencoders and denoisers that differ in one thing each."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ablation.budget import Budget
from ablation.budget import trained as budgeted
from diorama.models import dit3d as dit3d_model
from diorama.models import rae3d as rae3d_model
from diorama.scene import Views
from diorama.training import dit3d, rae3d
from diorama.training.rae3d import RAE3DStage, Sample
from diorama.training.trainer import WHOLE, Run, Share, Stage, step_generator

PATCH = 8
PIXELS = (1600, 4096)  # drawn for every step, as the paper draws its sizes; the worlds have 64x64
ASPECTS = (0.7, 1.43)

AUTOENCODER: dict[str, Any] = dict(
    patch=PATCH, tokens=32, dim=128, heads=2, neck_layers=3, decoder_layers=3, point_layers=0, ray_frequencies=6,
    ray_products=True,
)  # fmt: skip
DENOISER: dict[str, Any] = dict(dim=128, layers=4, heads=2, head_dim=192, head_layers=2, head_heads=3)
LARGER: dict[str, Any] = dict(dim=192, layers=6, heads=3, head_dim=256, head_layers=2, head_heads=4)

SHARED: dict[str, Any] = dict(
    size="ablation", learning_rate=1e-3, muon_rate=2e-3, warmup=40, final_rate=0.02, ema=0.995, log_every=50,
    save_every=100, validate_every=10**9,
)  # fmt: skip
RAE3D_RUN: dict[str, Any] = dict(
    batch=8, known_views=(1, 2, 2, 3, 4, 4, 8), target_views=4, known_targets=1, mirror=True, gradient_weight=0.5,
    point_weight=0.0, point_views=0, noise=0.4,
)  # fmt: skip
DIT3D_RUN: dict[str, Any] = dict(
    batch=64, encoder_views=8, visible=(1, 1, 2, 3, 4), samples=1, conditions=1, guidance=1.5, title="ablation"
)


@dataclass(frozen=True)
class Arm:
    """One model to train: its architecture, what its run changes, and which arms it builds on."""

    what: str
    stage: str  # rae3d or dit3d
    size: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    start: str | None = None  # arm whose weights it begins from
    autoencoder: str | None = None  # arm whose latents it denoises
    steps_of: str | None = None  # arm whose steps it takes, where minutes would say more of the machine than of the arm
    share: float = 1.0  # of the budget, or of those steps

    @property
    def needs(self) -> tuple[str, ...]:
        """Arms that must be trained before."""
        return tuple(name for name in (self.start, self.autoencoder, self.steps_of) if name)


ARMS: dict[str, Arm] = {
    "base": Arm("32 latents, one-way decoder, noise up to 0.4", "rae3d", AUTOENCODER),
    "tokens8": Arm("8 latents", "rae3d", AUTOENCODER | {"tokens": 8}),
    "tokens128": Arm("128 latents", "rae3d", AUTOENCODER | {"tokens": 128}),
    "mutual": Arm("mutual decoder", "rae3d", AUTOENCODER, {"attention": "mutual"}, steps_of="base"),
    "noiseless": Arm("latents decoded without noise", "rae3d", AUTOENCODER, {"noise": 0.0}),
    "dit3d": Arm("small denoiser", "dit3d", DENOISER, autoencoder="base"),
    "larger": Arm("larger denoiser", "dit3d", LARGER, autoencoder="base", steps_of="dit3d"),
    "plain": Arm("base, trained on", "rae3d", AUTOENCODER, start="base", share=0.5),
    "adversarial": Arm(
        "base, trained on with the adversarial loss", "rae3d", AUTOENCODER,
        {"adversarial_weight": 0.75, "discriminator": "worlds64", "discriminator_start": 0, "adversarial_start": 40},
        start="base", share=0.5,
    ),
    "images": Arm(
        "small denoiser of single images by class", "dit3d", DENOISER,
        {"single_images": True, "label": "kind", "samples": 4}, autoencoder="base", steps_of="dit3d", share=0.5,
    ),
    "pretrained": Arm(
        "the same, then of scenes", "dit3d", DENOISER, start="images", autoencoder="base", steps_of="dit3d", share=0.5
    ),
    "dit3d-noiseless": Arm(
        "small denoiser, latents of noiseless", "dit3d", DENOISER, autoencoder="noiseless", steps_of="dit3d"
    ),
}  # fmt: skip


class AnySize(RAE3DStage):
    """Sizes and proportions drawn for every step, cropped and resized from square worlds."""

    def batch(self, step: int, share: Share = WHOLE) -> Sample:
        """The stage's own batch in the step's shape."""
        sample = super().batch(step, share)
        return sample._replace(views=shaped(sample.views, *shape_of(step, self.config.seed)))


def shape_of(step: int, seed: int) -> tuple[int, int]:
    """Height and width of a step: pixels and the logarithm of the aspect are uniform, sides are whole patches."""
    pixels, aspect = torch.rand(2, generator=step_generator(seed, step, 3)).tolist()
    area = PIXELS[0] + (PIXELS[1] - PIXELS[0]) * pixels
    ratio = ASPECTS[0] * (ASPECTS[1] / ASPECTS[0]) ** aspect
    height, width = ((area / ratio) ** 0.5, (area * ratio) ** 0.5)
    return max(1, round(height / PATCH)) * PATCH, max(1, round(width / PATCH)) * PATCH


def shaped(views: Views, height: int, width: int) -> Views:
    """The largest centred part of another shape, resized."""
    assert views.cameras is not None
    tall, wide = views.images.shape[-2:]
    scale = min(tall / height, wide / width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (tall - rows) // 2, (wide - columns) // 2
    images = views.images[..., top : top + rows, left : left + columns]
    cut = Views(images, views.cameras.cropped(top, left, rows, columns), None, None)
    resized = cut.resized(height, width)
    # A loss of points asks where there are any; there is no point decoder here.
    return Views(resized.images, resized.cameras, None, None)


def trained(name: str, out: Path, train: Path, validation: Path, budget: Budget) -> tuple[int, float]:
    """Train an arm unless it is there; its steps and the seconds of one."""
    arm, folder = ARMS[name], out / name
    steps = json.loads((out / arm.steps_of / "plan.json").read_text())["steps"] if arm.steps_of else None
    share = budget._replace(minutes=arm.share * budget.minutes)

    def build(steps: int) -> tuple[Stage, Run]:
        return built(arm, out, folder, train, validation, budget.device, steps)

    return budgeted(folder, arm.what, build, share, steps=None if steps is None else steps * arm.share)


def built(
    arm: Arm, out: Path, folder: Path, train: Path, validation: Path, device: str, steps: int
) -> tuple[Stage, Run]:
    """The arm's stage and run, of so many steps."""
    told: dict[str, Any] = dict(out=folder, data=train, validation=validation, device=device, steps=steps)
    told |= {"start": out / arm.start / "model"} if arm.start else {}
    if arm.stage == "rae3d":
        rae3d_model.SIZES["ablation"] = arm.size
        config = rae3d.Config(**(SHARED | RAE3D_RUN | arm.run | told))
        return AnySize(config), config
    dit3d_model.SIZES["ablation"] = arm.size
    assert arm.autoencoder is not None
    told |= {"autoencoder": out / arm.autoencoder / "model"}
    config = dit3d.Config(**(SHARED | DIT3D_RUN | arm.run | told))
    return dit3d.DiT3DStage(config), config
