"""What a file says of its coordinates: their unit, their scale against the scene's, and where up is."""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.scene import Views

AXES = ("x", "y", "z", "-x", "-y", "-z")
UNIT = "scene unit"


@dataclass(frozen=True)
class World:
    """Written into every file that can carry it."""

    unit: str = UNIT  # what 1 means in the file
    scale: float = 1.0  # file units in one scene unit
    up: str = "-y"  # the file's axis that points up, one of AXES

    def record(self) -> dict[str, str | float]:
        """As JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As comments."""
        return [f"{name} {value}" for name, value in self.record().items()]


def world_of(views: Views, unit: str = UNIT, scale: float = 1.0) -> World:
    """The world as the scene has it; up is the axis nearest to the cameras' own, -y where there are none."""
    return World(unit, scale, "-y" if views.cameras is None else up_axis(views.cameras))


def placed(views: Views, *, scale: float = 1.0, up: str | None = None, unit: str = UNIT) -> tuple[Views, World]:
    """The views in a world of another scale, turned by right angles until `up` is up; ValueError for a bad value."""
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale {scale}: accepted is a number above 0")
    if up is not None and up not in AXES:
        raise ValueError(f"up axis {up!r}: accepted are {', '.join(AXES)}")
    if not unit.isprintable() or not unit.strip() or len(unit) > 40:
        raise ValueError(f"unit {unit!r}: accepted are one or a few words, as in metre")
    found = world_of(views, unit, scale)
    if scale == 1 and up in (None, found.up):
        return views, found
    rotation = torch.eye(3) if up is None else turn(found.up, up)
    moved = views.to("cpu", torch.float32).transformed(Similarity(rotation, torch.zeros(3), torch.tensor(float(scale))))
    return moved, World(unit, scale, up or found.up)


def up_axis(cameras: Cameras) -> str:
    """The world's axis nearest to where the cameras' pictures have their upper side, on average."""
    up = -cameras.camera_to_world[..., :3, 1].detach().reshape(-1, 3).mean(0)
    axis = int(up.abs().argmax())
    return ("" if up[axis] > 0 else "-") + "xyz"[axis]


def turn(before: str, after: str) -> Float[Tensor, "3 3"]:
    """The rotation by right angles that takes axis `before` to axis `after`."""
    source, target = _axis(before), _axis(after)
    if before == after:
        return torch.eye(3)
    if torch.equal(source, -target):  # half a turn, about x unless that is the axis itself
        about = _axis("y" if before.endswith("x") else "x")
        return 2 * torch.outer(about, about) - torch.eye(3)
    about = torch.linalg.cross(source, target)
    # Rodrigues' formula at 90 degrees
    skew = torch.linalg.cross(about.expand(3, 3), torch.eye(3)).T
    return torch.outer(about, about) + skew


def _axis(name: str) -> Float[Tensor, "3"]:
    return torch.eye(3)["xyz".index(name[-1])] * (-1 if name.startswith("-") else 1)
