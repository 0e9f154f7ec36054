"""Another program as a method for `diorama evaluate`: here one that shows the nearest known picture for each camera.

    python examples/evaluate_outside_method.py FOLDER

It needs nothing of Diorama, reads what each scene's request.json names, and is scored with

    diorama evaluate "python examples/evaluate_outside_method.py {folder}" worlds --out scores --quick
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main(folder: str | Path) -> int:
    """Answer every request in the folder; gives their number."""
    requests = sorted(Path(folder).glob("*/request.json"))
    for file in requests:
        answer(file.parent, json.loads(file.read_text()))
    return len(requests)


def answer(scene: Path, request: dict) -> None:
    """Write the wanted pictures of one scene."""
    # OpenCV axes (x right, y down, z forward), camera to world; beside it are `intrinsics` in pixels.
    poses = np.array(request["cameras"]["camera_to_world"])
    known = {int(place): Image.open(scene / file) for place, file in request["known"].items()}
    places = list(known)
    for place, file in request["wanted"].items():
        distance = np.linalg.norm(poses[places, :3, 3] - poses[int(place), :3, 3], axis=-1)
        (scene / file).parent.mkdir(parents=True, exist_ok=True)
        known[places[distance.argmin()]].save(scene / file)


if __name__ == "__main__":
    main(sys.argv[1])
