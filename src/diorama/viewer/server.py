"""`diorama.view`: a scene in the browser, for one visitor or several, by viser."""

import contextlib
import errno
import io
import math
import socket
import sys
import threading
from collections.abc import Iterator
from html import escape
from typing import Any

from diorama.pipelines.base import ScenePipeline, embedded_models, load
from diorama.scene import Scene, Views
from diorama.viewer.live import LiveDecoder
from diorama.viewer.poses import showing
from diorama.viewer.stage import POINTS, Stage, stage_of
from diorama.viewer.visit import Visit

HOST, PORT = "127.0.0.1", 8080


class Viewer:
    """A running viewer: it serves until `stop`, in threads of its own."""

    def __init__(self, stage: Stage, host: str = HOST, port: int = PORT) -> None:
        """ValueError, in one line, for an address that cannot be had; port 0 takes any free one."""
        import viser

        check_address(host, port)
        with _hushed():
            self.server: Any = viser.ViserServer(host=host, port=port, label="diorama", verbose=False)
        if port and self.server.get_port() != port:  # viser takes the next one instead
            self.stop()
            raise ValueError(_taken(host, port))
        # A visitor could ask for a public tunnel to this machine; nobody can.
        self.server.request_share_url = lambda *_, **__: None
        self.stage, self.visits, self.over = stage, {}, threading.Event()
        self.server.gui.configure_theme(show_share_button=False, show_logo=False, control_width="large")
        self._place_camera()
        self.server.on_client_connect(self._came)
        self.server.on_client_disconnect(self._left)

    @property
    def url(self) -> str:
        """Where a browser of this machine finds it."""
        host = self.server.get_host()
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{self.server.get_port()}"

    def wait(self) -> None:
        """Serve until the keyboard interrupts or `stop` is called."""
        try:
            while not self.over.wait(0.2):  # a wait without an end could not be interrupted on every system
                pass
        finally:
            self.stop()

    def stop(self) -> None:
        """End it; a second time does nothing."""
        for visit in list(getattr(self, "visits", {}).values()):
            visit.end()
        if not getattr(self, "stopped", False):
            self.stopped = True
            with _hushed():
                self.server.stop()
        if hasattr(self, "over"):
            self.over.set()

    def _repr_html_(self) -> str:
        """A notebook shows it in place."""
        return f'<iframe src="{escape(self.url)}" width="100%" height="640" style="border:0"></iframe>'

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
        camera.near, camera.far = 0.01 * stage.reach, 1000 * max(1.0, math.sqrt(stage.farthest)) * stage.reach

    def _came(self, client: Any) -> None:
        self.visits[client.client_id] = Visit(client, self.stage)

    def _left(self, client: Any) -> None:
        visit = self.visits.pop(client.client_id, None)
        if visit is not None:
            visit.end()


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


def check_address(host: str, port: int) -> None:
    """ValueError unless a server can listen there; viser itself would look for another port, without an end."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port}: accepted is 0 (any free one) to 65535")
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen()
    except socket.gaierror as error:
        raise ValueError(f"host {host!r}: no address of that name ({error.strerror})") from None
    except PermissionError:
        raise ValueError(f"port {port}: this user may not listen there; accepted are 1024 to 65535, or 0") from None
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        raise ValueError(_taken(host, port) if in_use else f"host {host!r}: {error.strerror}") from None


def _taken(host: str, port: int) -> str:
    return f"port {port} of {host} is taken by another program; give another, or 0 for any free one"


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """viser prints where it listens and that it stopped; the caller says so in its own words."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
