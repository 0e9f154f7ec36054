"""WVD's way of keeping geometry: point maps as pictures that a video VAE encodes, and cameras fitted to them again."""

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.alignment import umeyama
from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import rotate

FARTHEST = 0.98  # of the unit ball: 49 units away, about as far as VGGT's depth means anything
STEP = 4  # pixels between those that cameras are fitted to
ROUNDS = 20
FOCAL = (0.2, 10.0)  # image widths


def squashed(points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
    """All of space inside the unit ball: what is near keeps its size."""
    return points / (1 + points.norm(dim=-1, keepdim=True))


def unsquashed(inside: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
    """The inverse of `squashed`; what a decoder puts outside of the ball comes to lie far away."""
    size = inside.norm(dim=-1, keepdim=True)
    kept = size.clamp(max=FARTHEST)
    return inside * (kept / size.clamp(min=1e-9)) / (1 - kept)


def cameras_of(points: Float[Tensor, "view height width 3"]) -> Cameras:
    """Cameras that see these points at their pixels, in the frame of the first: PnP with one unknown focal length.

    Rotations by orthogonal iteration (Lu, Hager, Mjolsness 2000), errors weighed by distance.
    """
    height, width = points.shape[1:3]
    world = points.double()[:, STEP // 2 :: STEP, STEP // 2 :: STEP].flatten(1, 2)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([columns + 0.5 - width / 2, rows + 0.5 - height / 2], -1).double()
    pixels = pixels[STEP // 2 :: STEP, STEP // 2 :: STEP].flatten(0, 1)
    focal = _focal(world[0], pixels).clamp(FOCAL[0] * width, FOCAL[1] * width)
    rays = torch.nn.functional.normalize(torch.cat([pixels / focal, torch.ones_like(pixels[:, :1])], -1), dim=-1)
    weights = 1 / world.square().sum(-1).clamp(min=1e-4)
    rotation = _rotations(world, rays, weights)
    poses = torch.eye(4).repeat(len(points), 1, 1).double()
    poses[:, :3, :3] = rotation.mT
    poses[:, :3, 3] = -rotate(rotation.mT, _translation(rotation, world, rays, weights))
    lens = torch.diag(torch.stack([focal, focal, torch.ones_like(focal)]))
    lens[:2, 2] = lens.new_tensor([width / 2, height / 2])
    return Cameras(poses.float(), lens.float().repeat(len(points), 1, 1), height, width)


def _focal(world: Float[Tensor, "point 3"], pixels: Float[Tensor, "point 2"]) -> Float[Tensor, ""]:
    """Median of what each point of the first view says of it."""
    slopes = world[:, :2] / world[:, 2:].clamp(min=1e-3)
    return (pixels.norm(dim=-1) / slopes.norm(dim=-1).clamp(min=1e-3)).median()


def _rotations(
    world: Float[Tensor, "view point 3"], rays: Float[Tensor, "point 3"], weights: Float[Tensor, "view point"]
) -> Float[Tensor, "view 3 3"]:
    """World-to-camera rotations, each sought from the last view's on: far from the truth a mirrored one is found."""
    found, rotation = [], torch.eye(3).to(world)[None]
    for points, weight in zip(world.split(1), weights.split(1), strict=True):
        for _ in range(ROUNDS):
            moved = rotate(rotation[:, None], points) + _translation(rotation, points, rays, weight)[:, None]
            onto = (moved * rays).sum(-1, keepdim=True).clamp(min=0) * rays  # a camera sees nothing behind it
            rotation = umeyama(points, onto, weight, scale="none").rotation
        found.append(rotation)
    return torch.cat(found)


def _translation(
    rotation: Float[Tensor, "view 3 3"],
    world: Float[Tensor, "view point 3"],
    rays: Float[Tensor, "point 3"],
    weights: Float[Tensor, "view point"],
) -> Float[Tensor, "view 3"]:
    """The translations that bring rotated points nearest to their rays: a 3x3 system for each view."""
    away = torch.eye(3).to(world) - rays[:, :, None] * rays[:, None]  # off the ray, "point 3 3"
    matrix = torch.einsum("vp,pij->vij", weights, away)
    right = -torch.einsum("vp,pij,vpj->vi", weights, away, rotate(rotation[:, None], world))
    return torch.linalg.solve(matrix, right)
