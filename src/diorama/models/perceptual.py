"""Frozen nets that look at pictures for measuring: LPIPS on published weights, and the feature net of `fd_worlds64`."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load as read_bytes
from safetensors.torch import load_file
from torch import Tensor, nn

SMALLEST = 32  # pixels a side that every net here can still look at
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation in [-1, 1]
TRUNKS_AT, HEADS_AT = "download.pytorch.org/models", "github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1"
LPIPS_FILES = {  # the trunk as torchvision publishes it, the heads as the lpips package ships them
    "vgg": {"vgg16-397923af.pth": TRUNKS_AT, "vgg.pth": HEADS_AT},
    "alex": {"alexnet-owt-7be5be79.pth": TRUNKS_AT, "alex.pth": HEADS_AT},
}
LPIPS_TAPS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}  # layers whose rectified outputs are compared
WORLDS64_WIDTHS, WORLDS64_STRIDES, WORLDS64_FEATURES = (3, 16, 32, 64, 64, 96, 128), (2, 2, 2, 1, 2, 1), 64
WORLDS64_SHA256 = "2ed5f0db7a3adf32baa63d6b864d0057ef95760357d19d26a9d885fbeaed1cfa"

Model = TypeVar("Model", bound=nn.Module)


class Unavailable(ValueError):
    """Weights or a library that the user does not have; the message says in one line what is looked for and where."""


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018, version 0.1) over VGG16 or AlexNet; 0 is alike, lower is better.

    Weight names are those of torchvision (`features.0.weight`) and of the lpips package (`lin0.model.1.weight`).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        if net not in LPIPS_FILES:
            raise ValueError(f"LPIPS net {net!r}: accepted are {', '.join(LPIPS_FILES)}")
        self.name, self.taps = f"lpips_{net}", LPIPS_TAPS[net]
        self.features = _vgg16() if net == "vgg" else _alexnet()
        widths = [layer.out_channels for layer in self.features if isinstance(layer, nn.Conv2d)]
        rectified = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.ReLU)]
        for number, tap in enumerate(self.taps):
            head = nn.Conv2d(widths[rectified.index(tap)], 1, 1, bias=False)
            self.add_module(f"lin{number}", nn.ModuleDict({"model": nn.Sequential(nn.Identity(), head)}))
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE)[:, None, None], persistent=False)

    def forward(
        self, a: Float[Tensor, "image 3 height width"], b: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, " image"]:
        """Distance of each pair of RGB images in [0, 1]; raises ValueError for images under 32 pixels a side."""
        _check_size(a)
        x, y = ((2 * images - 1 - self.shift) / self.scale for images in (a, b))
        total = a.new_zeros(len(a))
        for index, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if index in self.taps:
                head = self.get_submodule(f"lin{self.taps.index(index)}.model")
                difference = F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)
                total = total + head(difference.square()).mean((-1, -2, -3))
        return total


def _vgg16() -> nn.Sequential:
    """The layers of torchvision's VGG16 `features` up to its last rectifier."""
    layers, before = [], 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1])


def _alexnet() -> nn.Sequential:
    """The layers of torchvision's AlexNet `features` up to its last rectifier."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


class Worlds64(nn.Module):
    """64 features of an image, standardised over procedural worlds: six convolutions, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        pairs = zip(pairwise(WORLDS64_WIDTHS), WORLDS64_STRIDES, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, stride, 1) for (i, o), stride in pairs)
        self.embed = nn.Linear(WORLDS64_WIDTHS[-1], WORLDS64_FEATURES)

    def forward(self, images: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image 64"]:
        """Features of RGB in [0, 1] of any size from 32x32, resized with antialiasing to 64x64 whatever its aspect.

        Raises ValueError for smaller images.
        """
        _check_size(images)
        if images.shape[-2:] != (64, 64):
            images = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
        x = 2 * images - 1
        for convolution in self.convolutions:
            x = convolution(x).relu()
        return self.embed(x.mean((-1, -2)))


def load_lpips(net: str = "vgg") -> LPIPS:
    """LPIPS with the published weights that the user has (torchmetrics ships the heads too); nothing is fetched.

    Raises Unavailable where they are absent, and ValueError where they cannot be read or do not fit.
    """
    model = LPIPS(net)
    metrics = find_spec("torchmetrics")
    heads_too = (
        [Path(p) / "functional/image/lpips_models" for p in metrics.submodule_search_locations or ()] if metrics else []
    )
    trunk, heads = find_weights(model.name, "lpips", LPIPS_FILES[net], also=heads_too)
    state = {name: tensor for name, tensor in _read(trunk).items() if not name.startswith("classifier.")}
    return _filled(model, state | _read(heads), f"{trunk} and {heads}")


def load_worlds64() -> Worlds64:
    """The embedded feature net; raises ValueError where its file is not the one that published numbers came from."""
    file = Path(str(resources("diorama") / "weights" / "worlds64" / "worlds64.safetensors"))
    data = file.read_bytes() if file.is_file() else b""
    found = hashlib.sha256(data).hexdigest()
    if found != WORLDS64_SHA256:
        says = f"found SHA-256 {found[:16]}.." if data else "found nothing"
        raise ValueError(f"{file}: {says}, accepted is {WORLDS64_SHA256[:16]}..; install diorama anew")
    state = {name: tensor.float() for name, tensor in read_bytes(data).items()}
    return _filled(Worlds64(), state, str(file))


def cache_folder(name: str) -> Path:
    """The user's folder of published weights: DIORAMA_CACHE, else ~/.cache/diorama, and the name."""
    return Path(os.environ.get("DIORAMA_CACHE") or "~/.cache/diorama").expanduser() / name


def find_weights(
    metric: str,
    folder: str,
    wanted: Mapping[str, str],
    *,
    endings: Sequence[str] = (".pth", ".safetensors"),
    also: Sequence[Path] = (),
) -> list[Path]:
    """Files of the wanted names, with one of the endings, in the user's cache folder or torch hub's checkpoints.

    `wanted` says where each is published, `also` where else to look. Raises Unavailable.
    """
    folders = [cache_folder(folder), Path(torch.hub.get_dir()) / "checkpoints", *also]
    found = {
        name: [
            file for place in folders for ending in endings if (file := (place / name).with_suffix(ending)).is_file()
        ]
        for name in wanted
    }
    missing = [f"{name} (published at {at})" for name, at in wanted.items() if not found[name]]
    if missing:
        places, kinds = " or ".join(map(str, folders)), " or ".join(endings)
        raise Unavailable(f"{metric}: found no {', no '.join(missing)}; looked in {places}, endings {kinds}")
    return [files[0] for files in found.values()]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # unpickling says anything of a broken file
        raise ValueError(f"{file}: not readable weights ({(str(error) or 'empty').splitlines()[0]})") from None


def _filled(model: Model, state: Mapping[str, Tensor], source: str) -> Model:
    """The model with exactly these weights, frozen; ValueError for missing, unknown or misshapen ones."""
    shapes, found = ({n: tuple(t.shape) for n, t in s.items()} for s in (model.state_dict(), state))
    wrong = [name for name in {**shapes, **found} if shapes.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        says = f"first {name!r}, found {found.get(name, 'none')}, accepted is {shapes.get(name, 'none')}"
        raise ValueError(f"{source}: {len(wrong)} weights do not fit, {says}")
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def _check_size(images: Tensor) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"images of {height}x{width}: accepted are {SMALLEST} pixels a side or more")
