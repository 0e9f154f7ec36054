"""A scene as a nerfstudio dataset and nothing else: transforms.json, images, depth, points."""

import json
from pathlib import Path

from diorama.export.atomic import replacement
from diorama.export.depth import depth_codes, depth_unit, png
from diorama.export.folder import nerfstudio, write_images
from diorama.export.ply import write_ply
from diorama.export.world import World, world_of
from diorama.scene import Views


def write_nerfstudio(
    views: Views,
    path: str | Path,
    *,
    voxel: float | None = None,
    world: World | None = None,
    overwrite: bool = False,
) -> None:
    """Write a folder that `ns-train` takes as data; ValueError for views without cameras."""
    if views.cameras is None:
        raise ValueError("the scene has no cameras; accepted for nerfstudio are scenes with cameras")
    views, world = views.to("cpu"), world or world_of(views)
    unit = None if views.depth is None else depth_unit(views)
    document = {**nerfstudio(views, unit), "world": world.record()}
    with replacement(path, overwrite=overwrite) as folder:
        folder.mkdir()
        write_images(folder / "images", views, range(len(views)))
        if unit is not None:
            (folder / "depth").mkdir()
            for number, codes in enumerate(depth_codes(views, unit)):
                (folder / f"depth/{number:05d}.png").write_bytes(png(codes, {"unit_per_code": unit}))
        if views.points is not None:
            write_ply(views, folder / "points.ply", voxel=voxel, world=world)
        (folder / "transforms.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
