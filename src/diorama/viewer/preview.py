"""The path that is asked for, drawn into a visitor's window before anything is made along it."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.images import resize
from diorama.geometry.cameras import Cameras
from diorama.viewer.path import evenly
from diorama.viewer.poses import pose_of
from diorama.viewer.visit import pixels

FRUSTA = 12  # at most, beside the first
SIZE = 0.1  # of a frustum, scene units; the photo's is three times as large
PHOTO = 256  # pixels of its longer side in the window
COLOUR = (18, 184, 134)


class Preview:
    """A line through the wanted cameras, some of their frusta, and the photo at the first."""

    def __init__(self, client: Any) -> None:
        self.scene, self.rig = client.scene, None

    def show(self, cameras: Cameras, photo: Float[Tensor, "3 height width"] | None) -> None:
        """Draw this path in place of the one before."""
        self.hide()
        self.rig = self.scene.add_frame("/wish", show_axes=False)
        centers = cameras.centers.detach().float()
        if cameras.views > 1:
            steps = torch.stack([centers[:-1], centers[1:]], 1)
            self.scene.add_line_segments("/wish/line", steps.numpy(), COLOUR, thickness=3.0, thickness_units="screen")
        for place in sorted({0, *evenly(cameras.views, FRUSTA)}):
            pose = pose_of(cameras[place])
            self.scene.add_camera_frustum(
                f"/wish/{place:05d}",
                pose.fov,
                pose.aspect,
                scale=(3 if place == 0 else 1) * SIZE,
                thickness=2.0,
                thickness_units="screen",
                color=COLOUR,
                image=None if place or photo is None else pixels(_small(photo)),
                wxyz=pose.wxyz,
                position=pose.position,
                cast_shadow=False,
                receive_shadow=False,
            )

    def hide(self) -> None:
        """Draw none."""
        rig, self.rig = self.rig, None
        if rig is not None:
            rig.remove()


def _small(photo: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 small_height small_width"]:
    share = min(1.0, PHOTO / max(photo.shape[-2:]))
    size = [max(1, round(share * side)) for side in photo.shape[-2:]]
    return resize(photo, *size)
