"""`diorama.view`: a scene in the browser, for one visitor or several, by viser."""

import sys
from typing import Any

from diorama.pipelines.base import ScenePipeline, embedded_models, load
from diorama.scene import Scene, Views
from diorama.viewer.live import LiveDecoder
from diorama.viewer.poses import showing
from diorama.viewer.site import HOST, PORT, Site, check_address
from diorama.viewer.stage import POINTS, Stage, stage_of
from diorama.viewer.visit import Visit


class Viewer(Site):
    """A scene's page: every visitor has an own window on one stage."""

    def __init__(self, stage: Stage, host: str = HOST, port: int = PORT) -> None:
        """ValueError, in one line, for an address that cannot be had; port 0 takes any free one."""
        self.stage = stage
        super().__init__(host, port)

    def _place_camera(self) -> None:
        """Where visitors begin, and what "reset view" leads back to: the first view, the scene's up side up."""
        stage, camera = self.stage, self.server.initial_camera
        pose = showing(stage.poses[0], 1.5)
        self.server.scene.set_up_direction(stage.up.numpy())
        camera.position = pose.position
        w, x, y, z = pose.wxyz
        ahead = (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))
        camera.look_at = tuple(p + stage.reach * a for p, a in zip(pose.position, ahead, strict=True))
        camera.fov = pose.fov
        camera.near, camera.far = stage.planes

    def _visit(self, client: Any) -> Visit:
        return Visit(client, self.stage)


def view(
    scene: Scene | Views,
    *,
    model: ScenePipeline | str | None = None,
    host: str = HOST,
    port: int = PORT,
    points: int = POINTS,
    wait: bool | None = None,
) -> Viewer:
    """Show a scene, or views with cameras, in the browser at `http://127.0.0.1:8080`.

    A scene of 3DRAE is decoded live at the visitor's camera by `model`, or by the embedded one that made it. In a
    script this serves until Ctrl-C; in a notebook or an interactive session it returns at once, as with `wait=False`.
    ValueError, in one line, for what cannot be shown and for an address that cannot be had.
    """
    check_address(host, port)
    decoder, no_live = live_decoder(scene, model)
    viewer = Viewer(stage_of(scene, decoder, no_live, points), host, port)
    if wait is None:
        wait = not (hasattr(sys, "ps1") or "ipykernel" in sys.modules)
    if wait:
        try:
            print(f"{viewer.url} (Ctrl-C ends)", flush=True)
            viewer.wait()
        except KeyboardInterrupt:
            viewer.stop()
    return viewer


def live_decoder(
    scene: Scene | Views, model: ScenePipeline | str | None = None, device: str = "auto"
) -> tuple[LiveDecoder | None, str]:
    """What decodes the scene live, or None and why not; ValueError where a `model` is given and cannot."""
    if not isinstance(scene, Scene) or scene.latents is None or scene.latents.ndim != 2:
        if model is not None:
            raise ValueError("this scene holds no latents of 3DRAE, which a model could decode; leave the model out")
        return None, "no live view: not a scene of 3DRAE's latents"
    made_by = scene.provenance.model
    if model is None and made_by not in embedded_models():
        return None, "no live view: give the folder of the model that made the scene"
    pipeline = load(model or made_by, device) if not isinstance(model, ScenePipeline) else model
    try:
        return LiveDecoder(pipeline, scene), ""
    except ValueError as error:
        if model is not None:
            raise
        return None, f"no live view: {error}"
