"""Camera paths from one camera, named for what the camera does.

Every path takes `start` (cameras with one view), the number of views, and one amplitude that the last view reaches; the
first camera is `start` itself and the speed is uniform. Directions are the start camera's own: right, up (against the
image's y axis) and forward. Lengths are in scene units, which are relative when the scene comes from one photo: there,
one unit is what the model took as such, so try `amplitude` before believing it.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import matrix_from_vector, product, rotate, vector_from_matrix


def static(start: Cameras, views: int) -> Cameras:
    """The same camera again and again."""
    return _path(start, views)


def dolly(start: Cameras, views: int, distance: float = 0.5) -> Cameras:
    """Move `distance` scene units forward, backward if negative, along the line of sight."""
    return _path(start, views, shift=_shares(start, views, 0.0, 0.0, _finite("distance", distance)))


def truck(start: Cameras, views: int, distance: float = 0.5) -> Cameras:
    """Move `distance` scene units to the right, left if negative, without turning."""
    return _path(start, views, shift=_shares(start, views, _finite("distance", distance), 0.0, 0.0))


def pedestal(start: Cameras, views: int, distance: float = 0.5) -> Cameras:
    """Move `distance` scene units up, down if negative, without turning."""
    return _path(start, views, shift=_shares(start, views, 0.0, -_finite("distance", distance), 0.0))


def pan(start: Cameras, views: int, degrees: float = 15.0) -> Cameras:
    """Turn in place by `degrees` to the right, left if negative."""
    return _path(start, views, turn=_shares(start, views, 0.0, math.radians(_finite("degrees", degrees)), 0.0))


def tilt(start: Cameras, views: int, degrees: float = 15.0) -> Cameras:
    """Turn in place by `degrees` upwards, downwards if negative."""
    return _path(start, views, turn=_shares(start, views, math.radians(_finite("degrees", degrees)), 0.0, 0.0))


def orbit(start: Cameras, views: int, degrees: float = 60.0, radius: float = 1.0) -> Cameras:
    """Circle to the right by `degrees`, left if negative, around the point `radius` scene units straight ahead.

    The circle lies in the start camera's own horizontal plane; 360 degrees end where they began.
    """
    angle = -math.radians(_finite("degrees", degrees))
    turn = _shares(start, views, 0.0, angle, 0.0)
    target = turn.new_tensor([0.0, 0.0, _finite("radius", radius, above=0.0)])
    return _path(start, views, turn=turn, shift=target - rotate(matrix_from_vector(turn), target))


def spiral(start: Cameras, views: int, radius: float = 0.2, turns: float = 2.0, distance: float = 1.0) -> Cameras:
    """Wind outwards to `radius` scene units beside the start, looking at the point `distance` units straight ahead."""
    share = _shares(start, views, 1.0)[:, 0]
    reach = share * _finite("radius", radius)
    phase = share * 2 * math.pi * _finite("turns", turns)
    x, y, still = torch.cos(phase), torch.sin(phase), torch.zeros_like(share)
    turn = torch.atan2(reach, torch.full_like(share, _finite("distance", distance, above=0.0)))
    shift = reach[:, None] * torch.stack([x, y, still], -1)
    return _path(start, views, turn=turn[:, None] * torch.stack([y, -x, still], -1), shift=shift)


def zoom(start: Cameras, views: int, factor: float = 1.5) -> Cameras:
    """Multiply the focal length by `factor` (more than 1 magnifies) at a uniform rate, without moving."""
    scale = torch.exp(_shares(start, views, math.log(_finite("factor", factor, above=0.0)))[:, 0])
    focal = torch.ones(views, 3, 3).to(scale)
    focal[:, :2, :2] = scale[:, None, None]  # a skew grows with the focal length; the principal point stays
    return _path(start, views, focal=focal)


def interpolate(keyframes: Cameras, views: int) -> Cameras:
    """A smooth path through all `keyframes`, which are exactly its views at `keyframe_places`.

    Positions follow a cubic Hermite spline, rotations a slerp with the same corrections, so that neither velocity jumps
    at a keyframe; intrinsics change linearly. Two keyframes give a uniform speed.
    """
    places = keyframe_places(keyframes.views, views)
    if keyframes.views == 1:
        return static(keyframes, views)
    pose, intrinsics = keyframes.camera_to_world, keyframes.intrinsics
    nodes = torch.tensor(places).to(pose)
    length = (nodes[1:] - nodes[:-1])[:, None]
    index = torch.searchsorted(nodes[1:-1].contiguous(), torch.arange(views).to(pose), right=True)
    share = (torch.arange(views).to(pose) - nodes[index])[:, None] / length[index]

    rotation, centers = pose[..., :3, :3], keyframes.centers
    turn = vector_from_matrix(product(rotation[..., :-1, :, :].mT, rotation[..., 1:, :, :]))
    walk = centers[..., 1:, :] - centers[..., :-1, :]
    path = torch.zeros_like(pose[..., index, :, :])
    path[..., :3, 3] = centers[..., index, :] + share * walk[..., index, :] + _correction(walk, length, index, share)
    path[..., :3, :3] = product(
        product(rotation[..., index, :, :], matrix_from_vector(share * turn[..., index, :])),
        matrix_from_vector(_correction(turn, length, index, share)),
    )
    path[..., 3, 3] = 1
    path[..., list(places), :, :] = pose  # free of rounding: known cameras must equal the wanted ones
    lenses = torch.lerp(intrinsics[..., index, :, :], intrinsics[..., index + 1, :, :], share[..., None])
    lenses[..., list(places), :, :] = intrinsics
    return replace(keyframes, camera_to_world=path, intrinsics=lenses)


def keyframe_places(keyframes: int, views: int) -> tuple[int, ...]:
    """Which views of `interpolate` are the keyframes: first, last, and the others evenly in between."""
    if keyframes < 1 or views < keyframes:
        raise ValueError(f"{views} views through {keyframes} keyframes: accepted is a view or more for each keyframe")
    steps = max(keyframes - 1, 1)
    return tuple((2 * place * (views - 1) + steps) // (2 * steps) for place in range(keyframes))


# Names of other projects follow ours. Gen3R's `arc_*` and `translate_*` only turn the camera, hence pan and tilt. Its
# `zoom_in` moves forward and is our `dolly`; `zoom_in` here changes the focal length, as it does in SEVA.
TRAJECTORIES: dict[str, Callable[..., Cameras]] = {
    "static": static,
    "orbit": orbit,
    "spiral": spiral,
    "dolly": dolly,
    "truck": truck,
    "pedestal": pedestal,
    "pan": pan,
    "tilt": tilt,
    "zoom": zoom,
    "zoom_in": zoom,  # SEVA
    "zoom_out": lambda start, views, factor=1.5: zoom(start, views, 1 / _finite("factor", factor, above=0.0)),  # SEVA
    "move_forward": dolly,  # SEVA
    "move_backward": lambda start, views, distance=0.5: dolly(start, views, -distance),  # SEVA
    "move_right": truck,  # SEVA
    "move_left": lambda start, views, distance=0.5: truck(start, views, -distance),  # SEVA
    "move_up": pedestal,  # SEVA
    "move_down": lambda start, views, distance=0.5: pedestal(start, views, -distance),  # SEVA
    "arc_right": pan,  # Gen3R
    "arc_left": lambda start, views, degrees=15.0: pan(start, views, -degrees),  # Gen3R
    "translate_up": tilt,  # Gen3R
    "translate_down": lambda start, views, degrees=15.0: tilt(start, views, -degrees),  # Gen3R
}


def trajectory(name: str, start: Cameras, views: int, amplitude: float | None = None) -> Cameras:
    """The path called `name` (hyphens count as underscores), with its own default unless an amplitude is given."""
    found = TRAJECTORIES.get(name.strip().lower().replace("-", "_"))
    if found is None:
        close = difflib.get_close_matches(name, TRAJECTORIES, n=1)
        hint = f", did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"no trajectory is called {name!r}{hint} Accepted: {', '.join(TRAJECTORIES)}")
    if amplitude is None:
        return found(start, views)
    if found is static:
        raise ValueError(f"trajectory static has no amplitude, found {amplitude}")
    return found(start, views, amplitude)


def _path(
    start: Cameras,
    views: int,
    turn: Float[Tensor, "view 3"] | None = None,
    shift: Float[Tensor, "view 3"] | None = None,
    focal: Float[Tensor, "view 3 3"] | None = None,
) -> Cameras:
    """Cameras turned and shifted in the start's own axes, with the intrinsics multiplied by `focal`."""
    _one_view(start, views)
    motion = torch.eye(4).repeat(views, 1, 1).to(start.camera_to_world)
    if turn is not None:
        motion[:, :3, :3] = matrix_from_vector(turn)
    if shift is not None:
        motion[:, :3, 3] = shift
    pose, intrinsics = start.camera_to_world, start.intrinsics
    # Sums, not a matrix product, which autocast or TF32 would round; so the first camera comes out as it went in.
    poses = (pose[..., None] * motion[:, None]).sum(-2)
    lenses = intrinsics.expand(*intrinsics.shape[:-3], views, 3, 3)
    return replace(start, camera_to_world=poses, intrinsics=lenses if focal is None else lenses * focal)


def _shares(start: Cameras, views: int, *amplitude: float) -> Float[Tensor, "view value"]:
    """Each amplitude times 0 at the first view to 1 at the last one."""
    _one_view(start, views)
    share = torch.arange(views).to(start.camera_to_world) / max(views - 1, 1)
    return share[:, None] * share.new_tensor(amplitude)


def _correction(
    step: Float[Tensor, "*batch piece 3"],
    length: Float[Tensor, "piece 1"],
    index: Tensor,
    share: Float[Tensor, "view 1"],
) -> Float[Tensor, "*batch view 3"]:
    """What a cubic Hermite spline adds to the straight steps between nodes; zero at the nodes."""
    speed = step / length
    inner = (speed[..., 1:, :] * length[:-1] + speed[..., :-1, :] * length[1:]) / (length[:-1] + length[1:])
    tangent = torch.cat([speed[..., :1, :], inner, speed[..., -1:, :]], -2)
    leaving = (tangent[..., :-1, :] - speed)[..., index, :]
    arriving = (tangent[..., 1:, :] - speed)[..., index, :]
    rest = 1 - share
    return length[index] * share * rest * (rest * leaving - share * arriving)


def _one_view(start: Cameras, views: int) -> None:
    if start.views != 1:
        raise ValueError(f"a path starts at one camera, found {start.views}: choose one, as in cameras[0]")
    if views < 1:
        raise ValueError(f"a path of {views} views: accepted is 1 or more")


def _finite(name: str, value: float, above: float = -math.inf) -> float:
    if not above < value < math.inf:
        raise ValueError(f"{name} {value}: accepted is a finite number{f' above {above}' if above == 0.0 else ''}")
    return value
