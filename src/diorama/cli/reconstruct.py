"""`diorama reconstruct`: photos become a scene, without diffusion; posed ones, or any by VGGT."""

import time
from dataclasses import replace
from pathlib import Path

import tyro

from diorama.cli.photos import unposed
from diorama.cli.progress import describe
from diorama.cli.requests import (
    CONFIG,
    SceneArguments,
    check,
    check_model,
    fitted,
    means_vggt,
    parsed_size,
    requested,
    size_made,
    target,
)


def run(arguments: list[str]) -> int:
    """Encode the photos, decode the wanted views and write them."""
    options = tyro.cli(
        SceneArguments,
        args=arguments,
        prog="diorama reconstruct",
        description="Make a scene without diffusion, from posed photos or by VGGT from any: fast, nothing is invented.",
        config=CONFIG,
    )
    out = target(options.output, "reconstruction")
    if not options.photo.photos and options.photo.cameras is None and options.photo.poses is None:
        raise ValueError("reconstruct needs photos; 'diorama generate' makes scenes from none")
    model, device = options.model.model, options.model.device
    if means_vggt(model):
        return _by_vggt(options, out)
    if options.photo.poses is not None:  # which takes a while
        check_model(model, device)
    request = requested(options.photo, options.path, device)
    from diorama.export.save import save
    from diorama.pipelines.base import load

    pipeline = load(model, device)
    condition, wanted = fitted(pipeline, request, options.path.size)
    began = time.monotonic()
    assert condition.views is not None
    scene = pipeline.reconstruct(condition.views, wanted)
    made = time.monotonic()
    settings = {**scene.provenance.settings, "trajectory": options.path.trajectory or "default", **request.origin}
    scene = replace(scene, condition=condition, provenance=replace(scene.provenance, settings=settings))
    save(scene, out, overwrite=options.output.overwrite)
    describe(scene, out, {"encoding and decoding": made - began, "writing": time.monotonic() - made})
    return 0


def _by_vggt(options: SceneArguments, out: Path) -> int:
    """Find the cameras, depth and points of photos without any of these, and write them with the photos."""
    path, model = options.path, options.model.model
    check("--views", path.views, path.views >= 1, "1 or more")
    parsed_size(path.size or "1", 1, 1)
    for flag, value in (("--trajectory", path.trajectory), ("--poses", options.photo.poses)):
        if value is not None:
            raise ValueError(f"{flag} {value}: VGGT shows the photos, from cameras that it finds; leave {flag} out")
    views = unposed(options.photo, path.views, "VGGT")
    from diorama.export.save import save
    from diorama.pipelines.base import pick_device
    from diorama.pipelines.vggt import VGGTPipeline, located

    device = pick_device(options.model.device)
    pipeline = VGGTPipeline.load_folder(located("" if model == "vggt" else model))
    size = None if path.size is None else size_made(pipeline, path.size, *views.images.shape[-2:])
    began = time.monotonic()
    scene = pipeline.to(device).reconstruct(views, size=size)
    made = time.monotonic()
    save(scene, out, overwrite=options.output.overwrite)
    describe(scene, out, {"reconstructing": made - began, "writing": time.monotonic() - made})
    return 0
