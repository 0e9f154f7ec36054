"""Data sets as downloaded that need more than a profile: which one a folder is."""

from dataclasses import replace
from pathlib import Path

from diorama.data.readers.arkitscenes import PHOTOS as ARKIT_PHOTOS
from diorama.data.readers.arkitscenes import TRAJECTORY, ARKitScenesSource, read_arkitscenes
from diorama.data.readers.hypersim import HypersimSource, read_hypersim
from diorama.data.readers.idr import CAMERAS, read_idr
from diorama.data.readers.megadepth import MegaDepthSource, find_cameras, read_megadepth
from diorama.data.readers.omnidata import OmnidataSource, read_omnidata
from diorama.data.scenes import CapturedScene, SceneSource

_W2C = ("world_to_camera", "opencv")


def read_native(folder: Path) -> CapturedScene | None:
    """The scene in a folder as its data set is downloaded; None where it is of none of these."""
    if (folder / TRAJECTORY).is_file() and any((folder / kind).is_dir() for kind in ARKIT_PHOTOS):
        return replace(read_arkitscenes(folder), layout="ARKitScenes", convention=_W2C)
    if any(folder.glob("images/scene_cam_*_final_hdf5")):
        return replace(read_hypersim(folder), layout="Hypersim", convention=("camera_to_world", "opengl"))
    if (folder / "imgs").is_dir() and find_cameras(folder):
        return replace(read_megadepth(folder), layout="MegaDepth")
    if any(folder.glob("point_*_view_*_domain_rgb.png")):
        return replace(read_omnidata(folder), layout="Omnidata", convention=("camera_to_world", "opengl"))
    if any((folder / name).is_file() for name in CAMERAS):
        return replace(read_idr(folder), layout="IDR's cameras.npz", convention=_W2C)
    return None


def native_source(folder: Path) -> SceneSource | None:
    """The scenes of a data set's folder as downloaded; None where it is of none of these."""
    if any(folder.glob("ai_*/images/scene_cam_*_final_hdf5")):
        return HypersimSource(folder)
    if any(folder.glob("*/dense*/imgs")) or any(folder.glob("MegaDepth_v1/*/dense*/imgs")):
        return MegaDepthSource(folder)
    if folder.parent.name == "rgb" and any(folder.glob("*/point_*_view_*_domain_rgb.png")):
        return OmnidataSource(folder.parent.parent, folder.name)
    places = ("*", "Training/*", "Validation/*", "raw/Training/*", "raw/Validation/*")
    if any(any(folder.glob(f"{place}/{TRAJECTORY}")) for place in places):
        return ARKitScenesSource(folder)
    return None
