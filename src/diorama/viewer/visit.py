"""One visitor's window: what is shown in it, its controls, and what they do. All calls of viser's scene and panels."""

import threading
import weakref
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diorama.export.depth import coloured_depth
from diorama.viewer.detail import LEVELS, Level
from diorama.viewer.live import LiveView, Picture
from diorama.viewer.path import evenly
from diorama.viewer.poses import Pose, showing
from diorama.viewer.stage import Stage, plain

FRUSTA = 64  # at most, whose pictures a browser holds beside the points
TICK = 0.04  # seconds between two camera positions while the path plays
KNOWN, MADE, CURRENT = (230, 126, 34), (110, 110, 120), (34, 139, 230)


def pixels(image: Float[Tensor, "3 height width"]) -> Any:
    """An image as viser takes it: bytes, "height width 3"."""
    return image.detach().clamp(0, 1).mul(255).round().byte().movedim(0, -1).contiguous().cpu().numpy()


class Visit:
    """A visitor's own window on the stage: nobody else's sliders move it."""

    def __init__(self, client: Any, stage: Stage) -> None:
        self.client, self.stage = client, stage
        self.time = 0.0  # along the path, in views
        self.ended, self.placing = threading.Event(), threading.Lock()
        self.live: LiveView | None = None
        with client.atomic():
            self._add_controls()
            self._add_cameras()
            self.points: Any = None
            self.show_points()
        self.show_view(0)
        # The client keeps this for good: a visit that was removed has to go all the same.
        here = weakref.ref(self)
        client.camera.on_update(lambda _: None if (visit := here()) is None else visit.looked())
        self.player = threading.Thread(target=self._play, daemon=True, name="path")
        self.player.start()
        if stage.decoder is not None:
            self.live = LiveView(stage.decoder, self.show_live, self.show_failure)
            self.switch_live()

    def end(self) -> None:
        """The visitor has gone."""
        self.ended.set()
        if self.live is not None:
            self.live.end()

    def remove(self) -> None:
        """Take it out of the window, in which something else is shown now; its controls go with what holds them."""
        self.end()
        self.player.join()
        if self.live is not None:
            self.live.thread.join()  # a picture that comes later would fill the window again
        with self.placing:
            self.rig.remove()
            if self.points is not None:
                self.points.remove()
        self.client.scene.set_background_image(None)

    # What is in the window

    def _add_controls(self) -> None:
        gui, stage = self.client.gui, self.stage
        gui.add_markdown(stage.caption)
        self.live_on = gui.add_checkbox(
            "live view",
            stage.decoder is not None,
            disabled=stage.decoder is None,
            hint=stage.no_live or "What the model sees from where you are, in place of the points.",
        )
        self.live_on.on_update(lambda _: self.switch_live())
        self.live_what = gui.add_dropdown("live shows", ("image", "depth"), visible=stage.decoder is not None)
        self.live_what.on_update(lambda _: self.looked())
        self.live_text = gui.add_markdown(f"*{stage.no_live}*" if stage.no_live else "")
        with gui.add_folder("Path"):
            self.playing = gui.add_checkbox("play", False)
            self.playing.on_update(lambda _: self.show_cameras())
            self.follow = gui.add_checkbox("fly along", True, hint="The window's camera moves with the path.")
            self.speed = gui.add_slider("views per second", 0.5, 24.0, 0.5, 4.0)
            self.view = gui.add_slider("view", 0, max(1, len(stage.poses) - 1), 1, 0, disabled=len(stage.poses) == 1)
            self.view.on_update(self._view_chosen)
        with gui.add_folder("Points", visible=stage.cloud is not None):
            self.points_on = gui.add_checkbox("points", stage.cloud is not None)
            self.drop = gui.add_slider("hide least confident, %", 0, 99, 1, 0)
            self.far = gui.add_slider("hide beyond, × median depth", 0.2, stage.farthest, 0.1, stage.farthest)
            self.size = gui.add_slider("point size", 0.2, 5.0, 0.1, 1.0)
            self.counted = gui.add_markdown("")
            for control in (self.points_on, self.drop, self.far, self.size):
                control.on_update(lambda _: self.show_points())
        with gui.add_folder("Cameras"):
            self.cameras_on = gui.add_checkbox("cameras", True)
            self.camera_size = gui.add_slider("camera size", 0.2, 4.0, 0.1, 1.0)
            for control in (self.cameras_on, self.camera_size):
                control.on_update(lambda _: self.show_cameras())
        with gui.add_folder("Pictures of this view"):
            self.image = gui.add_image(pixels(stage.images[0]), label="image", jpeg_quality=90)
            self.depth = None
            if stage.depths is not None:
                self.depth = gui.add_image(pixels(stage.depths[0]), label="depth", jpeg_quality=90)

    def _add_cameras(self) -> None:
        self.frusta: dict[int, Any] = {}
        scene, stage = self.client.scene, self.stage
        self.rig = scene.add_frame("/cameras", show_axes=False)
        for place in evenly(len(stage.poses), FRUSTA):
            pose = stage.poses[place]
            frustum = scene.add_camera_frustum(
                f"/cameras/{place:05d}",
                pose.fov,
                pose.aspect,
                scale=stage.frustum,
                thickness=1.5,
                thickness_units="screen",
                color=KNOWN if place in stage.known else MADE,
                image=pixels(stage.images[place]),
                jpeg_quality=80,
                wxyz=pose.wxyz,
                position=pose.position,
                cast_shadow=False,
                receive_shadow=False,
            )
            frustum.on_click(lambda _, place=place: self.go_to(place))
            self.frusta[place] = frustum

    # What the controls do

    def show_points(self) -> None:
        """Send the points that the sliders leave."""
        cloud = self.stage.cloud
        if cloud is None:
            return
        visible = self.points_on.value and not self.live_on.value
        if visible:
            far = None if self.far.value >= self.stage.farthest else self.far.value
            chosen = cloud.chosen(self.drop.value / 100, far, self.stage.most)
            self.counted.content = f"{len(chosen):,} of {len(cloud.points):,} points"
            points, colours = cloud.points[chosen], cloud.colours[chosen]
            size = float(self.size.value) * cloud.spacing * self.stage.sparsity
            if self.points is None:
                # Around their own centre: far from the origin, the browser's single precision is too coarse.
                self.points = self.client.scene.add_point_cloud(
                    "/points",
                    (points - self.stage.centre).numpy(),
                    colours.numpy(),
                    point_size=size,
                    point_shape="circle",
                    point_shading="flat",
                    precision="float32",
                    position=self.stage.centre.tolist(),
                )
            else:
                with self.client.atomic():
                    self.points.points = (points - self.stage.centre).numpy()
                    self.points.colors = colours.numpy()
                    self.points.point_size = size
        if self.points is not None:
            self.points.visible = visible

    def show_cameras(self) -> None:
        """Show or hide the frusta, at their size; those that the visitor stands in are hidden."""
        with self.placing:  # viser calls from many threads: the last to come has to see the newest camera
            if self.ended.is_set():
                return
            self.rig.visible = self.cameras_on.value and not (self.playing.value and self.follow.value)
            size = float(self.camera_size.value)
            inside = self.stage.hiding(tuple(self.client.camera.position), size)
            for place, frustum in self.frusta.items():
                frustum.scale = size * self.stage.frustum
                if frustum.visible != (place not in inside):
                    frustum.visible = place not in inside

    def show_view(self, place: int) -> None:
        """Show one view's image and depth, and mark its camera."""
        self.image.image = pixels(self.stage.images[place])
        if self.depth is not None and self.stage.depths is not None:
            self.depth.image = pixels(self.stage.depths[place])
        for other, frustum in self.frusta.items():
            frustum.color = CURRENT if other == place else KNOWN if other in self.stage.known else MADE

    def _view_chosen(self, event: Any) -> None:
        place = min(int(self.view.value), len(self.stage.poses) - 1)
        self.show_view(place)
        if event.client_id is not None:  # the visitor's hand, not the path's
            self.time = float(place)
            if self.follow.value:
                self.move_to(self.stage.poses[place])

    def go_to(self, place: int) -> None:
        """Stand where one view was taken."""
        self.time = float(place)
        self.view.value = place
        self.move_to(self.stage.poses[place])

    def move_to(self, pose: Pose) -> None:
        """Put the window's camera there, such that the whole picture is in the window."""
        camera = self.client.camera
        seen = showing(pose, camera.aspect or pose.aspect)
        with self.client.atomic():
            camera.position = seen.position
            camera.wxyz = seen.wxyz
            camera.fov = seen.fov
        self.looked()

    def _play(self) -> None:
        while not self.ended.wait(TICK):
            if not self.playing.value:
                continue
            self.time = self.stage.flight.after(self.time, TICK * float(self.speed.value))
            place = int(self.time)
            if place != self.view.value:
                self.view.value = place
            if self.follow.value:
                self.move_to(self.stage.flight.at(self.time))

    # The live view

    def switch_live(self) -> None:
        """Show the live view in place of the points, or the points again."""
        self.show_points()
        if self.live is None:
            return
        if self.live_on.value:
            self.looked()
        else:
            self.client.scene.set_background_image(None)
            self.live_text.content = ""

    def looked(self) -> None:
        """The visitor looks from somewhere else now."""
        if self.ended.is_set():
            return
        camera = self.client.camera
        self.show_cameras()
        if self.live is not None and self.live_on.value and camera.aspect:
            self.live.look(Pose(tuple(camera.wxyz), tuple(camera.position), float(camera.fov), float(camera.aspect)))

    def show_live(self, picture: Picture, level: Level, seconds: float) -> None:
        """Fill the window with a picture that was decoded for it."""
        if self.ended.is_set() or not self.live_on.value:
            return
        image = picture.image
        if self.live_what.value == "depth":
            image = coloured_depth(picture.depth[None], picture.depth[None] > 0)[0]
        self.client.scene.set_background_image(pixels(image), jpeg_quality=90)
        height, width = picture.depth.shape
        kind = dict(zip(LEVELS, ("coarse", "swift", "plain", "blended"), strict=True))[level]
        self.live_text.content = f"*{height}×{width} pixels, {kind}, {1000 * seconds:.0f} ms*"
        self.client.flush()

    def show_failure(self, error: Exception) -> None:
        """Say that a picture could not be decoded."""
        if not self.ended.is_set():
            self.live_text.content = f"*no picture from here: {plain(str(error))}*"
