"""A saved scene folder, read back: strict, since it may come from anywhere. `diorama.export.folder` writes it."""

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.cameras import cameras_from_json, read_json
from diorama.data.images import read_image
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.scene import Condition, Provenance, Scene, Views

FORMAT = "diorama scene"
VERSION = 1


def read_folder(folder: str | Path) -> Scene:
    """The scene in a folder that `diorama.save` wrote.

    Cameras, points, confidence and latents come back bit for bit, images to 8 bits. No file outside the folder is read
    and nothing is unpickled; ValueError names the file that does not hold what scene.json says.
    """
    folder = Path(folder)
    path = _inside(folder, "scene.json")
    document = read_json(path)
    if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        found = f"{document.get('format')!r} version {document.get('version')!r}"
        raise ValueError(f"{path}: found {found}; accepted is {FORMAT!r} version {VERSION}")
    try:
        count, holds, known = int(document["views"]), set(document["holds"]), document["condition"]
        numbers = range(count)
        views = _views(folder, [f"images/{number:05d}.png" for number in numbers], document, holds)
        at = tuple(int(place) for place in known["at"])
        files = [f"known/{place:05d}.png" for place in at]
        known_views = _views(folder, files, known, set(known["holds"]), "known/geometry") if at else None
        condition = Condition(known_views, at, known["prompt"], known["label"])
        provenance = Provenance(**document["provenance"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a whole scene description ({error!r})") from error
    latents, frame = _latents(folder, holds)
    return Scene(views, condition, latents, frame, provenance)


def _views(
    folder: Path, images: list[str], document: dict[str, Any], holds: set[str], geometry: str = "geometry"
) -> Views:
    """Images by name with the cameras in `document` and the arrays that it `holds`."""
    height, width = int(document["height"]), int(document["width"])
    pictures = []
    for name in images:
        pictures.append(read_image(_inside(folder, name), max_pixels=height * width, upright=False))
        if pictures[-1].shape[-2:] != (height, width):
            found = "x".join(map(str, pictures[-1].shape[-2:]))
            raise ValueError(f"{folder / name}: found {found} pixels; accepted is {height}x{width} as in scene.json")
    shape = (len(images), height, width)
    arrays = {}
    if wanted := {"points": (*shape, 3), "confidence": shape}.keys() & holds:
        path = _inside(folder, f"{geometry}.safetensors")
        arrays = _tensors(path, wanted)
        for name, expected in {"points": (*shape, 3), "confidence": shape}.items():
            if name in arrays and arrays[name].shape != expected:
                raise ValueError(f"{path}: {name} of shape {tuple(arrays[name].shape)}; accepted is {expected}")
    return Views(
        torch.stack(pictures), _cameras(folder, document, shape), arrays.get("points"), arrays.get("confidence")
    )


def _cameras(folder: Path, document: dict[str, Any], shape: tuple[int, int, int]) -> Cameras | None:
    if document["cameras"] is None:
        return None
    cameras = cameras_from_json(document["cameras"]).checked().to(torch.float32)
    if (cameras.views, cameras.height, cameras.width) != shape:
        found = f"{cameras.views} cameras of {cameras.height}x{cameras.width}"
        raise ValueError(f"{folder / 'scene.json'}: {found} for {shape[0]} images of {shape[1]}x{shape[2]}")
    return cameras


def _latents(folder: Path, holds: set[str]) -> tuple[Float[Tensor, "..."] | None, Similarity | None]:
    frame = ("rotation", "translation", "scale")
    wanted = {name for name in ("latents", *frame) if name in holds}
    if not wanted:
        return None, None
    path = _inside(folder, "latents.safetensors")
    tensors = _tensors(path, wanted)
    latents = tensors.get("latents")
    if latents is not None and latents.ndim not in (2, 4):
        raise ValueError(f"{path}: latents of shape {tuple(latents.shape)}; accepted are 2 or 4 axes")
    if not wanted.intersection(frame):
        return latents, None
    shapes = [tuple(tensors[name].shape) if name in tensors else None for name in frame]
    if shapes != [(3, 3), (3,), ()]:
        raise ValueError(f"{path}: {', '.join(frame)} of shapes {shapes}; accepted are (3, 3), (3,) and ()")
    return latents, Similarity(*(tensors[name] for name in frame))


def _tensors(path: Path, wanted: set[str]) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if tensors.keys() != wanted:
        raise ValueError(f"{path}: found {sorted(tensors)}; accepted is {sorted(wanted)} as in scene.json")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} is {tensor.dtype}; accepted are floating-point numbers")
    return tensors


def _inside(folder: Path, name: str) -> Path:
    """The file of that name, once it is known not to lead out of the folder by a link."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: leads outside the scene folder, to {path.resolve()}; accepted are files inside it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing from the saved scene")
    return path
