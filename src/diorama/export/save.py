"""`diorama.save`: the suffix decides what is written."""

from pathlib import Path

from diorama.export.atomic import check_free
from diorama.export.folder import write_folder
from diorama.export.glb import write_glb
from diorama.export.page import write_page
from diorama.export.ply import write_ply
from diorama.export.splat import write_splats
from diorama.export.video import write_video
from diorama.scene import Scene, Views

SUFFIXES = ("", ".ply", ".glb", ".mp4", ".html")
SPLAT = ".splat.ply"  # before .ply: a cloud and splats share the last suffix
MIN_SIDE = 8  # pixels; smaller images could be written but not opened again


def save(scene: Scene, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a scene to a folder (no suffix), or what the suffix says; gives the path.

    .ply and .glb hold the points, .splat.ply Gaussians, .mp4 the images, .html a page to look at both in a browser.
    An existing path raises FileExistsError unless `overwrite`, and a folder is only replaced if it is a saved scene.
    A failed or interrupted run leaves what was there and nothing half-written.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    check_scene(scene)
    match path.suffix.lower():
        case ".ply" if path.name.lower().endswith(SPLAT):
            write_splats(scene.views, path, overwrite=overwrite)
        case ".ply":
            write_ply(scene.views, path, overwrite=overwrite)
        case ".glb":
            write_glb(scene.views, path, overwrite=overwrite)
        case ".mp4":
            write_video(scene.views.images, path, overwrite=overwrite)
        case ".html":
            write_page(scene, path, overwrite=overwrite)
        case _:
            write_folder(scene, path, overwrite=overwrite)
    return path


def check_target(path: str | Path, *, overwrite: bool = False) -> None:
    """ValueError or FileExistsError where `save` could not write to `path`; worth asking before any heavy work."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        accepted = ", ".join((*SUFFIXES[1:3], SPLAT, *SUFFIXES[3:]))
        raise ValueError(f"{path}: found the suffix {path.suffix}; accepted are {accepted}, or none for a folder")
    check_free(path, overwrite=overwrite)


def check_scene(scene: Scene) -> None:
    """ValueError for a scene that could not be read back."""
    _check("the scene", scene.views)
    if scene.condition.views is not None:
        _check("the scene's condition", scene.condition.views)


def _check(what: str, views: Views) -> None:
    """ValueError for what could not be read back."""
    shape = tuple(views.images.shape)
    if len(shape) != 4 or shape[0] < 1 or shape[1] != 3 or min(shape[2:]) < MIN_SIDE:
        raise ValueError(
            f"{what} has images of shape {shape}; accepted is view 3 height width, {MIN_SIDE} px a side or more"
        )
    if not views.images.isfinite().all():
        raise ValueError(f"{what} has images with values that are not finite; accepted is RGB in [0, 1]")
    size = (shape[0], *shape[2:])
    for name, found, accepted in (("points", views.points, (*size, 3)), ("confidence", views.confidence, size)):
        if found is not None and tuple(found.shape) != accepted:
            raise ValueError(f"{what} has {name} of shape {tuple(found.shape)}; accepted is {accepted} like its images")
    if views.cameras is not None:
        try:
            views.cameras.checked()
        except ValueError as error:
            raise ValueError(f"{what} cannot be saved: {error}") from error
