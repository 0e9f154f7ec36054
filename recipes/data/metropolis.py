"""Mapillary Metropolis as captures to be read: metropolis.py ROOT OUT [--split train] [--channel CAM_FRONT].

OUT/<scene>/ gets a transforms.json with OpenCV axes and links to the photos, one folder for each scene of the split and
each perspective camera; panoramas are left out. That 3DRAE's "Mapillary" is this data set is inferred from its number
of photos, not said in the paper. Tables and conventions are those of Metropolis' own description of its format; no part
of the data was at hand.
"""

import argparse
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

CHANNELS = ("CAM_FRONT", "CAM_RIGHT", "CAM_BACK", "CAM_LEFT")


def table(root: Path, split: str, name: str) -> dict[str, dict[str, Any]]:
    """One table of the split's database, by token."""
    return {row["token"]: row for row in json.loads((root / split / f"{name}.json").read_text())}


def to_matrix(row: dict[str, Any]) -> np.ndarray:
    """The map from a local frame to the one above it, of a quaternion w x y z and a translation."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat([*row["rotation"][1:], row["rotation"][0]]).as_matrix()
    matrix[:3, 3] = row["translation"]
    return matrix


def scenes(root: Path, split: str, channels: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """The frames of each scene and channel, in time's order, as transforms.json has them."""
    sensors, calibrated, poses = (table(root, split, name) for name in ("sensor", "calibrated_sensor", "ego_pose"))
    samples, named = table(root, split, "sample"), table(root, split, "scene")
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for row in table(root, split, "sample_data").values():
        camera = calibrated[row["calibrated_sensor_token"]]
        channel = sensors[camera["sensor_token"]]["channel"]
        if channel not in channels or not row.get("width"):
            continue
        pose = to_matrix(poses[row["ego_pose_token"]]) @ to_matrix(camera)  # sensor to vehicle to world
        lens = np.array(camera["camera_intrinsic"])
        numbers = {"fl_x": lens[0, 0], "fl_y": lens[1, 1], "cx": lens[0, 2], "cy": lens[1, 2]}
        frame = {"file_path": row["filename"], "w": row["width"], "h": row["height"]}
        frame |= {key: float(value) for key, value in numbers.items()} | {"transform_matrix": pose.tolist()}
        scene = named[samples[row["sample_token"]]["scene_token"]]["name"]
        found.setdefault(f"{scene}_{channel}", []).append((row["timestamp"], frame))
    return {name: [frame for _, frame in sorted(frames, key=lambda item: item[0])] for name, frames in found.items()}


def write(root: Path, out: Path, split: str, channels: tuple[str, ...]) -> int:
    """One capture for each scene and channel; how many."""
    found = scenes(root, split, channels)
    for name, frames in found.items():
        folder = out / PurePosixPath(name).name
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for frame in frames:
            source = (root / PurePosixPath(frame["file_path"])).resolve()
            if not source.is_relative_to(root.resolve()):
                raise ValueError(f"{root}: names the photo {frame['file_path']!r:.80}; accepted are files inside")
            link = folder / "images" / source.name
            if not link.is_symlink():
                link.symlink_to(source)
            frame["file_path"] = f"images/{source.name}"
        document = {"axes": "opencv", "camera_model": "PINHOLE", "frames": frames}
        (folder / "transforms.json").write_text(json.dumps(document))
    return len(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--channel", action="append", choices=CHANNELS)
    chosen = parser.parse_args(arguments)
    count = write(chosen.root, chosen.out, chosen.split, tuple(chosen.channel or CHANNELS))
    print(f"{count} captures written to {chosen.out}; look at one with: diorama data check {chosen.out}/NAME")


if __name__ == "__main__":
    main()
