"""Playing along the path: where the camera is at any time, between its views too."""

from dataclasses import dataclass

import torch

from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import interpolate
from diorama.viewer.poses import Pose, pose_of

BETWEEN = 8  # poses for each step from a view to the next


@dataclass(frozen=True)
class Flight:
    """A scene's cameras as one smooth movement, which begins again at its end."""

    poses: tuple[Pose, ...]  # `BETWEEN` for each view but the last
    views: int

    @classmethod
    def along(cls, cameras: Cameras) -> "Flight":
        """Through all cameras in their order; of one size, as a path has."""
        steps = BETWEEN * (cameras.views - 1) + 1
        smooth = interpolate(cameras.to(torch.float64), steps)
        return cls(tuple(pose_of(smooth[place]) for place in range(steps)), cameras.views)

    def at(self, time: float) -> Pose:
        """The pose at a time counted in views, to the nearest one that was computed."""
        return self.poses[min(round(max(time, 0.0) * BETWEEN), len(self.poses) - 1)]

    def after(self, time: float, views: float) -> float:
        """The time so many views later; half a view after the last one it begins again."""
        last = self.views - 1
        return 0.0 if last == 0 or time + views > last + 0.5 else time + views


def evenly(count: int, most: int) -> list[int]:
    """Which of so many views to show where only `most` can be: the first, the last, and others evenly between."""
    if count <= most:
        return list(range(count))
    return sorted(set(torch.linspace(0, count - 1, most).round().long().tolist()))
