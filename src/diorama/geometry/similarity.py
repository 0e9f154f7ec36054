"""Rotation, translation and one scale: the group that leaves a 3D scene the same scene."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.rotations import product, rotate


@dataclass(frozen=True, eq=False)
class Similarity:
    """The map x -> scale * rotation @ x + translation between two world frames."""

    rotation: Float[Tensor, "*batch 3 3"]
    translation: Float[Tensor, "*batch 3"]
    scale: Float[Tensor, "*batch"]

    @classmethod
    def identity(cls, dtype: torch.dtype = torch.float32) -> "Similarity":
        """The map that moves nothing."""
        return cls(torch.eye(3, dtype=dtype), torch.zeros(3, dtype=dtype), torch.ones((), dtype=dtype))

    def apply(self, points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Map points whose leading axes start with this map's batch axes."""
        extra = points.ndim - self.translation.ndim
        rotation, translation, scale = (
            value.reshape((*self.scale.shape, *(1,) * extra, *value.shape[self.scale.ndim :]))
            for value in (self.rotation, self.translation, self.scale)
        )
        return scale[..., None] * rotate(rotation, points) + translation

    def inverse(self) -> "Similarity":
        """The map that undoes this one."""
        rotation = self.rotation.mT
        return type(self)(rotation, -rotate(rotation, self.translation) / self.scale[..., None], 1 / self.scale)

    def then(self, other: "Similarity") -> "Similarity":
        """This map first, `other` after it."""
        return type(self)(
            product(other.rotation, self.rotation), other.apply(self.translation), other.scale * self.scale
        )

    def to(self, *args: Any) -> "Similarity":
        """On another device or in another dtype, with the arguments of `Tensor.to`."""
        return type(self)(self.rotation.to(*args), self.translation.to(*args), self.scale.to(*args))
