"""Many camera paths through one scene: it is sampled once, and every view after that is only decoded.

    python examples/02_camera_path.py room.jpg

Without a photo the scene is invented. Writes one video for each movement, and one that flies through chosen places.
"""

import time
from pathlib import Path

import torch
import tyro

import diorama
from diorama import Cameras, Condition, Views
from diorama.export.video import write_video
from diorama.geometry.trajectories import dolly, interpolate, orbit, pan, truck


def main(photo: Path | None = None, /, out: Path = Path("paths"), model: str = "tiny", views: int = 24) -> list[Path]:
    """Generate a scene and film it in several ways."""
    known = None if photo is None else diorama.open(photo)
    start = known.cameras if isinstance(known, Views) and known.cameras else Cameras.from_fov(60.0, 64, 64)
    condition = Condition() if known is None else Condition(known, at=(0,))

    # What the model sees of the path: sixteen cameras or so that span the place you want to move in.
    pipeline = diorama.load(model)
    began = time.monotonic()
    scene = pipeline.generate(condition, orbit(start, 16, degrees=40.0), seed=1)
    print(f"sampled and decoded in {time.monotonic() - began:.1f} s")

    # Movements are functions of one camera; `interpolate` passes through any cameras, here three of those above.
    assert scene.views.cameras is not None
    paths = {
        "dolly": dolly(start, views, distance=0.3),
        "truck": truck(start, views, distance=0.3),
        "pan": pan(start, views, degrees=20.0),
        "tour": interpolate(scene.views.cameras[[0, 15, 7]], views),
    }
    written = []
    for name, path in paths.items():
        began = time.monotonic()
        made = pipeline.render(scene, path)
        write_video(made.images, out / f"{name}.mp4", overwrite=True)
        written.append(out / f"{name}.mp4")
        print(f"{written[-1]}: {views} views in {time.monotonic() - began:.1f} s")

    # The frame and scale of a scene are fixed: a view does not depend on which others are asked for with it.
    alone = pipeline.render(scene, paths["dolly"][-1]).images
    together = pipeline.render(scene, paths["dolly"]).images[-1:]
    assert torch.allclose(alone, together, atol=1e-4)
    return written


if __name__ == "__main__":
    tyro.cli(main)
