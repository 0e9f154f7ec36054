"""RAE3D: any number of posed views <-> a fixed set of 3D latent tokens (arXiv 2604.11331, section 3.1)."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diorama.models.encoders import ENCODERS, PATCHES, FrozenEncoder, find_encoder, read_encoder
from diorama.nn.attention import KeysValues
from diorama.nn.blocks import Block
from diorama.nn.dpt import DPTHead
from diorama.nn.embeddings import IMAGE_MEAN, IMAGE_STD, PatchEmbed, RayEmbed
from diorama.nn.neck import Neck

# fmt: off
SIZES: dict[str, dict[str, Any]] = {  # keyword arguments of RAE3D by name; the paper's rows are its table 5
    "tiny":      dict(patch=8,  tokens=64,   dim=192, heads=3,  neck_layers=4,  decoder_layers=4,  point_layers=3,  point_taps=(0, 1, 2, 2),   point_features=24,  point_channels=(24, 48, 96, 96),         ray_frequencies=6, ray_products=True),  # noqa: E501
    "base-256":  dict(patch=14, tokens=256,  dim=768, heads=16, neck_layers=12, decoder_layers=16, point_layers=16, point_taps=(3, 7, 11, 15), point_features=256, point_channels=(256, 512, 1024, 1024), ray_frequencies=0, ray_products=False),  # noqa: E501
    "base-512":  dict(patch=14, tokens=512,  dim=768, heads=16, neck_layers=12, decoder_layers=16, point_layers=16, point_taps=(3, 7, 11, 15), point_features=256, point_channels=(256, 512, 1024, 1024), ray_frequencies=0, ray_products=False),  # noqa: E501
    "base-1024": dict(patch=14, tokens=1024, dim=768, heads=16, neck_layers=12, decoder_layers=16, point_layers=16, point_taps=(3, 7, 11, 15), point_features=256, point_channels=(256, 512, 1024, 1024), ray_frequencies=0, ray_products=False),  # noqa: E501
}
# fmt: on
IMAGES_AT_ONCE = 32  # looked at together where no gradient has to keep them all
UNSAID = {  # left out of configs, which are as they were before there was another value
    "encoder": PATCHES, "encoder_layers": 1, "pixel_branch": False, "encoder_digest": "", "neck_attention": "full"
}  # fmt: skip


class Encoded(NamedTuple):
    """A scene as far as it has been seen, and what its further views need to be told."""

    latents: Float[Tensor, "batch token dim"]
    read: list[KeysValues]  # of every view, one entry a layer of the neck


class Decoded(NamedTuple):
    """What the decoders say of each target view."""

    images: Float[Tensor, "batch view 3 height width"]  # RGB, about [0, 1], not clamped
    points: Float[Tensor, "batch view height width 3"] | None  # in the latents' frame
    confidence: Float[Tensor, "batch view height width"] | None  # > 0; VGGT's is 1 + this


class LatentCache(NamedTuple):
    """A scene's latents as the decoders read them: made once, asked by any number of views."""

    latents: Float[Tensor, "batch token dim"]
    images: list[KeysValues] | None  # one entry a layer; None where latents attend to rays (`mutual`)
    points: list[KeysValues] | None


class ViewDecoder(nn.Module):
    """Blocks that turn ray tokens of one view and the scene's latents into features of that view."""

    def __init__(self, dim: int, heads: int, layers: int, attention: str) -> None:
        super().__init__()
        self.mutual = attention == "mutual"
        self.input_norm = nn.LayerNorm(dim, bias=False)
        self.blocks = nn.ModuleList(Block(dim, heads, depth=depth) for depth in range(layers))

    def cache(self, latents: Float[Tensor, "batch token dim"]) -> list[KeysValues] | None:
        """The latents' keys and values at every layer; None if they depend on the rays."""
        if self.mutual:
            return None
        x, memory = self.input_norm(latents), []
        for block in self.blocks[:-1]:
            x, own = block(x)
            memory.append(own)
        # Nobody reads the latents after the last layer.
        return [*memory, self.blocks[-1].keys_values(x)]  # type: ignore[operator]

    def forward(
        self,
        rays: Float[Tensor, "batch_view ray dim"],
        latents: Float[Tensor, "batch token dim"],
        memory: list[KeysValues] | None,
    ) -> list[Float[Tensor, "batch_view ray dim"]]:
        """Ray features after every block; views of one scene stand next to each other in the batch."""
        times, x, outputs = rays.shape[0] // latents.shape[0], self.input_norm(rays), []
        if self.mutual:
            tokens = latents.shape[1]
            x = torch.cat([self.input_norm(latents).repeat_interleave(times, 0), x], 1)
            for block in self.blocks:
                x = block(x)[0]
                outputs.append(x[:, tokens:])
            return outputs
        for block, known in zip(self.blocks, memory or self.cache(latents) or (), strict=True):
            x = block(x, known.repeated(times))[0]
            outputs.append(x)
        return outputs


class RAE3D(ModelMixin, ConfigMixin):
    """Autoencoder of posed views over a plain patch embedding (the paper's "ImgOnly") or a frozen 2D encoder.

    Cameras come in as Plücker maps in the first view's frame, scaled so that the farthest camera is at distance 1.
    `attention` is "one_way" (latents do not see a target's rays; cached per scene) or "mutual" (the paper's), and
    `neck_attention` what known views see of each other: "full" (the paper's), "hub" or "one_way" (`Neck` says which).

    `encoder` is "patches" or a key of ENCODERS ("dinov2" is the paper's), `encoder_layers` how many of its last layers
    are summed; `pixel_branch` adds the plain patches through a gate that begins closed. The frozen weights are no part
    of this model's: `load_encoder` finds them again, and the config keeps their digest. Decoding does not need them.
    """

    config_name = "config.json"
    config: Any  # what __init__ was called with, by attribute
    latent_mean: Tensor
    latent_std: Tensor

    @register_to_config
    def __init__(  # architecture is given by name, from SIZES or a config file
        self,
        *,
        patch: int = 14,
        tokens: int = 1024,
        dim: int = 768,
        heads: int = 16,
        neck_layers: int = 12,
        decoder_layers: int = 16,
        point_layers: int = 16,
        point_taps: Sequence[int] = (3, 7, 11, 15),
        point_features: int = 256,
        point_channels: Sequence[int] = (256, 512, 1024, 1024),
        ray_frequencies: int = 0,
        ray_products: bool = False,
        attention: str = "one_way",
        neck_attention: str = "full",
        encoder: str = PATCHES,
        encoder_layers: int = 1,
        pixel_branch: bool = False,
        encoder_digest: str = "",
    ) -> None:
        super().__init__()
        self.encoder, self.encoder_layers = encoder, encoder_layers
        self._frozen: list[FrozenEncoder] = []  # one at most; in a list it is no child, whose weights would be saved
        if encoder not in (PATCHES, *ENCODERS):
            raise ValueError(f"encoder {encoder!r}: accepted are {', '.join((PATCHES, *ENCODERS))}")
        if encoder == PATCHES and (pixel_branch or encoder_layers != 1):
            raise ValueError("encoder 'patches': has no layers to sum and needs no pixel branch; accepted is neither")
        if attention not in ("one_way", "mutual"):
            raise ValueError(f"attention {attention!r}: accepted are 'one_way' and 'mutual'")
        self.image_embed = PatchEmbed(3, dim, patch) if encoder == PATCHES or pixel_branch else None
        if pixel_branch:
            self.pixel_gate = nn.Parameter(torch.zeros(dim))
        self.ray_embed = RayEmbed(dim, patch, ray_frequencies, products=ray_products)
        self.queries = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.neck = Neck(dim, heads, neck_layers, neck_attention)
        self.latent_norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.register_buffer("latent_mean", torch.zeros(tokens, dim))
        self.register_buffer("latent_std", torch.ones(tokens, dim))
        self.decoder = ViewDecoder(dim, heads, decoder_layers, attention)
        self.output_norm = nn.LayerNorm(dim, bias=False)
        self.output = nn.Linear(dim, 3 * patch * patch)
        self.unpatchify = nn.PixelShuffle(patch)
        self.point_decoder = ViewDecoder(dim, heads, point_layers, attention) if point_layers else None
        self.point_head = DPTHead(dim, point_features, point_channels, 4) if point_layers else None
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).reshape(3, 1, 1), persistent=False)

    def register_to_config(self, **told: Any) -> None:
        """Leave out what says that an option is not used: such models are saved as they were before there was one."""
        super().register_to_config(**{key: value for key, value in told.items() if (key, value) not in UNSAID.items()})

    def load_encoder(self, folder: str | Path | None = None) -> FrozenEncoder | None:
        """The frozen encoder, read at the first call; None for plain patches.

        Looked in are `folder` alone if there is one, else `encoder` in the folder this model came from, the diorama
        cache and the Hugging Face cache. Raises Unavailable where there is none, and ValueError for weights that do
        not fit or are not those of training.
        """
        if self.encoder == PATCHES:
            return None
        if folder is not None or not self._frozen:
            own = self.config.get("_name_or_path")
            home = Path(folder) if folder else find_encoder(self.encoder, *([Path(own) / "encoder"] if own else []))
            frozen = read_encoder(self.encoder, home, self.encoder_layers)
            known = self.config.get("encoder_digest", frozen.digest)
            for name, found, accepted in (("channels", frozen.dim, self.config.dim), ("digest", frozen.digest, known)):
                if found != accepted:
                    raise ValueError(f"{home}: encoder of {name} {found}; accepted by this RAE3D is {accepted}")
            self.register_to_config(encoder_digest=frozen.digest)
            self._frozen[:] = [frozen.to(self.queries.device, self.queries.dtype)]
        return self._frozen[0]

    def save_encoder(self, folder: str | Path) -> None:
        """Put a copy of the encoder's files into `folder`, a saved RAE3D; `load_encoder` looks there first."""
        frozen, target = self.load_encoder(), Path(folder) / "encoder"
        if frozen is not None and frozen.folder.resolve() != target.resolve():
            shutil.copytree(frozen.folder, target, dirs_exist_ok=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RAE3D":
        for frozen in self._frozen:  # which moves along
            frozen._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _seen(
        self, images: Float[Tensor, "image 3 height width"], visible: Bool[Tensor, " image"]
    ) -> Float[Tensor, "image token dim"]:
        """Tokens of what images show; 0 for those that are not visible, which the frozen encoder does not look at."""
        mask = visible[:, None, None]
        pixels = None
        if self.image_embed is not None:
            pixels = self.image_embed((images - self.image_mean) / self.image_std) * mask
        frozen = self.load_encoder()
        if frozen is None:
            return pixels  # type: ignore[return-value]
        grid = images.shape[-2] // self.config.patch, images.shape[-1] // self.config.patch
        looked = frozen(images[visible], grid).to(self.queries.dtype)
        tokens = looked.new_zeros(len(images), *looked.shape[1:]).index_put((visible.nonzero()[:, 0],), looked)
        return tokens if pixels is None else tokens + self.pixel_gate * pixels

    def look(self, images: Float[Tensor, "batch view 3 height width"]) -> Float[Tensor, "batch view patch dim"]:
        """Tokens of what images show, for several encodings that differ in which of them are visible."""
        self._check_size(*images.shape[-2:])
        visible = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        return self._seen(images.flatten(0, 1), visible.flatten()).unflatten(0, visible.shape)

    def encode(
        self,
        images: Float[Tensor, "batch view 3 height width"],
        rays: Float[Tensor, "batch view 6 height width"],
        visible: Bool[Tensor, "batch view"],
        looked: Float[Tensor, "batch view patch dim"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Latent tokens (mean 0, variance 1 over channels) of views, of which only `visible` ones show their image.

        What `look` says of the same images need not be found again.
        """
        tokens = self._view_tokens(images, rays, visible, looked)
        return self.latent_norm(self.neck(self._queries(tokens), tokens).float())

    def extend(
        self,
        before: list[KeysValues] | None,
        images: Float[Tensor, "batch view 3 height width"],
        rays: Float[Tensor, "batch view 6 height width"],
        visible: Bool[Tensor, "batch view"],
    ) -> Encoded:
        """Encode further views of a scene beside those `read` before (None: there are none), which stay as they were.

        A neck of "one_way" gives what `encode` gives of all views at once, whatever their order; one of "hub" does so
        for the first views alone: earlier views keep what the latents knew when they came. ValueError for "full".
        """
        tokens = self._view_tokens(images, rays, visible)
        latents, read = self.neck.read(self._queries(tokens), tokens, before, keep=True)
        return Encoded(self.latent_norm(latents.float()), read)

    def _queries(self, tokens: Float[Tensor, "batch view patch dim"]) -> Float[Tensor, "batch token dim"]:
        return self.queries.expand(len(tokens), -1, -1).to(tokens.dtype)

    def _view_tokens(
        self,
        images: Float[Tensor, "batch view 3 height width"],
        rays: Float[Tensor, "batch view 6 height width"],
        visible: Bool[Tensor, "batch view"],
        looked: Float[Tensor, "batch view patch dim"] | None = None,
    ) -> Float[Tensor, "batch view patch dim"]:
        """What every view shows and where from."""
        self._check_size(*images.shape[-2:])
        batch, views = visible.shape
        size, parts = views if torch.is_grad_enabled() else max(1, IMAGES_AT_ONCE // batch), []
        for some in (slice(start, start + size) for start in range(0, views, size)):
            shown = visible[:, some].flatten()
            if looked is None:
                seen = self._seen(images[:, some].flatten(0, 1), shown)
            else:
                seen = looked[:, some].flatten(0, 1) * shown[:, None, None]
            parts.append((seen + self.ray_embed(rays[:, some].flatten(0, 1), shown)).unflatten(0, (batch, -1)))
        return torch.cat(parts, 1)

    def normalize(self, latents: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Latents as the denoiser sees them: unit variance for every token and channel over the dataset."""
        return (latents - self.latent_mean) / self.latent_std

    def denormalize(self, latents: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The inverse of `normalize`."""
        return latents * self.latent_std + self.latent_mean

    def cache(self, latents: Float[Tensor, "batch token dim"]) -> LatentCache:
        """What all views of a scene share, computed once (nothing for `mutual`)."""
        latents = latents.to(self.queries.dtype)
        points = None if self.point_decoder is None else self.point_decoder.cache(latents)
        return LatentCache(latents, self.decoder.cache(latents), points)

    def decode_images(
        self, scene: LatentCache, rays: Float[Tensor, "batch view 6 height width"]
    ) -> Float[Tensor, "batch view 3 height width"]:
        """RGB of target views given by their rays alone; views do not see each other."""
        tokens, grid, batch = self._ray_tokens(rays)
        features = self.decoder(tokens, scene.latents, scene.images)[-1]
        patches = self.output(self.output_norm(features)).transpose(1, 2).unflatten(-1, grid)
        return (self.unpatchify(patches) * self.image_std + self.image_mean).unflatten(0, (batch, -1))

    def decode_points(
        self, scene: LatentCache, rays: Float[Tensor, "batch view 6 height width"]
    ) -> tuple[Float[Tensor, "batch view height width 3"], Float[Tensor, "batch view height width"]]:
        """Point map and confidence (> 0: VGGT's without the 1, next to which a small one would round away)."""
        if self.point_decoder is None or self.point_head is None:
            raise ValueError("this RAE3D has no point-map decoder (point_layers=0)")
        tokens, grid, batch = self._ray_tokens(rays)
        layers = self.point_decoder(tokens, scene.latents, scene.points)
        raw = self.point_head([layers[tap] for tap in self.config.point_taps], grid, tuple(rays.shape[-2:]))
        raw = raw.float().movedim(1, -1).unflatten(0, (batch, -1))
        return raw[..., :3].sign() * raw[..., :3].abs().expm1(), raw[..., 3].exp()

    def decode(
        self,
        latents: Float[Tensor, "batch token dim"] | LatentCache,
        rays: Float[Tensor, "batch view 6 height width"],
    ) -> Decoded:
        """Images, and points where there is a point decoder, of target views of any number and size."""
        scene = latents if isinstance(latents, LatentCache) else self.cache(latents)
        points, confidence = (None, None) if self.point_decoder is None else self.decode_points(scene, rays)
        return Decoded(self.decode_images(scene, rays), points, confidence)

    def _ray_tokens(self, rays: Float[Tensor, "batch view 6 height width"]) -> tuple[Tensor, tuple[int, int], int]:
        batch, views, _, height, width = rays.shape
        self._check_size(height, width)
        patch = self.config.patch
        hidden = torch.zeros(batch * views, dtype=torch.bool, device=rays.device)
        return self.ray_embed(rays.flatten(0, 1), hidden), (height // patch, width // patch), batch

    def _check_size(self, height: int, width: int) -> None:
        patch = self.config.patch
        if height % patch or width % patch:
            raise ValueError(f"image size {height}x{width}: both sides must be multiples of {patch}")
