"""How far two sets of pictures lie apart as distributions of features: Fréchet and kernel distance, with intervals.

Everything is computed in float64 on the CPU. A distance depends on the feature net and on how many images there are, so
its key names the net (`fd_worlds64`) and its printed form the number; lower is better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diorama.models.perceptual import Unavailable, cache_folder, find_weights, load_worlds64

MINIMUM_IMAGES = 500
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_AT = "github.com/toshas/torch-fidelity/releases"
DINOV2 = "facebook/dinov2-large"  # ViT-L/14, the net of FD-DINOv2 (Stein et al. 2023)
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@runtime_checkable  # so that tests can check types
class Features(Protocol):
    """What turns RGB images in [0, 1] into features; distances over them are reported as `fd_NAME` and `kd_NAME`."""

    name: str

    def __call__(self, images: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image dim"]: ...


@dataclass
class NetFeatures:
    """Features of a frozen net that lives on a device; they come back on the CPU."""

    name: str
    net: Callable[[Tensor], Tensor]
    device: str | torch.device = "cpu"

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image dim"]:
        """One batch at once: the caller chooses how large."""
        return self.net(images.to(self.device)).float().cpu()


class Distance(NamedTuple):
    """A distance between two sets, its 95 % interval over scenes, and the sizes that it belongs to."""

    value: float
    low: float
    high: float
    images: int  # of the smaller set
    scenes: int  # that resampling drew from

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] ({self.images} images of {self.scenes} scenes)"


def frechet_distance(
    a: Float[Tensor, "image dim"], b: Float[Tensor, "other dim"], *, minimum: int = MINIMUM_IMAGES
) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017, section 4).

    tr (A B)^1/2 is the sum of the singular values of R S^T, where A = R^T R and B = S^T S come from QR: no matrix
    root and no epsilon on the diagonal, also with fewer images than dimensions. Raises ValueError for fewer than
    `minimum` images.
    """
    a, b = _checked(a, b, minimum)
    (mean_a, factor_a), (mean_b, factor_b) = (_gaussian(features) for features in (a, b))
    spread = factor_a.square().sum() + factor_b.square().sum() - 2 * torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + spread))


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and the triangular factor R of the covariance R^T R."""
    mean = features.mean(0)
    return mean, torch.linalg.qr((features - mean) / (len(features) - 1) ** 0.5, mode="r").R


def kernel_distance(
    a: Float[Tensor, "image dim"],
    b: Float[Tensor, "other dim"],
    *,
    block: int = 1000,
    seed: int = 0,
    minimum: int = MINIMUM_IMAGES,
) -> float:
    """Squared MMD under (x.y / dim + 1)^3, unbiased, so negative at times (KID, Bińkowski et al. 2018).

    The mean over disjoint random blocks of at most `block` images. Raises ValueError for fewer than `minimum` images.
    """
    a, b = _checked(a, b, minimum)
    generator, blocks = torch.Generator().manual_seed(seed), -(-max(len(a), len(b)) // block)
    if min(len(a), len(b)) < 2 * blocks:
        raise ValueError(f"kernel distance of {len(a)} and {len(b)} images in {blocks} blocks: each needs 2 of both")
    parts = [x[torch.randperm(len(x), generator=generator)].tensor_split(blocks) for x in (a, b)]
    return sum(_unbiased(x, y) for x, y in zip(*parts, strict=True)) / blocks


def _unbiased(x: Tensor, y: Tensor) -> float:
    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return (p @ q.T / p.shape[1] + 1) ** 3

    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return float(within[0] + within[1] - 2 * kernel(x, y).mean())


def bootstrap(
    distance: Callable[..., float],
    a: Float[Tensor, "image dim"],
    b: Float[Tensor, "other dim"],
    scenes: tuple[Int[Tensor, " image"], Int[Tensor, " other"]],
    *,
    samples: int = 200,
    seed: int = 0,
    minimum: int = MINIMUM_IMAGES,
) -> Distance:
    """A distance with its 95 % interval when scenes, never images, are drawn again; `scenes` says whose each image is.

    `distance` is one of the two here. Sets over the same scenes are drawn together. Drawing with repetition enlarges
    these distances by itself, so the quantiles are taken about the mean of the draws and laid around the value. Raises
    ValueError for fewer than 2 scenes.
    """
    value, generator = distance(a, b, minimum=minimum), torch.Generator().manual_seed(seed)
    rows = [{int(s): (of == s).nonzero()[:, 0] for s in of.unique()} for of in scenes]
    if min(map(len, rows)) < 2:
        raise ValueError("an interval over 1 scene: accepted are 2 or more")
    together = rows[0].keys() == rows[1].keys()

    def draw(known: dict[int, Tensor]) -> list[int]:
        names = list(known)
        return [names[i] for i in torch.randint(len(names), (len(names),), generator=generator)]

    drawn = []
    for _ in range(samples):
        first = draw(rows[0])
        second = first if together else draw(rows[1])
        picked = [torch.cat([known[s] for s in names]) for known, names in zip(rows, (first, second), strict=True)]
        drawn.append(distance(a[picked[0]], b[picked[1]], minimum=2))
    spread = torch.tensor(drawn, dtype=torch.float64)
    low, high = (value + (spread - spread.mean()).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))).tolist()
    return Distance(value, low, high, min(len(a), len(b)), min(map(len, rows)))


def _checked(a: Tensor, b: Tensor, minimum: int) -> tuple[Tensor, Tensor]:
    if min(len(a), len(b)) < max(minimum, 2):
        raise ValueError(
            f"distance between sets of {len(a)} and {len(b)} images: accepted are {max(minimum, 2)} or more of both "
            "(few images enlarge it; pass a smaller `minimum` to look all the same)"
        )
    for features in (a, b):
        if not features.isfinite().all():
            odd = int((~features.isfinite()).any(-1).sum())
            raise ValueError(f"features of {odd} of {len(features)} images are not finite: no distance")
    return a.cpu().double(), b.cpu().double()


def worlds64(device: str | torch.device = "cpu") -> NetFeatures:
    """The embedded net, trained on procedural worlds: for `fd_worlds64`, comparable only with itself."""
    return NetFeatures("worlds64", load_worlds64().to(device), device)


def inception(device: str | torch.device = "cpu") -> NetFeatures:
    """Inception-2015-12-05 of torch-fidelity, the reference of FID, on 8-bit images.

    Raises Unavailable unless the user has that package and its weights.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # type: ignore[import-not-found]
    except (ImportError, RuntimeError) as error:  # a torchvision of another build raises the second
        says = str(error).splitlines()[0]
        raise Unavailable(
            f"fd_inception: needs the package torch-fidelity, which does not import here ({says})"
        ) from None
    (file,) = find_weights("fd_inception", "inception", {INCEPTION_FILE: INCEPTION_AT}, endings=(".pth",))
    net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file)).to(device)
    return NetFeatures("inception", lambda images: net((images.clamp(0, 1) * 255).round().to(torch.uint8))[0], device)


def dinov2(device: str | torch.device = "cpu") -> NetFeatures:
    """Class token of DINOv2 ViT-L/14 at 224x224, from local files only.

    Looked in are the diorama cache's dinov2-large and the Hugging Face cache; raises Unavailable where neither has it.
    """
    from transformers import Dinov2Model

    folder = cache_folder("dinov2-large")
    try:
        net = Dinov2Model.from_pretrained(folder if folder.is_dir() else DINOV2, local_files_only=True)
    except OSError:
        raise Unavailable(
            f"fd_dinov2: found no {DINOV2} (published under that name at huggingface.co); "
            f"looked in {folder} and the Hugging Face cache"
        ) from None
    net = net.eval().requires_grad_(False).to(device)  # type: ignore[arg-type]
    mean, deviation = (torch.tensor(c, device=device)[:, None, None] for c in (IMAGENET_MEAN, IMAGENET_DEVIATION))

    def embed(images: Tensor) -> Tensor:
        small = F.interpolate(images, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return net((small - mean) / deviation).pooler_output

    return NetFeatures("dinov2", embed, device)
