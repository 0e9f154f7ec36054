"""Coloured points as a binary glTF file, which Blender, Unity, Unreal and web viewers open."""

import json
import struct
from pathlib import Path

import numpy as np

from diorama.export.atomic import replacement
from diorama.export.ply import coloured_points
from diorama.scene import Views

_OPENCV_TO_GLTF = np.array([1, -1, -1], dtype=np.float32)  # y down, z forward -> y up, z backward
_FLOAT, _POINTS, _ARRAY_BUFFER = 5126, 0, 34962  # glTF 2.0's constants

# glTF's vertex colours are linear light, photos are sRGB. As floats, because some readers take 16 bits for 8.
_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4).astype("<f4")


def write_glb(views: Views, path: str | Path, *, drop: float = 0.0, overwrite: bool = False) -> None:
    """Write the valid points with their colours as glTF 2.0 (y up); ValueError where there are none."""
    points, colours = coloured_points(views, drop=drop)
    if not len(points):
        raise ValueError(f"{path}: the scene has no valid points and glTF cannot hold an empty cloud")
    positions = np.ascontiguousarray(points * _OPENCV_TO_GLTF, dtype="<f4")
    linear = _LINEAR[colours]
    sizes = positions.nbytes, linear.nbytes
    document = {
        "asset": {"version": "2.0", "generator": "diorama"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "points"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": _POINTS}]}],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": len(points),
                "type": "VEC3",
                "min": positions.min(0).tolist(),
                "max": positions.max(0).tolist(),
            },
            {"bufferView": 1, "componentType": _FLOAT, "count": len(points), "type": "VEC3"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": sizes[0], "target": _ARRAY_BUFFER},
            {"buffer": 0, "byteOffset": sizes[0], "byteLength": sizes[1], "target": _ARRAY_BUFFER},
        ],
        "buffers": [{"byteLength": sum(sizes)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # chunks are padded to four bytes; both arrays are already
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", sum(sizes), b"BIN\0")
    total = 12 + len(chunks) + sum(sizes)
    with replacement(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(struct.pack("<4sII", b"glTF", 2, total) + chunks + positions.tobytes() + linear.tobytes())
