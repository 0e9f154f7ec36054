"""`diorama fit-splats`: a scene's points as Gaussians, optimised until they look like its views."""

import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from diorama.cli.export import CleanFlags
from diorama.cli.progress import Progress
from diorama.cli.requests import CONFIG, ModelFlags, OutFlags, check, target

if TYPE_CHECKING:
    from diorama.export.splat import Gaussians
    from diorama.scene import Scene, Views


@dataclass(frozen=True)
class FitFlags:
    """How they are fitted."""

    views: int = 64
    """Views to fit to, decoded by the model evenly along the scene's path; 0 takes the scene's own."""
    steps: int = 3000
    """Steps, of one view each."""
    degree: int = 0
    """0: a colour looks the same from everywhere; up to 3: harmonics that let it change with the direction."""
    hold: int = 8
    """Keep one view of so many out of the fit and tell how well it is met; 0 keeps none."""
    seed: int = 0
    """Another seed takes the views in another order."""


@dataclass(frozen=True)
class Arguments:
    """All flags of the command."""

    scene: Positional[Path] = Path("scene")
    """The folder of a saved scene."""
    out: Positional[Path] = Path("splats.ply")
    """The file of Gaussians, .ply."""
    overwrite: Annotated[bool, arg(help_behavior_hint="")] = False
    """Replace what is there."""
    fit: FitFlags = field(default_factory=FitFlags)
    cleaning: CleanFlags = field(default_factory=CleanFlags)
    model: ModelFlags = field(default_factory=lambda: ModelFlags(model=""))


def run(arguments: list[str]) -> int:
    """Fit Gaussians to what the model decodes and write them."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama fit-splats",
        description="Fit Gaussians to views of a saved scene, by gsplat on a CUDA GPU.",
        config=CONFIG,
    )
    fit = options.fit
    check("--views", fit.views, fit.views >= 0, "0 (the scene's own) or more")
    check("--steps", fit.steps, fit.steps >= 1, "1 or more")
    check("--hold", fit.hold, fit.hold == 0 or fit.hold >= 2, "0 (none) or 2 or more")
    check("--drop", options.cleaning.drop, 0 <= options.cleaning.drop < 100, "0 up to, not including, 100")
    check("OUT", options.out, options.out.suffix.lower() == ".ply", "a file that ends in .ply")
    out = target(OutFlags(options.out, options.overwrite), "splats.ply")
    device = _device()
    from diorama.export.splat import write_gaussians
    from diorama.export.world import world_of
    from diorama.training.splats import Config, fit_tested

    scene, start = _start(options)
    began = time.monotonic()
    views, source = _views(scene, options)
    made = time.monotonic()
    with Progress("fitting") as progress:
        found = fit_tested(start.to(device), views, Config(fit.steps, fit.seed), every=fit.hold, on_step=progress)
    write_gaussians(found.gaussians, out, world_of(scene.views), overwrite=options.overwrite)
    height, width = views.images.shape[-2:]
    print(f"{out}: {len(found.gaussians)} Gaussians fitted to views of {height}x{width} pixels {source}")
    what = "held out" if found.held_out else "fitted to"
    print(f"  PSNR of {found.tested} views {what}: {found.before:.1f} dB before, {found.after:.1f} dB after")
    print(f"  weights: {scene.provenance.licence}")
    print(f"  decoding {made - began:.1f} s, fitting {time.monotonic() - made:.1f} s")
    return 0


def _device() -> str:
    """Where gsplat runs; ValueError, in one line, that names all that it needs and that is missing here."""
    import torch

    lacking = [] if find_spec("gsplat") else ["the package gsplat (the extra 'splats')"]
    lacking += [] if torch.cuda.is_available() else ["a CUDA GPU"]
    if lacking:
        raise ValueError(
            f"fit-splats lacks {' and '.join(lacking)} here; 'diorama export --to splat' writes Gaussians that are "
            "not fitted"
        )
    return "cuda"


def _start(options: Arguments) -> "tuple[Scene, Gaussians]":
    """The scene, and the Gaussians that its points begin as."""
    from diorama.data.open import open
    from diorama.export.cleaning import Cleaning, cleaned
    from diorama.export.splat import gaussians_of
    from diorama.scene import Scene

    scene, clean = open(options.scene), options.cleaning
    if not isinstance(scene, Scene):
        raise ValueError(f"{options.scene}: no saved scene; 'diorama generate' or 'diorama reconstruct' makes one")
    if scene.views.cameras is None:
        raise ValueError(f"{options.scene}: a scene without cameras, to whose views nothing can be fitted")
    try:
        chosen = cleaned(scene.views, Cleaning(clean.drop / 100, clean.far, clean.outliers))
        return scene, gaussians_of(chosen, voxel=clean.voxel, degree=options.fit.degree)
    except ValueError as error:
        raise ValueError(f"{options.scene}: {error}") from error


def _views(scene: "Scene", options: Arguments) -> "tuple[Views, str]":
    """What is fitted to, and where it is from."""
    from diorama.geometry.trajectories import interpolate
    from diorama.pipelines.base import embedded_models, load

    cameras, count = scene.views.cameras, options.fit.views
    assert cameras is not None
    model = options.model.model or scene.provenance.model
    decodable = scene.latents is not None and scene.latents.ndim == 2 and scene.latent_frame is not None  # tokens
    if options.model.model and not decodable:
        raise ValueError(f"{options.scene}: a scene without latents, which no --model decodes; leave it out")
    if count == 0 or not decodable or (not options.model.model and model not in embedded_models()):
        return scene.views, "of the scene"
    check("--views", count, count >= cameras.views, f"0, or {cameras.views} (the scene's own) or more")
    views = load(model, options.model.device).render(scene, interpolate(cameras, count))
    return views, f"decoded by {model}"
