"""What commands that make scenes share: their flags, and how these become known views and wanted cameras."""

import math
import os
import re
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import arg

from diorama.cli.photos import CAPTURES, PhotoFlags, degrees, taken, thinned, unposed

if TYPE_CHECKING:
    from diorama.geometry.cameras import Cameras
    from diorama.pipelines.base import ScenePipeline
    from diorama.scene import Condition, Shot, Views

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
SIDE = 1024  # pixels of cameras without a photo, until the model is known
VIEWS = 16  # unless asked for otherwise, or the model makes clips of another length
SAME = 1e-4  # share of the path's extent, radians, image widths: cameras nearer than this are one
FREE = "free"  # the --trajectory of cameras that the model finds
OWN_MODEL = {"''": "the one that made the scene"}  # as tyro shows the default of `render`


@dataclass(frozen=True)
class PathFlags:
    """Which views are wanted."""

    trajectory: Annotated[
        str | None,
        arg(metavar="NAME[:AMOUNT]|FILE", help_behavior_hint="(default: orbit, or along the photos' own cameras)"),
    ] = None
    """A movement with how far it goes (orbit:30, dolly:0.5; a wrong name lists all), a file with cameras, or free:
    Gen3R then chooses the cameras and tells them."""
    views: Annotated[int | None, arg(help_behavior_hint="(default: 16, or a whole clip of Gen3R)")] = None
    """Number of views; longer files of cameras are thinned out to it."""
    size: Annotated[str | None, arg(metavar="N|HxW", help_behavior_hint="(default: as trained)")] = None
    """Longer side in pixels, or height and width, to which photos are cropped; rounded to what the model can make."""

    @property
    def count(self) -> int:
        """Number of views, also where none was asked for."""
        return VIEWS if self.views is None else self.views


@dataclass(frozen=True)
class OutFlags:
    """Where it is written to."""

    out: Annotated[Path | None, arg(help_behavior_hint="(default: a new folder)")] = None
    """A folder that nerfstudio opens too, or a file: .mp4 (video), .ply or .glb (points), .splat.ply (Gaussians),
    .html (a page to look at them in a browser)."""
    overwrite: Annotated[bool, arg(help_behavior_hint="")] = False
    """Replace what is there, if it is a saved scene or a file."""


@dataclass(frozen=True)
class ModelFlags:
    """What makes it, and how."""

    model: Annotated[str, arg(help_behavior_hint=lambda default: f"(default: {OWN_MODEL.get(default, default)})")] = (
        "tiny"
    )
    """An embedded model's name, gen3r or vggt as 'diorama download' fetched them, or the folder of a saved one."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass(frozen=True)
class CompiledFlags(ModelFlags):
    """What makes it, and how."""

    compile: Annotated[bool, arg(help_behavior_hint="")] = False
    """Compile the model first: minutes the first time, then faster. For a GPU, large models or many scenes."""


@dataclass(frozen=True)
class SeedFlags(CompiledFlags):
    """What makes it, and how."""

    seed: int = 0
    """Another seed gives another scene where the photos leave it open."""


@dataclass(frozen=True)
class SceneArguments:
    """All flags of a command that makes scenes from photos."""

    photo: PhotoFlags = field(default_factory=PhotoFlags)
    path: Annotated[PathFlags, arg(name="camera")] = field(default_factory=PathFlags)
    output: OutFlags = field(default_factory=OutFlags)
    model: CompiledFlags = field(default_factory=CompiledFlags)


@dataclass(frozen=True)
class Request:
    """Known views at some places of the wanted ones."""

    wanted: "Cameras | Shot"
    known: "Views | None" = None
    at: tuple[int, ...] = ()
    poses: str | None = None  # what found the photos' cameras, with its licence

    @property
    def origin(self) -> dict[str, str]:
        """What a scene's provenance says of where cameras come from."""
        from diorama.scene import Shot

        free = {"trajectory": FREE} if isinstance(self.wanted, Shot) else {}
        return free if self.poses is None else {"poses": self.poses}

    def condition(self, prompt: str | None = None) -> "Condition":
        """What the model is told beforehand."""
        from diorama.scene import Condition

        return Condition(self.known, self.at, prompt)

    def sized(self, height: int, width: int) -> "Request":
        """The same views at another size; photos of another shape are cropped around their centre, and that is said."""
        from diorama.scene import Shot

        old = (self.wanted.height, self.wanted.width)
        part = min(old[0] / height, old[1] / width)
        crop = (max(1, round(height * part)), max(1, round(width * part)))
        if self.known is not None and crop != old:
            print(f"photos of {old[0]}x{old[1]} pixels are cropped to {crop[0]}x{crop[1]}")
        if self.known is None or crop == old or isinstance(self.wanted, Shot):  # a shot's photos are cropped when read
            return replace(self, wanted=_at_size(self.wanted, height, width))
        top, left = ((whole - side) // 2 for whole, side in zip(old, crop, strict=True))
        cameras = None if self.known.cameras is None else self.known.cameras.cropped(top, left, *crop)
        images = self.known.images[..., top : top + crop[0], left : left + crop[1]]
        wanted = self.wanted.cropped(top, left, *crop).fitted(height, width)
        return replace(self, wanted=wanted, known=replace(self.known, images=images, cameras=cameras))


def requested(photos: PhotoFlags, path: PathFlags, device: str = "auto") -> Request:
    """Known views and wanted cameras, both read and checked; the cameras have the photos' size."""
    check("--views", path.count, path.count >= 1, "1 or more")
    parsed_size(path.size or "1", 1, 1)
    if path.trajectory == FREE:
        return _free(photos, path)
    found = taken(photos, path.count, device)
    if found is None:
        from diorama.geometry.cameras import Cameras

        return Request(camera_path(path, Cameras.from_fov(degrees(photos.fov), SIDE, SIDE)))
    known, cameras = found.views, found.cameras
    if known.cameras is None:  # one photo whose lens is guessed, unless it begins a path from a file
        if path.trajectory is not None and is_file(path.trajectory):
            if photos.fov is not None:
                raise ValueError(f"--fov {photos.fov}: {path.trajectory} tells the field of view; leave --fov out")
            return Request(camera_path(path, cameras), replace(known, cameras=None), (0,))
        return Request(camera_path(path, cameras), replace(known, cameras=cameras), (0,))
    if photos.fov is not None:
        raise ValueError(f"--fov {photos.fov}: these photos have cameras that tell it; leave --fov out")
    return replace(_posed(known, cameras, found.at, path), poses=found.poses)


def requested_all(photos: PhotoFlags, path: PathFlags, device: str = "auto") -> Request:
    """Photos all of which are wanted views themselves, with their cameras where anything tells these."""
    check("--views", path.count, path.count >= 1, "1 or more")
    parsed_size(path.size or "1", 1, 1)
    if path.trajectory not in (None, FREE):
        why = "the photos' own views are made, from their cameras or, where it is free, from those that the model finds"
        raise ValueError(f"--trajectory {path.trajectory}: {why}; 'diorama generate' makes others")
    if path.trajectory == FREE or not _tells_cameras(photos):
        views = unposed(photos, path.count, "--trajectory free")
        chosen = _some(len(views), path.count)
        return Request(_shot(len(chosen), views), views[chosen], tuple(range(len(chosen))))
    found = taken(photos, path.count, device)
    assert found is not None
    chosen = _some(len(found.views), path.count)
    cameras = found.cameras[[found.at[place] for place in chosen]]
    known = replace(found.views[chosen], cameras=cameras)
    return Request(cameras, known, tuple(range(len(chosen))), found.poses)


def _free(photos: PhotoFlags, path: PathFlags) -> Request:
    """Photos evenly along a shot, from the first view to the last, whose cameras the model finds."""
    from diorama.geometry.trajectories import keyframe_places

    if not photos.photos:
        raise ValueError("--trajectory free: no photos given; accepted is one photo or more")
    views = unposed(photos, path.count, "--trajectory free")
    if path.count < len(views):
        raise ValueError(f"--views {path.count}: {len(views)} photos are known; accepted is {len(views)} or more")
    return Request(_shot(path.count, views), views, keyframe_places(len(views), path.count))


def _shot(count: int, views: "Views") -> "Shot":
    from diorama.scene import Shot

    return Shot(count, *views.images.shape[-2:])


def _at_size(wanted: "Cameras | Shot", height: int, width: int) -> "Cameras | Shot":
    from diorama.scene import Shot

    return replace(wanted, height=height, width=width) if isinstance(wanted, Shot) else wanted.fitted(height, width)


def _some(count: int, most: int) -> list[int]:
    """Which of so many photos are taken, which is said where it is not all."""
    if count > most:
        print(f"{most} of {count} photos are taken, evenly spaced; --views {count} takes all")
    return thinned(count, most)


def _tells_cameras(photos: PhotoFlags) -> bool:
    """Whether flags, a file beside the photos or the photos' folder say anything of their cameras."""
    from diorama.data.open import open_scene

    if photos.cameras is not None or photos.poses is not None or photos.fov is not None:
        return True
    folder = photos.photos[0].parent if photos.photos[0].name in CAPTURES else photos.photos[0]
    told = folder.is_dir() and ((folder / "scene.json").is_file() or open_scene(folder) is not None)
    return len(photos.photos) == 1 and told


def _posed(known: "Views", cameras: "Cameras", at: tuple[int, ...], path: PathFlags) -> Request:
    """The wanted cameras of photos that are some of `cameras`: a movement, or along these."""
    if path.trajectory is not None or cameras.views == 1:
        return _with_known(known, camera_path(path, cameras[at[0]]))
    if path.count < len(known):
        raise ValueError(f"--views {path.count}: {len(known)} photos are known; accepted is {len(known)} or more")
    if cameras.views > len(known):
        places = thinned(cameras.views, path.count, at)
        return Request(cameras[places], known, tuple(places.index(place) for place in at))
    from diorama.geometry.trajectories import interpolate, keyframe_places

    return Request(interpolate(cameras, path.count), known, keyframe_places(len(known), path.count))


def camera_path(flags: PathFlags, start: "Cameras") -> "Cameras":
    """The wanted cameras: a movement from `start`, or a file's, widened to its image shape."""
    from diorama.data.cameras import read_cameras
    from diorama.geometry.trajectories import trajectory

    text = flags.trajectory or "orbit"
    if is_file(text):
        found = read_cameras(text, unstated=(start.height, start.width))
        return found[thinned(found.views, flags.count)].widened(start.height, start.width)
    name, _, amount = text.partition(":")
    try:
        amplitude = float(amount) if amount else None
    except ValueError:
        raise ValueError(f"--trajectory {text}: {amount!r} is no number; accepted is as in orbit:30") from None
    return trajectory(name, start, flags.count, amplitude)


def is_file(trajectory: str) -> bool:
    """Whether a --trajectory means a file or folder; names of movements come first."""
    from diorama.geometry.trajectories import TRAJECTORIES

    if trajectory.partition(":")[0].strip().lower().replace("-", "_") in TRAJECTORIES:
        return False
    return trajectory.lower().endswith(".json") or Path(trajectory).exists()


def parsed_size(text: str, height: int, width: int) -> tuple[float, float]:
    """Height and width that `N` (longer side of the shape `height` by `width`) or `HxW` mean; ValueError if nothing."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    if match is None or "0" in {(group or "1").lstrip("0") or "0" for group in match.groups()}:
        raise ValueError(f"--size {text}: accepted are 64 (longer side) or 48x64 (height x width), in pixels")
    first, second = match.groups()
    if second is not None:
        return float(first), float(second)
    scale = int(first) / max(height, width)
    return height * scale, width * scale


def fitted(pipeline: "ScenePipeline", request: Request, size: str | None, prompt: str | None = None) -> Any:
    """Condition and cameras as the model takes them: of about the size it was trained at, or near the one asked for."""
    height, width = request.wanted.height, request.wanted.width
    if size is None:
        scale = math.sqrt(pipeline.config.pixels / (height * width))
        request = replace(request, wanted=_at_size(request.wanted, *pipeline.size_near(height * scale, width * scale)))
    else:
        request = request.sized(*size_made(pipeline, size, height, width))
    return pipeline.prepared(request.condition(prompt), request.wanted)


def size_made(pipeline: "ScenePipeline", size: str, height: int, width: int) -> tuple[int, int]:
    """Height and width that the model makes where a --size is asked for, of the shape `height` by `width`."""
    asked = parsed_size(size, height, width)
    made = pipeline.size_near(*asked)
    if made != tuple(map(round, asked)):
        print(f"{round(asked[0])}x{round(asked[1])} pixels become {made[0]}x{made[1]}, which this model can make")
    return made


def counted(path: PathFlags, model: str) -> PathFlags:
    """The same, with as many views as the model was trained with where it makes whole clips and none are asked for."""
    from diorama.models.published import read_config
    from diorama.pipelines.base import find_model

    if path.views is not None:
        return path
    try:
        kind, folder = find_model(model)
    except (ValueError, OSError):  # said by whoever loads it, after what is wrong with the request
        return path
    index = folder / "model_index.json"
    if not kind.staged:
        return path
    told = read_config(index).get("views") if index.is_file() else None
    return replace(path, views=told or signature(kind.__init__).parameters["views"].default)


def check(flag: str, value: Any, good: bool, accepted: str) -> None:
    """ValueError in one line unless a flag's value is good."""
    if not good:
        raise ValueError(f"{flag} {value}: accepted is {accepted}")


def target(flags: OutFlags, name: str) -> Path:
    """Where to write to, once that is known to be possible; `name`, name-2, ... where nothing is given."""
    from diorama.export.save import check_target

    out = flags.out
    if out is None:
        out = next(path for path in [Path(name), *(Path(f"{name}-{i}") for i in range(2, 10_000))] if not path.exists())
    check_target(out, overwrite=flags.overwrite)
    parent = next(parent for parent in out.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{out}: {parent} is no folder that can be written to")
    return out


def _with_known(known: "Views", path: "Cameras") -> Request:
    """A path that passes through the known views; those that it misses are put in front."""
    assert known.cameras is not None
    there: list[int | None] = []
    for camera in known.cameras:
        far = path.deviation(camera)
        far[:, 1] /= path.extent.clamp(min=1e-6)
        free = [place for place in (far.amax(-1) < SAME).nonzero().flatten().tolist() if place not in there]
        there.append(free[0] if free else None)
    missed = [number for number, place in enumerate(there) if place is None]
    if missed:
        print(f"{len(missed)} of {len(known)} photos are not on the path: their views come before it")
    wanted = known.cameras[missed].joined(path)
    at = tuple(missed.index(i) if place is None else len(missed) + place for i, place in enumerate(there))
    return Request(wanted, known, at)
