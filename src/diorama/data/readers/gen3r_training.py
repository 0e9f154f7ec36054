"""Gen3R's training layout: transforms.json in OpenCV axes, captions.txt, images, and lists that line up."""

from functools import partial
from pathlib import Path, PurePosixPath

from jaxtyping import Float
from torch import Tensor

from diorama.data.cameras import nerfstudio_each, read_json
from diorama.data.images import read_image
from diorama.data.readers.stored import text
from diorama.data.scenes import CapturedScene, Frame

LISTS = ("cameras_paths", "captions_paths", "videos_dirs")


def read_gen3r_training(
    cameras: str | Path, captions: str | Path | None = None, images: str | Path | None = None
) -> CapturedScene:
    """The clip of one transforms.json whose cameras have OpenCV axes, though it looks like nerfstudio's.

    Photos lie in `images`, by default beside it, under the last part of their `file_path`; those that do not are
    counted as missing. ValueError for what is no such file, and where no photo is there.
    """
    cameras = Path(cameras)
    images = cameras.parent / "images" if images is None else Path(images)
    captions = cameras.parent / "captions.txt" if captions is None else Path(captions)
    document = read_json(cameras)
    try:
        each = nerfstudio_each({"axes": "opencv", **document})
        each = [camera.checked() for camera in each]
    except ValueError as error:
        raise ValueError(f"{cameras}: {error}") from error
    frames = []
    for camera, frame in zip(each, document["frames"], strict=True):
        name = PurePosixPath(str(frame.get("file_path", "")).replace("\\", "/")).name
        photo = images / name
        if name not in ("", "..") and "\0" not in name and len(name) < 250 and photo.is_file():
            frames.append(Frame(str(photo), partial(_photo, photo), camera, encoded=photo.read_bytes))
    if not frames:
        raise ValueError(
            f"{cameras}: none of its {len(each)} frames is in {images}; accepted are photos of those names"
        )
    return CapturedScene(
        cameras.parent.resolve().name,
        tuple(frames),
        captions=tuple(_lines(captions)) if captions.is_file() else (),
        missing=len(each) - len(frames),
        layout="Gen3R's training data",
    )


class Gen3RSource:
    """The clips that a folder's `train_` or `test_` lists name, in their order; paths are absolute or below the folder.

    ValueError where the lists of cameras, captions and image folders are absent or of different lengths.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        self.folder = Path(folder)
        self.name = f"{self.folder.name} {split}"
        files = [self.folder / f"{split}_{name}.txt" for name in LISTS]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise ValueError(f"{self.folder}: found no {absent[0]}; accepted are {', '.join(f.name for f in files)}")
        lists = [_lines(file) for file in files]
        if len({len(lines) for lines in lists}) > 1 or not lists[0]:
            found = ", ".join(f"{len(lines)} in {file.name}" for file, lines in zip(files, lists, strict=True))
            raise ValueError(f"{self.folder}: found {found}; accepted are as many lines in each, and at least one")
        self._clips = list(zip(*lists, strict=True))

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> CapturedScene:
        return read_gen3r_training(*(self.folder / path for path in self._clips[index]))


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in text(file).splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file}: found {error}; accepted is text, a line each") from error


def _photo(path: Path, max_pixels: int) -> Float[Tensor, "3 height width"]:
    return read_image(path, max_pixels=max_pixels, upright=False)
