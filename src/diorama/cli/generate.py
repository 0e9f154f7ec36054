"""`diorama generate`: photos or none and a camera path become a scene."""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import arg

from diorama.cli.many import ManifestFlags
from diorama.cli.many import run as make_many
from diorama.cli.parts import PartsFlags, check_model, given, means_vggt
from diorama.cli.progress import Progress, compiling, describe
from diorama.cli.requests import (
    CONFIG,
    Request,
    SceneArguments,
    SeedFlags,
    check,
    counted,
    fitted,
    requested,
    target,
)

if TYPE_CHECKING:
    from diorama.pipelines.base import ScenePipeline
    from diorama.scene import Scene


@dataclass(frozen=True)
class SamplingFlags(SeedFlags):
    """What makes it, and how."""

    speed: Literal["quality", "balanced", "fast"] = "quality"
    """How much quality may be given for time: docs/sampling.md says what each costs; the next two go before it."""
    steps: Annotated[int | None, arg(help_behavior_hint="(default: the model's)")] = None
    """Sampling steps."""
    guidance: Annotated[float | None, arg(help_behavior_hint="(default: the model's)")] = None
    """How much the photos count, or for Gen3R the prompt: 1 samples without guidance."""
    prompt: Annotated[str | None, arg(help_behavior_hint="")] = None
    """Text, for models trained with it."""


@dataclass(frozen=True)
class Arguments(SceneArguments):
    """All flags of the command."""

    model: SamplingFlags = field(default_factory=SamplingFlags)
    parts: PartsFlags = field(default_factory=PartsFlags)
    requests: ManifestFlags = field(default_factory=ManifestFlags)


def run(arguments: list[str]) -> int:
    """Make one scene and write it, or those of a manifest."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama generate",
        description="Make a scene from photos, or from none, and show it along a camera path.",
        config=CONFIG,
    )
    flags = options.model
    check("--steps", flags.steps, flags.steps is None or flags.steps >= 1, "1 or more")
    check("--guidance", flags.guidance, 0 <= (flags.guidance or 0) < math.inf, "0 or more")
    check("--seed", flags.seed, 0 <= flags.seed < 2**63, "0 to 2**63 - 1")
    options.requests.check()
    many = options.requests.manifest is not None
    out = Path() if many else target(options.output, "scene")
    if means_vggt(flags.model):
        raise ValueError(
            f"--model {flags.model}: VGGT makes no views but the photos' own; 'diorama reconstruct' takes it"
        )
    if many:
        return make_many(options)
    if options.photo.poses is not None or given(options.parts):  # which take a while, or are for some models only
        check_model(flags.model, flags.device, options.parts, scaled=True)
    request = requested(options.photo, counted(options.path, flags.model), flags.device)
    from diorama.pipelines.base import load

    pipeline = load(flags.model, flags.device, compile=flags.compile, **options.parts.loading)
    make(pipeline, request, options, out)
    return 0


def make(pipeline: "ScenePipeline", request: Request, options: Arguments, out: Path) -> "Scene":
    """Generate the request, write it to `out` and say so."""
    from diorama.export.save import save

    flags = options.model
    condition, wanted = fitted(pipeline, request, options.path.size, flags.prompt)
    how = dict(speed=flags.speed, steps=flags.steps, guidance=flags.guidance, **options.parts.sampling)
    with Progress("sampling") as progress:
        scene = pipeline.generate(condition, wanted, seed=flags.seed, on_step=progress, **how)  # type: ignore[arg-type, call-arg]
    sampling, decoding = progress.seconds
    settings = {**scene.provenance.settings, "trajectory": options.path.trajectory or "default", **request.origin}
    scene = replace(scene, provenance=replace(scene.provenance, settings=settings))
    began = time.monotonic()
    save(scene, out, overwrite=options.output.overwrite)
    times = {"sampling": sampling, "decoding": decoding, **compiling(pipeline), "writing": time.monotonic() - began}
    describe(scene, out, times)
    return scene
