"""`diorama render`: a saved scene seen from other cameras, without sampling again."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from diorama.cli.progress import compiling, describe
from diorama.cli.requests import (
    CONFIG,
    CompiledFlags,
    OutFlags,
    PathFlags,
    camera_path,
    check,
    parsed_size,
    size_made,
    target,
)


@dataclass(frozen=True)
class Arguments:
    """All flags of the command."""

    scene: Positional[Path] = Path("scene")
    """The folder of a saved scene."""
    path: Annotated[PathFlags, arg(name="camera")] = field(default_factory=PathFlags)
    output: OutFlags = field(default_factory=OutFlags)
    model: CompiledFlags = field(default_factory=lambda: CompiledFlags(model=""))


def run(arguments: list[str]) -> int:
    """Decode a saved scene's latents from new cameras and write the result."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama render",
        description="Show a saved scene along another camera path, without sampling again.",
        config=CONFIG,
    )
    flags = options.path
    check("--views", flags.views, flags.count >= 1, "1 or more")
    parsed_size(flags.size or "1", 1, 1)
    out = target(options.output, "rendering")
    from diorama.data.open import open
    from diorama.export.save import save
    from diorama.pipelines.base import embedded_models, load
    from diorama.scene import Condition, Scene

    scene = open(options.scene)
    if not isinstance(scene, Scene):
        raise ValueError(f"{options.scene}: no saved scene; 'diorama generate' or 'diorama reconstruct' makes one")
    if scene.latents is None or scene.views.cameras is None:
        raise ValueError(f"{options.scene}: a scene without latents, which cannot be rendered again")
    wanted = camera_path(flags, scene.views.cameras[0])
    model = options.model.model or scene.provenance.model
    if not options.model.model and model not in embedded_models():
        raise ValueError(f"{options.scene}: made by {model!r}, which is not embedded; give its folder by --model")
    pipeline = load(model, options.model.device, compile=options.model.compile)
    if flags.size is not None:
        wanted = wanted.fitted(*size_made(pipeline, flags.size, wanted.height, wanted.width))
    began = time.monotonic()
    views = pipeline.render(scene, wanted)
    made = time.monotonic()
    settings = {**scene.provenance.settings, "trajectory": flags.trajectory or "default"}
    rendered = replace(
        scene,
        views=views,
        condition=Condition(None, (), scene.condition.prompt, scene.condition.label),
        provenance=replace(scene.provenance, settings=settings),
    )
    save(rendered, out, overwrite=options.output.overwrite)
    describe(rendered, out, {"decoding": made - began, **compiling(pipeline), "writing": time.monotonic() - made})
    return 0
