"""The depth of each view as a textured mesh, cut where the surface ends, as a binary glTF file."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from PIL import Image
from torch import Tensor

from diorama.export.gltf import INDICES, Gltf, y_up
from diorama.export.ply import bytes_of
from diorama.export.surface import EDGE, Surface
from diorama.export.world import World, world_of
from diorama.scene import Views

_CLAMP, _LINEAR = 33071, 9729  # glTF's samplers


class Sheet(NamedTuple):
    """What one view adds to the mesh."""

    vertices: Float32[np.ndarray, "vertex 3"]  # in the views' world
    texture: Float32[np.ndarray, "vertex 2"]  # in [0, 1], v down
    faces: Int64[np.ndarray, "face 3"]  # counter-clockwise from the camera


def write_mesh(
    views: Views, path: str | Path, *, edge: float = EDGE, world: World | None = None, overwrite: bool = False
) -> None:
    """Write `sheets` as glTF 2.0 (y up), unlit, each with its view's image; ValueError without depth or surface."""
    world = world or world_of(views)
    file = Gltf()
    file.document["extensionsUsed"] = ["KHR_materials_unlit"]  # the light is in the photos already
    file.add("samplers", {"magFilter": _LINEAR, "minFilter": _LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP})
    for number, (sheet, image) in enumerate(zip(sheets(views, edge), bytes_of(views.images), strict=True)):
        if not len(sheet.faces):
            continue
        picture = file.add("images", {"bufferView": file.data(_jpeg(image)), "mimeType": "image/jpeg"})
        texture = file.add("textures", {"source": picture, "sampler": 0})
        material = file.add("materials", _material(number, texture))
        attributes = {
            "POSITION": file.array(y_up(sheet.vertices, world), bounds=True),
            "TEXCOORD_0": file.array(sheet.texture),
        }
        indices = file.array(sheet.faces.ravel().astype(np.uint32), INDICES)
        primitive = {"attributes": attributes, "indices": indices, "material": material}
        mesh = file.add("meshes", {"primitives": [primitive]})
        file.add("nodes", {"mesh": mesh, "name": f"view {number}"})
    if "nodes" not in file.document:
        raise ValueError(f"{path}: no four neighbouring pixels show one surface, so there is no mesh to write")
    file.write(path, world, overwrite=overwrite)


def sheets(views: Views, edge: float = EDGE) -> list[Sheet]:
    """For each view the quads between neighbouring pixels of one surface, without those that an earlier view shows.

    ValueError for views without depth, or an `edge` that is not positive.
    """
    if not edge > 0:
        raise ValueError(f"edge {edge}: accepted is a share above 0")
    views = views.to("cpu", torch.float32)
    surface = Surface.of(views, edge)
    solid = _touched(surface.whole)
    made = []
    for view, quads in enumerate(surface.whole):
        shown = torch.zeros_like(solid[view])
        for earlier in range(view):
            rows, columns = (solid[view] & ~shown).nonzero().unbind(-1)
            match = surface.match(view, rows, columns, earlier, tolerance=1.0)
            x, y = match.pixels.long().unbind(-1)
            seen = match.good.clone()
            seen[match.good] = solid[earlier][y[match.good], x[match.good]]
            shown[rows[seen], columns[seen]] = True
        corners = (shown[:-1, :-1], shown[:-1, 1:], shown[1:, :-1], shown[1:, 1:])
        made.append(_sheet(surface.points[view], quads & ~(corners[0] & corners[1] & corners[2] & corners[3])))
    return made


def _touched(quads: Bool[Tensor, "view rows columns"]) -> Bool[Tensor, "view height width"]:
    """Pixels at a corner of some quad."""
    pixels = quads.new_zeros(len(quads), quads.shape[1] + 1, quads.shape[2] + 1)
    for part in (pixels[:, :-1, :-1], pixels[:, :-1, 1:], pixels[:, 1:, :-1], pixels[:, 1:, 1:]):
        part |= quads
    return pixels


def _sheet(points: Float[Tensor, "height width 3"], quads: Bool[Tensor, "rows columns"]) -> Sheet:
    height, width = points.shape[:2]
    first = quads.nonzero() @ torch.tensor([width, 1])
    a, b, c, d = first, first + 1, first + width, first + width + 1
    corners = torch.stack([a, c, b, b, c, d], -1).reshape(-1, 3)
    used, faces = torch.unique(corners, return_inverse=True)
    centre = torch.stack([used % width + 0.5, used // width + 0.5], -1) / torch.tensor([width, height])
    return Sheet(points.reshape(-1, 3)[used].numpy(), centre.float().numpy(), faces.numpy())


def _material(number: int, texture: int) -> dict[str, object]:
    surface = {"baseColorTexture": {"index": texture}, "metallicFactor": 0, "roughnessFactor": 1}
    return {
        "name": f"view {number}",
        "pbrMetallicRoughness": surface,
        "doubleSided": True,
        "extensions": {"KHR_materials_unlit": {}},
    }


def _jpeg(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.movedim(0, -1).contiguous().numpy()).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
