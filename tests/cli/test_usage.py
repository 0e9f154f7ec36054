"""What the README tells users to type works as it stands there."""

import json
import re
import shlex
from pathlib import Path

import numpy as np

from .conftest import Command

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_commands_of_the_readme(command: Command, photo) -> None:
    for name in ("room.jpg", "left.jpg", "right.jpg", "capture/0.jpg", "capture/1.jpg"):
        photo(name)
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 1
    frames = [{"file_path": f"{i}.jpg", "transform_matrix": pose.tolist()} for i, pose in enumerate(poses)]
    document = json.dumps({"fl_x": 60.0, "w": 64, "h": 48, "frames": frames})
    for name in ("path.json", "cameras.json", "capture/transforms.json"):
        Path(name).write_text(document)
    lines = re.search(r"<!-- usage -->\n```bash\n(.+?)```", README, re.DOTALL)[1].splitlines()
    assert len(lines) > 5
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "diorama"
        if words[0] == "export":  # reads a scene and no model
            assert command(*words).code == 0
        else:
            command.done(*words)
    assert {"scene", "hall", "scene-2", "wing", "scene-3", "dream", "plain", "tour.mp4", "files"} <= {
        p.name for p in Path().iterdir()
    }
