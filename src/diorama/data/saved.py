"""A saved scene folder, read back: strict, since it may come from anywhere. `diorama.export.folder` writes it."""

from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.cameras import cameras_from_json, read_json
from diorama.data.images import read_image
from diorama.data.scenes import CapturedScene, Frame
from diorama.geometry.similarity import Similarity
from diorama.scene import Condition, Provenance, Scene, Views

FORMAT = "diorama scene"
VERSION = 1
MAX_VIEWS = 100_000  # a wrong number is refused before it becomes a list of that length


def read_folder(folder: str | Path) -> Scene:
    """The scene in a folder that `diorama.save` wrote.

    Cameras, points, confidence and latents come back bit for bit, images to 8 bits. No file outside the folder is read
    and nothing is unpickled; ValueError or FileNotFoundError names the file that is not as scene.json says.
    """
    folder = Path(folder)
    path = _inside(folder, "scene.json")
    document = read_json(path)
    try:
        _check_version(document)
        numbers = range(_count(document, "views", MAX_VIEWS))
        known = _entry(document, "condition", dict)
        at = tuple(_entry(known, "at", list))
        condition = Condition(None, (), _entry(known, "prompt", str, None), _entry(known, "label", int, None))
        provenance = _provenance(_entry(document, "provenance", dict))
        names = _entry(document, "holds", list)
        seen = _entry(document, "observed", dict) if "observed" in document else None
        again = 0 if seen is None else _count(seen, "views", MAX_VIEWS)
        if any(type(place) is not int or not 0 <= place < MAX_VIEWS for place in at):
            raise ValueError(f"`at` is {at[:8]}; accepted are numbers of views")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    views = _views(folder, "images", tuple(numbers), document)
    if at:
        condition = Condition(_views(folder, "known", at, known), at, condition.prompt, condition.label)
    observed = None if seen is None else _views(folder, "observed", tuple(range(again)), seen)
    latents, frame = _latents(folder, {name for name in names if name in ("latents", *_FRAME)})
    return Scene(views, condition, latents, frame, provenance, observed)


def read_saved(folder: str | Path) -> CapturedScene:
    """The views of a saved scene as a capture; what has points has depth, of which none is valid without confidence."""
    folder, scene = Path(folder), read_folder(folder)
    views, prompt = scene.views, scene.condition.prompt
    frames = tuple(_frame(f"{folder}: view {number}", views[number]) for number in range(len(views)))
    kind = "none" if views.depth is None else "dense"
    captions = () if prompt is None else (prompt,)
    return CapturedScene(folder.resolve().name, frames, depth_kind=kind, captions=captions, layout="a saved scene")


def _frame(name: str, view: Views) -> Frame:
    cameras = None if view.cameras is None else view.cameras.to(torch.float64)
    depth = None if view.depth is None else view.depth[0]
    if depth is not None and view.mask is not None:
        depth = depth.where(view.mask[0], 0)
    return Frame(name, partial(_whole, view.images[0]), cameras, None if depth is None else partial(_given, depth))


def _whole(image: Float[Tensor, "3 height width"], most: int) -> Float[Tensor, "3 height width"]:
    return image


def _given(depth: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    return depth


def _views(folder: Path, kind: str, numbers: tuple[int, ...], document: dict[str, Any]) -> Views:
    """The images of those numbers, with the cameras and arrays that `document` tells of."""
    path = folder / "scene.json"
    try:
        height, width = (_count(document, key, 2**16) for key in ("height", "width"))
        cameras = _entry(document, "cameras", dict, None)
        cameras = None if cameras is None else cameras_from_json(cameras).checked().to(torch.float32)
        shapes = {"points": (len(numbers), height, width, 3), "confidence": (len(numbers), height, width)}
        shapes = {name: shape for name, shape in shapes.items() if name in _entry(document, "holds", list)}
        if cameras is not None and (cameras.views, cameras.height, cameras.width) != (len(numbers), height, width):
            found = f"{cameras.views} cameras of {cameras.height}x{cameras.width}"
            raise ValueError(f"{found} for {len(numbers)} images of {height}x{width}; accepted is one for each")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    images = []
    for number in numbers:
        file = _inside(folder, f"{kind}/{number:05d}.png")
        images.append(read_image(file, max_pixels=height * width, upright=False))
        if images[-1].shape[-2:] != (height, width):
            found = "x".join(map(str, images[-1].shape[-2:]))
            raise ValueError(f"{file}: found {found} pixels; accepted is {height}x{width} as in scene.json")
    name = "geometry.safetensors" if kind == "images" else f"{kind}/geometry.safetensors"
    arrays = _tensors(folder, name, shapes) if shapes else {}
    return Views(torch.stack(images), cameras, arrays.get("points"), arrays.get("confidence"))


_FRAME = {"rotation": (3, 3), "translation": (3,), "scale": ()}


def _latents(folder: Path, names: set[str]) -> tuple[Tensor | None, Similarity | None]:
    if not names:
        return None, None
    tensors = _tensors(folder, "latents.safetensors", {name: _FRAME.get(name) for name in names})
    latents = tensors.pop("latents", None)
    if latents is not None and latents.ndim not in (2, 4):
        raise ValueError(f"{folder / 'latents.safetensors'}: latents of {latents.ndim} axes; accepted are 2 or 4")
    if tensors and tensors.keys() != _FRAME.keys():
        raise ValueError(f"{folder / 'latents.safetensors'}: found {sorted(tensors)}; accepted is {sorted(_FRAME)}")
    return latents, Similarity(**tensors) if tensors else None


def _tensors(folder: Path, name: str, shapes: dict[str, Any]) -> dict[str, Tensor]:
    """Exactly the tensors named in `shapes`; a shape of None is left to the caller."""
    path = _inside(folder, name)
    try:
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if tensors.keys() != shapes.keys():
        raise ValueError(f"{path}: found {sorted(tensors)}; accepted is {sorted(shapes)} as in scene.json")
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or shapes[key] not in (None, tuple(tensor.shape)):
            found = f"{key} of {tensor.dtype} and shape {tuple(tensor.shape)}"
            accepted = "any shape" if shapes[key] is None else f"shape {shapes[key]}"
            raise ValueError(f"{path}: {found}; accepted are floating-point numbers of {accepted}")
    return tensors


def _inside(folder: Path, name: str) -> Path:
    """The file of that name, once it is known not to lead out of the folder by a link."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: leads outside the scene folder, to {path.resolve()}; accepted are files inside it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing from the saved scene")
    return path


def _check_version(document: dict[str, Any]) -> None:
    if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        found = f"{document.get('format')!r} version {document.get('version')!r}"
        raise ValueError(f"found {found}; accepted is {FORMAT!r} version {VERSION}")


def _provenance(document: dict[str, Any]) -> Provenance:
    versions = _entry(document, "versions", dict)
    if not all(isinstance(version, str) for version in versions.values()):
        raise ValueError(f"`versions` is {str(versions)[:80]}; accepted are names and texts")
    return Provenance(
        model=_entry(document, "model", str),
        licence=_entry(document, "licence", str),
        seed=_entry(document, "seed", int, None),
        settings=_entry(document, "settings", dict),
        versions=versions,
    )


def _entry(document: dict[str, Any], key: str, *kinds: type | None) -> Any:
    """The value under `key`, of one of these JSON types."""
    value = document.get(key)
    accepted = tuple(type(None) if kind is None else kind for kind in kinds)
    if key not in document or type(value) not in accepted:
        found = f"`{key}` is a {type(value).__name__}" if key in document else f"`{key}` is missing"
        raise ValueError(f"{found}; accepted is {' or '.join(kind.__name__ for kind in accepted)}")
    return value


def _count(document: dict[str, Any], key: str, most: int) -> int:
    value = _entry(document, key, int)
    if not 1 <= value <= most:
        raise ValueError(f"`{key}` is {value}; accepted is 1 to {most}")
    return value
