"""`diorama studio`: scenes made in the browser."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from diorama.cli.requests import CONFIG, check
from diorama.cli.view import ServerFlags


@dataclass(frozen=True)
class Arguments:
    """All flags of the command."""

    models: Annotated[Positional[tuple[str, ...]], arg(help_behavior_hint="(default: the embedded ones)")] = ()
    """Folders of saved models, or gen3r as 'diorama download' fetched it, offered beside the embedded ones."""
    out: Path = Path("scenes")
    """The folder below which visitors save and export; nothing is written anywhere else."""
    upload: float = 32.0
    """Megabytes of a photo's file at most."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    server: ServerFlags = field(default_factory=ServerFlags)


def run(arguments: list[str]) -> int:
    """Serve the studio to browsers until Ctrl-C."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama studio",
        description="Make scenes in the browser: photos, a camera path, and the scene to fly through and keep.",
        config=CONFIG,
    )
    check("--upload", options.upload, 0 < options.upload <= 1024, "more than 0 up to 1024")
    import viser  # noqa: F401 - before any work, so that its absence is said at once

    from diorama.viewer.studio import Studio

    server = options.server
    studio = Studio(
        options.models,
        options.out,
        host=server.host,
        port=server.port,
        device=options.device,
        upload=round(options.upload * 2**20),
    )
    try:  # from the first word on: who reads the address may interrupt before the wait has begun
        print(f"models: {', '.join(studio.workshop.offers)}; scenes are kept below {options.out}")
        print(f"  open {studio.url} in a browser; Ctrl-C ends", flush=True)
        studio.wait()
    except KeyboardInterrupt:
        studio.stop()
        print("ended")
    return 0
