"""`diorama reconstruct`: posed photos become a scene, without diffusion."""

import time
from dataclasses import replace

import tyro

from diorama.cli.progress import describe
from diorama.cli.requests import CONFIG, SceneArguments, fitted, requested, target


def run(arguments: list[str]) -> int:
    """Encode the photos, decode the wanted views and write them."""
    options = tyro.cli(
        SceneArguments,
        args=arguments,
        prog="diorama reconstruct",
        description="Make a scene from posed photos without diffusion: fast, blurred where nothing was seen.",
        config=CONFIG,
    )
    out = target(options.output, "reconstruction")
    request = requested(options.photo, options.path)
    if request.known is None:
        raise ValueError("reconstruct needs photos; 'diorama generate' makes scenes from none")
    from diorama.export.save import save
    from diorama.pipelines.base import load

    pipeline = load(options.model.model, options.model.device)
    condition, wanted = fitted(pipeline, request, options.path.size)
    began = time.monotonic()
    assert condition.views is not None
    scene = pipeline.reconstruct(condition.views, wanted)
    made = time.monotonic()
    settings = {**scene.provenance.settings, "trajectory": options.path.trajectory or "default"}
    scene = replace(scene, condition=condition, provenance=replace(scene.provenance, settings=settings))
    save(scene, out, overwrite=options.output.overwrite)
    describe(scene, out, {"encoding and decoding": made - began, "writing": time.monotonic() - made})
    return 0
