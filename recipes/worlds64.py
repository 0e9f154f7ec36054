"""Train the feature net of `fd_worlds64` on attributes of worlds: worlds64.py TRAIN VALIDATION TARGET [STEPS].

TRAIN and VALIDATION are folders that `diorama data worlds` wrote; TARGET gets worlds64.safetensors and accuracy.json.
A killed run is started again as it is and goes on from its last hundred steps; a finished one is only measured again.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diorama.data.cache import WorldsCache
from diorama.evaluation.frechet import frechet_distance, kernel_distance
from diorama.models.perceptual import WORLDS64_FEATURES, Worlds64

BATCH, RATE, DECAY, EVERY = 128, 4e-3, 0.02, 100


class Attributes:
    """What there is to tell of a view: the values of each attribute in a cache, in order; numbers left out are 0."""

    def __init__(self, cache: WorldsCache) -> None:
        self.kinds: dict[str, set[str]] = {}  # of world, in which an attribute is ever told
        for row in cache.attributes:
            for name, value in row.items():
                if not isinstance(value, float):  # the height of a room, which a view of unknown scale does not show
                    self.kinds.setdefault(name, set()).add(row["kind"])
        self.values = {
            name: sorted({row.get(name, 0) for row in cache.attributes if row["kind"] in kinds})
            for name, kinds in self.kinds.items()
        }
        self.sizes = [len(known) for known in self.values.values()]
        # Many a counted thing stands outside one view, so its errors are mostly noise.
        self.weights = [3.0 if isinstance(known[0], str) else 1.0 for known in self.values.values()]

    def labels(self, cache: WorldsCache) -> Tensor:
        """Index of each scene's value of each attribute, -1 where it has none or an unknown one: "scene attribute"."""
        rows = [
            [
                known.index(row.get(name, 0)) if row["kind"] in self.kinds[name] and row.get(name, 0) in known else -1
                for name, known in self.values.items()
            ]
            for row in cache.attributes
        ]
        return torch.tensor(rows)


def pictures(cache: WorldsCache, scenes: Tensor, views: Tensor) -> Tensor:
    return torch.from_numpy(cache.images[scenes.numpy(), views.numpy()]).permute(0, 3, 1, 2).float() / 255


class Learner(nn.Module):
    """The net with batch normalisation after each convolution, and one linear head for all attributes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = Worlds64()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in self.net.convolutions)
        self.heads = nn.Linear(WORLDS64_FEATURES, classes)

    def embed(self, images: Tensor) -> Tensor:
        x = 2 * images - 1
        for convolution, norm in zip(self.net.convolutions, self.norms, strict=True):
            x = norm(convolution(x)).relu()
        return self.net.embed(x.mean((-1, -2)))

    def forward(self, images: Tensor) -> Tensor:
        return self.heads(self.embed(images))


def train(cache: WorldsCache, learner: Learner, attributes: Attributes, steps: int, checkpoint: Path) -> None:
    """Cross-entropy of all attributes on random views, mirrored half of the time; draws depend on the step alone."""
    optimizer = torch.optim.AdamW(learner.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    truth, weights = attributes.labels(cache), torch.tensor(attributes.weights)
    parts, start = {"learner": learner, "optimizer": optimizer, "schedule": schedule}, 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        start = saved.pop("step")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        scenes = torch.randint(len(cache), (BATCH,), generator=generator)
        images = pictures(cache, scenes, torch.randint(cache.views, (BATCH,), generator=generator))
        mirrored = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
        scores = learner(torch.where(mirrored, images.flip(-1), images)).split(attributes.sizes, -1)
        pairs = zip(scores, truth[scenes].T, strict=True)
        told = (truth[scenes] >= 0).any(0)
        losses = torch.stack(
            [F.cross_entropy(s, t, ignore_index=-1, reduction="sum") / (t >= 0).sum().clamp(1) for s, t in pairs]
        )
        loss = (losses * weights).sum() / (weights * told).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            draft = checkpoint.with_suffix(".draft")
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}, draft)
            draft.rename(checkpoint)
            print(f"step {step + 1} of {steps}: cross-entropy {loss.item():.3f}", flush=True)


@torch.no_grad()
def folded(learner: Learner, cache: WorldsCache, count: int = 8192) -> Worlds64:
    """The net without normalisation layers, each feature of mean 0 and variance 1 over random training views."""
    generator = torch.Generator().manual_seed(0)
    scenes, views = (torch.randint(n, (count,), generator=generator) for n in (len(cache), cache.views))
    batches = zip(scenes.split(BATCH), views.split(BATCH), strict=True)
    features = torch.cat([learner.embed(pictures(cache, s, v)) for s, v in batches])
    deviation, mean = torch.std_mean(features, 0)
    net = Worlds64()
    pairs = zip(learner.net.convolutions, learner.norms, strict=True)
    net.convolutions = nn.ModuleList(fuse_conv_bn_eval(c, norm) for c, norm in pairs)
    net.embed.weight.copy_(learner.net.embed.weight / deviation[:, None])
    net.embed.bias.copy_((learner.net.embed.bias - mean) / deviation)
    return net


@torch.no_grad()
def accuracies(cache: WorldsCache, learner: Learner, attributes: Attributes, majority: Tensor) -> dict[str, dict]:
    """Share of all views in which each attribute is told rightly, by the net and by the commonest training value."""
    truth = attributes.labels(cache)
    scenes = torch.arange(len(cache)).repeat_interleave(cache.views)
    views = torch.arange(cache.views).repeat(len(cache))
    batches = zip(scenes.split(BATCH), views.split(BATCH), strict=True)
    scores = torch.cat([learner(pictures(cache, s, v)) for s, v in batches]).split(attributes.sizes, -1)
    rows = {}
    for name, score, true, plain in zip(attributes.values, scores, truth[scenes].T, majority, strict=True):
        told = true >= 0
        right, usual = ((guess == true)[told].float().mean().item() for guess in (score.argmax(-1), plain))
        rows[name] = {"net": round(right, 3), "majority": round(usual, 3), "views": int(told.sum())}
    return rows


@torch.no_grad()
def behaviour(net: Worlds64, cache: WorldsCache, others: WorldsCache) -> dict[str, dict]:
    """`fd_worlds64` between all views of a cache and the same views changed, and between random halves of them."""
    scenes = torch.arange(len(cache)).repeat_interleave(cache.views)
    views = torch.arange(cache.views).repeat(len(cache))
    true, foreign = pictures(cache, scenes, views), pictures(others, scenes, views)
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(len(true), generator=torch.Generator().manual_seed(0))

    def look(images: Tensor) -> Tensor:
        return torch.cat([net(batch) for batch in images.split(BATCH)])

    def blurred(sigma: float) -> Tensor:
        return torch.from_numpy(gaussian_filter(true.numpy(), (0, 0, sigma, sigma)))

    seen, strange = look(true), look(foreign)
    counts = [n for n in (16, 32, 64, len(cache) - 1) if n < len(cache)]
    halves = {n: (seen[order[:n]], seen[order[n : 2 * n]]) for n in (len(true) // 2 >> k for k in range(3))}
    last = seen[-cache.views :].repeat(len(cache), 1)
    changed = {
        "blur, sigma in pixels": {s: look(blurred(s)) for s in (0.5, 1, 2, 3, 5)},
        "noise, sigma": {s: look((true + s * noise).clamp(0, 1)) for s in (0.02, 0.05, 0.1, 0.2, 0.4)},
        "scenes of the other cache": {n: seen.where(scenes[:, None] >= n, strange) for n in counts},
        "scenes replaced by the last": {n: seen.where(scenes[:, None] >= n, last) for n in counts},
    }
    table = {k: {n: frechet_distance(seen, x, minimum=2) for n, x in row.items()} for k, row in changed.items()}
    table["random halves of so many views"] = {n: frechet_distance(*pair, minimum=2) for n, pair in halves.items()}
    table["the same halves, kernel"] = {n: kernel_distance(*pair, minimum=2) for n, pair in halves.items()}
    return table


def main(train_folder: str, validation_folder: str, target: str, steps: str = "1200") -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cache, held_out, folder = WorldsCache(train_folder), WorldsCache(validation_folder), Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "worlds64.safetensors"
    if not file.exists():
        attributes, checkpoint = Attributes(cache), folder / "training.pt"
        learner = Learner(sum(attributes.sizes))
        train(cache, learner, attributes, int(steps), checkpoint)
        learner.eval()
        majority = torch.stack([column[column >= 0].mode().values for column in attributes.labels(cache).T])
        table = accuracies(held_out, learner, attributes, majority)
        (folder / "accuracy.json").write_text(json.dumps({"steps": int(steps), "batch": BATCH, "accuracy": table}))
        for name, row in table.items():
            print(f"{name:10} {row['net']:.3f}  majority {row['majority']:.3f}  {row['views']} views")
        save_file({name: t.half().contiguous() for name, t in folded(learner, cache).state_dict().items()}, file)
        file.chmod(0o644)
        checkpoint.unlink()
    net = Worlds64()
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    for name, row in behaviour(net, held_out, cache).items():
        print(f"{name}: " + ", ".join(f"{n}: {value:.3g}" for n, value in row.items()))
    print(f"{file}: {file.stat().st_size} bytes, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
