"""`diorama.save`: the suffix decides what is written."""

from pathlib import Path

import torch

from diorama.export.atomic import check_free
from diorama.export.folder import write_folder
from diorama.export.glb import write_glb
from diorama.export.ply import write_ply
from diorama.export.video import write_video
from diorama.scene import Scene


def save(scene: Scene, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a scene to a folder (no suffix), or its points to .ply or .glb, or its images to .mp4; gives the path.

    An existing path raises FileExistsError unless `overwrite`. A failed or interrupted run leaves nothing half-written.
    """
    path = Path(path)
    if path.suffix.lower() not in ("", ".ply", ".glb", ".mp4"):
        raise ValueError(f"{path}: found the suffix {path.suffix}; accepted are .ply, .glb, .mp4, or none for a folder")
    check_free(path, overwrite=overwrite)
    if scene.views.images.ndim != 4:
        raise ValueError(
            f"images of shape {tuple(scene.views.images.shape)}; accepted is one scene: view 3 height width"
        )
    if not torch.isfinite(scene.views.images).all():
        raise ValueError("the scene's images hold values that are not finite; nothing was written")
    match path.suffix.lower():
        case "":
            write_folder(scene, path, overwrite=overwrite)
        case ".ply":
            write_ply(scene.views, path, overwrite=overwrite)
        case ".glb":
            write_glb(scene.views, path, overwrite=overwrite)
        case ".mp4":
            write_video(scene.views.images, path, overwrite=overwrite)
    return path
