"""How near is generation to what a machine can do? 3DRAE + 3DDiT's sampling and decoding, and a step of Gen3R.

    python benchmarks/limits.py                                                     # tiny sizes on one CPU thread
    python benchmarks/limits.py --device cuda --out benchmarks/results/limits-cuda.json   # the paper's sizes, bfloat16

Random weights suffice. "generate": one known view, 16 views, 50 guided steps by Euler, from photo to pictures in main
memory; ours is compiled, with both branches of guidance as one batch and the latents' keys and values computed once.
Plain, with the same weights in the same run: nothing compiled, guidance as two passes, the paper's mutual decoder, one
view after the other. "fast" is the preset of that name. There is no point-map decoder, as none is in the paper's times,
and no frozen encoder, whose look at one photo is under a thousandth of the work. A step of Gen3R has diffusers' own Wan
transformer beside it, at equal tokens; "cached" is a mean over steps along a straight path with the step cache, of
which random weights say little: what share of its blocks it leaves out depends on trained ones.
Share of peak: operations of ours, a second, over those of a large matrix product measured in the same run.
"""

import gc
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import tyro
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from machine import best_seconds, clock, frozen, operations, peak_gib, peak_rate, write_numbers
from torch import nn
from torch._inductor.utils import clear_caches

from diorama.flow import dimension_shift, guided, uniform_sigmas
from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import orbit
from diorama.models import dit3d, gen3r_transformer, rae3d
from diorama.models.dit3d import DiT3D
from diorama.models.gen3r_transformer import Gen3RTransformer
from diorama.models.rae3d import RAE3D
from diorama.pipelines.compiled import compile_pipeline
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition, Views

VIEWS, GUIDANCE = 16, 2.0
WAN = {"text_dim": 4096, "image_dim": 1280, "in_channels": 36, "out_channels": 16}
# fmt: off
SCALES: dict[str, dict[str, Any]] = {
    "cpu":  dict(autoencoder="tiny", denoiser="tiny", side=64, transformer="tiny", frames=3, latents=8),
    "cuda": dict(autoencoder="base-1024", denoiser="XL", side=252, transformer="1.3B", frames=13, latents=70),
}
# fmt: on
Numbers = dict[str, float]


@dataclass(frozen=True)
class Config:
    """What is measured."""

    steps: int = 50
    rounds: int = 5
    compile: bool = True
    cached_steps: int = 20
    """Steps of Gen3R with its step cache."""
    threshold: float = 0.1
    """Share of change that the step cache leaves out."""
    threads: int = 1
    device: str = "cpu"
    out: Path = Path(__file__).parent / "results" / "limits.json"


def filled(module: nn.Module, kind: torch.dtype) -> Any:
    """The module with random weights everywhere: new models' are partly 0, which a chip computes at less power."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    return frozen(module, kind)


def made(scale: dict[str, Any], kind: torch.dtype) -> tuple[TokenPipeline, RAE3D]:
    """The pipeline, and the paper's autoencoder of the same weights."""
    row = rae3d.SIZES[scale["autoencoder"]] | {"point_layers": 0}
    autoencoder = filled(RAE3D(**row), kind)
    plain = RAE3D(**row | {"attention": "mutual"})
    for one, other in zip(plain.parameters(), autoencoder.parameters(), strict=True):
        one.data = other.data
    tokens, dim = autoencoder.latent_mean.shape
    denoiser = filled(DiT3D(**dit3d.SIZES[scale["denoiser"]], tokens=tokens, channels=dim), kind)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=dimension_shift(tokens, dim))
    pipeline = TokenPipeline(autoencoder, denoiser, scheduler, pixels=scale["side"] ** 2)
    return pipeline, plain.eval().requires_grad_(False)


@torch.no_grad()
def plainly(pipeline: TokenPipeline, mutual: RAE3D, condition: Condition, path: Any, steps: int) -> torch.Tensor:
    """Pictures by the models alone, as a first implementation would make them."""
    device, kind = pipeline.device, mutual.dtype
    rays = path.normalized()[0].plucker()[None].to(device)
    images = torch.zeros(1, path.views, 3, path.height, path.width, device=device, dtype=kind)
    images[:, 0] = condition.views.images.to(images)  # type: ignore[union-attr]
    shown = torch.zeros(2, path.views, dtype=torch.bool, device=device)
    shown[0, 0] = True  # the other branch of guidance knows the poses alone
    known = [mutual.encode(images, rays, visible[None]) for visible in shown]
    x = pipeline.noise([path], [0])
    pipeline.scheduler.set_timesteps(sigmas=uniform_sigmas(steps), device=device)
    for time_ in pipeline.scheduler.timesteps:
        t = torch.full((1,), float(time_) / 1000, device=device)
        one, other = (pipeline.denoiser(x.to(kind), t, latents.to(kind)).velocity.float() for latents in known)
        x = pipeline.scheduler.step(guided(one, other, GUIDANCE), time_, x, return_dict=False)[0]
    scene = mutual.cache(x)
    seen = [mutual.decode_images(scene, rays[:, view : view + 1]) for view in range(path.views)]
    return torch.cat(seen, 1).float().clamp(0, 1).cpu()


def compiled(pipeline: TokenPipeline, warm: Callable[[], object], device: str) -> Numbers:
    """Compile it: seconds of the first generation with nothing on the disk, and where an earlier process left all."""
    numbers: Numbers = {}
    for name in ("warm-up, nothing kept", "warm-up, all kept"):
        torch._dynamo.reset()
        clear_caches()
        for owner, attribute in (
            (pipeline.denoiser, "forward"),
            *((pipeline.autoencoder, x) for x in ("cache", "decode")),
        ):
            owner.__dict__.pop(attribute, None)
        compile_pipeline(pipeline, torch.device(device))
        start = time.perf_counter()
        warm()
        numbers[f"{name}, seconds"] = time.perf_counter() - start
    if pipeline.compilation.reason:
        raise SystemExit(f"compile: {pipeline.compilation.reason}; --no-compile measures without")
    return numbers


def generation(config: Config, scale: dict[str, Any], kind: torch.dtype) -> Numbers:
    """Generating and decoding."""
    with torch.device(config.device):
        pipeline, mutual = made(scale, kind)
    side = scale["side"]
    camera = Cameras.from_fov(60.0, side, side)
    path, condition = orbit(camera, VIEWS), Condition(Views(torch.rand(1, 3, side, side), camera), (0,))

    def generate(**how: Any) -> Any:
        return pipeline.generate(condition, path, **{"steps": config.steps, "guidance": GUIDANCE} | how)

    work = operations(generate)
    works: dict[str, Callable[[], object]] = {
        "generate, plain": lambda: plainly(pipeline, mutual, condition, path, config.steps),
        "generate, nothing compiled": generate,
    }
    numbers = {f"{n}, seconds": s for n, s in best_seconds(works, config.rounds, config.device).items()}
    numbers["generate, teraflops"] = work / 1e12
    if config.compile:
        numbers |= compiled(pipeline, generate, config.device)
    fast = {"speed": "fast", "steps": None, "guidance": None}
    works = {"generate": generate, "generate, fast": lambda: generate(**fast)}
    numbers |= {f"{n}, seconds": s for n, s in best_seconds(works, config.rounds, config.device).items()}
    numbers["generate, ratio"] = numbers["generate, plain, seconds"] / numbers["generate, seconds"]
    peak = numbers["peak, teraflops/s"] = peak_rate(kind, config.device) / 1e12
    numbers["generate, share of peak"] = numbers["generate, teraflops"] / numbers["generate, seconds"] / peak
    numbers |= _memory("generate, GiB", generate, config.device)
    scene = generate(steps=1)
    return numbers | _decoding(config, pipeline, mutual, scene.latents[None], path, scene.latent_frame)


@torch.no_grad()
def _decoding(config: Config, pipeline: TokenPipeline, mutual: RAE3D, latents: Any, path: Any, frame: Any) -> Numbers:
    """Views a second: many at once and one at a time, from latents that are there, in memory of the device."""
    rays = path.transformed(frame).plucker()[None].float().repeat(1, 2, 1, 1, 1).to(config.device)
    autoencoder, one = pipeline.autoencoder, rays[:, :1].clone()
    scene, plain = autoencoder.cache(latents.to(config.device)), mutual.cache(latents.to(config.device))
    works: dict[str, tuple[int, Callable[[], object]]] = {
        "decode, batched": (rays.shape[1], lambda: autoencoder.decode(scene, rays)),
        "decode, one at a time": (1, lambda: autoencoder.decode(scene, one)),
        "decode, plain, batched": (rays.shape[1], lambda: mutual.decode(plain, rays)),
        "decode, plain, one at a time": (1, lambda: mutual.decode(plain, one)),
    }
    seconds = best_seconds({name: work for name, (_, work) in works.items()}, config.rounds + 2, config.device)
    numbers = {f"{name}, views/s": views / seconds[name] for name, (views, _) in works.items()}
    for how in ("batched", "one at a time"):
        numbers[f"decode, {how}, ratio"] = (
            numbers[f"decode, {how}, views/s"] / numbers[f"decode, plain, {how}, views/s"]
        )
    return numbers


@torch.no_grad()
def step(config: Config, scale: dict[str, Any], kind: torch.dtype) -> Numbers:
    """A step of Gen3R beside the stock transformer's."""
    size, width = WAN | gen3r_transformer.SIZES[scale["transformer"]], scale["latents"]
    with torch.device(config.device):
        ours = filled(Gen3RTransformer(**size), kind)
        told = {key: value for key, value in dict(ours.config).items() if key not in ("control_channels", "tiled_rope")}
        stock = filled(WanTransformer3DModel(**{k: v for k, v in told.items() if k[0] != "_"}), kind)
        x = torch.randn(1, 36, scale["frames"], width, 2 * width, dtype=kind)
        text, image = torch.randn(1, 512, 4096, dtype=kind), torch.randn(1, 257, 1280, dtype=kind)
        control = torch.randn(1, 24, scale["frames"], 8 * width, 16 * width, dtype=kind)

    def run(model: Any, t: float = 500.0, at: Any = x, **more: Any) -> Any:
        return model(at, torch.full((1,), t, device=config.device), text, image, return_dict=False, **more)[0]

    works = {"Gen3R step": lambda: run(ours, control=control), "Gen3R step, stock": lambda: run(stock)}
    seconds = best_seconds(works, config.rounds, config.device)
    numbers = {f"{name}, seconds": value for name, value in seconds.items()}
    numbers["Gen3R step, ratio to stock"] = seconds["Gen3R step"] / seconds["Gen3R step, stock"]
    numbers["Gen3R step, teraflops"] = operations(works["Gen3R step"]) / 1e12
    rate = numbers["Gen3R step, teraflops"] / seconds["Gen3R step"]
    numbers["Gen3R step, share of peak"] = rate * 1e12 / peak_rate(kind, config.device)
    numbers |= _memory("Gen3R step, GiB", works["Gen3R step"], config.device)
    ours.enable_cache(FirstBlockCacheConfig(config.threshold))
    noise, start = x.clone(), clock(config.device)
    with ours.cache_context("known"):
        for index in range(config.cached_steps):
            share = 1 - index / config.cached_steps
            run(ours, 1000 * share, x + 0.5 * share * noise, control=control)
    numbers["Gen3R step, cached, seconds"] = (clock(config.device) - start) / config.cached_steps
    ours.disable_cache()
    numbers["Gen3R step, cached, ratio to stock"] = (
        numbers["Gen3R step, cached, seconds"] / seconds["Gen3R step, stock"]
    )
    return numbers


def _memory(name: str, work: Callable[[], object], device: str) -> Numbers:
    found = peak_gib(work, device)
    return {} if found is None else {name: found}


def main(config: Config) -> None:
    """Measure, print and write."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    place = config.device.partition(":")[0]
    scale, kind = SCALES[place], torch.float32 if place == "cpu" else torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # where nothing is kept yet
        numbers = generation(config, scale, kind)
    gc.collect()
    numbers |= step(config, scale, kind)
    settings = {k: v for k, v in asdict(config).items() if k != "out"} | scale | {"dtype": str(kind)}
    write_numbers(config.out, numbers, settings, config.device)
    for name, value in numbers.items():
        print(f"{name:44} {value:12.4f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
