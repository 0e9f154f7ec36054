"""Captures on disk, written from rendered worlds without any of our exporters."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from diorama.data.cache import WorldsCache


def capture(folder: Path, cache: WorldsCache, scene: int, *, depth: bool = True, far: float = 0.0) -> Path:
    """A world as other tools write captures: PNG photos, cameras in OpenGL's axes `far` from the origin, .npy depth."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for view in range(cache.views):
        Image.fromarray(np.array(cache.images[scene, view])).save(folder / f"images/{view}.png")
        pose = cache.camera_to_world[scene, view].double().numpy() @ np.diag([1.0, -1, -1, 1])
        pose[:3, 3] += far
        matrix = cache.intrinsics[scene, view].double()
        frame = {"file_path": f"images/{view}.png", "transform_matrix": pose.tolist()}
        frame |= {"fl_x": matrix[0, 0].item(), "fl_y": matrix[1, 1].item()}
        frame |= {"cx": matrix[0, 2].item(), "cy": matrix[1, 2].item(), "w": cache.width, "h": cache.height}
        if depth:
            np.save(folder / f"images/{view}.npy", np.array(cache.depth[scene, view], dtype=np.float32))
            frame["depth_file_path"] = f"images/{view}.npy"
        frames.append(frame)
    (folder / "transforms.json").write_text(json.dumps({"frames": frames, "depth_unit_scale_factor": 1.0}))
    return folder
