"""A photo becomes a scene, and the scene becomes files.

    python examples/01_one_photo.py room.jpg

Without a photo it takes a picture of a made-up room. It writes a folder that nerfstudio opens as it is, and the scene's
points for any 3D program.
"""

from pathlib import Path

import torch
import tyro

import diorama
from diorama import Condition, Scene, Views
from diorama.data.worlds import SPLITS, render, world
from diorama.geometry.trajectories import orbit


def main(photo: Path | None = None, /, out: Path = Path("room"), model: str = "tiny", views: int = 16) -> Scene:
    """Generate a scene from one photo and save it."""
    known = made_up_photo() if photo is None else diorama.open(photo)
    assert isinstance(known, Views) and known.cameras is not None, "a single photo, please"

    # Cameras are yours to choose. The first one is the photo's own, hence `at=(0,)`.
    path = orbit(known.cameras, views, degrees=30.0)
    scene = diorama.load(model).generate(Condition(known, at=(0,)), path, seed=7)

    # Images, points and depth are in the frame and the units of the cameras above.
    images, depth = scene.views.images, scene.views.depth
    assert depth is not None
    print(f"{len(scene.views)} views of {tuple(images.shape[-2:])} pixels, median depth {depth.median():.2f}")
    print(f"made by {scene.provenance.model}, whose weights are {scene.provenance.licence}")

    points = out.with_suffix(".ply")
    diorama.save(scene, out)
    diorama.save(scene, points)
    again = diorama.open(out)
    assert isinstance(again, Scene) and torch.equal(again.latents, scene.latents)
    print(f"written: {out} and {points}")
    return scene


def made_up_photo() -> Views:
    """One view of a procedural room of the test split, which no training sees."""
    place = world(SPLITS["test"].start + 3, kind="room")
    views = render(place, place.path(2, 128, 128)[0])
    return Views(views.images, views.cameras)  # a photo knows no points


if __name__ == "__main__":
    tyro.cli(main)
