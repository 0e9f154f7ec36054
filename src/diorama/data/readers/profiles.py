"""Profiles: a data set's layout on disk in one small TOML file, so that one reader serves them all."""

import glob
import itertools
import math
import re
import tomllib
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diorama.data.readers.depths import DepthFormat
from diorama.data.scenes import DepthKind

Reader = Literal["npz", "stack", "text", "named", "rows", "log", "mvsnet", "json"]
Axes = Literal["opencv", "opengl", "ned", "flu", "pytorch3d"]
Named = dict[str, str]  # what a photo's name says: frame, and whatever else its pattern names

MAX_BYTES = 2**20  # of one profile: a page of text
MAX_FILES = 10**6  # of one scene's photos

_PART = re.compile(r"\{(\w+)(:d|[+-][0-9]{1,6}:[0-9]{1,2})?\}")


@dataclass(frozen=True)
class Stored:
    """Where numbers of each frame are kept: a file, and what in it."""

    file: str = (
        ""  # pattern; {frame} and what else the photo's pattern names are filled in; {frame-1:8} is 00000004 of 5
    )
    read: Reader = "npz"
    key: tuple[str, ...] = ()  # of npz, json and named (KEY: numbers); several are joined
    names: str = ""  # stack: the key of the frames' names, in the order of the rows
    match: tuple[str, ...] = ()  # rows: the leading columns, which say whose row it is; none: rows are in order
    first: int | None = None  # rows and log: the number of the frame in the first row; none: photos in order
    skip: int = 0  # rows: header lines


@dataclass(frozen=True)
class Pose(Stored):
    """Camera poses: a matrix of 12 or 16 numbers, or `tx ty tz qx qy qz qw`."""

    form: Literal["matrix", "quaternion"] = "matrix"
    direction: Literal["camera_to_world", "world_to_camera"] = "camera_to_world"
    axes: Axes = "opencv"  # of the camera; the world stays the data set's own
    swap_world_xy: bool = False  # a left-handed world turned into a right-handed one


@dataclass(frozen=True)
class Intrinsics(Stored):
    """Focal lengths and principal points, in pixels."""

    values: tuple[float, ...] = ()  # the same for all frames, instead of a file
    form: tuple[str, ...] = ("matrix",)  # matrix, or the names of the numbers: w h f fx fy cx cy, f/w, "" for no use
    size: tuple[int, ...] = ()  # height and width of the images that they are for, where not the photos' own
    centers: Literal["integer", "half"] = "half"  # where the first pixel's centre lies: at 0 or at 0.5


@dataclass(frozen=True)
class Bend(Stored):
    """Coefficients of OpenCV's lens model, to be undone."""

    form: tuple[str, ...] = ("k1", "k2", "p1", "p2", "k3")


@dataclass(frozen=True)
class Cut:
    """An 8-bit mask that takes pixels out of the depth."""

    file: str
    marks: Literal["invalid", "sky"]
    at_least: int = 127


@dataclass(frozen=True)
class Depth:
    """Depth maps; stored value times `scale` is z in scene units; zero, negative and not finite are invalid."""

    file: str
    read: DepthFormat
    scale: float = 1.0
    scale_file: str = ""  # npz whose `scale_key` multiplies `scale`, frame by frame
    scale_key: str = ""
    sky_from: float = math.inf  # scene units
    far: float = math.inf  # scene units; beyond it invalid
    percentile: float = 100.0  # what lies beyond this percentile of a map is invalid
    cut: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Profile:
    """How one data set lies on disk, and what its numbers mean."""

    title: str
    images: str  # pattern below a scene's folder, such as color/{frame}.jpg; {name:d} takes digits only, * anything
    pose: Pose
    intrinsics: Intrinsics
    name: str = ""
    scenes: tuple[str, ...] = ("*",)  # globs of the scenes' folders below the data set's; "." is that folder itself
    sequence: str = ""  # the part of the photo's pattern that tells several videos of one scene apart
    apart: bool = False  # those videos show places of their own
    lens: Bend | None = None
    depth: Depth | None = None
    metric: bool = False
    ordered: bool = True
    depth_kind: DepthKind = "none"
    quantile: float = 1.0
    drop: tuple[str, ...] = ()  # photos not to be used: globs below the scene's folder
    without: tuple[str, ...] = ()  # scenes not to be used: globs below the data set's folder


@cache
def profiles() -> dict[str, Profile]:
    """The shipped profiles by name."""
    folder = files("diorama.data") / "profiles"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    return {entry.name[:-5]: parse_profile(entry.read_text(encoding="utf-8"), entry.name) for entry in found}


def load_profile(name: str | Path) -> Profile:
    """A shipped profile by its name, or one from a .toml file; ValueError for neither, and for what it cannot mean."""
    if str(name) in profiles():
        return profiles()[str(name)]
    path = Path(name)
    if path.suffix != ".toml" or not path.is_file():
        raise ValueError(f"{name}: no such profile; accepted are a .toml file or one of {', '.join(profiles())}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; accepted is a profile of at most {MAX_BYTES}")
    return parse_profile(path.read_bytes().decode("utf-8", "replace"), str(path))


def parse_profile(text: str, where: str) -> Profile:
    """The profile in a TOML text; every key must be known and of its type, else ValueError names it and `where`."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: no TOML ({str(error).splitlines()[0]})") from error
    profile = _built(Profile, {"name": Path(where).stem, **document}, where)
    if not profile.pose.file or not (profile.intrinsics.file or profile.intrinsics.values):
        raise ValueError(f"{where}: found no pose.file or no intrinsics.file; accepted are both, or intrinsics.values")
    sources = {"pose": profile.pose, "intrinsics": profile.intrinsics, "lens": profile.lens}
    for label, source in sources.items():
        if source and source.file and source.read in ("npz", "stack", "json", "named") and not source.key:
            raise ValueError(f"{where}: {label} is read from {source.read} without a key; accepted is at least one")
    if profile.intrinsics.size and len(profile.intrinsics.size) != 2:
        raise ValueError(
            f"{where}: intrinsics.size has {len(profile.intrinsics.size)} numbers; accepted: height, width"
        )
    photos = Pattern(profile.images, where)
    captures = photos.names
    if photos.shifted:
        raise ValueError(f"{where}: images counts from another number; accepted is that of files beside the photos")
    globs = (*profile.scenes, *profile.drop, *profile.without)
    if any(Path(text).is_absolute() or ".." in text for text in globs):
        raise ValueError(f"{where}: found a glob that leads outside; accepted are paths below the data set")
    if len(captures) == 0 or (profile.sequence and profile.sequence not in captures):
        raise ValueError(f"{where}: images names {captures}; accepted is a pattern with the frame and the sequence")
    for pattern in patterns(profile):
        unknown = set(Pattern(pattern, where).names) - set(captures)
        if unknown:
            raise ValueError(f"{where}: {pattern!r} names {sorted(unknown)[0]!r}; accepted are {', '.join(captures)}")
    return profile


def patterns(profile: Profile) -> list[str]:
    """The patterns of the files that each frame needs beside its photo."""
    depth = [] if profile.depth is None else [profile.depth.file, profile.depth.scale_file]
    cuts = [] if profile.depth is None else [cut.file for cut in profile.depth.cut]
    lens = "" if profile.lens is None else profile.lens.file
    return [file for file in (profile.pose.file, profile.intrinsics.file, lens, *depth, *cuts) if file]


class Pattern:
    """A path below a folder with named parts, to find files by and to make names from."""

    def __init__(self, text: str, where: str) -> None:
        self._literals = _PART.split(text)[::3]
        parts = list(_PART.finditer(text))
        self.text, self.names = text, tuple(dict.fromkeys(part[1] for part in parts))
        self.shifted = any(part[2] not in (None, ":d") for part in parts)
        if text.startswith("/") or ".." in text.split("/") or "{" in "".join(self._literals) or "\\" in text:
            raise ValueError(f"{where}: the pattern {text!r}; accepted are paths below the scene with {{names}}")
        self._order = [part[1] for part in parts]
        expression, seen = "", set()
        for literal, part in itertools.zip_longest(self._literals, parts):
            expression += "[^/]*".join(re.escape(piece) for piece in literal.split("*"))
            if part is not None:
                name, digits = part[1], part[2] == ":d"
                expression += f"(?P={name})" if name in seen else f"(?P<{name}>{r'[0-9]+' if digits else '[^/]+'})"
                seen.add(name)
        self.expression = re.compile(expression)

    def found(self, folder: Path, known: Named | None = None) -> list[tuple[Path, Named]]:
        """Files below `folder` with what their names say, 10 after 9; of `known` names only; at most a million."""
        known, hits = known or {}, []
        names = [glob.escape(known[name]) if name in known else "*" for name in self._order]
        literals = (re.sub(r"([?\[])", r"[\1]", literal) for literal in self._literals)
        pairs = itertools.zip_longest(literals, names, fillvalue="")
        for path in folder.glob("".join(itertools.chain.from_iterable(pairs))):
            match = self.expression.fullmatch(path.relative_to(folder).as_posix())
            if match and not path.name.startswith(".") and known.items() <= match.groupdict().items():
                hits.append((path, match.groupdict()))
                if len(hits) > MAX_FILES:
                    raise ValueError(f"{folder}: more than {MAX_FILES} files {self.text}; accepted is one scene")
        return sorted(hits, key=lambda hit: ([natural(value) for value in hit[1].values()], str(hit[0])))

    def file(self, folder: Path, named: Named) -> Path | None:
        """The one file that the pattern means for a frame, None where it is absent; * must fit one file."""
        text = _PART.sub(lambda part: _filled(part[2], named[part[1]]), self.text)
        if "*" not in self.text:
            path = folder / text
            return path if path.is_file() else None
        hits = sorted(folder.glob(text))
        if len(hits) > 1:
            raise ValueError(f"{folder}: {hits[0].name} and {hits[1].name} both fit {self.text}; accepted is one")
        return hits[0] if hits else None


def _filled(form: str | None, value: str) -> str:
    """A name's part as a file beside the photo has it: the same, or counted from elsewhere and padded."""
    if form in (None, ":d"):
        return value.replace("*", "[*]")
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"a frame called {value!r:.40} cannot be counted; accepted are numbers")
    offset, _, width = form.partition(":")
    return f"{int(value) + int(offset):0{width}d}"


def natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """A key that sorts numbers inside names by value."""
    pieces = re.split(r"([0-9]+)", text)
    return tuple((0, int(piece)) if piece.isdigit() and piece.isascii() else (1, piece) for piece in pieces if piece)


def _built(kind: Any, document: Any, where: str) -> Any:
    """A record from a table of TOML, each key checked against its field."""
    if not isinstance(document, dict):
        raise ValueError(f"{where}: found {document!r:.80}; accepted is a table")
    known, types = {field.name: field for field in fields(kind)}, get_type_hints(kind)
    odd = [key for key in document if key not in known]
    absent = [name for name, field in known.items() if field.default is MISSING and name not in document]
    if odd or absent:
        found = f"found the key {odd[0]!r}" if odd else f"found no {absent[0]!r}"
        raise ValueError(f"{where}: {found} in {kind.__name__.lower()}; accepted are {', '.join(known)}")
    return kind(**{key: _value(types[key], value, f"{where}: {key}") for key, value in document.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _value(next(one for one in arguments if one is not type(None)), value, where)
    if origin is tuple:
        return tuple(_value(arguments[0], item, where) for item in (value if isinstance(value, list) else [value]))
    if origin is Literal:
        fits = isinstance(value, str) and value in arguments
        accepted = ", ".join(arguments)
    elif hasattr(kind, "__dataclass_fields__"):
        return _built(kind, value, where)
    else:
        fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        fits = fits and (kind is str or abs(value) < 1e300)  # what is not a number is not below it
        accepted = f"a {kind.__name__}"
    if not fits:
        raise ValueError(f"{where} is {value!r:.80}; accepted is {accepted}")
    return float(value) if kind is float else value
