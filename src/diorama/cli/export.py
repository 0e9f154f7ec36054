"""`diorama export`: a saved scene as files for other programs."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from diorama.cli.requests import CONFIG, OutFlags, check, target

if TYPE_CHECKING:
    from diorama.export.formats import Choices

OFF = "(default: keeps all)"


@dataclass(frozen=True)
class FolderFlags(OutFlags):
    """Where it is written to."""

    out: Annotated[Path | None, arg(help_behavior_hint="(default: SCENE-export)")] = None
    """A folder that will hold one file or folder for each format, and diorama.json about them."""
    overwrite: Annotated[bool, arg(help_behavior_hint="")] = False
    """Replace what is there, if it is an export or a saved scene."""


@dataclass(frozen=True)
class CleanFlags:
    """Which points are left out, in this order."""

    drop: Annotated[float, arg(metavar="PERCENT")] = 0.0
    """The least confident points, in per cent of all."""
    far: Annotated[float | None, arg(metavar="TIMES", help_behavior_hint=OFF)] = None
    """Points farther from their camera than this many times the median depth, as sky is: 5 to 20."""
    outliers: Annotated[float | None, arg(metavar="DEVIATIONS", help_behavior_hint=OFF)] = None
    """Points whose neighbours are farther than the mean by this many standard deviations: 1 to 3."""
    voxel: Annotated[float | None, arg(metavar="SIDE", help_behavior_hint=OFF)] = None
    """One mean point for each cube of this side, in the files' units; in ply, glb, splat, html."""


@dataclass(frozen=True)
class WorldFlags:
    """The files' coordinates, which each file that can says of itself."""

    scale: float = 1.0
    """File units in one unit of the scene."""
    unit: str = "scene unit"
    """What the files' unit is called, as metre."""
    up: Annotated[str | None, arg(metavar="AXIS", help_behavior_hint="(default: as in the scene; glb is always y)")] = (
        None
    )
    """Turn the world until this axis points up: x, y, z, -x, -y or -z."""


@dataclass(frozen=True)
class FormatFlags:
    """What single formats take."""

    mesh: bool = False
    """glb: a textured mesh of each view's depth instead of points."""
    edge: float = 0.05
    """glb: bend of the depth between neighbouring pixels at which the mesh is cut."""
    fps: float = 12.0
    """video: frames per second."""
    codec: str = "h264"
    """video: h264, h265 or av1."""
    text: bool = False
    """colmap: text files instead of binary ones."""
    tolerance: float = 1.0
    """colmap: pixels by which two views' depths may disagree about a point they share."""
    tracks: int = 200_000
    """colmap: points at most."""
    megabytes: float = 12.0
    """html: size of the page at most."""


@dataclass(frozen=True)
class Arguments:
    """All flags of the command."""

    scene: Positional[Path] = Path("scene")
    """The folder of a saved scene."""
    to: Annotated[str, arg(metavar="FORMAT,...")] = "ply,glb,html"
    """Any of ply, glb, colmap, nerfstudio, video, depth, splat, html."""
    output: FolderFlags = field(default_factory=FolderFlags)
    cleaning: CleanFlags = field(default_factory=CleanFlags)
    world: WorldFlags = field(default_factory=WorldFlags)
    each: Annotated[FormatFlags, arg(name="formats")] = field(default_factory=FormatFlags)


def run(arguments: list[str]) -> int:
    """Write a saved scene in some formats into one folder."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama export",
        description="Write a saved scene for other programs: all files in one new folder, or none.",
        config=CONFIG,
    )
    check("--drop", options.cleaning.drop, 0 <= options.cleaning.drop < 100, "0 up to, not including, 100")
    name = options.scene.resolve().name.replace(".", "-")
    out = target(options.output, f"{name}-export")
    if out.suffix:
        raise ValueError(f"{out}: accepted is a folder, which will hold one file or folder for each format")
    from diorama.data.open import open
    from diorama.export.formats import check as check_formats
    from diorama.export.formats import export
    from diorama.scene import Scene

    formats = list(dict.fromkeys(word.strip().lower() for word in options.to.split(",") if word.strip()))
    choices = _choices(options)
    scene = open(options.scene)
    if not isinstance(scene, Scene):
        raise ValueError(f"{options.scene}: no saved scene; 'diorama generate' or 'diorama reconstruct' makes one")
    try:
        check_formats(scene, formats, choices)
    except ValueError as error:
        raise ValueError(f"{options.scene}: {error}") from error
    began, done = time.monotonic(), []

    def note(_: str) -> None:
        done.append(time.monotonic())

    files = export(scene, out, formats, choices, overwrite=options.output.overwrite, on_format=note)
    ends = [*done[1:], time.monotonic()]
    print(f"{out}: {', '.join(file.name for file in files)}")
    print(f"  weights: {scene.provenance.licence}")
    seconds = {"reading and cleaning": done[0] - began}
    seconds |= {name: end - start for name, start, end in zip(formats, done, ends, strict=True)}
    print("  " + ", ".join(f"{what} {value:.1f} s" for what, value in seconds.items()))
    return 0


def _choices(options: Arguments) -> "Choices":
    from diorama.export.cleaning import Cleaning
    from diorama.export.formats import Choices

    clean, world, each = options.cleaning, options.world, options.each
    return Choices(
        Cleaning(clean.drop / 100, clean.far, clean.outliers),
        voxel=clean.voxel,
        scale=world.scale,
        up=world.up,
        unit=world.unit,
        mesh=each.mesh,
        edge=each.edge,
        fps=each.fps,
        codec=each.codec,
        text=each.text,
        tolerance=each.tolerance,
        tracks=each.tracks,
        megabytes=each.megabytes,
    )
