"""VGGT: photos -> cameras, depth and points of all views in one pass (arXiv 2503.11651), published weights included."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_quaternion, quaternion_from_matrix, rotate
from diorama.nn.blocks import Block, modulate
from diorama.nn.dpt import DPTHead
from diorama.nn.embeddings import IMAGE_MEAN, IMAGE_STD, PatchEmbed
from diorama.nn.rope import grid_rotation

# fmt: off
SIZES: dict[str, dict[str, Any]] = {  # keyword arguments of VGGT by name; "1B" is facebook/VGGT-1B
    "tiny": dict(dim=64,   layers=4,  heads=4,  taps=(0, 1, 2, 3),    encoder_layers=2,  encoder_heads=4,  camera_heads=4,  features=16,  channels=(8, 16, 32, 32)),  # noqa: E501
    "1B":   dict(dim=1024, layers=24, heads=16, taps=(4, 11, 17, 23), encoder_layers=24, encoder_heads=16, camera_heads=16, features=256, channels=(256, 512, 1024, 1024)),  # noqa: E501
}
# fmt: on
REFINEMENTS = 4  # of the camera head; the published weights are trained for as many
VIEWS_AT_ONCE = 8  # in the dense heads, whose full-size maps would not fit in memory for a whole video
FOV_LIMITS = (0.01, 3.1)  # radians; the code's angle may be any number >= 0, a camera's may not

Layer = Float[Tensor, "batch view token dim"]  # one layer's special and patch tokens: [frame ; global] channels


class VGGTOutput(NamedTuple):
    """What VGGT says of the views: in the first view's frame (nearly), in a scale of its own; at least float32."""

    cameras: Cameras
    depth: Float[Tensor, "batch view height width"]  # z-depth
    depth_confidence: Float[Tensor, "batch view height width"]  # >= 1
    points: Float[Tensor, "batch view height width 3"]  # of the point head; `cameras.unproject(depth)` is often better
    points_confidence: Float[Tensor, "batch view height width"]  # >= 1
    camera_codes: Float[Tensor, "iteration batch view 9"]  # of all refinements; the cameras are the last one's


class DINOv2(nn.Module):
    """DINOv2 with registers: an image's normalised patch tokens."""

    def __init__(self, dim: int, layers: int, heads: int, *, patch: int, grid: int, registers: int) -> None:
        super().__init__()
        self.embed = PatchEmbed(3, dim, patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.registers = nn.Parameter(0.02 * torch.randn(1, registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # read by DINOv2's own training only; published with it
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + grid**2, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, depth=depth, bias=True, qk_norm=False, eps=1e-6, layer_scale=1.0)
            for depth in range(layers)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 token dim"]:
        """The square table of patch positions, resized to another grid."""
        table = self.position[:, 1:].to(torch.promote_types(self.position.dtype, torch.float32))
        side = round(table.shape[1] ** 0.5)
        table = F.interpolate(table.mT.unflatten(-1, (side, side)), grid, mode="bicubic", antialias=True)
        return table.flatten(2).mT.to(self.position.dtype)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch token dim"]:
        grid = images.shape[-2] // self.embed.kernel_size[0], images.shape[-1] // self.embed.kernel_size[1]
        special = torch.cat([self.class_token + self.position[:, :1], self.registers], 1)
        patches = self.embed(images) + self.positions(grid)
        x = torch.cat([special.expand(len(images), -1, -1), patches], 1)
        for block in self.blocks:
            x, _ = block(x)
        return self.norm(x)[:, special.shape[1] :]


class CameraHead(nn.Module):
    """Camera codes of all views from their camera tokens, refined by steps (section 3.3)."""

    def __init__(self, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.empty_code = nn.Parameter(torch.zeros(1, 1, 9))
        self.token_norm = nn.LayerNorm(dim)
        self.embed_code = nn.Linear(9, dim)
        self.modulation = nn.Linear(dim, 3 * dim)
        self.modulated_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.trunk = nn.ModuleList(
            Block(dim, heads, depth=depth, bias=True, qk_norm=False, layer_scale=0.01) for depth in range(layers)
        )
        self.trunk_norm = nn.LayerNorm(dim)
        self.code_branch = nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, 9))

    def forward(self, tokens: Float[Tensor, "batch view dim"]) -> Float[Tensor, "iteration batch view 9"]:
        """Translation, quaternion (x, y, z, w) and vertical and horizontal angle of view after every refinement."""
        tokens = self.token_norm(tokens)
        code, codes = self.empty_code.expand(*tokens.shape[:2], 9), []
        for step in range(REFINEMENTS):
            condition = F.silu(self.embed_code(code.detach() if step else code))
            shift, scale, gate = self.modulation(condition).chunk(3, -1)
            x = tokens + gate * modulate(self.modulated_norm(tokens), shift, scale)
            for block in self.trunk:
                x, _ = block(x)
            change = self.code_branch(self.trunk_norm(x))
            code = code + change if step else change
            codes.append(torch.cat([code[..., :7], code[..., 7:].relu()], -1))
        return torch.stack(codes)


class Readout(nn.Module):
    """The three heads; casts to half precision leave them in float32, where depths and poses keep their digits."""

    def __init__(
        self, dim: int, camera_layers: int, camera_heads: int, *, features: int, channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.camera = CameraHead(dim, camera_layers, camera_heads)
        self.depth = DPTHead(dim, features, channels, 2, vggt=True)
        self.points = DPTHead(dim, features, channels, 4, vggt=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Readout":
        def kept(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            return tensor.to(applied.device) if applied.dtype in (torch.float16, torch.bfloat16) else applied

        return super()._apply(kept, recurse)

    def forward(self, layers: Sequence[Layer], grid: tuple[int, int], size: tuple[int, int]) -> VGGTOutput:
        """Cameras, depth and points from the tokens of four layers, first to last."""
        dtype = self.camera.empty_code.dtype
        device = "cpu" if layers[0].is_meta else layers[0].device.type  # torch has no autocast for what is only planned
        with torch.autocast(device, enabled=False):
            codes = self.camera(layers[-1][:, :, 0].to(dtype))
            depth, points = self._maps((self.depth, self.points), layers, grid, size)
        return VGGTOutput(
            cameras=cameras_from_codes(codes[-1], *size),
            depth=depth[..., 0].exp(),
            depth_confidence=1 + depth[..., 1].exp(),
            points=points[..., :3].sign() * points[..., :3].abs().expm1(),
            points_confidence=1 + points[..., 3].exp(),
            camera_codes=codes,
        )

    def _maps(
        self, heads: Sequence[DPTHead], layers: Sequence[Layer], grid: tuple[int, int], size: tuple[int, int]
    ) -> list[Float[Tensor, "batch view height width channel"]]:
        """One map a head; special tokens, which stand in front, are left out."""
        dtype, patches = self.camera.empty_code.dtype, grid[0] * grid[1]
        flat = [layer[:, :, -patches:].flatten(0, 1).split(VIEWS_AT_ONCE) for layer in layers]
        parts: list[list[Tensor]] = [[] for _ in heads]
        for chunk in zip(*flat, strict=True):
            tokens = [x.to(dtype) for x in chunk]
            for part, head in zip(parts, heads, strict=True):
                part.append(head(tokens, grid, size))
        return [torch.cat(part).movedim(1, -1).unflatten(0, layers[0].shape[:2]) for part in parts]


class VGGT(ModelMixin, ConfigMixin):
    """Visual geometry grounded transformer: `encode` photos to tokens, `decode` these to geometry.

    A layer is attention within every view and then among all tokens of all views; `taps` are the four layers whose
    tokens the heads read, the last of them the last layer.
    """

    config_name = "config.json"
    config: Any  # what __init__ was called with, by attribute
    _keep_in_fp32_modules = ["readout"]  # noqa: RUF012 - diffusers' name for what half precision leaves alone

    @register_to_config
    def __init__(  # architecture is given by name, from SIZES, a config file or `convert`
        self,
        *,
        patch: int = 14,
        dim: int = 1024,
        layers: int = 24,
        heads: int = 16,
        registers: int = 4,
        taps: Sequence[int] = (4, 11, 17, 23),
        encoder_layers: int = 24,
        encoder_heads: int = 16,
        encoder_grid: int = 37,
        camera_layers: int = 4,
        camera_heads: int = 16,
        features: int = 256,
        channels: Sequence[int] = (256, 512, 1024, 1024),
    ) -> None:
        super().__init__()
        if len(taps) != 4 or list(taps) != sorted(taps) or min(taps) < 0 or taps[-1] != layers - 1:
            raise ValueError(f"taps {tuple(taps)}: accepted are four layers in order, the last one being {layers - 1}")
        self.encoder = DINOv2(dim, encoder_layers, encoder_heads, patch=patch, grid=encoder_grid, registers=registers)
        # Of each pair one is the first view's, whose frame the answer is in, and one is all other views'.
        self.camera_token = nn.Parameter(1e-6 * torch.randn(1, 2, 1, dim))
        self.register_token = nn.Parameter(1e-6 * torch.randn(1, 2, registers, dim))
        made = partial(Block, dim, heads, bias=True, qk_norm=nn.LayerNorm, layer_scale=0.01)
        self.frame_blocks = nn.ModuleList(made(depth=depth) for depth in range(layers))
        self.global_blocks = nn.ModuleList(made(depth=depth) for depth in range(layers))
        self.readout = Readout(2 * dim, camera_layers, camera_heads, features=features, channels=channels)

    def encode_patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch token dim"]:
        """DINOv2's patch tokens of images in [0, 1]; ValueError unless both sides are multiples of the patch."""
        self._grid(*images.shape[-2:])
        mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in (IMAGE_MEAN, IMAGE_STD))
        return self.encoder(((images - mean) / std).to(self.camera_token.dtype))

    def encode(self, images: Float[Tensor, "batch view 3 height width"]) -> list[Layer]:
        """Tokens of the four tapped layers: of each view the camera token, the registers, then the patches."""
        batch, views, _, height, width = images.shape
        patches = self.encode_patches(images.flatten(0, 1)).unflatten(0, (batch, views))
        special = torch.cat([self.camera_token, self.register_token], 2)
        special = torch.cat([special[:, :1], special[:, 1:].expand(-1, views - 1, -1, -1)], 1)
        x = torch.cat([special.expand(batch, -1, -1, -1), patches], 2)
        dim = x.shape[-1] // self.config.heads
        within = grid_rotation(self._grid(height, width), dim, special=special.shape[2], device=x.device)
        among, kept = within.repeated(views), []
        for index, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            frame = frame_block(x.flatten(0, 1), None, within)[0].unflatten(0, (batch, views))
            x = global_block(frame.flatten(1, 2), None, among)[0].unflatten(1, (views, -1))
            if index in self.config.taps:
                # Two levels of a shallow model may read one layer.
                kept += [torch.cat([frame, x], -1)] * list(self.config.taps).count(index)
        return kept

    def decode(self, layers: Sequence[Layer], height: int, width: int) -> VGGTOutput:
        """Geometry at image size from the tokens of four layers, whose special tokens stand before the patches."""
        grid = self._grid(height, width)
        fewest = grid[0] * grid[1] + 1
        if len(layers) != 4 or any(layer.shape[2] < fewest for layer in layers):
            found = [layer.shape[2] for layer in layers]
            raise ValueError(f"layers of {found} tokens a view: accepted are 4 of {fewest} or more at {height}x{width}")
        return self.readout(layers, grid, (height, width))

    def forward(self, images: Float[Tensor, "batch view 3 height width"]) -> VGGTOutput:
        """Cameras, depth and points of photos in [0, 1], of which the first sets the frame."""
        return self.decode(self.encode(images), *images.shape[-2:])

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.config.patch
        if height < patch or width < patch or height % patch or width % patch:
            raise ValueError(f"image size {height}x{width}: both sides must be multiples of {patch}")
        return height // patch, width // patch


def cameras_from_codes(codes: Float[Tensor, "*batch view 9"], height: int, width: int) -> Cameras:
    """Cameras of codes: world-to-camera translation, quaternion (x, y, z, w) of any length, angles of view in radians.

    The principal point is the image's middle, with the first pixel's centre at (0.5, 0.5). The published code shifts
    its points by half a pixel against that: it unprojects from whole pixel numbers.
    """
    rotation = matrix_from_quaternion(codes[..., 3:7].roll(1, -1)).mT
    poses = torch.eye(4, dtype=codes.dtype, device=codes.device).repeat(*codes.shape[:-1], 1, 1)
    poses[..., :3, :3] = rotation
    poses[..., :3, 3] = -rotate(rotation, codes[..., :3])
    focal = codes.new_tensor([height, width]) / 2 / (codes[..., 7:].clamp(*FOV_LIMITS) / 2).tan()
    intrinsics = torch.zeros_like(poses[..., :3, :3])
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = focal[..., 1], focal[..., 0]
    intrinsics[..., :, 2] = codes.new_tensor([width / 2, height / 2, 1])
    return Cameras(poses, intrinsics, height, width)


def codes_from_cameras(cameras: Cameras) -> Float[Tensor, "*batch view 9"]:
    """What the camera head should say of cameras: the inverse of `cameras_from_codes`, which knows no principal point.

    The quaternion is of length 1 with w >= 0, the one of the two that VGGT is trained on.
    """
    pose = cameras.world_to_camera
    quaternion = quaternion_from_matrix(pose[..., :3, :3]).roll(-1, -1)
    focal = torch.stack([cameras.intrinsics[..., 1, 1], cameras.intrinsics[..., 0, 0]], -1)
    angles = 2 * (focal.new_tensor([cameras.height, cameras.width]) / 2 / focal).atan()
    return torch.cat([pose[..., :3, 3], quaternion, angles], -1)
