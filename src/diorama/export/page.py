"""A scene as one HTML page: its points in 3D and its views along the path, without a network, small enough to mail."""

import base64
import hashlib
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from diorama.export.atomic import replacement
from diorama.export.cleaning import Cleaning, cleaned
from diorama.export.gltf import y_up
from diorama.export.ply import bytes_of
from diorama.export.world import World, turn, world_of
from diorama.geometry.points import voxel_downsample
from diorama.geometry.similarity import Similarity
from diorama.scene import Scene, Views

MEGABYTES = 12.0  # what most mail servers let through
SIDE = 320  # pixels of a frame's longer side
FRAMES = 120  # at most; longer paths are thinned out
_SHELL = 60_000  # bytes of the page without its data, and then some
_POINT = 10 * 4 / 3  # bytes of a point in base64: three 16-bit coordinates, colour, rank of confidence


def write_page(
    scene: Scene,
    path: str | Path,
    *,
    megabytes: float = MEGABYTES,
    voxel: float | None = None,
    world: World | None = None,
    overwrite: bool = False,
) -> None:
    """Write a page of at most `megabytes`: frames take up to half of it, points drawn evenly what then is left.

    ValueError for views without points, and where not even a hundred points fit.
    """
    world = world or world_of(scene.views)
    budget = int(megabytes * 1e6) - _SHELL
    frames, numbers = _frames(scene.views, budget // 2)
    room = int((budget - sum(map(len, frames))) / _POINT) - 2000  # cameras, and base64's padding
    if room < 100:
        raise ValueError(f"{path}: {megabytes:g} megabytes hold no scene; accepted are 0.2 or more")
    data = {**_points(scene.views, room, voxel, world), **_cameras(scene.views, numbers, world), "frames": frames}
    about = {
        "views": len(scene.views),
        "points": f"{data['count']} of {data['all']}" if data["count"] < data["all"] else str(data["count"]),
        "model": scene.provenance.model,
        "licence of its weights": scene.provenance.licence,
        "unit": f"{world.unit} ({world.scale:g} to one of the scene)" if world.scale != 1 else world.unit,
        "up in the scene": world.up,
    }
    text = {name: files("diorama.export").joinpath(f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    html = page.from_string(text["html"]).render(
        title=scene.condition.prompt or f"A scene by {scene.provenance.model}",
        about=about,
        css=Markup(text["css"]),
        js=Markup(text["js"]),
        # No other style or script runs and nothing is fetched, whatever a name in a scene says.
        allowed={name: base64.b64encode(hashlib.sha256(text[name].encode()).digest()).decode() for name in text},
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )
    with replacement(path, overwrite=overwrite) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _points(views: Views, room: int, voxel: float | None, world: World) -> dict[str, Any]:
    """Points in 16 bits a coordinate, y up, in an order of which every beginning is an even sample."""
    if views.points is None:
        raise ValueError("the scene has no points to export; accepted are scenes with points")
    views = cleaned(views, Cleaning())
    assert views.points is not None and views.confidence is not None
    valid = views.confidence > 0
    points, trust = views.points.detach().float()[valid], views.confidence.detach().float()[valid]
    colours = bytes_of(views.images).movedim(-3, -1)[valid]
    if not len(points):
        raise ValueError("the scene has no valid points; accepted are scenes with points")
    total = len(points)
    if voxel is not None:
        points, mean = voxel_downsample(points, torch.cat([colours.float(), trust[:, None]], -1), voxel)
        colours, trust = mean[:, :3].round().to(torch.uint8), mean[:, 3]
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:room]
    # The rank, not the value: a slider then means a share of the points, whatever the model's unit of trust.
    rank = torch.empty_like(trust).scatter_(0, trust.argsort(), torch.linspace(0, 255, len(trust)))
    places = y_up(points[order].numpy(), world)
    low, extent = places.min(0), np.maximum(np.ptp(places, 0), 1e-9)
    codes = np.rint((places - low) / extent * 65535).astype("<u2")
    paint = torch.cat([colours[order], rank[order, None].to(torch.uint8)], -1).numpy()
    return {
        "positions": base64.b64encode(codes.tobytes()).decode(),
        "colours": base64.b64encode(paint.tobytes()).decode(),
        "low": low.tolist(),
        "extent": extent.tolist(),
        "count": len(order),
        "all": total,
        "spacing": _spacing(views, valid) * (total / len(order)) ** 0.5,
        "pivot": np.median(places, 0).tolist(),
    }


def _spacing(views: Views, valid: torch.Tensor) -> float:
    """How far neighbouring pixels' points lie apart where the surface faces the camera, in the middle of the scene."""
    assert views.points is not None
    if views.cameras is None or views.depth is None:
        return float(views.points[valid].std(0).norm()) / max(int(valid.sum()), 1) ** 0.5
    footprint = views.depth.detach() / views.cameras.intrinsics[:, 0, 0].detach().cpu()[:, None, None]
    return abs(float(np.median(footprint[valid].numpy())))


def _cameras(views: Views, numbers: list[int], world: World) -> dict[str, Any]:
    """The frames' cameras, OpenCV camera-to-world by rows, y up; focal lengths and centres as shares of the image."""
    height, width = views.images.shape[-2:]
    if views.cameras is None:
        return {"poses": [], "lenses": [], "aspect": width / height}
    cameras = views.cameras[numbers].to("cpu", torch.float32)
    cameras = cameras.transformed(Similarity(turn(world.up, "y"), torch.zeros(3), torch.ones(())))
    size = torch.tensor([width, height, width, height])
    lenses = cameras.intrinsics[:, (0, 1, 0, 1), (0, 1, 2, 2)] / size
    poses = cameras.camera_to_world[:, :3].reshape(-1, 12)
    return {"poses": poses.tolist(), "lenses": lenses.tolist(), "aspect": width / height}


def _frames(views: Views, budget: int) -> tuple[list[str], list[int]]:
    """JPEG images as data, evenly over the path, and which views they are; fewer if they need more than `budget`."""
    count = min(len(views), FRAMES)
    numbers = torch.linspace(0, len(views) - 1, count).round().long().tolist()
    images = bytes_of(views.images[numbers]).movedim(1, -1).contiguous().numpy()
    found = [_jpeg(image) for image in images]
    while len(found) > 2 and sum(map(len, found)) > budget:
        found, numbers = found[::2], numbers[::2]
    return found, numbers


def _jpeg(image: np.ndarray) -> str:
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
