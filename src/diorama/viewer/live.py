"""The live view: a 3DRAE scene decoded at a visitor's camera, from keys and values that are computed once."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.models.observed_memory import Memory
from diorama.pipelines.base import ScenePipeline
from diorama.pipelines.decoding import decoded_depth, in_frames
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Scene
from diorama.viewer.detail import BLENDED, LEVELS, MOVING, PLAIN, RESTING, Level, Pace, Size, size_at, work_of
from diorama.viewer.poses import Pose, cameras_of

SETTLED = 0.2  # seconds without a new camera after which it rests


class Picture(NamedTuple):
    """What a visitor sees."""

    image: Float[Tensor, "3 height width"]  # RGB in [0, 1]
    depth: Float[Tensor, "height width"]  # z, scene units


class LiveDecoder:
    """One scene's latents, ready to be decoded at any camera by any number of visitors, one at a time."""

    def __init__(self, pipeline: ScenePipeline, scene: Scene) -> None:
        """ValueError, in one line, for a model or a scene that cannot be decoded at other cameras."""
        if scene.latents is None or scene.latent_frame is None or scene.views.cameras is None:
            raise ValueError("this scene holds no latents of 3DRAE")
        if not isinstance(pipeline, TokenPipeline) or pipeline.autoencoder.point_decoder is None:
            raise ValueError(f"{pipeline.config.title} decodes no single views of a scene")
        pipeline.render(scene, scene.views.cameras[0])  # says what does not fit, and is the first run that others need
        self.autoencoder, self.memory = pipeline.autoencoder, pipeline.memory
        self.patch, self.pixels = pipeline.autoencoder.config.patch, pipeline.config.pixels
        native = pipeline.fitted(scene.views.cameras[:1])
        self.focal = float(native.intrinsics[0, 1, 1])
        self.frame = scene.latent_frame.to(torch.float64)
        self.turn = threading.Lock()
        with torch.no_grad():
            self.cache = self.autoencoder.cache(scene.latents[None].to(pipeline.device))
            self.recalled = self._recalled(scene)

    def _recalled(self, scene: Scene) -> Memory | None:
        """What is remembered of the known views, computed once as the cache is."""
        if self.memory is None or scene.observed is None or scene.observed.cameras is None:
            return None
        device = self.cache.latents.device
        cameras = in_frames([scene.observed.cameras], [self.frame]).to(device)
        images = scene.observed.images[None].to(device)
        points, _ = self.autoencoder.decode_points(self.cache, self._rays(cameras))
        visible = torch.ones(images.shape[:2], dtype=torch.bool, device=device)
        return self.memory.read(images, decoded_depth(points.float(), cameras), cameras, visible)

    @torch.no_grad()
    def picture(
        self, cameras: Cameras, level: Level = PLAIN, wanted: Callable[[], bool] = lambda: True
    ) -> Picture | None:
        """What one camera sees; sides are multiples of the patch. None once it is not `wanted` any more.

        With several shifts so many patch grids along each side are blended, each counted least where its patches
        meet: their seams vanish.
        """
        with self.turn:
            shifts = level.shifts
            local = in_frames([cameras], [self.frame]).to(self.cache.latents.device)
            offsets = [(0, 0)] if shifts == 1 else _offsets(self.patch, shifts)
            window = _window(local, offsets, 0 if shifts == 1 else self.patch)
            images, depths = [], []
            for place in range(window.views):  # one after the other, so that who moves on waits for one at most
                if not wanted():
                    return None
                decoded = self.autoencoder.decode(self.cache, self._rays(window[place]))
                assert decoded.points is not None
                images.append(decoded.images[0].float())
                depths.append(decoded_depth(decoded.points.float(), window[place])[0])
            image = self._blended(torch.cat(images), offsets, cameras).clamp(0, 1)
            depth = self._blended(torch.cat(depths), offsets, cameras)
            if level.memory and self.memory is not None and self.recalled is not None:
                made = self.memory(self.recalled, image[None, None], depth[None, None], local)
                image, depth = made.images[0, 0].float().clamp(0, 1), made.depth[0, 0]
            return Picture(image.cpu(), depth.cpu() / float(self.frame.scale))

    def _rays(self, cameras: Cameras) -> Float[Tensor, "batch view 6 height width"]:
        return cameras.plucker()

    def _blended(self, values: Tensor, offsets: list[tuple[int, int]], cameras: Cameras) -> Tensor:
        """One picture of shifted ones, each pixel counted by how far inside its patch it lies."""
        if len(offsets) == 1:
            return values[0]
        inside = 1 - (2 * (torch.arange(self.patch, device=values.device) + 0.5) / self.patch - 1).abs()
        rows, columns = (inside.repeat(side // self.patch) for side in values.shape[-2:])
        weight, size = rows[:, None] * columns, (cameras.height, cameras.width)
        parts = [
            torch.stack([value * weight, weight.expand_as(value)])[..., row : row + size[0], column : column + size[1]]
            for value, (row, column) in zip(values, offsets, strict=True)
        ]
        total, share = torch.stack(parts).sum(0)
        return total / share

    def cameras(self, pose: Pose, level: Level) -> Cameras:
        """The camera at a visitor's pose that fills the window at a level of detail."""
        most = 4 * self.pixels if level.density >= 1 else self.pixels
        return cameras_of(pose, *size_at(pose.fov, pose.aspect, level.density * self.focal, self.patch, most))


def _offsets(patch: int, shifts: int) -> list[tuple[int, int]]:
    steps = [place * patch // shifts for place in range(shifts)]
    return [(row, column) for row in steps for column in steps]


def _window(cameras: Cameras, offsets: list[tuple[int, int]], reach: int) -> Cameras:
    """One camera as several views, whose pictures begin so many pixels before it and end as many more behind."""
    size = (cameras.height + reach, cameras.width + reach)
    views = [cameras.cropped(-row, -column, *size) for row, column in offsets]
    poses, lenses = (
        torch.cat([getattr(view, name) for view in views], 1) for name in ("camera_to_world", "intrinsics")
    )
    return replace(views[0], camera_to_world=poses, intrinsics=lenses)


class LiveView:
    """One visitor's live view: a thread that draws the newest pose coarsely, and finely once it rests."""

    def __init__(
        self,
        decoder: LiveDecoder,
        show: Callable[[Picture, Level, float], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """`show` is given every picture, its level and the seconds it took; the thread calls it, and `failed`."""
        self.decoder, self.show, self.failed, self.pace = decoder, show, failed, Pace()
        self.news = threading.Condition()
        self.pose: Pose | None = None  # newest, not yet drawn
        self.ended = False
        self.thread = threading.Thread(target=self._run, daemon=True, name="live view")
        self.thread.start()

    def look(self, pose: Pose) -> None:
        """The visitor looks from here now; what was asked for before and not yet begun is forgotten."""
        with self.news:
            self.pose = pose
            self.news.notify()

    def end(self) -> None:
        """Draw nothing more."""
        with self.news:
            self.ended = True
            self.news.notify()

    def draw(self, pose: Pose, limit: float) -> Level:
        """Show the finest picture that takes no longer than `limit` seconds: at rest, a plain one at least.

        One at rest is given up once the visitor moves on.
        """
        patch = self.decoder.patch
        levels, memory = (PLAIN, BLENDED) if limit > MOVING else LEVELS[:3], self.decoder.recalled is not None
        views = {level: self.decoder.cameras(pose, level) for level in levels}
        works = {level: work_of(Size(view.height, view.width), level, patch, memory) for level, view in views.items()}
        level = self.pace.level(works, limit)
        began = time.monotonic()
        picture = self.decoder.picture(views[level], level, self._settled if limit > MOVING else lambda: True)
        seconds = time.monotonic() - began
        if picture is not None:
            self.pace.learn(works[level], seconds)
            self.show(picture, level, seconds)
        return level

    def _settled(self) -> bool:
        return self.pose is None and not self.ended

    def _run(self) -> None:
        while True:
            with self.news:
                self.news.wait_for(lambda: self.ended or self.pose is not None)
                pose, self.pose = self.pose, None
            if self.ended or pose is None:
                return
            try:
                drawn = self.draw(pose, MOVING)
                with self.news:
                    moved = self.news.wait_for(lambda: self.ended or self.pose is not None, SETTLED)
                if not moved and drawn != BLENDED:
                    self.draw(pose, RESTING)
            except Exception as error:  # such as too little memory for a large window: the next pose may do
                self.failed(error)
