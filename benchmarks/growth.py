"""How does cost grow with views, tokens, resolution and steps? Operations at the paper's size, and time beside them.

    python benchmarks/growth.py                          # times of tiny models on one CPU thread
    python benchmarks/growth.py --device cuda --paper    # times of the paper's sizes, in bfloat16

Each curve has its plain reference beside it: the paper's encoder, whose views all read each other, beside the hub; its
decoder, in which latents read every view's rays, beside the one-way one with its cache; known tokens as more tokens of
DiT3D's sequence beside more channels; diffusers' own Wan transformer beside Gen3R's. Operations are counted at the
paper's sizes without computing them. An exponent is the slope between the last two points: 1 is linear growth.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from diffusers import WanTransformer3DModel
from machine import best_seconds, frozen, operations, write_numbers
from torch import Tensor

from diorama.models.dit3d import SIZES as DENOISERS
from diorama.models.dit3d import DiT3D
from diorama.models.gen3r_transformer import SIZES as TRANSFORMERS
from diorama.models.gen3r_transformer import Gen3RTransformer
from diorama.models.rae3d import RAE3D
from diorama.models.rae3d import SIZES as AUTOENCODERS

PAIRS = {"DiT3D": "XL", "RAE3D": "base-1024", "Gen3R": "1.3B"}  # the paper's rows of sizes
TEXT, IMAGE, CONTROL = (512, 4096), (257, 1280), 24  # tokens and channels of what Gen3R is told


@dataclass(frozen=True)
class Config:
    """What is timed; operations are counted at the paper's sizes whatever is timed."""

    paper: bool = False
    """Time the paper's sizes too."""
    rounds: int = 3
    threads: int = 1
    device: str = "cpu"
    out: Path = Path(__file__).parent / "results" / "growth.json"


class Scale(NamedTuple):
    """Sizes at which costs are taken."""

    names: dict[str, str]  # of the models' rows
    pixels: int  # of a side, for 3DRAE
    views: Sequence[int]
    decoded: Sequence[int]
    tokens: Sequence[int]
    sides: Sequence[int]
    steps: Sequence[int]
    frames: Sequence[int]  # of Gen3R's clips
    clip: int  # pixels of a side of Gen3R's clips
    clips: Sequence[int]
    frame: int  # frames of the clips above


PAPER = Scale(
    PAIRS, 252, (4, 8, 16, 32, 64, 128), (1, 4, 16, 64), (256, 512, 1024, 2048), (126, 252, 504), (4, 10, 25, 50),
    (13, 25, 49, 97), 560, (224, 336, 448, 560), 49,
)  # fmt: skip
SMALL = Scale(
    dict.fromkeys(PAIRS, "tiny"), 64, (4, 8, 16, 32), (1, 4, 16, 32), (64, 128, 256, 512), (32, 64, 128), (4, 10, 25),
    (5, 9, 17), 128, (64, 128, 192), 9,
)  # fmt: skip
Curve = tuple[str, list[int], Callable[[int], Callable[[], object]]]  # name, places, and what is done at one


def curves(scale: Scale, kind: torch.dtype = torch.float32) -> Iterator[tuple[str, list[Curve]]]:
    """What grows, axis by axis; models are made on the default device, for one axis at a time."""
    names, pixels = scale.names, scale.pixels

    def autoencoder(**changes: Any) -> RAE3D:
        return frozen(RAE3D(**AUTOENCODERS[names["RAE3D"]] | {"point_layers": 0} | changes), kind)

    necks, decoders = {}, {}
    for name in ("full", "hub"):
        necks[name] = autoencoder(neck_attention=name, decoder_layers=1)
    for name in ("mutual", "one_way"):
        decoders[name] = autoencoder(attention=name, neck_layers=1)

    def rays(views: int, side: int) -> Tensor:
        return torch.randn(1, views, 6, side, side)

    def encode(name: str, views: int, side: int = pixels) -> Callable[[], object]:
        images, where = torch.rand(1, views, 3, side, side, dtype=kind), rays(views, side)
        visible = torch.ones(1, views, dtype=torch.bool)
        return lambda: necks[name].encode(images, where, visible)

    def decode(name: str, views: int, side: int = pixels) -> Callable[[], object]:
        model, where = decoders[name], rays(views, side)
        latents = torch.randn(1, *model.latent_mean.shape)
        return lambda: model.decode_images(model.cache(latents), where)

    encoders = {"encode, full attention": "full", "encode, hub": "hub"}
    ways = {"decode, mutual": "mutual", "decode, one-way": "one_way"}
    yield (
        "views",
        [
            *((label, [*scale.views], lambda n, name=name: encode(name, n)) for label, name in encoders.items()),
            *((label, [*scale.decoded], lambda n, name=name: decode(name, n)) for label, name in ways.items()),
        ],
    )
    yield (
        "resolution",
        [
            *(
                (f"{label}, 8 views", [*scale.sides], lambda n, name=name: encode(name, 8, n))
                for label, name in encoders.items()
            ),
            *(
                (f"{label}, 8 views", [*scale.sides], lambda n, name=name: decode(name, 8, n))
                for label, name in ways.items()
            ),
            *_clips(scale, kind, sides=True),
        ],
    )
    width = necks["full"].config.dim
    yield (
        "tokens",
        [
            (
                f"DiT3D step, known as {label}",
                [*scale.tokens],
                lambda n, name=name: _step(names["DiT3D"], n, width, name, kind),
            )
            for label, name in (("tokens", "token"), ("channels", "channel"))
        ],
    )
    count = necks["full"].config.tokens

    def sample(steps: int, batch: int) -> Callable[[], object]:
        one = _step(names["DiT3D"], count, width, "channel", kind, batch)
        before = [encode("full", 16) for _ in range(batch)]
        shown = decode("one_way", 16)
        return lambda: [work() for work in (*before, *[one] * steps, shown)]

    yield (
        "steps",
        [
            ("generate, guided", [*scale.steps], lambda n: sample(n, 2)),
            ("generate, without guidance", [*scale.steps], lambda n: sample(n, 1)),
        ],
    )
    yield "frames", _clips(scale, kind, sides=False)


def _step(
    size: str, tokens: int, channels: int, condition: str, kind: torch.dtype, batch: int = 1
) -> Callable[[], object]:
    """One evaluation of DiT3D."""
    model = frozen(DiT3D(**DENOISERS[size], tokens=tokens, channels=channels, condition=condition), kind)
    noisy, known = torch.randn(2, batch, tokens, channels, dtype=kind)
    t = torch.full((batch,), 0.5)
    return lambda: model(noisy, t, known)


def _clips(scale: Scale, kind: torch.dtype, *, sides: bool) -> list[Curve]:
    """One evaluation of Gen3R's denoiser, and of diffusers' own at equal tokens, by frames or by pixels of a side."""
    sizes = {"text_dim": TEXT[1], "image_dim": IMAGE[1], "in_channels": 36, "out_channels": 16}
    arguments = TRANSFORMERS[scale.names["Gen3R"]] | sizes
    ours = frozen(Gen3RTransformer(**arguments, control_channels=CONTROL), kind)
    common = {key: value for key, value in dict(ours.config).items() if key not in ("control_channels", "tiled_rope")}
    stock = frozen(WanTransformer3DModel(**{key: common[key] for key in common if key[0] != "_"}), kind)

    def step(model: Any, place: int) -> Callable[[], object]:
        frames, side = (scale.frame, place) if sides else (place, scale.clip)
        frames, side = (frames + 3) // 4, side // 8
        x = torch.randn(1, 36, frames, side, 2 * side, dtype=kind)
        text, image = (torch.randn(1, *shape, dtype=kind) for shape in (TEXT, IMAGE))
        control = torch.randn(1, CONTROL, frames, 8 * side, 16 * side, dtype=kind)
        more = {"control": control} if model is ours else {}
        return lambda: model(x, torch.full((1,), 500.0), text, image, **more)

    places = [*(scale.clips if sides else scale.frames)]
    return [(f"Gen3R step{of}", places, lambda n, m=m: step(m, n)) for of, m in ((", stock Wan", stock), ("", ours))]


def exponent(places: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log cost between the last two places."""
    return math.log(values[-1] / values[-2]) / math.log(places[-1] / places[-2])


@torch.no_grad()
def main(config: Config) -> None:
    """Count, time, print and write."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    with torch.device("meta"):
        for axis, rows in curves(PAPER):
            for name, places, work in rows:
                counts = [operations(work(place)) / 1e12 for place in places]
                found.setdefault(axis, {})[name] = {"places": [*map(float, places)], "teraflops": counts}
    numbers = {
        f"{name}, by {axis}: exponent of operations": exponent(line["places"], line["teraflops"])
        for axis, lines in found.items()
        for name, line in lines.items()
    }
    scale, kind = (PAPER if config.paper else SMALL), torch.bfloat16 if config.device != "cpu" else torch.float32
    with torch.device(config.device):
        for axis, rows in curves(scale, kind):
            for name, places, work in rows:
                works = {place: work(place) for place in places}
                seconds = best_seconds({str(place): works[place] for place in places}, config.rounds, config.device)
                found[axis][name] |= {"timed": [*map(float, places)], "seconds": [*seconds.values()]}
                numbers[f"{name}, by {axis}: exponent of time"] = exponent(places, [*seconds.values()])
                print(f"{axis:12} {name:36} {' '.join(f'{x:9.4f}' for x in seconds.values())}", flush=True)
    settings = {k: v for k, v in asdict(config).items() if k != "out"}
    write_numbers(
        config.out, numbers, settings, config.device, sizes={"paper": PAIRS, "timed": scale.names}, curves=found
    )
    for name, value in numbers.items():
        print(f"{name:80} {value:6.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
