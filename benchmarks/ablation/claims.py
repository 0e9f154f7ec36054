"""What `ablations.py` compares: the paper's orderings, each a difference of two numbers over the same worlds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diorama.data.cache import WorldsCache
from diorama.evaluation.frechet import bootstrap, frechet_distance, worlds64
from diorama.evaluation.metrics import gradient_energy, paired_bootstrap, psnr
from diorama.evaluation.protocols import known_places
from diorama.geometry.cameras import Cameras
from diorama.models.rae3d import RAE3D
from diorama.pipelines.base import load
from diorama.pipelines.tokens import TokenPipeline, encode_views
from diorama.scene import Condition, Views

Images = Float[Tensor, "scene view 3 height width"]
STEPS = 25  # of sampling
BATCH = 16  # scenes decoded at once
FAR = 4  # the last views of the path, of 11 unseen ones
INPUTS = (16, 32, 64, 128)
SIZES = ((40, 40), (40, 56), (56, 40), (48, 48), (48, 64), (64, 48), (56, 56), (56, 72), (72, 56))  # height, width
COMPARED = 32  # pixels along the side of the part that all sizes show


class Verdict(NamedTuple):
    """One comparison: `difference` is the first number less the second, with its 95 % interval over scenes."""

    claim: str
    number: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    expected: str  # of the first beside the second: higher, lower, not lower, within 1

    @property
    def finding(self) -> str:
        """Whether the paper's ordering shows here."""
        match self.expected:
            case "higher":
                yes, no = self.low > 0, self.high < 0
            case "lower":
                yes, no = self.high < 0, self.low > 0
            case "not lower":
                yes, no = self.high >= 0, self.high < 0
            case _:
                yes, no = self.difference <= 1, self.difference > 1
        return "holds" if yes else "does not hold" if no else "undecided"


class Evaluated:
    """The trained arms on the test worlds; pictures are made once."""

    def __init__(self, runs: Path, test: Path, long: Path, device: str) -> None:
        self.runs, self.device = runs, device
        self.test, self.long = (WorldsCache(folder, allow_test=True) for folder in (test, long))
        self.features = worlds64(device)
        self.numbers: dict[str, float] = {}
        self.true = self.views(0).images[:, 1:]

    def autoencoder(self, name: str) -> RAE3D:
        """A trained autoencoder."""
        return RAE3D.from_pretrained(self.runs / name / "model", torch_dtype=torch.float32).eval().to(self.device)  # type: ignore[return-value]

    @cache  # noqa: B019 - one object, which lives as long as the program
    def views(self, count: int) -> Views:
        """All test scenes, the `count` known views first; 0: in the path's order."""
        places = known_places(count, self.test.views) if count else ()
        order = [*places, *(view for view in range(self.test.views) if view not in places)]
        return self.test.batch(torch.arange(len(self.test)), torch.tensor(order).expand(len(self.test), -1))

    @cache  # noqa: B019
    def regressed(self, name: str, count: int) -> Images:
        """What an autoencoder decodes of the views that `count` known ones leave unseen."""
        return decoded(self.autoencoder(name), self.views(count), count)

    @cache  # noqa: B019
    def generated(self, name: str, count: int) -> Images:
        """What a denoiser makes of them, one seed a scene."""
        pipeline: TokenPipeline = load(self.runs / name / "model", self.device)  # type: ignore[assignment]
        views, made = self.views(count), []
        for start in range(0, len(self.test), BATCH):
            items = views_of(views, slice(start, start + BATCH)).apart()
            paths: list[Cameras] = [item.cameras for item in items]  # type: ignore[misc]
            known = [Condition(item[:count], tuple(range(count))) for item in items]
            scenes = pipeline.generate(known, paths, seed=list(range(start, start + len(items))), steps=STEPS)
            made += [scene.views.images[count:] for scene in scenes]  # type: ignore[union-attr]
        return torch.stack(made).cpu()

    def apart(self, claim: str, first: Images, second: Images, true: Images, expected: str) -> Verdict:
        """Fréchet distances of two sets of pictures to the true ones."""
        sets = [self.features(images.flatten(0, 1).clamp(0, 1)) for images in (first, second, true)]
        scene = torch.arange(len(true)).repeat_interleave(true.shape[1])
        return farther(claim, "Fréchet distance", sets, scene, expected)


def farther(claim: str, number: str, sets: list[Tensor], scene: Tensor, expected: str) -> Verdict:
    """Fréchet distances of the first two sets of features to the third; `scene` says whose each row is."""
    first, second, truth = sets
    width, minimum = first.shape[1], min(500, len(truth))

    def lead(both: Tensor, real: Tensor, minimum: int = 2) -> float:
        parts = both[:, :width], both[:, width:]
        near, far = (frechet_distance(part, real[:, :width], minimum=minimum) for part in parts)
        return near - far

    found = bootstrap(lead, torch.cat([first, second], 1), truth.repeat(1, 2), (scene, scene), minimum=minimum)
    values = [frechet_distance(x, truth, minimum=minimum) for x in (first, second)]
    return Verdict(claim, number, *values, found.value, found.low, found.high, expected)


def compared(
    claim: str, number: str, first: Float[Tensor, " scene"], second: Float[Tensor, " scene"], expected: str
) -> Verdict:
    """Two numbers a scene, paired."""
    interval = paired_bootstrap(first, second)
    return Verdict(claim, number, float(first.mean()), float(second.mean()), *interval, expected)


def views_of(views: Views, rows: slice) -> Views:
    """Some scenes of a batch."""
    cameras = views.cameras
    assert cameras is not None
    part = Cameras(cameras.camera_to_world[rows], cameras.intrinsics[rows], cameras.height, cameras.width)
    return Views(views.images[rows], part, None, None)


@torch.no_grad()
def decoded(model: RAE3D, views: Views, known: int, size: tuple[int, int] | None = None) -> Images:
    """Unseen views decoded from the latents of the first `known`, at their own size or a wider one around it."""
    made = []
    for start in range(0, len(views.images), BATCH):
        part = views_of(views, slice(start, start + BATCH)).to(model.device)
        cameras, _ = part.cameras.normalized()  # type: ignore[union-attr]
        visible = torch.ones(len(part.images), known, dtype=torch.bool, device=model.device)
        latents = encode_views(model, part[:known], cameras[:known], visible)
        wanted = cameras[known:] if size is None else cameras[known:].widened(*size)
        made.append(model.decode_images(model.cache(latents), wanted.plucker()).float().cpu())
    return torch.cat(made)


def quality(images: Images, true: Images) -> Float[Tensor, " scene"]:
    """PSNR in dB, mean over a scene's views."""
    return psnr(images.clamp(0, 1), true).mean(1)


def tokens(of: Evaluated) -> list[Verdict]:
    """The paper's table 3, autoencoders."""
    true = of.views(4).images[:, 4:]
    scores = {name: quality(of.regressed(name, 4), true) for name in ("tokens8", "base", "tokens128")}
    pairs = (("base", "tokens8", "32 latents reconstruct better than 8"),)
    pairs += (("tokens128", "base", "128 latents reconstruct better than 32"),)
    return [compared(claim, "PSNR, 4 known", scores[a], scores[b], "higher") for a, b, claim in pairs]


def capacity(of: Evaluated) -> list[Verdict]:
    """The paper's table 3, denoisers."""
    pictures = [of.generated(name, 1) for name in ("larger", "dit3d")]
    return [of.apart("a larger denoiser generates better", *pictures, of.true, "lower")]


def generation(of: Evaluated) -> list[Verdict]:
    """The paper's table 1."""
    made, plain = of.generated("dit3d", 1), of.regressed("base", 1)
    true = of.views(2).images[:, 2:]
    two = [quality(images, true) for images in (of.generated("dit3d", 2), of.regressed("base", 2))]
    return [
        of.apart("one view: generation beats regression", made, plain, of.true, "lower"),
        compared("two views: regression beats generation", "PSNR, 2 known", two[1], two[0], "higher"),
    ]


def adversarial(of: Evaluated) -> list[Verdict]:
    """The paper's figure 7: what lies far from the known view gets sharper."""
    true = of.true[:, -FAR:]
    energy = gradient_energy(true).mean()
    pictures = {name: of.regressed(name, 1)[:, -FAR:] for name in ("adversarial", "plain")}
    shares = [gradient_energy(images).mean(1) / energy for images in pictures.values()]
    of.numbers |= {f"far_psnr_{name}": round(float(quality(x, true).mean()), 3) for name, x in pictures.items()}
    return [compared("the adversarial loss sharpens far views", "share of gradient energy", *shares, "higher")]


def noise(of: Evaluated) -> list[Verdict]:
    """RAE's noise augmentation, which the paper follows."""
    pictures = [of.generated(name, 1) for name in ("dit3d", "dit3d-noiseless")]
    scores = [quality(images, of.true) for images in pictures]
    claim = "noise augmentation helps decoding what is generated"
    return [
        of.apart(claim, *pictures, of.true, "lower"),
        compared(claim, "PSNR, 1 known", *scores, "higher"),
    ]


def pretraining(of: Evaluated) -> list[Verdict]:
    """The paper's table 4, at equal minutes in all: half of them on single images, half on scenes."""
    pictures = [of.generated(name, 1) for name in ("pretrained", "dit3d")]
    return [of.apart("training on single images first helps", *pictures, of.true, "lower")]


def attention(of: Evaluated) -> list[Verdict]:
    """Our decoder beside the paper's, at equal steps; the times of both, taken in turns."""
    true = of.views(4).images[:, 4:]
    models = {name: of.autoencoder(name) for name in ("base", "mutual")}
    rays = views_of(of.views(0), slice(8)).cameras.normalized()[0].plucker().to(of.device)  # type: ignore[union-attr]
    scores = [quality(of.regressed(name, 4), true) for name in models]
    of.numbers["one_way over mutual, seconds to decode 12 views of a scene"] = ratio(models, rays[:1], learn=False)
    of.numbers["one_way over mutual, seconds to learn from 4 views of 8 scenes"] = ratio(
        models, rays[:, :4], learn=True
    )
    return [compared("one_way is no worse than mutual", "PSNR, 4 known, equal steps", *scores, "not lower")]


def ratio(models: dict[str, RAE3D], rays: Float[Tensor, "batch view 6 height width"], *, learn: bool) -> float:
    """Median time of the first model's decoder over the second's: of the process on a CPU, of the clock elsewhere."""
    clock = time.process_time if rays.device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(11):
        for name, model in models.items():
            latents, begun = torch.randn(len(rays), *model.latent_mean.shape, device=rays.device), clock()
            with torch.set_grad_enabled(learn):
                loss = model.decode_images(model.cache(latents), rays).square().mean()
            if learn:
                loss.backward()
                model.zero_grad()
            loss.item()  # waits for the device
            seconds[name].append(clock() - begun)
    first, second = (sorted(values)[len(values) // 2] for values in seconds.values())
    return round(first / second, 3)


def many_inputs(of: Evaluated) -> list[Verdict]:
    """Encoding far more views than were trained with (section 4.4 of the paper)."""
    rest = list(range(4, of.long.views, 9))  # of 144 views 16, which leaves 128
    places = [view for view in range(of.long.views) if view not in rest]
    scores, model = [], of.autoencoder("base")
    for count in INPUTS:
        order = torch.tensor(places[:: len(places) // count] + rest)
        parts = []
        for row in range(0, len(of.long), BATCH):
            rows = torch.arange(row, min(row + BATCH, len(of.long)))
            views = of.long.batch(rows, order.expand(len(rows), -1))
            parts.append(quality(decoded(model, views, count), views.images[:, count:]))
        scores.append(torch.cat(parts))
    pairs = list(zip(INPUTS[1:], INPUTS, scores[1:], scores, strict=False))
    return [compared(f"{a} views are no worse than {b}", "PSNR", x, y, "not lower") for a, b, x, y in pairs]


def sizes(of: Evaluated) -> list[Verdict]:
    """One latent, three sizes by three proportions; what all of them show is compared, at one size."""

    def small(images: Images) -> Images:
        flat = F.interpolate(images.flatten(0, 1), (COMPARED, COMPARED), mode="bilinear", antialias=True)
        return flat.unflatten(0, images.shape[:2])

    views, model = of.views(4), of.autoencoder("base")
    true, scores = small(views.images[:, 4:]), {}
    for height, width in SIZES:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = decoded(model, views, 4, (height, width))[..., top : top + side, left : left + side]
        scores[f"{height}x{width}"] = quality(small(images), true)
    means = {name: float(values.mean()) for name, values in scores.items()}
    of.numbers |= {f"psnr_decoded_at_{name}": round(value, 3) for name, value in means.items()}
    best, worst = (choose(means, key=lambda name: means[name]) for choose in (max, min))
    claim = f"one latent at nine sizes agrees within 1 dB ({best} and {worst} differ most)"
    return [compared(claim, "PSNR, resized", scores[best], scores[worst], "within 1")]


@dataclass(frozen=True)
class Claim:
    """A comparison and the arms that it reads."""

    compared: Callable[[Evaluated], list[Verdict]]
    arms: tuple[str, ...]


CLAIMS = {
    "tokens": Claim(tokens, ("tokens8", "base", "tokens128")),
    "capacity": Claim(capacity, ("dit3d", "larger")),
    "generation": Claim(generation, ("dit3d",)),
    "pretraining": Claim(pretraining, ("dit3d", "pretrained")),
    "adversarial": Claim(adversarial, ("plain", "adversarial")),
    "noise": Claim(noise, ("dit3d", "dit3d-noiseless")),
    "inputs": Claim(many_inputs, ("base",)),
    "sizes": Claim(sizes, ("base",)),
    "attention": Claim(attention, ("base", "mutual")),
}
