"""Coloured points as a binary glTF file, which Blender, Unity, Unreal and web viewers open."""

from pathlib import Path

import numpy as np

from diorama.export.gltf import Gltf, y_up
from diorama.export.ply import coloured_points
from diorama.export.world import World, world_of
from diorama.scene import Views

_POINTS = 0  # glTF's mode

# glTF's vertex colours are linear light, photos are sRGB. As floats, because some readers take 16 bits for 8.
_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4).astype("<f4")


def write_glb(
    views: Views,
    path: str | Path,
    *,
    drop: float = 0.0,
    voxel: float | None = None,
    world: World | None = None,
    overwrite: bool = False,
) -> None:
    """Write the valid points with their colours as glTF 2.0 (y up); ValueError where there are none."""
    world = world or world_of(views)
    points, colours = coloured_points(views, drop=drop, voxel=voxel)
    if not len(points):
        raise ValueError(f"{path}: the scene has no valid points and glTF cannot hold an empty cloud")
    file = Gltf()
    attributes = {"POSITION": file.array(y_up(points, world), bounds=True), "COLOR_0": file.array(_LINEAR[colours])}
    file.add("nodes", {"mesh": 0, "name": "points"})
    file.add("meshes", {"primitives": [{"attributes": attributes, "mode": _POINTS}]})
    file.write(path, world, overwrite=overwrite)
