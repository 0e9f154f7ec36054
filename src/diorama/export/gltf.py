"""A binary glTF 2.0 file put together: arrays, pictures, and the description that points at them."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from diorama.export.atomic import replacement
from diorama.export.world import World, turn

VERTICES, INDICES = 34962, 34963  # glTF's names of what a buffer is for
_COMPONENTS = {"f": 5126, "u": 5125}  # float32, uint32
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3"}


class Gltf:
    """Collects what a file holds; `write` writes it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.document: dict[str, Any] = {"asset": {"version": "2.0", "generator": "diorama"}}

    def add(self, kind: str, entry: dict[str, Any]) -> int:
        """Append to one of the document's lists and give the entry's number."""
        self.document.setdefault(kind, []).append(entry)
        return len(self.document[kind]) - 1

    def data(self, data: bytes, **more: int) -> int:
        """A buffer view of these bytes."""
        view = {"buffer": 0, "byteOffset": self.size, "byteLength": len(data), **more}
        padded = data + b"\0" * (-len(data) % 4)
        self.parts.append(padded)
        self.size += len(padded)
        return self.add("bufferViews", view)

    def array(self, values: np.ndarray, target: int = VERTICES, *, bounds: bool = False) -> int:
        """An accessor of float32 or uint32 values; positions need `bounds`."""
        values = np.ascontiguousarray(values, dtype="<f4" if values.dtype.kind == "f" else "<u4")
        entry = {
            "bufferView": self.data(values.tobytes(), target=target),
            "componentType": _COMPONENTS[values.dtype.kind],
            "count": len(values),
            "type": _TYPES[values.shape[1] if values.ndim == 2 else 1],
        }
        if bounds:
            entry |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        return self.add("accessors", entry)

    def write(self, path: str | Path, world: World, *, overwrite: bool = False) -> None:
        """Write the file; its scene says what `world` says, of coordinates that stand y up as glTF has it."""
        nodes = list(range(len(self.document["nodes"])))
        about = {**world.record(), "up": "y"}
        document = {
            **self.document,
            "scene": 0,
            "scenes": [{"nodes": nodes, "extras": about}],
            "buffers": [{"byteLength": self.size}],
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)  # chunks are padded to four bytes
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", self.size, b"BIN\0")
        total = 12 + len(chunks) + self.size
        with replacement(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
            file.write(struct.pack("<4sII", b"glTF", 2, total) + chunks)
            file.writelines(self.parts)


def y_up(points: np.ndarray, world: World) -> np.ndarray:
    """Points "point 3" turned by right angles from the world's up to glTF's."""
    return points @ turn(world.up, "y").numpy().T
