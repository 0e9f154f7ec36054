"""A scene in several formats at once: one folder, whole or not at all."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diorama.export.atomic import check_free, replacement
from diorama.export.cleaning import Cleaning, cleaned
from diorama.export.colmap import write_colmap
from diorama.export.depth import write_depth
from diorama.export.glb import write_glb
from diorama.export.mesh import write_mesh
from diorama.export.nerfstudio import write_nerfstudio
from diorama.export.page import MEGABYTES, write_page
from diorama.export.ply import write_ply
from diorama.export.save import check_scene
from diorama.export.splat import write_splats
from diorama.export.surface import EDGE
from diorama.export.tracks import MOST, TOLERANCE
from diorama.export.video import FPS, check_video, write_video
from diorama.export.world import UNIT, World, placed
from diorama.scene import Scene


@dataclass(frozen=True)
class Choices:
    """How the files are made; each format reads its own."""

    cleaning: Cleaning = field(default_factory=Cleaning)
    voxel: float | None = None  # side in file units; one mean point for each cube
    scale: float = 1.0  # file units in one scene unit
    up: str | None = None  # the files' axis that points up; None keeps the scene's
    unit: str = UNIT
    mesh: bool = False  # glb: a textured mesh instead of points
    edge: float = EDGE
    fps: float | int = FPS
    codec: str = "h264"
    text: bool = False  # colmap: text instead of binary
    tolerance: float = TOLERANCE
    tracks: int = MOST
    megabytes: float = MEGABYTES  # html


@dataclass(frozen=True)
class Format:
    """What a format is called on disk, what it needs, and what writes it."""

    file: str
    needs: tuple[str, ...]
    write: Callable[[Scene, Path, Choices, World], object]


def _glb(scene: Scene, path: Path, choices: Choices, world: World) -> None:
    if choices.mesh:
        write_mesh(scene.views, path.with_name("mesh.glb"), edge=choices.edge, world=world)
    else:
        write_glb(scene.views, path, voxel=choices.voxel, world=world)


def _colmap(scene: Scene, path: Path, choices: Choices, world: World) -> None:
    kind = {"text": choices.text, "tolerance": choices.tolerance, "most": choices.tracks}
    write_colmap(scene.views, path, world=world, **kind)


FORMATS = {
    "ply": Format(
        "points.ply", ("points",), lambda s, path, how, world: write_ply(s.views, path, voxel=how.voxel, world=world)
    ),
    "glb": Format("points.glb", ("points",), _glb),
    "colmap": Format("colmap", ("points", "cameras"), _colmap),
    "nerfstudio": Format(
        "nerfstudio",
        ("cameras",),
        lambda s, path, how, world: write_nerfstudio(s.views, path, voxel=how.voxel, world=world),
    ),
    "video": Format(
        "video.mp4", (), lambda s, path, how, world: write_video(s.views.images, path, fps=how.fps, codec=how.codec)
    ),
    "depth": Format(
        "depth", ("points", "cameras"), lambda s, path, how, world: write_depth(s.views, path, world=world)
    ),
    "splat": Format(
        "splats.ply", ("points",), lambda s, path, how, world: write_splats(s.views, path, voxel=how.voxel, world=world)
    ),
    "html": Format(
        "page.html",
        ("points",),
        lambda s, path, how, world: write_page(s, path, megabytes=how.megabytes, voxel=how.voxel, world=world),
    ),
}


def export(
    scene: Scene,
    path: str | Path,
    formats: Sequence[str],
    choices: Choices | None = None,
    *,
    overwrite: bool = False,
    on_format: Callable[[str], object] = lambda name: None,
) -> list[Path]:
    """Write a scene in these formats into one folder, with diorama.json that says what they share; gives the files.

    ValueError before any writing for an unknown format, one that needs what the scene lacks, and bad choices.
    """
    choices, path = choices or Choices(), Path(path)
    check(scene, formats, choices)
    check_free(path, overwrite=overwrite)
    views, world = placed(scene.views, scale=choices.scale, up=choices.up, unit=choices.unit)
    scene = replace(scene, views=cleaned(views, choices.cleaning))
    about = {
        "format": "diorama export",
        "formats": list(formats),
        "world": world.record(),
        "model": scene.provenance.model,
        "licence": scene.provenance.licence,
        "seed": scene.provenance.seed,
    }
    with replacement(path, overwrite=overwrite) as folder:
        folder.mkdir()
        (folder / "diorama.json").write_text(json.dumps(about, indent=1) + "\n")
        for name in formats:
            on_format(name)
            FORMATS[name].write(scene, folder / FORMATS[name].file, choices, world)
        names = sorted(file.name for file in folder.iterdir())
    return [path / name for name in names]


def check(scene: Scene, formats: Sequence[str], choices: Choices) -> None:
    """ValueError where `export` could not write this; worth asking before any work."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        found = unknown[0] if unknown else "none"
        raise ValueError(f"format {found!r}: accepted are {','.join(FORMATS)}")
    check_scene(scene)
    for name in formats:
        for need in FORMATS[name].needs:
            if getattr(scene.views, need) is None:
                raise ValueError(f"format {name!r} needs {need}, which this scene does not have")
    check_video(choices.fps, choices.codec)
    for name, value in (
        ("voxel", choices.voxel),
        ("edge", choices.edge),
        ("tolerance", choices.tolerance),
        ("tracks", choices.tracks),
        ("megabytes", choices.megabytes),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} {value}: accepted is a number above 0")
