"""Frozen 2D encoders that RAE3D may look through: DINOv2, SigLIP2 and DA3 on published weights (3DRAE, A.1).

One interface: RGB in [0, 1] and a grid in, one token for each of its places out. Weights are read from a folder or
from the user's caches and never fetched; the class token and registers are dropped, the final norm is kept.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Float
from torch import Tensor, nn

from diorama.models.perceptual import Unavailable, cache_folder
from diorama.models.published import read_config, read_weights
from diorama.models.published_names import KINDS
from diorama.nn.blocks import Block
from diorama.nn.embeddings import IMAGE_MEAN, IMAGE_STD, PatchEmbed
from diorama.nn.rope import Rotation, grid_rotation

PATCHES = "patches"  # no frozen encoder: RAE3D's own patch embedding, the paper's "ImgOnly"
SIZES_KEPT = 64  # of position tables; one of a paper-sized image takes about 1 MB


class Source(NamedTuple):
    """Where an encoder's weights are published, and which tensors beside them nothing here reads."""

    repository: str  # of huggingface.co
    licence: str
    ignored: tuple[str, ...] = ()  # beginnings of published names


ENCODERS = {
    "dinov2": Source("facebook/dinov2-with-registers-base", "Apache-2.0"),  # RAE's choice; one without registers fits
    "siglip2": Source(
        "google/siglip2-base-patch16-256",
        "Apache-2.0",
        ("text_model.", "logit_scale", "logit_bias", "vision_model.head.", "head."),
    ),
    "da3": Source(
        "depth-anything/DA3-BASE", "Apache-2.0", ("head.", "cam_enc.", "cam_dec.", "gs_head.", "gs_adapter.")
    ),
}
DA3_BACKBONE = "backbone.pretrained."


class PositionCache:
    """A position table resized once for every size; the latest sizes are kept."""

    def __init__(self, resized: Callable[[Tensor, int, int], Tensor]) -> None:
        self.resized = resized
        self.known: dict[tuple[int, int], Tensor] = {}

    def __call__(self, tokens: Tensor, height: int, width: int) -> Float[Tensor, "1 token dim"]:
        """The table for images of that size, which gave these tokens."""
        size = height, width
        if size not in self.known:
            if len(self.known) == SIZES_KEPT:
                self.known.pop(next(iter(self.known)))
            self.known[size] = self.resized(tokens, height, width)
        return self.known[size]


class FrozenEncoder(nn.Module, ABC):
    """Patch tokens of a vision transformer that is never trained: no gradients, always in evaluation mode.

    With `layers` > 1 they are the sum of so many last layers, each through the final norm (RAEv2, arXiv 2605.18324):
    early ones know the colours and edges that the last one has forgotten.
    """

    mean: Tensor
    std: Tensor
    positions: PositionCache

    def __init__(self, *, patch: int, dim: int, depth: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.patch, self.dim, self.depth, self.layers = patch, dim, depth, 1
        self.folder, self.digest = Path(), ""
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stays in evaluation mode, whatever it is a part of."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenEncoder":
        self.positions.known.clear()  # tables of another device or type
        return super()._apply(fn, recurse)

    @abstractmethod
    def hidden(
        self, images: Float[Tensor, "batch 3 height width"], count: int
    ) -> list[Float[Tensor, "batch token dim"]]:
        """Patch tokens of the last `count` layers, through the final norm, of normalised images."""

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch token dim"]:
        """A token for each place of the grid, row by row, of RGB images in [0, 1].

        Images are resized to the grid times this encoder's patch, so all encoders give equally many tokens (A.1).
        """
        if not len(images):  # which the library's reshapes cannot do
            return self.mean.new_zeros(0, grid[0] * grid[1], self.dim)
        size = grid[0] * self.patch, grid[1] * self.patch
        if size != tuple(images.shape[-2:]):
            smaller = size[0] < images.shape[-2] or size[1] < images.shape[-1]
            images = F.interpolate(images, size, mode="bicubic", antialias=smaller)
        return torch.stack(self.hidden((images - self.mean) / self.std, self.layers)).sum(0)


class Library(FrozenEncoder):
    """A vision model of transformers: DINOv2 with or without registers, or SigLIP."""

    def __init__(self, model: nn.Module, **told: Any) -> None:
        config: Any = model.config
        sizes = {"patch": config.patch_size, "dim": config.hidden_size, "depth": config.num_hidden_layers}
        super().__init__(**sizes, **told)
        self.model: Any = model
        self.siglip = hasattr(model, "post_layernorm")
        self.special = 0 if self.siglip else 1 + getattr(config, "num_register_tokens", 0)
        self.positions = PositionCache(self.model.embeddings.interpolate_pos_encoding)
        self.model.embeddings.interpolate_pos_encoding = self.positions

    def hidden(
        self, images: Float[Tensor, "batch 3 height width"], count: int
    ) -> list[Float[Tensor, "batch token dim"]]:
        options = {"interpolate_pos_encoding": True} if self.siglip else {}
        told = self.model(images, output_hidden_states=count > 1, **options)
        if count == 1:
            return [told.last_hidden_state[:, self.special :]]
        norm = self.model.post_layernorm if self.siglip else self.model.layernorm
        return [norm(x)[:, self.special :] for x in told.hidden_states[-count:]]


class DA3(FrozenEncoder):
    """Depth Anything 3's backbone (arXiv 2511.10647) on each view by itself, as the paper writes f_enc(I_i).

    It is a DINOv2 whose blocks from `mixing` on turn normalised queries and keys by place. Of these the odd ones are
    made for all views at once: in them all patches of a view stand at one place.
    """

    def __init__(self, dim: int, layers: int, heads: int, *, patch: int, grid: int, mixing: int) -> None:
        super().__init__(patch=patch, dim=dim, depth=layers, mean=IMAGE_MEAN, std=IMAGE_STD)
        self.heads, self.mixing = heads, mixing
        self.embed = PatchEmbed(3, dim, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.camera_token = nn.Parameter(torch.zeros(1, 2, dim))  # of the first view, and of all others
        self.position = nn.Parameter(torch.zeros(1, 1 + grid**2, dim))
        self.blocks = nn.ModuleList(
            Block(
                *(dim, heads), depth=depth, bias=True, eps=1e-6, layer_scale=1.0,
                qk_norm=nn.LayerNorm if depth >= mixing else False,
            )
            for depth in range(layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim)
        self.positions = PositionCache(self._resized)

    def _resized(self, tokens: Tensor, height: int, width: int) -> Float[Tensor, "1 token dim"]:
        table = self.position.float()
        side = round((table.shape[1] - 1) ** 0.5)
        grid = height // self.patch, width // self.patch
        if grid != (side, side):
            # Published like this: places are those of a grid a tenth of a patch larger.
            scale = [(cells + 0.1) / side for cells in grid]
            square = table[:, 1:].mT.unflatten(-1, (side, side))
            resized = F.interpolate(square, scale_factor=scale, mode="bicubic")
            table = torch.cat([table[:, :1], resized.flatten(2).mT], 1)
        return table.to(self.position.dtype)

    def hidden(
        self, images: Float[Tensor, "batch 3 height width"], count: int
    ) -> list[Float[Tensor, "batch token dim"]]:
        height, width = images.shape[-2:]
        patches = self.embed(images.to(self.class_token.dtype))
        x = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], 1)
        x = x + self.positions(x, height, width)
        grid, channels = (height // self.patch, width // self.patch), self.dim // self.heads
        within = grid_rotation(grid, channels, special=1, device=x.device)
        place = torch.ones(x.shape[1], dtype=torch.long, device=x.device)
        place[0] = 0
        among = Rotation(*(t[place] for t in grid_rotation((1, 1), channels, special=1, device=x.device)))
        kept = []
        for index, block in enumerate(self.blocks):
            if index == self.mixing:
                x = torch.cat([self.camera_token[:, :1].expand(len(x), -1, -1), x[:, 1:]], 1)
            rotation = None if index < self.mixing else (among if index % 2 else within)
            x, _ = block(x, None, rotation)
            if index >= self.depth - count:
                kept.append(self.norm(x)[:, 1:])
        return kept


def find_encoder(kind: str, *first: Path) -> Path:
    """The folder that holds an encoder's config.json: one of `first`, of the diorama cache or the Hugging Face cache.

    Raises Unavailable, in one line, where there is none; nothing is fetched.
    """
    source = ENCODERS[kind]
    for folder in (*first, cache_folder(kind)):
        if (folder / "config.json").is_file():
            return folder
    file = try_to_load_from_cache(source.repository, "config.json")
    if isinstance(file, str):
        return Path(file).parent
    looked = ", ".join(map(str, (*first, cache_folder(kind))))
    raise Unavailable(
        f"encoder {kind!r}: found no weights (huggingface.co/{source.repository}, {source.licence}); looked in "
        f"{looked} and the Hugging Face cache"
    )


def read_encoder(kind: str, folder: str | Path, layers: int = 1) -> FrozenEncoder:
    """The encoder of a published folder, in float32, which knows that `folder` and the `digest` of its weights.

    ValueError, in one line, for another kind of model, and for weights missing, unknown, misshapen or unreadable.
    """
    folder = Path(folder)
    config, state = read_config(folder / "config.json"), read_weights(folder)
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(ENCODERS[kind].ignored)}
    made = _da3(folder, state) if kind == "da3" else _library(kind, folder, config, state)
    if not 1 <= layers <= made.depth:
        raise ValueError(f"{folder}: {layers} layers asked for; accepted are 1 to {made.depth}")
    made.layers, made.folder, made.digest = layers, folder, _digest(state)
    return made.float().eval().requires_grad_(False)


def _digest(state: Mapping[str, Tensor]) -> str:
    """Of the weights' values alone, since libraries rename what they save."""
    parts = (tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in state.values())
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(part).digest() for part in parts))).hexdigest()[:32]  # type: ignore[arg-type]


def _library(kind: str, folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> FrozenEncoder:
    """A model of transformers, filled to the last weight."""
    import transformers

    siglip = "SiglipVisionModel"
    names = {
        "dinov2": {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
        "siglip2": {"siglip": siglip, "siglip_vision_model": siglip},  # "siglip2" is NaFlex, another input format
    }[kind]
    found = config.get("model_type")
    if found not in names:
        accepted = ", ".join(names)
        raise ValueError(f"{folder / 'config.json'}: found model_type {found!r}; accepted for {kind} are {accepted}")
    model = getattr(transformers, names[found])
    told = {"vision_use_head": False} if kind == "siglip2" else {}
    try:
        made = model.config_class(**(config.get("vision_config", config) | told))
        with _quiet():
            filled, report = model.from_pretrained(
                None, config=made, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # transformers says anything of what it cannot use
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder}: no {names[found]} ({line})") from None
    wrong = {word: report[f"{word}_keys"] for word in ("missing", "unexpected", "mismatched") if report[f"{word}_keys"]}
    _refuse(folder, {word: [name if isinstance(name, str) else name[0] for name in wrong[word]] for word in wrong})
    half = (0.5, 0.5, 0.5)
    mean, std = (half, half) if kind == "siglip2" else (IMAGE_MEAN, IMAGE_STD)
    return Library(filled, mean=mean, std=std)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar and its report, of which the caller makes one line."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _da3(folder: Path, state: dict[str, Tensor]) -> DA3:
    """The backbone of a published DA3, whose weights say its sizes."""
    shapes = {name.removeprefix(DA3_BACKBONE): tuple(tensor.shape) for name, tensor in state.items()}
    blocks = {int(part[1]) for name in shapes if (part := re.match(r"blocks\.(\d+)\.", name))}
    normed = [int(part[1]) for name in shapes if (part := re.match(r"blocks\.(\d+)\.attn\.q_norm\.weight", name))]
    try:
        dim, _, patch, _ = shapes["patch_embed.proj.weight"]
        heads = dim // shapes[f"blocks.{min(normed)}.attn.q_norm.weight"][0]
        grid = round((shapes["pos_embed"][1] - 1) ** 0.5)
    except (KeyError, ValueError):
        raise ValueError(f"{folder}: no weights of DA3's backbone; accepted is {ENCODERS['da3'].repository}") from None
    with torch.device("meta"):
        model = DA3(dim, len(blocks), heads, patch=patch, grid=grid, mixing=min(normed))
    # Both are DINOv2's blocks under DINOv2's names.
    published = {
        name: KINDS["vggt"].published(f"encoder.{name}", {})[0].replace("aggregator.patch_embed.", DA3_BACKBONE, 1)
        for name in model.state_dict()
    }
    missing, unknown = set(published.values()) - state.keys(), state.keys() - set(published.values())
    misshapen = [
        published[name]
        for name, tensor in model.state_dict().items()
        if published[name] in state and tensor.shape != state[published[name]].shape
    ]
    _refuse(folder, {"missing": missing, "unexpected": unknown, "mismatched": misshapen})
    model.load_state_dict({name: state[other] for name, other in published.items()}, assign=True)
    for name, numbers in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)):
        model.register_buffer(name, torch.tensor(numbers)[:, None, None], persistent=False)
    return model


def _refuse(folder: Path, wrong: Mapping[str, Any]) -> None:
    """ValueError for the first kind of weight names that do not fit, if there are any."""
    for word, names in wrong.items():
        if names:
            raise ValueError(f"{folder}: {len(names)} weights {word}, first {min(names)!r}; accepted are as published")
