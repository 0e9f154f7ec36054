"""What a visitor of the studio asks for, and what that means: known views and wanted cameras."""

import inspect
import math
from dataclasses import dataclass, replace

import torch

from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import TRAJECTORIES, interpolate, keyframe_places, trajectory
from diorama.pipelines.base import ScenePipeline
from diorama.scene import Condition, Shot, Views
from diorama.viewer.photos import Photo
from diorama.viewer.poses import Pose, cameras_of

PRESETS = ("orbit", "spiral", "dolly", "truck", "pedestal", "pan", "tilt", "zoom", "static")
KEYFRAMES, FREE = "keyframes", "free"  # paths beside the presets: flown by the visitor, found by the model
SIDE = 512  # pixels of cameras without a photo, until the model is known
MOST_VIEWS, MOST_STEPS, MOST_SEED = 128, 1000, 2**31 - 1
MOST_KEYFRAMES, MOST_LETTERS = 64, 2000


def amount_of(preset: str) -> tuple[str, float] | None:
    """What the amount of a preset is called, and its default; None for one without."""
    parameters = list(inspect.signature(TRAJECTORIES[preset]).parameters.values())[2:]
    return (parameters[0].name, float(parameters[0].default)) if parameters else None


@dataclass(frozen=True, eq=False)
class Wish:
    """A request as the studio's controls tell it; the first photo stands in the world's origin."""

    photos: tuple[Photo, ...] = ()
    prompt: str = ""
    path: str = PRESETS[0]
    amount: float | None = None  # of a preset
    keyframes: tuple[Pose, ...] = ()  # after the start, which is always the first one
    views: int = 16
    fov: float = 60.0  # degrees along the longer side
    seed: int = 0
    steps: int = 50

    def checked(self) -> "Wish":
        """The same; ValueError, in one line, for numbers beyond what a visitor may ask of this machine."""
        for name, value, least, most in (
            ("views", self.views, 1, MOST_VIEWS),
            ("steps", self.steps, 1, MOST_STEPS),
            ("seed", self.seed, 0, MOST_SEED),
            ("field of view", self.fov, 1, 170),
            ("keyframes", len(self.keyframes), 0, MOST_KEYFRAMES),
            ("letters of the prompt", len(self.prompt), 0, MOST_LETTERS),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} {value}: accepted are {least} to {most}")
        return self

    @property
    def start(self) -> Cameras:
        """The first camera: the first photo's, or one for square pictures."""
        height, width = self.photos[0].image.shape[-2:] if self.photos else (SIDE, SIDE)
        return Cameras.from_fov(self.fov, height, width)

    @property
    def cameras(self) -> Cameras:
        """The wanted cameras, for images of the photo's size; ValueError for a path that there is not."""
        start = self.start
        if self.path == KEYFRAMES:
            if not self.keyframes:
                raise ValueError("no keyframes: fly to where the camera should pass and add one, or choose a movement")
            flown = [
                cameras_of(pose, start.height, start.width).camera_to_world.to(torch.float32) for pose in self.keyframes
            ]
            poses = torch.cat([start.camera_to_world, *flown])
            return interpolate(
                replace(start, camera_to_world=poses, intrinsics=start.intrinsics.expand(len(poses), 3, 3)), self.views
            )
        if self.path not in PRESETS:
            raise ValueError(f"path {self.path!r}: accepted are {', '.join((*PRESETS, KEYFRAMES))}")
        amount = None if amount_of(self.path) is None else self.amount
        return trajectory(self.path, start, self.views, amount)

    def request(self, pipeline: ScenePipeline) -> tuple[Condition, Cameras | Shot]:
        """Condition and wanted views at the size that the model was trained at, checked by the model.

        The first photo is known, at the path's start. Where the model finds the cameras (`FREE`), all photos are,
        evenly along the shot; they have one size then.
        """
        prompt = self.prompt.strip() or None
        if self.path == FREE:
            return _free(self.photos, self.views, prompt, pipeline)
        cameras = self.cameras
        condition = Condition(prompt=prompt)
        if self.photos:
            condition = Condition(Views(self.photos[0].image[None], self.start), (0,), prompt)
        return pipeline.prepared(condition, cameras.fitted(*_size(pipeline, cameras.height, cameras.width)))


def _free(photos: tuple[Photo, ...], views: int, prompt: str | None, pipeline: ScenePipeline) -> tuple[Condition, Shot]:
    if not photos:
        raise ValueError("no photos: a model finds the cameras of one photo or more; add one")
    sizes = {tuple(photo.image.shape[-2:]) for photo in photos}
    if len(sizes) > 1:
        found = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ValueError(f"photos of {found} pixels: for cameras that the model finds, accepted is one size for all")
    if views < len(photos):
        raise ValueError(f"{views} views but {len(photos)} photos: accepted is a view or more for each photo")
    known = Views(torch.stack([photo.image for photo in photos]))
    shot = Shot(views, *_size(pipeline, *known.images.shape[-2:]))
    condition, wanted = pipeline.prepared(Condition(known, keyframe_places(len(photos), views), prompt), shot)
    return condition, wanted


def _size(pipeline: ScenePipeline, height: int, width: int) -> tuple[int, int]:
    """Of this shape, and about as large as the model was trained at."""
    scale = math.sqrt(pipeline.config.pixels / (height * width))
    return pipeline.size_near(height * scale, width * scale)
