"""A model's life in one program: worlds, autoencoder, denoiser, scene.

    python examples/05_train_tiny.py

As it stands this takes some minutes on a CPU and shows the way, not the quality: the embedded `tiny` saw 1000 times as
much. Started again, it continues where it was stopped.
"""

from pathlib import Path

import tyro

import diorama
from diorama import Cameras, Condition, Scene
from diorama.data.cache import write_cache
from diorama.data.worlds import SPLITS
from diorama.geometry.trajectories import orbit
from diorama.training import dit3d, rae3d
from diorama.training.trainer import Trainer


def main(out: Path = Path("tiny_run"), scenes: int = 64, steps: int = 100, batch: int = 8) -> Scene:
    """Train both stages for `steps` each and generate a scene without photos."""
    # 1. Worlds with exact depth and cameras, rendered once. No world is in two splits.
    data = write_cache(out / "train", SPLITS["train"][:scenes], views=8, height=32, width=32)
    validation = write_cache(out / "validation", SPLITS["validation"][: min(scenes, 8)], views=8, height=32, width=32)

    # What both stages share; in the real recipes these are flags of `diorama train`.
    often = dict(log_every=10, save_every=50, validate_every=max(steps // 2, 1), precision="32-true", device="cpu")
    run = dict(steps=steps, batch=batch, warmup=10, data=data, validation=validation, size="tiny", **often)

    # 2. The autoencoder learns to predict views that it was not shown, from tokens with noise on them.
    config = rae3d.Config(out=out / "rae3d", known_views=(2, 4), target_views=2, **run)
    Trainer(rae3d.RAE3DStage(config), config).train()

    # 3. The denoiser learns the tokens' distribution, given few of the views.
    autoencoder = out / "rae3d/model"
    config = dit3d.Config(out=out / "dit3d", autoencoder=autoencoder, encoder_views=8, title="my first", **run)
    Trainer(dit3d.DiT3DStage(config), config).train()

    # 4. The last stage wrote a pipeline: load it like any other.
    pipeline = diorama.load(out / "dit3d/model")
    scene = pipeline.generate(Condition(), orbit(Cameras.from_fov(60.0, 32, 32), views=8), steps=10)
    diorama.save(scene, out / "scene", overwrite=True)
    print(f"{out / 'scene'}: {len(scene.views)} views by {scene.provenance.model}")
    return scene


if __name__ == "__main__":
    tyro.cli(main)
