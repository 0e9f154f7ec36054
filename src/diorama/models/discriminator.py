"""What tells true pictures from made ones: frozen nets that look, small heads that judge (3DRAE section 3.1, RAE)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from diorama.models.perceptual import find_weights, load_worlds64
from diorama.nn.blocks import Block
from diorama.nn.embeddings import IMAGE_MEAN, IMAGE_STD, PatchEmbed

# fmt: off
TRUNKS: dict[str, dict[str, Any]] = {  # keyword arguments of Trunk by name; the paper's is dinov2-s14, RAE's dino-s8
    "dinov2-s14": dict(patch=14, dim=384, layers=12, heads=6, taps=(2, 5, 8, 11), side=224, layer_scale=1.0,  gelu="none"),  # noqa: E501
    "dino-s8":    dict(patch=8,  dim=384, layers=12, heads=6, taps=(2, 5, 8, 11), side=224, layer_scale=None, gelu="tanh"),  # noqa: E501
    "dino-s16":   dict(patch=16, dim=384, layers=12, heads=6, taps=(2, 5, 8, 11), side=224, layer_scale=None, gelu="tanh"),  # noqa: E501
}
TRUNK_FILES = {  # name: the file of its weights, and where it is published
    "dinov2-s14": ("dinov2_vits14_pretrain.pth",     "dl.fbaipublicfiles.com/dinov2/dinov2_vits14"),
    "dino-s8":    ("dino_deitsmall8_pretrain.pth",   "dl.fbaipublicfiles.com/dino/dino_deitsmall8_pretrain"),
    "dino-s16":   ("dino_deitsmall16_pretrain.pth",  "dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain"),
}
# fmt: on
WORLDS64 = "worlds64"  # the trunk that needs no file
PUBLISHED = {  # parts of published names -> ours
    "cls_token": "class_token", "pos_embed": "position", "patch_embed.proj": "embed", ".norm1.": ".attention_norm.",
    ".attn.": ".attention.", ".norm2.": ".mlp_norm.", ".mlp.fc1.": ".mlp.0.", ".mlp.fc2.": ".mlp.2.",
    ".ls1.": ".attention_scale.", ".ls2.": ".mlp_scale.",
}  # fmt: skip
UNREAD = ("norm.weight", "norm.bias", "mask_token")  # features are taken before the final norm; nothing is masked

Features = list[Float[Tensor, "batch _dim _token"]]


class Trunk(nn.Module):
    """DINO's or DINOv2's ViT, asked for its patch tokens after some blocks; whoever reads them never changes it."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        *,
        patch: int,
        dim: int,
        layers: int,
        heads: int,
        taps: Sequence[int],
        side: int,
        layer_scale: float | None,
        gelu: str,
    ) -> None:
        super().__init__()
        self.side, self.taps = side, tuple(taps)
        self.channels = (dim,) * (1 + len(self.taps))
        self.embed = PatchEmbed(3, dim, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, 1 + (side // patch) ** 2, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, depth=depth, bias=True, qk_norm=False, eps=1e-6, layer_scale=layer_scale)
            for depth in range(layers)
        )
        for block in self.blocks:  # RAE's port of DINO approximates it, which its numbers show
            block.mlp[1] = nn.GELU(gelu)  # type: ignore[index]
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Features:
        """Tokens of RGB in [0, 1], resized to a square of `side`: after the last block, then after each tap."""
        images = F.interpolate(images.float(), (self.side, self.side), mode="bilinear")
        tokens = self.embed((images - self.image_mean) / self.image_std)
        x = torch.cat([self.class_token.expand(len(images), -1, -1), tokens], 1) + self.position
        outputs = []
        for block in self.blocks:
            x, _ = block(x)
            outputs.append(x)
        return [outputs[at][:, 1:].transpose(1, 2) for at in (-1, *self.taps)]


class Worlds64Trunk(nn.Module):
    """The maps inside the embedded feature net of procedural worlds: for small pictures, with nothing to download."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.net, self.taps = 64, load_worlds64(), (1, 3, 4)
        self.channels = tuple(self.net.convolutions[at].out_channels for at in (-1, *self.taps))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Features:
        """Rectified maps of RGB in [0, 1], resized to 64x64, as tokens: the last, then those of each tap."""
        x, outputs = 2 * F.interpolate(images.float(), (self.side, self.side), mode="bilinear") - 1, []
        for convolution in self.net.convolutions:
            x = convolution(x).relu()
            outputs.append(x.flatten(2))
        return [outputs[at] for at in (-1, *self.taps)]


class Residual(nn.Module):
    """x + f(x) at x's own variance."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Float[Tensor, "batch dim token"]) -> Float[Tensor, "batch dim token"]:
        return (x + self.fn(x)) * 0.5**0.5


class Discriminator(nn.Module):
    """A judge for each of a trunk's outputs: one logit per token, greater for true pictures (the heads of RAE)."""

    def __init__(self, channels: Sequence[int], kernel: int = 9) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(_layer(dim, 1), Residual(_layer(dim, kernel)), spectral_norm(nn.Conv1d(dim, 1, 1)))
            for dim in channels
        )

    def forward(self, features: Features) -> Float[Tensor, "batch logit"]:
        """All logits of all heads; in full precision, where spectral norms stay what they are."""
        with torch.autocast(features[0].device.type, enabled=False):
            pairs = zip(self.heads, features, strict=True)
            return torch.cat([head(tokens.float()).squeeze(1) for head, tokens in pairs], 1)


def _layer(dim: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, padding_mode="circular")
    # RAE's batch norm within each sample alone: what else is judged with it does not matter.
    norm = nn.InstanceNorm1d(dim, eps=1e-6, affine=True)
    return nn.Sequential(spectral_norm(convolution), norm, nn.LeakyReLU(0.2))


def load_trunk(name: str) -> Trunk | Worlds64Trunk:
    """A frozen trunk by name: with the published weights that the user has, nothing is fetched; or `worlds64`.

    Raises Unavailable where the weights are absent, ValueError for other names and for files that do not fit.
    """
    if name == WORLDS64:
        return Worlds64Trunk()
    if name not in TRUNKS:
        raise ValueError(f"discriminator {name!r}: accepted are {', '.join((*TRUNKS, WORLDS64))}")
    published, at = TRUNK_FILES[name]
    (file,) = find_weights(f"adversarial loss with {name}", "dino", {published: at})
    trunk = Trunk(**TRUNKS[name])
    expected = trunk.state_dict()
    state = {_ours(key): tensor for key, tensor in _read(file).items() if key not in UNREAD}
    if "position" in state and state["position"].shape != expected["position"].shape:
        state["position"] = _resized(state["position"], trunk.side // trunk.embed.kernel_size[0], file)
    shapes, found = ({key: tuple(t.shape) for key, t in s.items()} for s in (expected, state))
    if wrong := [key for key in {**shapes, **found} if shapes.get(key) != found.get(key)]:
        key = wrong[0]
        says = f"first {key!r}, found {found.get(key, 'none')}, accepted is {shapes.get(key, 'none')}"
        raise ValueError(f"{file}: {len(wrong)} weights do not fit {name}, {says}")
    trunk.load_state_dict(state)
    return trunk.eval().requires_grad_(False)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # unpickling says anything of a broken file
        raise ValueError(f"{file}: not readable weights ({(str(error) or 'empty').splitlines()[0]})") from None


def _ours(name: str) -> str:
    for part, ours in PUBLISHED.items():
        name = name.replace(part, ours)
    return name


def _resized(position: Tensor, grid: int, file: Path) -> Tensor:
    """A square table of positions on another grid, once: a trunk looks at one size only."""
    side = round((position.shape[1] - 1) ** 0.5) if position.ndim == 3 else 0
    if not side or side**2 != position.shape[1] - 1:
        raise ValueError(f"{file}: weight 'pos_embed' of shape {tuple(position.shape)}, expected a class and a square")
    table = position[:, 1:].mT.unflatten(-1, (side, side))
    table = F.interpolate(table, (grid, grid), mode="bicubic", antialias=True)
    return torch.cat([position[:, :1], table.flatten(2).mT], 1)
