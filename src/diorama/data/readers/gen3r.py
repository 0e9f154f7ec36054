"""Gen3R's examples: photos beside cameras.json, whose cameras are those of square centre crops."""

from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from diorama.data.cameras import read_cameras
from diorama.data.images import read_image
from diorama.data.readers.images import captions, photo_files
from diorama.data.scenes import CapturedScene, Frame


def read_gen3r(folder: str | Path) -> CapturedScene:
    """The photos with the cameras of the whole images; first.png and last.png are the two ends of the path."""
    folder = Path(folder)
    photos, cameras = photo_files(folder), read_cameras(folder / "cameras.json")
    names = [photo.stem for photo in photos]
    at = tuple(range(cameras.views))
    if set(names) <= {"first", "last"}:
        at = tuple(0 if name == "first" else cameras.views - 1 for name in names)
    if len(at) != len(photos):
        raise ValueError(f"{folder}: {cameras.views} cameras for {len(photos)} photos; each photo needs its own camera")
    cameras = cameras.widened(*read_image(photos[0]).shape[-2:])
    frames = tuple(
        Frame(str(photo), partial(_photo, photo), cameras[place], encoded=photo.read_bytes)
        for photo, place in zip(photos, at, strict=True)
    )
    prompts = folder / "prompts.txt"
    return CapturedScene(
        folder.resolve().name,
        frames,
        captions=captions(prompts) if prompts.is_file() else (),
        path=cameras,
        at=at,
        convention=("world_to_camera", "opencv"),
    )


def _photo(file: Path, most: int) -> Float[Tensor, "3 height width"]:
    return read_image(file, max_pixels=most)
