"""`diorama demo`: a first scene, without a download and within half a minute."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from diorama.cli.generate import Arguments as Everything
from diorama.cli.generate import SamplingFlags, make
from diorama.cli.requests import (
    CONFIG,
    OutFlags,
    PathFlags,
    PhotoFlags,
    Request,
    SeedFlags,
    camera_path,
    requested,
    target,
)

if TYPE_CHECKING:
    from diorama.scene import Views

WORLD = 3  # of the test split, which no training sees
PIXELS = 128  # a side of its photo
PATH = PathFlags(trajectory="orbit:40", views=16)
STEPS = 25


@dataclass(frozen=True)
class Arguments:
    """What can be chosen; everything has a default."""

    photo: Annotated[Positional[Path | None], arg(help_behavior_hint="(default: a made-up room)")] = None
    """A photo to start from."""
    output: OutFlags = field(default_factory=OutFlags)
    model: SeedFlags = field(default_factory=SeedFlags)


def run(arguments: list[str]) -> int:
    """Make a scene from one photo, or from a view of a made-up room."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama demo",
        description="Make a small scene from one photo, or from a picture of a made-up room, and say what to try next.",
        config=CONFIG,
    )
    out = target(options.output, "demo")
    request = _around(made_up_room()) if options.photo is None else requested(PhotoFlags((options.photo,)), PATH)
    from diorama.pipelines.base import load

    pipeline = load(options.model.model, options.model.device, compile=options.model.compile)
    flags = SamplingFlags(**asdict(options.model), steps=STEPS)
    make(pipeline, request, Everything(path=PATH, output=options.output, model=flags), out)
    if out.suffix:
        return 0
    print(f"  {out}/video.mp4 shows it, {out}/preview.png at a glance, {out}/points.ply in 3D")
    model = "" if flags.model == "tiny" else f" --model {flags.model}"
    print("try next:")
    print(f"  diorama render {out} --trajectory dolly:0.3{model}    the same scene from other cameras, in no time")
    print(f"  diorama generate PHOTO.jpg --trajectory orbit:20{model}    a scene from a photo of yours")
    print("  diorama generate --help    all there is to choose")
    return 0


def made_up_room() -> "Views":
    """One view of a procedural room that no model was trained on, at the world's own camera."""
    from diorama.data.worlds import SPLITS, render, world

    place = world(SPLITS["test"].start + WORLD, kind="room")
    views = render(place, place.path(2, PIXELS, PIXELS)[0])
    return replace(views, points=None, confidence=None)  # a photo tells colours only


def _around(photo: "Views") -> Request:
    assert photo.cameras is not None
    return Request(camera_path(PATH, photo.cameras), photo, (0,))
