"""A scene as a folder: a nerfstudio dataset, with everything else that makes the scene beside it.

scene.json            what is here; cameras, condition and provenance in numbers and words
transforms.json       the same cameras for nerfstudio and its relatives
images/00000.png      depth/00000.png (16-bit codes)     depth/00000.npy (float32)
known/00000.png       the photos the scene was made from, under the number of the view they are
observed/00000.png    the same at the model's size, where rendering the scene again looks at them
geometry.safetensors  points and confidence              latents.safetensors  latents and their frame
points.ply  video.mp4  preview.png                       for other programs and for people
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from diorama.export.atomic import replacement
from diorama.export.depth import depth_codes, depth_unit, png, preview
from diorama.export.ply import bytes_of, write_ply
from diorama.export.video import write_video
from diorama.geometry.cameras import Cameras
from diorama.scene import Scene, Views

FORMAT = "diorama scene"
VERSION = 1  # `diorama.data.saved` reads this one


def write_folder(scene: Scene, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a scene that `diorama.open` reads back: images to 8 bits, everything else bit for bit."""
    views = scene.views.to("cpu")
    unit = None if views.depth is None else depth_unit(views)
    # Made before any file, so that values JSON cannot hold are refused before any work.
    description = _json(_description(scene, unit), "description")
    with replacement(path, overwrite=overwrite) as folder:
        folder.mkdir()
        write_images(folder / "images", views, range(len(views)))
        if unit is not None:
            _write_depth(folder / "depth", views, unit)
        if views.points is not None:
            write_ply(views, folder / "points.ply")
        _write_tensors(folder / "geometry.safetensors", _geometry(views))
        _write_tensors(folder / "latents.safetensors", _latents(scene))
        if scene.condition.views is not None:
            known = scene.condition.views.to("cpu")
            write_images(folder / "known", known, scene.condition.at)
            _write_tensors(folder / "known/geometry.safetensors", _geometry(known))
        if scene.observed is not None:
            write_images(folder / "observed", scene.observed.to("cpu"), range(len(scene.observed)))
        write_video(views.images, folder / "video.mp4")
        (folder / "preview.png").write_bytes(png(preview(views)))
        if views.cameras is not None:
            (folder / "transforms.json").write_text(_json(nerfstudio(views, unit), "cameras"))
        (folder / "scene.json").write_text(description)


def _description(scene: Scene, unit: float | None) -> dict[str, Any]:
    condition, provenance = scene.condition, scene.provenance
    known: dict[str, Any] = {"at": list(condition.at), "prompt": condition.prompt, "label": condition.label}
    if condition.views is not None:
        known |= _record(condition.views)
    record = _record(scene.views)
    record["holds"] += _latents(scene)
    return {
        "format": FORMAT,
        "version": VERSION,
        "views": len(scene.views),
        **record,
        "depth_unit": unit,
        "condition": known,
        **({} if scene.observed is None else {"observed": {"views": len(scene.observed), **_record(scene.observed)}}),
        "provenance": {
            "model": provenance.model,
            "licence": provenance.licence,
            "seed": provenance.seed,
            "settings": dict(provenance.settings),
            "versions": dict(provenance.versions),
        },
    }


def _record(views: Views) -> dict[str, Any]:
    cameras = views.cameras
    return {
        "height": views.images.shape[-2],
        "width": views.images.shape[-1],
        "holds": list(_geometry(views)),
        "cameras": None if cameras is None else cameras_record(cameras),
    }


def cameras_record(cameras: Cameras) -> dict[str, Any]:
    """OpenCV axes, camera-to-world, pixels; a float32 number written in full comes back as it was."""
    return {
        "height": cameras.height,
        "width": cameras.width,
        "camera_to_world": cameras.camera_to_world.tolist(),
        "intrinsics": cameras.intrinsics.tolist(),
    }


def nerfstudio(views: Views, unit: float | None) -> dict[str, Any]:
    """transforms.json: OpenGL camera-to-world, pixels, the first pixel's centre at (0.5, 0.5)."""
    cameras = views.cameras
    assert cameras is not None
    poses = cameras.camera_to_world * torch.tensor(
        [1.0, -1.0, -1.0, 1.0]
    )  # columns: right, down, forward -> right, up, back
    document: dict[str, Any] = {"camera_model": "PINHOLE", "frames": []}
    if views.points is not None:
        document["ply_file_path"] = "points.ply"
    if unit is not None:
        document["depth_unit_scale_factor"] = unit
    for number, (pose, matrix) in enumerate(zip(poses.tolist(), cameras.intrinsics.tolist(), strict=True)):
        frame = {
            "file_path": f"images/{number:05d}.png",
            "fl_x": matrix[0][0],
            "fl_y": matrix[1][1],
            "cx": matrix[0][2],
            "cy": matrix[1][2],
            "w": cameras.width,
            "h": cameras.height,
            "transform_matrix": pose,
        }
        if unit is not None:
            frame["depth_file_path"] = f"depth/{number:05d}.png"
        document["frames"].append(frame)
    return document


def _geometry(views: Views) -> dict[str, torch.Tensor]:
    return {
        name: value for name, value in (("points", views.points), ("confidence", views.confidence)) if value is not None
    }


def _latents(scene: Scene) -> dict[str, torch.Tensor]:
    tensors = {} if scene.latents is None else {"latents": scene.latents}
    if scene.latent_frame is not None:
        frame = scene.latent_frame
        tensors |= {"rotation": frame.rotation, "translation": frame.translation, "scale": frame.scale}
    return tensors


def write_images(folder: Path, views: Views, numbers: range | tuple[int, ...]) -> None:
    folder.mkdir()
    for number, image in zip(numbers, bytes_of(views.images), strict=True):
        (folder / f"{number:05d}.png").write_bytes(png(image.movedim(0, -1).contiguous().numpy()))


def _write_depth(folder: Path, views: Views, unit: float) -> None:
    folder.mkdir()
    assert views.depth is not None
    for number, (codes, depth) in enumerate(zip(depth_codes(views, unit), views.depth.detach(), strict=True)):
        (folder / f"{number:05d}.png").write_bytes(png(codes))
        buffer = io.BytesIO()
        np.save(buffer, depth.float().numpy(), allow_pickle=False)
        (folder / f"{number:05d}.npy").write_bytes(buffer.getvalue())


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if tensors:
        # As bytes, because safetensors' own file writer turns a full disk into an error of another kind.
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        path.write_bytes(safetensors.torch.save(plain))


def _json(document: dict[str, Any], what: str) -> str:
    try:
        return json.dumps(document, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"the scene's {what} cannot be written as JSON ({error})") from error
