"""`diorama reconstruct`: photos become a scene of their own views, or of others that follow from them."""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import arg

from diorama.cli.parts import PartsFlags, check_model, given, means_vggt, no_such
from diorama.cli.photos import unposed
from diorama.cli.progress import Progress, compiling, describe
from diorama.cli.requests import (
    CONFIG,
    SceneArguments,
    check,
    counted,
    fitted,
    parsed_size,
    requested,
    requested_all,
    size_made,
    target,
)

if TYPE_CHECKING:
    from diorama.pipelines.base import ScenePipeline
    from diorama.scene import Scene

ABOUT = """Make a scene from photos of it.

tiny: posed photos, along any path. VGGT: any photos, cameras found. Both in one pass, without diffusion. Gen3R: the
photos' own views, --by diffusion, by its autoencoders alone (vae), or by its VGGT alone.
"""


@dataclass(frozen=True)
class DiffusionFlags(PartsFlags):
    """For Gen3R, which reconstructs by diffusion and is made of many large parts; others refuse these."""

    by: Annotated[Literal["diffusion", "vae", "vggt"] | None, arg(help_behavior_hint="(default: diffusion)")] = None
    """Made anew from noise; through the autoencoders and back; or the photos themselves with what VGGT says of them."""
    speed: Annotated[Literal["quality", "balanced", "fast"] | None, arg(help_behavior_hint="(default: quality)")] = None
    """As in 'diorama generate'; the next two go before it."""
    steps: Annotated[int | None, arg(help_behavior_hint="(default: the model's)")] = None
    """Sampling steps; 0 means --by vae."""
    guidance: Annotated[float | None, arg(help_behavior_hint="(default: the model's)")] = None
    """How much the prompt counts: 1 samples without guidance."""
    prompt: Annotated[str | None, arg(help_behavior_hint="")] = None
    """What the photos show."""
    seed: Annotated[int | None, arg(help_behavior_hint="(default: 0)")] = None
    """Another seed gives another scene where the photos leave it open."""

    @property
    def samples(self) -> bool:
        """Whether diffusion takes part."""
        return self.by in (None, "diffusion") and self.steps != 0


@dataclass(frozen=True)
class Arguments(SceneArguments):
    """All flags of the command."""

    parts: DiffusionFlags = field(default_factory=DiffusionFlags)


def run(arguments: list[str]) -> int:
    """Make the scene and write it."""
    options = tyro.cli(Arguments, args=arguments, prog="diorama reconstruct", description=ABOUT, config=CONFIG)
    flags = options.parts
    check("--steps", flags.steps, (flags.steps or 0) >= 0, "0 or more")
    check("--guidance", flags.guidance, 0 <= (flags.guidance or 0) < math.inf, "0 or more")
    check("--seed", flags.seed, 0 <= (flags.seed or 0) < 2**63, "0 to 2**63 - 1")
    out = target(options.output, "reconstruction")
    if not options.photo.photos and options.photo.cameras is None and options.photo.poses is None:
        raise ValueError("reconstruct needs photos; 'diorama generate' makes scenes from none")
    model, device = options.model.model, options.model.device
    if means_vggt(model):
        return _by_vggt(options, out)
    diffuses = check_model(model, device, flags).staged  # now, because what follows takes a while
    if not flags.samples:
        _check_undiffused(flags)
    path = counted(options.path, model)
    request = (requested_all if diffuses else requested)(options.photo, path, device)
    from diorama.export.save import save
    from diorama.pipelines.base import load

    pipeline = load(model, device, compile=options.model.compile, **flags.loading)
    condition, wanted = fitted(pipeline, request, options.path.size, flags.prompt)
    scene, seconds = _made(pipeline, condition, wanted, flags)
    settings = {**scene.provenance.settings, "trajectory": options.path.trajectory or "default", **request.origin}
    scene = replace(scene, condition=condition, provenance=replace(scene.provenance, settings=settings))
    began = time.monotonic()
    save(scene, out, overwrite=options.output.overwrite)
    describe(scene, out, {**seconds, **compiling(pipeline), "writing": time.monotonic() - began})
    return 0


def _check_undiffused(flags: DiffusionFlags) -> None:
    """ValueError for flags that mean nothing without diffusion, or that contradict it."""
    if flags.by == "diffusion":
        raise ValueError("--steps 0: --by diffusion takes 1 or more; --by vae leaves it out")
    for_all = ("by", "points") if flags.by == "vggt" else ("by", "points", "tiling")
    asked = {name: value for name, value in flags.sampling.items() if name not in for_all}
    why = f"--by {flags.by}" if flags.by else f"--steps {asked.pop('steps')}"
    if asked.get("steps") == 0:  # which is as much as to say --by vae
        del asked["steps"]
    no_such(asked, f"{why} leaves diffusion out")


def _made(
    pipeline: "ScenePipeline", condition: Any, wanted: Any, flags: DiffusionFlags
) -> "tuple[Scene, dict[str, float]]":
    """The scene, and how many seconds each part of making it took."""
    samples = pipeline.staged and flags.samples
    with Progress("sampling") as progress:
        how = {**flags.sampling, "on_step": progress} if samples else flags.sampling
        scene = pipeline.reconstruct(condition.views, wanted, **how)
    first, rest = progress.seconds
    return scene, {"sampling": first, "decoding": rest} if samples else {"encoding and decoding": first + rest}


def _by_vggt(options: Arguments, out: Path) -> int:
    """Find the cameras, depth and points of photos without any of these, and write them with the photos."""
    path, model = options.path, options.model.model
    check("--views", path.count, path.count >= 1, "1 or more")
    parsed_size(path.size or "1", 1, 1)
    for flag, value in (("--trajectory", path.trajectory), ("--poses", options.photo.poses)):
        if value is not None:
            raise ValueError(f"{flag} {value}: VGGT shows the photos, from cameras that it finds; leave {flag} out")
    asked: dict[str, Any] = given(options.parts) | ({"compile": True} if options.model.compile else {})
    points: str = asked.pop("points", "depth")
    no_such(asked, "VGGT is read in float32 and looks at the photos once")
    views = unposed(options.photo, path.count, "VGGT")
    from diorama.export.save import save
    from diorama.pipelines.base import pick_device
    from diorama.pipelines.vggt import VGGTPipeline, located

    device = pick_device(options.model.device)
    pipeline = VGGTPipeline.load_folder(located("" if model == "vggt" else model))
    size = None if path.size is None else size_made(pipeline, path.size, *views.images.shape[-2:])
    began = time.monotonic()
    scene = pipeline.to(device).reconstruct(views, size=size, points=points)
    made = time.monotonic()
    save(scene, out, overwrite=options.output.overwrite)
    describe(scene, out, {"reconstructing": made - began, "writing": time.monotonic() - made})
    return 0
