"""One small scene, and the encodings that data sets keep such scenes in, each written here from its definition."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

HEIGHT, WIDTH, FRAMES = 12, 16, 3
INTRINSICS = np.array([[14.0, 0, 8.25], [0, 14.5, 6.5], [0, 0, 1]])  # first pixel's centre at (0.5, 0.5)
INVALID, SKY = (0, 0), (0, 1)  # the two odd pixels of every depth map that can have them


def poses() -> list[np.ndarray]:
    """Camera-to-world, OpenCV axes, exactly representable in single precision to about 1e-7."""
    found = []
    for number in range(FRAMES):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("xyz", [10 + number, -35, 5 * number], degrees=True).as_matrix()
        pose[:3, 3] = [0.5 * number, -0.25, 1.0 + number]
        found.append(pose)
    return found


def integer_centers() -> np.ndarray:
    """The same intrinsics where the first pixel's centre is (0, 0)."""
    return INTRINSICS - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def depth(number: int) -> np.ndarray:
    """z in scene units, multiples of a centimetre, all different."""
    return (1.0 + number + 0.01 * np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)).astype(np.float32)


def photo(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (40 * number + 20, 100, 200)).save(path)


def png(path: Path, codes: np.ndarray) -> None:
    """8 or 16 bits of grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if codes.dtype == np.uint8 else np.uint16
    Image.fromarray(codes.round().astype(kind)).save(path)


def npy(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def npz(path: Path, **values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **values)


def pfm(path: Path, values: np.ndarray) -> None:
    """Portable float map: little-endian floats, the bottom row first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"Pf\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    path.write_bytes(head + values[::-1].astype("<f4").tobytes())


def exr(path: Path, values: np.ndarray) -> None:
    """OpenEXR as OpenCV writes a grey image: one float channel Y, 16 scan lines a block, deflated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    box = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = [
        ("channels", "chlist", b"Y\0" + struct.pack("<iB3xii", 2, 0, 1, 1) + b"\0"),
        ("compression", "compression", b"\3"),
        ("dataWindow", "box2i", box),
        ("displayWindow", "box2i", box),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    ]
    head = struct.pack("<II", 20000630, 2)
    for name, kind, value in attributes:
        head += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
    head += b"\0"
    blocks = []
    for row in range(0, height, 16):
        raw = np.frombuffer(values[row : row + 16].astype("<f4").tobytes(), np.uint8)
        halves = np.concatenate([raw[0::2], raw[1::2]]).astype(np.int32)
        steps = np.concatenate([halves[:1], (np.diff(halves) + 128) % 256]).astype(np.uint8).tobytes()
        packed = zlib.compress(steps)
        packed = packed if len(packed) < len(raw) else raw.tobytes()
        blocks.append(struct.pack("<ii", row, len(packed)) + packed)
    starts = np.cumsum([len(head) + 8 * len(blocks), *map(len, blocks[:-1])]).astype("<u8")
    path.write_bytes(head + starts.tobytes() + b"".join(blocks))


def lines(path: Path, rows: list, header: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [
        " ".join(repr(float(value)) if isinstance(value, float) else str(value) for value in row) for row in rows
    ]
    path.write_text((header + "\n" if header else "") + "\n".join(written) + "\n")


def floats(matrix: np.ndarray) -> list[float]:
    return [float(value) for value in np.asarray(matrix).reshape(-1)]
