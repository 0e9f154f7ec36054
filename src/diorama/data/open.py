"""`diorama.open`: what is there decides what is read."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from diorama.data.cache import PLAN
from diorama.data.cameras import CAMERA_FILES
from diorama.data.images import PHOTO_SUFFIXES, VIDEO_SUFFIXES, read_image, read_video
from diorama.data.images import field_of_view as exif_field_of_view
from diorama.data.readers.co3d import CO3DSource, read_co3d
from diorama.data.readers.colmap import find_model, read_colmap
from diorama.data.readers.frames import FramesSource, find_profile, read_frames
from diorama.data.readers.gen3r import read_gen3r
from diorama.data.readers.gen3r_training import Gen3RSource
from diorama.data.readers.imagenet import SIDECAR, SingleViewSource
from diorama.data.readers.images import natural, read_clip, read_photos
from diorama.data.readers.images import photo_files as photo_files
from diorama.data.readers.native import native_source, read_native
from diorama.data.readers.nerfstudio import read_nerfstudio
from diorama.data.readers.profiles import Profile, load_profile
from diorama.data.readers.re10k import ChunkSource, ClipSource, read_re10k
from diorama.data.rendered import WorldsSource
from diorama.data.saved import read_folder, read_saved
from diorama.data.scenes import CapturedScene, SceneSource
from diorama.data.shards import ShardSource, splits
from diorama.geometry.cameras import Cameras
from diorama.scene import Scene, Views

CO3D_FILE = "frame_annotations.jgz"
_W2C = ("world_to_camera", "opencv")
DEFAULT_FIELD_OF_VIEW = 60.0  # degrees along the longer side: a phone's main camera spans 60 to 75, a video frame less

_ACCEPTED = (
    "a photo, a video, a folder of photos, a folder with transforms.json (nerfstudio), cameras.json (Gen3R) or "
    "sparse/0 (COLMAP), packed shards of one scene, or a saved scene"
)


class Capture(NamedTuple):
    """Photos with cameras, and all cameras of their file: often more than there are photos."""

    views: Views
    cameras: Cameras  # for images of the photos' size
    at: tuple[int, ...]  # which of them took the photos


def open(path: str | Path, *, field_of_view: float | None = None, views: int | None = None) -> Views | Scene:
    """The views or the saved scene in a file or folder.

    A photo gets a camera at the origin that spans `field_of_view` degrees along the longer side: as given, else from
    EXIF, else 60. A folder with cameras gives its photos with those cameras; a folder of photos and a video (`views`
    frames of it, all by default) have no cameras. Many large photos are reduced together to 2**27 pixels.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; accepted is {_ACCEPTED}")
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return Views(read_video(path, views))
    if views is not None:
        raise ValueError(f"{path}: {views} views wanted; accepted is a choice of `views` from a video")
    if path.is_dir() or path.name in CAMERA_FILES[:2]:
        return _open_folder(path if path.is_dir() else path.parent)
    if path.suffix.lower() == ".json":
        raise ValueError(f"{path}: found a camera path, which has no images; accepted is {_ACCEPTED}")
    image = read_image(path)
    degrees = (exif_field_of_view(path) or DEFAULT_FIELD_OF_VIEW) if field_of_view is None else field_of_view
    return Views(image[None], Cameras.from_fov(degrees, image.shape[-2], image.shape[-1]))


def open_scene(folder: str | Path, profile: str | Path | None = None) -> CapturedScene | None:
    """The capture in a folder, decoded when asked, cameras in double precision; None where nothing tells cameras.

    Of the layouts that a profile describes, the one that fits is found, or named: a data set, or a .toml file. A
    clip of RealEstate10K is named by its text. ValueError for packed shards of several scenes.
    """
    folder = Path(folder)
    if profile is not None:
        return _profiled(folder, load_profile(profile))
    if splits(folder):
        packed = ShardSource(folder)
        if len(packed) != 1:
            found = f"{folder}: found packed shards of {len(packed)} scenes"
            raise ValueError(f"{found}; accepted is one scene, or a command that takes a data set")
        return packed[0]
    if (folder / "scene.json").is_file():
        return read_saved(folder)
    if folder.suffix == ".txt" and folder.is_file():
        return replace(read_re10k(folder), layout="RealEstate10K's text", convention=_W2C)
    if folder.name in CAMERA_FILES[:2] and folder.is_file():
        folder = folder.parent
    if (folder / "transforms.json").is_file():
        return replace(read_nerfstudio(folder), layout="nerfstudio's transforms.json")
    if (folder / "cameras.json").is_file():
        return replace(read_gen3r(folder), layout="Gen3R's cameras.json")
    if find_model(folder) is not None:
        return replace(read_colmap(folder), layout="a COLMAP model")
    if (folder.parent / CO3D_FILE).is_file():
        return replace(read_co3d(folder), layout="CO3D", convention=("world_to_camera", "pytorch3d"))
    native = read_native(folder)
    if native is not None:
        return native
    found = find_profile(folder)
    return None if found is None else _profiled(folder, found)


def open_source(folder: str | Path, profile: str | Path | None = None) -> SceneSource | None:
    """The scenes of a data set's folder; None where it is none that is known by its files, and no profile is named."""
    folder = Path(folder)
    if profile is not None:
        found = load_profile(profile)
        return _Told(FramesSource(folder, found), f"profile {found.name}", (found.pose.direction, found.pose.axes))
    if splits(folder):
        return ShardSource(folder)
    if (folder / "index.json").is_file() and any(folder.glob("*.torch")):
        return _Told(ChunkSource(folder), "pixelSplat's chunks", _W2C)
    if (folder / CO3D_FILE).is_file():
        return _Told(CO3DSource(folder), "CO3D", ("world_to_camera", "pytorch3d"))
    if (folder / "train_cameras_paths.txt").is_file():
        return _Told(Gen3RSource(folder), "Gen3R's training layout", ("camera_to_world", "opencv"))
    clips = any(text.with_suffix("").is_dir() for text in folder.glob("*.txt"))
    return _Told(ClipSource(folder), "RealEstate10K's text", _W2C) if clips else native_source(folder)


def open_scenes(path: str | Path, profile: str | Path | None = None) -> SceneSource:
    """Whatever has scenes: packed shards, worlds, a data set, a capture or a folder of captures, a saved scene.

    A named profile is that of a data set, or of one scene of it. ValueError, in one line, for a place without scenes.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; accepted is a capture, or a folder of them")
    if path.is_dir() and profile is None:
        if (path / PLAN).is_file() and (path / "images.npy").is_file():
            return WorldsSource(path)
        if (path / SIDECAR).is_file():
            return SingleViewSource(path)
    if path.is_dir():
        try:
            source = open_source(path, profile)
        except ValueError:
            if profile is None:
                raise
            source = None  # the profile's scene, then, and not a folder of such scenes
        if source is not None:
            return source
    one = _capture(path, profile)
    return CaptureSource(path) if one is None else OneScene(one)


class OneScene:
    """A source of one capture."""

    def __init__(self, scene: CapturedScene) -> None:
        self.name, self._scene = scene.name, scene

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> CapturedScene:
        return (self._scene,)[index]


class CaptureSource:
    """The captures in a folder, each in a folder of its own, by name; ValueError where there is none.

    Only the first is looked at before it is asked for.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.name = folder.resolve().name
        below = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        self._folders = sorted(below, key=natural)
        if not self._folders or _capture(self._folders[0], None) is None:
            found = f"{self._folders[0].name}, which is none" if self._folders else "no folder"
            raise ValueError(f"{folder}: found {found}; accepted is {_ACCEPTED}, or a folder of those")

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> CapturedScene:
        folder = self._folders[index]
        scene = _capture(folder, None)
        if scene is None:
            raise ValueError(f"{folder}: found no capture; accepted is {_ACCEPTED}")
        return replace(scene, name=folder.name)


def _capture(path: Path, profile: str | Path | None) -> CapturedScene | None:
    """The one capture that lies here, of photos alone if nothing tells their cameras; None where there is none."""
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return read_clip(path)
    scene = open_scene(path, profile)
    if scene is None and (path.is_file() or any(file.suffix.lower() in PHOTO_SUFFIXES for file in path.iterdir())):
        return read_photos(path)
    return scene


class _Told:
    """A source whose scenes say what their files are."""

    def __init__(self, source: SceneSource, layout: str, convention: tuple[str, str]) -> None:
        self.name, self._source, self._layout, self._convention = source.name, source, layout, convention

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> CapturedScene:
        return replace(self._source[index], layout=self._layout, convention=self._convention)


def _profiled(folder: Path, profile: Profile) -> CapturedScene:
    convention = (profile.pose.direction, profile.pose.axes)
    return replace(read_frames(folder, profile), layout=f"profile {profile.name}", convention=convention)


def open_capture(folder: str | Path) -> Capture | None:
    """The photos of a folder that tells their cameras, decoded; None for any other."""
    scene = open_scene(folder)
    if scene is None:
        return None
    photos = tuple(replace(frame, depth=None, mask=None) for frame in scene.frames)
    views = replace(scene, frames=photos).views()
    assert views.cameras is not None  # what open_scene returns has cameras
    if scene.path is None:
        return Capture(views, views.cameras, tuple(range(len(views))))
    return Capture(views, scene.path.resized(*views.images.shape[-2:]), scene.at)


def _open_folder(folder: Path) -> Views | Scene:
    if (folder / "scene.json").is_file():
        return read_folder(folder)
    scene = open_scene(folder)
    if scene is None:
        try:
            scene = read_photos(folder)
        except ValueError as error:
            raise ValueError(f"{str(error).partition(';')[0]}; accepted is {_ACCEPTED}") from error
    return scene.views().to(torch.float32)  # as images are: what computes with both needs one precision
