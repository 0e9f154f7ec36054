"""What `benchmarks/quality.py` measures: RAE3D and DiT3D beside the simple baselines on rendered scenes."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.data.cache import WorldsCache
from diorama.evaluation.baselines import (
    best_blur,
    blurred,
    copy_nearest,
    depth_warp,
    mean_of_known,
    plane_warp,
    seen_in,
)
from diorama.evaluation.metrics import (
    constant_depth_abs_rel,
    depth_abs_rel,
    gradient_correlation,
    gradient_energy,
    paired_bootstrap,
    psnr,
    ssim,
)
from diorama.evaluation.protocols import known_places
from diorama.geometry.cameras import Cameras
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition, Scene, Views

COUNTS = (4, 2, 1)  # how many views of a scene are known
WARPS: dict[str, Callable[[Views, Cameras], Tensor]] = {"nearest": copy_nearest, "plane warp": plane_warp}
BOUND, MODEL, GENERATOR = "depth warp (bound)", "RAE3D", "DiT3D"
LATENTS = "RAE3D, latents alone"  # without the memory of the known views, where a pipeline has one
METRICS = ("psnr", "ssim", "gradient_correlation")  # higher is better in all
Scores = dict[str, Tensor]  # metric -> one number a scene


def batches(data: WorldsCache, places: Sequence[int], scenes: int, size: int) -> Iterator[tuple[range, Views]]:
    """Views `places` of the first `scenes` scenes, `size` scenes at a time, with the scenes' rows."""
    for start in range(0, scenes, size):
        rows = range(start, min(start + size, scenes))
        yield rows, data.batch(torch.tensor(rows), torch.tensor(places).expand(len(rows), -1))


def images_of(scenes: Sequence[Scene]) -> Float[Tensor, "scene view 3 height width"]:
    """Images of finished scenes of one shape."""
    return torch.stack([scene.views.images for scene in scenes])


def picture_scores(
    predicted: Float[Tensor, "scene view 3 height width"], true: Float[Tensor, "scene view 3 height width"]
) -> Scores:
    """Mean over the views of each scene, of every number that compares pictures."""
    values = {
        "psnr": psnr(predicted, true),
        "ssim": ssim(predicted, true),
        "gradient_correlation": gradient_correlation(predicted, true),
        "gradient_energy": gradient_energy(predicted),
    }
    return {name: value.mean(1) for name, value in values.items()}


def baseline_pictures(known: Views, cameras: Cameras, blur: dict[str, float]) -> dict[str, Tensor]:
    """Pictures of the simple baselines by name; `blur` holds the sigma in pixels for each warp."""
    pictures = {"mean of known": mean_of_known(known, cameras)}
    for name, warp in WARPS.items():
        pictures[name] = warp(known, cameras)
        pictures[f"{name}, blurred"] = blurred(pictures[name], blur[name])
    return pictures


def tuned_blur(data: WorldsCache, batch: int) -> dict[str, dict[str, float]]:
    """The blur in pixels that suits each warp best, for each number of known views: {count: {warp: sigma}}."""
    result: dict[str, dict[str, float]] = {}
    for count in COUNTS:
        places = known_places(count, data.views)
        order = [*places, *(view for view in range(data.views) if view not in places)]
        made, true = defaultdict(list), []
        for _, views in batches(data, order, len(data), batch):
            known, target = views[:count], views[count:]
            true.append(target.images)
            for name, warp in WARPS.items():
                made[name].append(warp(known, target.cameras))  # type: ignore[arg-type]
        result[str(count)] = {name: best_blur(torch.cat(parts), torch.cat(true)) for name, parts in made.items()}
    return result


def depth_scores(predicted: Views, target: Views) -> Scores:
    """AbsRel of predicted depth, as it is and with medians aligned, and of the best constant, over views with depth."""
    depth, true, mask = predicted.depth, target.depth, target.mask
    values = {
        "abs_rel": depth_abs_rel(depth, true, mask),  # type: ignore[arg-type]
        "abs_rel_median_aligned": depth_abs_rel(depth, true, mask, alignment="median"),  # type: ignore[arg-type]
        "best_constant": constant_depth_abs_rel(true, mask),  # type: ignore[arg-type]
    }
    return {name: value.nanmean(1) for name, value in values.items()}


def reconstruction(
    pipeline: TokenPipeline, data: WorldsCache, count: int, blur: dict[str, float], batch: int
) -> dict[str, Scores]:
    """Scores of every method on the views that `count` known ones leave unseen, one number a scene."""
    places = known_places(count, data.views)
    order = [*places, *(view for view in range(data.views) if view not in places)]
    found: dict[str, list[Scores]] = defaultdict(list)
    for _, views in batches(data, order, len(data), batch):
        known, target = views[:count], views[count:]
        scenes = pipeline.reconstruct(known.apart(), target.cameras.apart())  # type: ignore[union-attr]
        pictures = baseline_pictures(known, target.cameras, blur)  # type: ignore[arg-type]
        pictures |= {BOUND: depth_warp(known, target), MODEL: images_of(scenes)}
        if pipeline.memory is not None:
            forgotten = pipeline.forgetful().reconstruct(known.apart(), target.cameras.apart())  # type: ignore[union-attr]
            pictures[LATENTS] = images_of(forgotten)
        for name, images in pictures.items():
            found[name].append(picture_scores(images, target.images))
        found["truth"].append({"gradient_energy": gradient_energy(target.images).mean(1)})
        if scenes[0].views.points is not None:
            points = torch.stack([scene.views.points for scene in scenes])  # type: ignore[misc]
            found["depth"].append(depth_scores(Views(target.images, target.cameras, points), target))
    return {name: joined(parts) for name, parts in found.items()}


def capped(predicted: Tensor, true: Tensor) -> Tensor:
    """PSNR up to that of rounding to 8 bits, beyond which pictures are saved as the same."""
    return psnr(predicted, true).clamp(max=10 * math.log10(12 * 255**2))


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of several batches as one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def summary(scores: dict[str, Scores]) -> dict[str, Any]:
    """Means over scenes, and RAE3D against whichever baseline is best at each number.

    Once among all but the bound, and once among those that only copy: the plane warps are told a true median depth.
    """
    truth = scores["truth"]["gradient_energy"].mean()
    methods = {name: part for name, part in scores.items() if name not in ("truth", "depth")}
    means = {
        name: {metric: mean(part[metric]) for metric in METRICS}
        | {"gradient_energy_share": mean(part["gradient_energy"] / truth)}
        for name, part in methods.items()
    }
    simple = [name for name in methods if name not in (MODEL, LATENTS, BOUND)]
    copies = [name for name in simple if "warp" not in name]
    result: dict[str, Any] = {
        "pictures": means,
        "rae3d_minus_best_baseline": {metric: _against_best(methods, simple, metric) for metric in METRICS},
        "rae3d_minus_best_copy": {metric: _against_best(methods, copies, metric) for metric in METRICS},
    }
    if "depth" in scores:
        depth = scores["depth"]
        result["depth"] = {name: mean(part) for name, part in depth.items()} | {
            "scenes_without_depth": int(depth["best_constant"].isnan().sum()),
            "rae3d_minus_constant": difference(depth["abs_rel"], depth["best_constant"]),
        }
    return result


def _against_best(methods: dict[str, Scores], names: Sequence[str], metric: str) -> dict[str, Any]:
    best = max(names, key=lambda name: float(methods[name][metric].mean()))
    return {"baseline": best} | difference(methods[MODEL][metric], methods[best][metric])


@torch.no_grad()
def generation(
    pipeline: TokenPipeline, data: WorldsCache, scenes: int, *, seeds: int, steps: int | None = None, batch: int = 16
) -> Scores:
    """DiT3D beside RAE3D from the first view alone, one number a scene; `scenes` of them with `seeds` (>= 2) each."""
    sample = partial(sampled, pipeline, seeds=seeds, steps=steps, batch=batch)
    found = []
    for rows, views in batches(data, range(data.views), scenes, batch):
        known, unseen, single = views[:1], views[1:], views.apart()
        paths: list[Cameras] = [scene.cameras for scene in single]  # type: ignore[misc]
        made = sample([Condition(scene[0], (0,)) for scene in single], paths, rows)
        free = sample([Condition()] * len(single), paths, rows)
        regressed = images_of(pipeline.reconstruct([scene[0] for scene in single], paths))
        most = known_places(COUNTS[0], data.views)
        ceiling = images_of(pipeline.reconstruct([scene[most] for scene in single], paths))
        seen, spread = seen_in(known, unseen), made[:, :, 1:].std(1).mean(2)
        true = views.images
        found.append(
            {
                "generated_psnr": psnr(made[:, :, 1:], true[:, None, 1:].expand_as(made[:, :, 1:])).mean((1, 2)),
                "regressed_psnr": psnr(regressed[:, 1:], true[:, 1:]).mean(1),
                "generated_known_psnr": capped(made[:, :, 0], true[:, None, 0].expand_as(made[:, :, 0])).mean(1),
                "regressed_known_psnr": capped(regressed[:, 0], true[:, 0]),
                "generated_energy": gradient_energy(made[:, :, 1:]).mean((1, 2)),
                "regressed_energy": gradient_energy(regressed[:, 1:]).mean(1),
                "ceiling_energy": gradient_energy(ceiling[:, 1:]).mean(1),
                "true_energy": gradient_energy(true[:, 1:]).mean(1),
                "free_energy": gradient_energy(free).mean((1, 2)),
                "all_true_energy": gradient_energy(true).mean(1),
                "spread_seen": masked_mean(spread, seen),
                "spread_unseen": masked_mean(spread, ~seen),
                "spread_free": free.std(1).mean((1, 2, 3, 4)),
                "unseen_share": (~seen).float().mean((1, 2, 3)),
            }
        )
    return joined(found)


def sampled(
    pipeline: TokenPipeline,
    conditions: Sequence[Condition],
    paths: Sequence[Cameras],
    rows: Sequence[int],
    *,
    seeds: int,
    steps: int | None,
    batch: int,
) -> Float[Tensor, "scene seed view 3 height width"]:
    """Generated images; the seeds of a scene depend on its row alone, so that models compare on the same noise."""
    requests = [(scene, row * seeds + number) for scene, row in enumerate(rows) for number in range(seeds)]
    made = []
    for start in range(0, len(requests), batch):
        part = requests[start : start + batch]
        scenes = pipeline.generate(
            [conditions[scene] for scene, _ in part],
            [paths[scene] for scene, _ in part],
            seed=[seed for _, seed in part],
            steps=steps,
        )
        made.append(images_of(scenes))  # type: ignore[arg-type]
    return torch.cat(made).unflatten(0, (len(rows), seeds))


def masked_mean(
    values: Float[Tensor, "scene view height width"], mask: Bool[Tensor, "scene view height width"]
) -> Float[Tensor, " scene"]:
    """Mean of each scene over the pixels of `mask`; NaN where there is none."""
    return torch.where(mask, values, 0.0).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def generation_summary(scores: Scores) -> dict[str, Any]:
    """Means over scenes and paired differences of what `generation` found."""
    truth = scores["true_energy"].mean()
    energy = {name: scores[f"{name}_energy"] / truth for name in ("generated", "regressed", "ceiling")}
    return {
        "psnr": {
            GENERATOR: mean(scores["generated_psnr"]),
            MODEL: mean(scores["regressed_psnr"]),
            "difference": difference(scores["generated_psnr"], scores["regressed_psnr"]),
        },
        "psnr_of_the_known_view": {
            GENERATOR: mean(scores["generated_known_psnr"]),
            MODEL: mean(scores["regressed_known_psnr"]),
            "difference": difference(scores["generated_known_psnr"], scores["regressed_known_psnr"]),
        },
        "gradient_energy_share": {
            GENERATOR: mean(energy["generated"]),
            MODEL: mean(energy["regressed"]),
            f"{MODEL}, {COUNTS[0]} views known": mean(energy["ceiling"]),
            "difference": difference(energy["generated"], energy["regressed"]),
            f"{GENERATOR}, nothing known": mean(scores["free_energy"] / scores["all_true_energy"].mean()),
        },
        "spread_over_seeds": {
            "where nothing was seen": mean(scores["spread_unseen"]),
            "where something was seen": mean(scores["spread_seen"]),
            "difference": difference(scores["spread_unseen"], scores["spread_seen"]),
            "nothing known": mean(scores["spread_free"]),
            "share of pixels where nothing was seen": mean(scores["unseen_share"]),
        },
    }


def mean(values: Float[Tensor, " scene"]) -> float | None:
    """Mean over the scenes that have a value, in the four decimals that a report needs; None if there is none."""
    average = float(values.double().nanmean())
    return None if math.isnan(average) else round(average, 4)


def difference(a: Float[Tensor, " scene"], b: Float[Tensor, " scene"]) -> dict[str, Any]:
    """Mean of a - b over the scenes that have both, with its 95 % interval; None where no scene has."""
    both = ~(a.isnan() | b.isnan())
    if not both.any():
        return {"mean": None, "low": None, "high": None, "scenes": 0}
    interval = paired_bootstrap(a[both], b[both])
    return {name: round(value, 4) for name, value in interval._asdict().items()} | {"scenes": int(both.sum())}
