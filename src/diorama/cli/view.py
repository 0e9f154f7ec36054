"""`diorama view`: a scene in the browser."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tyro.conf import Positional

from diorama.cli.requests import CONFIG, ModelFlags, check


@dataclass(frozen=True)
class ServerFlags:
    """Where it is served."""

    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0 shows the scene to everybody who reaches this machine."""
    port: int = 8080
    """The port; 0 takes any free one."""


@dataclass(frozen=True)
class Arguments:
    """All flags of the command."""

    scene: Positional[Path] = Path("scene")
    """The folder of a saved scene, or photos with cameras."""
    points: int = 400_000
    """Points sent to a browser at most."""
    live: bool = True
    """Decode what the model sees from where you are, for scenes of 3DRAE."""
    server: ServerFlags = field(default_factory=ServerFlags)
    model: ModelFlags = field(default_factory=lambda: ModelFlags(model=""))


def run(arguments: list[str]) -> int:
    """Serve a scene to browsers until Ctrl-C."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama view",
        description="Fly through a saved scene in the browser: points, cameras, pictures, and what the model sees.",
        config=CONFIG,
    )
    check("--points", options.points, options.points >= 1, "1 or more")
    import viser  # noqa: F401 - before any work, so that its absence is said at once

    from diorama.data.open import open
    from diorama.viewer.server import Viewer, check_address, live_decoder
    from diorama.viewer.stage import stage_of

    check_address(options.server.host, options.server.port)
    shown = open(options.scene)
    decoder, no_live = None, "no live view: --no-live"
    try:
        if options.live:
            decoder, no_live = live_decoder(shown, options.model.model or None, options.model.device)
        stage = stage_of(shown, decoder, no_live, options.points)
    except ValueError as error:
        raise ValueError(f"{options.scene}: {error}") from error
    viewer = Viewer(stage, options.server.host, options.server.port)
    try:  # from the first word on: who reads the address may interrupt before the wait has begun
        print(f"{options.scene}: {stage.caption}")
        if no_live:
            print(f"  {no_live}")
        print(f"  open {viewer.url} in a browser; Ctrl-C ends", flush=True)
        viewer.wait()
    except KeyboardInterrupt:
        viewer.stop()
        print("ended")
    return 0
