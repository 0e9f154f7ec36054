"""What finds the cameras of pictures: VGGT with weights in a folder, or COLMAP through the user's own pycolmap."""

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diorama.evaluation.methods import weights_sha256
from diorama.export.depth import png
from diorama.export.ply import bytes_of
from diorama.geometry.cameras import Cameras
from diorama.pipelines.vggt import VGGTPipeline, located

ACCEPTED = "colmap, vggt, or vggt:FOLDER"
GLOG_ERROR = 2  # pycolmap says everything else on the screen, image by image


@runtime_checkable
class PoseEstimator(Protocol):
    """What finds the cameras of images; None where it cannot place every one of them."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def __call__(self, images: Float[Tensor, "view 3 height width"]) -> Cameras | None:
        """Cameras of the images' own size."""
        ...


def find_estimator(text: str, device: str | torch.device = "cpu") -> PoseEstimator:
    """The estimator that `--poses` names: `colmap`, `vggt:FOLDER` or `vggt:MODEL`, `vggt` for the one that is here.

    Raises ValueError, in one line, for other names and absent or wrong weights; ModuleNotFoundError without pycolmap.
    """
    name, colon, folder = text.partition(":")
    if name == "vggt" and bool(colon) == bool(folder):
        return VGGTPoses(folder, device)  # type: ignore[return-value]
    if text == "colmap":
        return ColmapPoses()
    raise ValueError(f"--poses {text}: accepted are {ACCEPTED}")


class VGGTPoses:
    """VGGT's cameras, one for every image whatever it shows, without bundle adjustment."""

    def __init__(self, folder: str | Path = "", device: str | torch.device = "cpu") -> None:
        self.pipeline = VGGTPipeline.load_folder(located(folder, embedded=True)).to(device)
        self.licence: str = self.pipeline.config.licence
        self.title = self.pipeline.config.title.replace("VGGT", "vggt", 1)  # as --poses names it

    @cached_property
    def name(self) -> str:
        """With the weights' hash: what other weights estimate is another number."""
        return f"vggt {weights_sha256(self.pipeline)[:12]}"

    def __call__(self, images: Float[Tensor, "view 3 height width"]) -> Cameras:
        """Cameras of the images' own size, each with its own lens."""
        return self.pipeline.cameras_of(images)


class ColmapPoses:
    """COLMAP's incremental mapping over all pairs, through the user's own pycolmap; ModuleNotFoundError without it."""

    name = title = "colmap"
    licence = "BSD-3-Clause"

    def __init__(self) -> None:
        import pycolmap  # type: ignore[import-not-found]

        self.colmap: Any = pycolmap
        pycolmap.logging.minloglevel = GLOG_ERROR

    def __call__(self, images: Float[Tensor, "view 3 height width"]) -> Cameras | None:
        """Cameras of one shared pinhole lens, or None where mapping fails or leaves an image out."""
        colmap = self.colmap
        with tempfile.TemporaryDirectory() as temporary:
            database, folder, out = (Path(temporary) / name for name in ("database.db", "images", "models"))
            folder.mkdir()
            out.mkdir()
            for number, image in enumerate(bytes_of(images)):
                (folder / f"{number:05d}.png").write_bytes(png(image.movedim(0, -1).contiguous().numpy()))
            try:
                colmap.set_random_seed(0)
                options = {
                    "camera_mode": colmap.CameraMode.SINGLE,
                    "reader_options": colmap.ImageReaderOptions(camera_model="SIMPLE_PINHOLE"),
                }
                # As words: pycolmap before 4 takes no paths.
                colmap.extract_features(str(database), str(folder), **options)
                colmap.match_exhaustive(str(database))
                models = colmap.incremental_mapping(str(database), str(folder), str(out))
            except (RuntimeError, ValueError):  # no features, no first pair, ..
                return None
        for model in models.values():
            registered = [image for image in model.images.values() if image.has_pose]
            if len(registered) == len(images):
                return _cameras(registered, model.cameras, *images.shape[-2:])
        return None


def _cameras(registered: list[Any], lenses: Any, height: int, width: int) -> Cameras:
    """Cameras of pycolmap's images, in the order of their files."""
    registered = sorted(registered, key=lambda image: image.name)
    inverse = torch.eye(4, dtype=torch.float64).repeat(len(registered), 1, 1)
    # A method since COLMAP 3.12, whose images hang on the frames of a rig.
    found: list[Any] = [image.cam_from_world for image in registered]
    poses = [pose() if callable(pose) else pose for pose in found]
    inverse[:, :3] = torch.from_numpy(np.stack([pose.matrix() for pose in poses]))  # type: ignore[attr-defined]
    matrices = np.stack([lenses[image.camera_id].calibration_matrix() for image in registered])
    return Cameras(inverse.inverse().float(), torch.from_numpy(matrices).float(), height, width)
