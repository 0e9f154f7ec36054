"""How far a predicted surface lies from the true one: Gen3R's accuracy, completeness and Chamfer distance.

Distances are Euclidean, never squared, in scene units of the truth: metres for some datasets, arbitrary for others, so
that only the percentage compares across scenes. Everything runs in double precision on the CPU.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree
from torch import Tensor

from diorama.geometry.alignment import Scale, umeyama
from diorama.geometry.points import voxel_downsample

VOXEL = 0.005  # scene units of the truth
SAMPLES = 20_000  # points of each cloud that are compared
CROWD = 200_000  # points that farthest point sampling looks at: with 20,000 samples about 10 s on one core


class CloudErrors(NamedTuple):
    """Distances between two clouds; lower is better in all."""

    accuracy: float  # mean distance from a predicted point to the nearest true one, scene units of the truth
    completeness: float  # mean distance from a true point to the nearest predicted one, scene units of the truth
    chamfer: float  # mean of the two, scene units of the truth
    chamfer_percent: float  # chamfer in percent of the diagonal of the true points' bounding box


def cloud_errors(
    predicted: Float[Tensor, "*any 3"],
    true: Float[Tensor, "*any 3"],
    mask: Bool[Tensor, "*any"],
    *,
    given: Bool[Tensor, "*any"] | None = None,
    scale: Scale = "variance_ratio",
    voxel: float | None = VOXEL,
    samples: int | None = SAMPLES,
    seed: int = 0,
) -> CloudErrors:
    """Gen3R's geometry metric of world points, pixel by pixel of the same views: align, thin out, compare.

    `mask` says where the truth is valid, `given` where there is a prediction (default: everywhere): the alignment and
    accuracy use pixels of both, completeness asks for all of the truth. The default scale is the official one,
    sqrt(var true / var predicted); least squares (Umeyama) gives a smaller cloud under noise, hence other numbers.
    None for `voxel` or `samples` skips that step. Raises ValueError where nothing is left to align or not finite.
    """
    both = mask if given is None else mask & given
    if not both.any():
        raise ValueError("points to compare: no pixel has both a true and a predicted one")
    source, target, whole = (points.cpu().double() for points in (predicted[both], true[both], true[mask]))
    if not whole.isfinite().all():
        raise ValueError("true points hold NaN or infinity: give finite ones only, or mask the others")
    source = umeyama(source, target, scale=scale).apply(source)
    diagonal = float((whole.amax(0) - whole.amin(0)).norm())
    found, wanted = (_thinned(points, voxel, samples, seed) for points in (source, whole))
    near, far = accuracy(found, wanted), completeness(found, wanted)
    middle = (near + far) / 2
    return CloudErrors(near, far, middle, 100 * middle / diagonal if diagonal > 0 else float("nan"))


def accuracy(predicted: Float[Tensor, "found 3"], true: Float[Tensor, "wanted 3"]) -> float:
    """Mean distance from each predicted point to the nearest true one, in their unit; lower is better."""
    return float(nearest_distance(predicted, true).mean())


def completeness(predicted: Float[Tensor, "found 3"], true: Float[Tensor, "wanted 3"]) -> float:
    """Mean distance from each true point to the nearest predicted one, in their unit; lower is better."""
    return float(nearest_distance(true, predicted).mean())


def chamfer(predicted: Float[Tensor, "found 3"], true: Float[Tensor, "wanted 3"]) -> float:
    """Mean of accuracy and completeness, of distances that are not squared; lower is better."""
    return (accuracy(predicted, true) + completeness(predicted, true)) / 2


def nearest_distance(source: Float[Tensor, "point 3"], target: Float[Tensor, "other 3"]) -> Float[Tensor, " point"]:
    """Distance from each source point to the nearest target point; ValueError for an empty cloud."""
    if not (len(source) and len(target)):
        raise ValueError(f"clouds of {len(source)} and {len(target)} points: both need at least 1")
    distances, _ = KDTree(target.detach().cpu().double().numpy()).query(source.detach().cpu().double().numpy())
    return torch.from_numpy(distances)


def farthest_points(
    points: Float[Tensor, "point 3"], samples: int, *, seed: int = 0, crowd: int = CROWD
) -> Float[Tensor, "sample 3"]:
    """Points chosen one by one, each the farthest from all before it; the first one is drawn by `seed`.

    The time is samples x points: a cloud larger than `crowd` is first thinned to that many by a draw. A cloud that has
    no more points than asked for comes back whole.
    """
    if len(points) <= samples:
        return points
    generator = torch.Generator().manual_seed(seed)
    if len(points) > max(crowd, samples):
        points = points[torch.randperm(len(points), generator=generator)[: max(crowd, samples)].to(points.device)]
    # One contiguous row per axis and buffers written in place: the loop is bound by memory.
    axes = (points - points.mean(0)).float().T.contiguous()
    nearest, gap, square = torch.full_like(axes[0], torch.inf), torch.empty_like(axes[0]), torch.empty_like(axes[0])
    chosen = torch.empty(samples, dtype=torch.long, device=points.device)
    place = torch.randint(len(points), (), generator=generator).to(points.device)
    for number in range(samples):
        chosen[number] = place
        gap.zero_()
        for axis in axes:
            torch.sub(axis, axis[place], out=square)
            gap.addcmul_(square, square)
        torch.minimum(nearest, gap, out=nearest)
        place = nearest.argmax()
    return points[chosen]


def _thinned(
    points: Float[Tensor, "point 3"], voxel: float | None, samples: int | None, seed: int
) -> Float[Tensor, "fewer 3"]:
    """Means of occupied voxels (of a grid through the origin), then farthest points among them."""
    if voxel is not None:
        points, _ = voxel_downsample(points, points.new_empty(len(points), 0), voxel)
    return points if samples is None else farthest_points(points, samples, seed=seed)
