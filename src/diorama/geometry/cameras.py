"""Pinhole cameras: OpenCV axes (x right, y down, z forward), camera-to-world, pixel centres at +0.5."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.rotations import product, rotate
from diorama.geometry.similarity import Similarity

# Two cameras closer than this share of the farthest one's size count as the same place (pure rotation, single view).
COINCIDENT = 1e-6


@dataclass(frozen=True, eq=False)
class Cameras:
    """Cameras of one image size; every axis before `view` is a batch axis."""

    camera_to_world: Float[Tensor, "*batch view 4 4"]  # rigid, in scene units
    intrinsics: Float[Tensor, "*batch view 3 3"]  # pixels; the first pixel's centre is (0.5, 0.5)
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.camera_to_world.shape[:-2] != self.intrinsics.shape[:-2]:
            raise ValueError(
                f"{tuple(self.camera_to_world.shape[:-2])} poses but {tuple(self.intrinsics.shape[:-2])} intrinsics; "
                "both need the same batch and view axes"
            )
        if self.height < 1 or self.width < 1:
            raise ValueError(f"image size {self.height}x{self.width}: both sides must be at least 1")

    @classmethod
    def from_fov(
        cls, degrees: float, height: int, width: int, camera_to_world: Float[Tensor, "*batch view 4 4"] | None = None
    ) -> "Cameras":
        """Cameras whose longer image side spans `degrees`; one at the origin unless poses are given."""
        if not 0 < degrees < 180:
            raise ValueError(f"field of view {degrees} degrees: accepted is more than 0 and less than 180")
        poses = torch.eye(4)[None] if camera_to_world is None else camera_to_world
        focal = 0.5 * max(height, width) / math.tan(math.radians(degrees / 2))
        matrix = poses.new_tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        return cls(poses, matrix.expand(*poses.shape[:-2], 3, 3), height, width)

    @classmethod
    def stacked(cls, paths: Sequence["Cameras"]) -> "Cameras":
        """Paths as the rows of a batch; ValueError unless they have one shape."""
        sizes = {(path.views, path.height, path.width) for path in paths}
        if len(sizes) != 1:
            raise ValueError(f"paths of different shapes (views, height, width) {sorted(sizes)} in one batch")
        return replace(
            paths[0],
            camera_to_world=torch.stack([path.camera_to_world for path in paths]),
            intrinsics=torch.stack([path.intrinsics for path in paths]),
        )

    @property
    def views(self) -> int:
        """Number of cameras along the view axis."""
        return self.camera_to_world.shape[-3]

    @property
    def centers(self) -> Float[Tensor, "*batch view 3"]:
        """Camera centres in the world."""
        return self.camera_to_world[..., :3, 3]

    @property
    def extent(self) -> Float[Tensor, "*batch"]:
        """Distance from the first camera to the farthest."""
        return (self.centers - self.centers[..., :1, :]).norm(dim=-1).amax(-1)

    @property
    def fov(self) -> Float[Tensor, "*batch view"]:
        """Horizontal field of view in degrees."""
        return 2 * torch.atan(0.5 * self.width / self.intrinsics[..., 0, 0]).rad2deg()

    @property
    def world_to_camera(self) -> Float[Tensor, "*batch view 4 4"]:
        """Inverse poses, exact for rigid matrices."""
        rotation = self.camera_to_world[..., :3, :3].mT
        inverse = torch.zeros_like(self.camera_to_world)
        inverse[..., :3, :3] = rotation
        inverse[..., :3, 3] = -rotate(rotation, self.centers)
        inverse[..., 3, 3] = 1
        return inverse

    def __len__(self) -> int:
        return self.views

    def __getitem__(self, index: int | slice | list[int] | tuple[int, ...] | Tensor) -> "Cameras":
        """Some of the views; an integer keeps the view axis with one view."""
        if isinstance(index, Integral):
            place = int(index)
            if not -self.views <= place < self.views:
                raise IndexError(f"view {place} of {self.views}")
            index = [place]
        chosen = list(index) if isinstance(index, tuple) else index
        return replace(
            self,
            camera_to_world=self.camera_to_world[..., chosen, :, :],
            intrinsics=self.intrinsics[..., chosen, :, :],
        )

    def apart(self) -> list["Cameras"]:
        """The rows of a batch, which `stacked` puts together again."""
        return [
            replace(self, camera_to_world=poses, intrinsics=intrinsics)
            for poses, intrinsics in zip(self.camera_to_world, self.intrinsics, strict=True)
        ]

    def joined(self, others: "Cameras") -> "Cameras":
        """These cameras and then others, all of this image size."""
        poses = torch.cat([self.camera_to_world, others.camera_to_world], -3)
        return replace(self, camera_to_world=poses, intrinsics=torch.cat([self.intrinsics, others.intrinsics], -3))

    def to(self, *args: Any) -> "Cameras":
        """On another device or in another dtype, with the arguments of `Tensor.to`."""
        return replace(self, camera_to_world=self.camera_to_world.to(*args), intrinsics=self.intrinsics.to(*args))

    def checked(self) -> "Cameras":
        """These cameras, once they are known to be finite, rigid and of positive focal length; else ValueError."""
        # First to the CPU, then to double: not every device has doubles.
        poses, intrinsics = self.camera_to_world.cpu().double(), self.intrinsics.cpu().double()
        rotation = poses[..., :3, :3]
        deviation = (rotation @ rotation.mT - torch.eye(3).to(rotation)).abs().amax((-1, -2))
        bottom = (poses[..., 3, :] - poses.new_tensor([0, 0, 0, 1])).abs().amax(-1)
        below = intrinsics.tril(-1).abs().amax((-1, -2)) + (intrinsics[..., 2, 2] - 1).abs()
        faults = {
            "has a non-finite pose": ~poses.isfinite().flatten(-2).all(-1),
            "has non-finite intrinsics": ~intrinsics.isfinite().flatten(-2).all(-1),
            "is not a rigid camera-to-world matrix (rotation of determinant 1, last row 0 0 0 1)": (deviation > 1e-3)
            | (torch.linalg.det(rotation.nan_to_num()) < 0)
            | (bottom > 1e-4),
            "has intrinsics that are not upper triangular with 1 in the corner": below > 1e-6,
            "has a focal length that is not positive": (intrinsics[..., 0, 0] <= 0) | (intrinsics[..., 1, 1] <= 0),
        }
        for fault, found in faults.items():
            if found.any():
                raise ValueError(f"camera {int(found.flatten().nonzero()[0])} {fault}")
        return self

    def path(self) -> "Cameras":
        """These cameras as one checked path on the CPU, in single or double precision; ValueError for what is none."""
        if self.camera_to_world.ndim != 3 or self.views == 0:
            shape = tuple(self.camera_to_world.shape)
            raise ValueError(f"cameras of shape {shape}: accepted is one path of shape (views, 4, 4)")
        return self.to("cpu").to(torch.promote_types(self.camera_to_world.dtype, torch.float32)).checked()

    def deviation(self, others: "Cameras") -> Float[Tensor, "*batch view 3"]:
        """How far each of others is: in orientation (about radians), position (scene units), lens (image widths)."""
        turn = (self.camera_to_world - others.camera_to_world)[..., :3, :3].abs().amax((-1, -2))
        lens = (self.intrinsics - others.intrinsics).abs().amax((-1, -2)) / self.width
        return torch.stack([turn, (self.centers - others.centers).norm(dim=-1), lens], -1)

    def rays(self) -> tuple[Float[Tensor, "*batch view height width 3"], Float[Tensor, "*batch view height width 3"]]:
        """Origin and unit direction, in the world, of the ray through every pixel's centre."""
        directions = self.directions()
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return self.centers[..., None, None, :].expand_as(directions), directions

    def plucker(self) -> Float[Tensor, "*batch view 6 height width"]:
        """Plücker coordinates [origin x direction, direction] of every pixel's ray (3DRAE section 3.1)."""
        origins, directions = self.rays()
        return torch.cat([torch.linalg.cross(origins, directions), directions], -1).movedim(-1, -3)

    def project(self, points: Float[Tensor, "*any 3"]) -> tuple[Float[Tensor, "*any 2"], Float[Tensor, "*any"]]:
        """Pixel positions and z-depths of world points "*batch view ... 3"; behind the camera depth is not positive."""
        extra = points.ndim - self.centers.ndim
        shape = (*self.centers.shape[:-1], *(1,) * extra)
        inverse, intrinsics = self.world_to_camera.reshape(*shape, 4, 4), self.intrinsics.reshape(*shape, 3, 3)
        local = rotate(inverse[..., :3, :3], points) + inverse[..., :3, 3]
        image = rotate(intrinsics, local)
        return image[..., :2] / image[..., 2:], local[..., 2]

    def unproject(
        self, depth: Float[Tensor, "*batch view height width"]
    ) -> Float[Tensor, "*batch view height width 3"]:
        """World point of every pixel from its z-depth."""
        return self.centers[..., None, None, :] + self.directions() * depth[..., None]

    def transformed(self, similarity: Similarity) -> "Cameras":
        """The same cameras after the world was mapped by `similarity`."""
        moved = self.camera_to_world.clone()
        moved[..., :3, :3] = product(similarity.rotation[..., None, :, :], moved[..., :3, :3])
        moved[..., :3, 3] = similarity.apply(self.centers)
        return replace(self, camera_to_world=moved)

    def relative_to(self, pose: Float[Tensor, "*batch 4 4"]) -> "Cameras":
        """The same cameras seen from the frame of one camera-to-world `pose`."""
        rotation = pose[..., :3, :3].mT
        translation = -rotate(rotation, pose[..., :3, 3])
        return self.transformed(Similarity(rotation, translation, torch.ones_like(translation[..., 0])))

    def normalized(self) -> tuple["Cameras", Similarity]:
        """In the first camera's frame with the farthest camera at distance 1, and the map that leads there.

        Cameras that all stand in one place keep their scale (3DRAE section 3.1; the paper leaves that case open).
        """
        # Offsets first: far from the origin, turned centres would differ by their rounding.
        distance = self.extent
        tiny = COINCIDENT * self.centers.abs().amax((-1, -2)).clamp(min=1)
        scale = torch.where(distance > tiny, 1 / distance.clamp(min=1e-30), torch.ones_like(distance))
        rotation = self.camera_to_world[..., 0, :3, :3].mT
        turned = rotate(rotation[..., None, :, :], self.centers - self.centers[..., :1, :])
        moved = self.camera_to_world.clone()
        moved[..., :3, :3] = product(rotation[..., None, :, :], moved[..., :3, :3])
        moved[..., :3, 3] = scale[..., None, None] * turned
        translation = -scale[..., None] * rotate(rotation, self.centers[..., 0, :])
        return replace(self, camera_to_world=moved), Similarity(rotation, translation, scale)

    def resized(self, height: int, width: int) -> "Cameras":
        """Cameras of the same views at another resolution; the two axes may scale differently."""
        scale = self.intrinsics.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, intrinsics=self.intrinsics * scale[:, None], height=height, width=width)

    def fitted(self, height: int, width: int) -> "Cameras":
        """Cameras of the largest centred part of another shape, at its size: pixels keep their proportions."""
        return self._centered(height, width, max(height / self.height, width / self.width))

    def widened(self, height: int, width: int) -> "Cameras":
        """Cameras of whole images of which these show the largest centred part: the inverse of `fitted`."""
        return self._centered(height, width, min(height / self.height, width / self.width))

    def cropped(self, top: int, left: int, height: int, width: int) -> "Cameras":
        """Cameras of a window of the image whose first pixel is (`top`, `left`)."""
        intrinsics = self.intrinsics.clone()
        intrinsics[..., 0, 2] -= left
        intrinsics[..., 1, 2] -= top
        return replace(self, intrinsics=intrinsics, height=height, width=width)

    def _centered(self, height: int, width: int, scale: float) -> "Cameras":
        intrinsics = self.intrinsics * self.intrinsics.new_tensor([scale, scale, 1.0])[:, None]
        intrinsics[..., 0, 2] += (width - scale * self.width) / 2
        intrinsics[..., 1, 2] += (height - scale * self.height) / 2
        return replace(self, intrinsics=intrinsics, height=height, width=width)

    def directions(self) -> Float[Tensor, "*batch view height width 3"]:
        """World direction of the ray through every pixel's centre, as long as it takes to advance depth by 1."""
        kind = {"dtype": self.intrinsics.dtype, "device": self.intrinsics.device}
        places = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))
        fx, skew, cx, fy, cy = (self.intrinsics[..., row, column, None, None] for row, column in places)
        y = (torch.arange(self.height, **kind)[:, None] + 0.5 - cy) / fy
        x = (torch.arange(self.width, **kind) + 0.5 - cx - skew * y) / fx
        local = torch.stack([x, y.expand_as(x), torch.ones_like(x)], -1)
        return rotate(self.camera_to_world[..., None, None, :3, :3], local)
