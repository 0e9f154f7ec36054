"""Several photos with cameras: reconstructed without diffusion, generated with it, and scored on photos held back.

    python examples/03_your_capture.py my_capture/

The folder holds transforms.json (nerfstudio, instant-ngp) or cameras.json (Gen3R) beside its photos. Without one it
takes views of a made-up room.
"""

from pathlib import Path

import tyro

import diorama
from diorama import Condition, Views
from diorama.data.worlds import SPLITS, render, world
from diorama.evaluation.metrics import psnr


def main(
    capture: Path | None = None, /, known: int = 3, views: int = 9, model: str = "tiny", out: Path = Path("capture")
) -> dict[str, float]:
    """Show `known` of the photos to the model and compare the others with what it makes of them; PSNR in dB."""
    photos = made_up_capture(views) if capture is None else diorama.open(capture)
    if not isinstance(photos, Views) or photos.cameras is None:
        raise SystemExit(f"{capture}: no photos with cameras")
    pipeline = diorama.load(model)

    # At the model's own size, so that what it makes can be compared pixel by pixel.
    size = pipeline.prepared(Condition(), photos.cameras)[1]
    photos = photos.resized(size.height, size.width)
    at = tuple(round(i * (len(photos) - 1) / max(known - 1, 1)) for i in range(known))
    hidden = [place for place in range(len(photos)) if place not in at]

    scenes = {
        "reconstructed": pipeline.reconstruct(photos[at], photos.cameras),
        "generated": pipeline.generate(Condition(photos[at], at), photos.cameras, seed=0),
    }
    scores = {}
    for name, scene in scenes.items():
        scores[name] = float(psnr(scene.views.images[hidden], photos.images[hidden]).mean())
        print(f"{name}: {scores[name]:.2f} dB on {len(hidden)} photos it has not seen")
        diorama.save(scene, out / name)
    return scores


def made_up_capture(views: int) -> Views:
    """Views along a path through a procedural room of the test split."""
    place = world(SPLITS["test"].start + 3, kind="room")
    return render(place, place.path(views, 64, 64))


if __name__ == "__main__":
    tyro.cli(main)
