"""Camera paths through procedural worlds: drawn, tried at low resolution, and kept when they see something."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.raycast import Bundle, Solids, cast, trimmed
from diorama.geometry.cameras import Cameras

if TYPE_CHECKING:
    from diorama.data.worlds import World

MOVES = {"orbit": 0.55, "dolly": 0.1, "truck": 0.15, "handheld": 0.2}  # shares
ATTEMPTS, TRIES, GOOD, PASSABLE = 24, 4, 0.03, 0.3
TOGETHER = 3  # attempts that are computed at once, which costs less than one by one
CENTERS, INSIDE = 25, 10.0  # places of a path that must be free, and what one that is not weighs
PROBE = 6  # every how many of these places a view is tried


def choose_path(world: "World", views: int, height: int, width: int, kind: str | None = None) -> Cameras:
    """The first of many drawn paths that is free, sees more than a wall and keeps overlap; the best if none is."""
    if kind is not None and kind not in MOVES:
        raise ValueError(f"path kind {kind!r}: accepted are {', '.join(MOVES)}")
    if views < 1:
        raise ValueError(f"{views} views: accepted are integers from 1 on")
    rng = np.random.Generator(np.random.PCG64([world.seed, 1]))
    move, fov = str(rng.choice(list(MOVES), p=list(MOVES.values()))), float(rng.uniform(45, 75))
    move = kind or move
    best = _best(world, rng, move, Cameras.from_fov(fov, *_small(height, width), torch.eye(4)[None]))
    return Cameras.from_fov(fov, height, width, _poses(best, views))


def _best(world: "World", rng: np.random.Generator, move: str, camera: Cameras) -> dict:
    """The curve that is kept: the first good one, or the least faulty of all; `camera` gives size and field of view."""
    best, least, solids = {}, np.inf, trimmed(world.solids)
    for start in range(0, ATTEMPTS, TOGETHER):
        attempts = range(start, start + TOGETHER)
        # tight places get shorter paths
        curves = [_draw(world, rng, move, 0.94 ** max(0, attempt - 5)) for attempt in attempts for _ in range(TRIES)]
        poses = torch.stack([_poses(curve, CENTERS) for curve in curves])
        inside = _crowding(solids, poses[..., :3, 3], world.limits)
        # a path that is worse than the best one whatever it sees need not be looked at
        hopeful = (inside * INSIDE <= least).nonzero()[:, 0]
        faults = np.full(len(curves), np.inf)
        if len(hopeful):
            probes = poses[hopeful, ::PROBE]
            lens = camera.intrinsics.expand(*probes.shape[:2], 3, 3)
            probes = Cameras(probes, lens, camera.height, camera.width)
            faults[hopeful.numpy()] = _faults(world, solids, probes, inside[hopeful])
        for attempt, mine in zip(attempts, faults.reshape(-1, TRIES), strict=True):
            first = int(np.argmax(mine <= GOOD) if (mine <= GOOD).any() else np.argmin(mine))
            if mine[first] < least:
                best, least = curves[(attempt - start) * TRIES + first], mine[first]
            if least <= GOOD or (attempt >= 15 and least < PASSABLE):
                return best
    return best


def _small(height: int, width: int) -> tuple[int, int]:
    scale = 14 / max(height, width)
    return max(4, round(height * scale)), max(4, round(width * scale))


def _draw(world: "World", rng: np.random.Generator, move: str, ease: float) -> dict[str, np.ndarray | float | str]:
    """Numbers that fix one path, before anything is known about it."""
    low, high = world.limits.numpy().astype(np.float64)
    target = world.focus[rng.integers(len(world.focus))].numpy().astype(np.float64)
    for _ in range(8):
        away, angle = rng.uniform(*world.reach), rng.uniform(0, 2 * np.pi)
        eye = target + away * np.array([np.sin(angle), 0, np.cos(angle)])
        if (eye[[0, 2]] > low[[0, 2]]).all() and (eye[[0, 2]] < high[[0, 2]]).all():
            break
    eye[1] = rng.uniform(max(low[1], 0.9), min(high[1], 1.9))
    if world.kind == "objects":
        eye[1] = target[1] + rng.uniform(0.2, 1.1)
    eye = np.clip(eye, low, high)
    target = target + rng.uniform(-0.25, 0.25, 3) * (1, 0.6, 1)
    return {
        "move": move,
        "eye": eye,
        "target": target,
        "turn": ease * rng.uniform(2.2, 4.4) * rng.choice((-1, 1)),
        "share": ease * rng.uniform(1.2, 2.0),
        "lift": rng.uniform(-0.15, 0.15),
        "phase": rng.uniform(0, 2 * np.pi, 6),
        "shake": rng.uniform(0.3, 1.0, 6),
    }


def _poses(curve: dict, views: int) -> Float[Tensor, "view 4 4"]:
    """Camera-to-world matrices at `views` equal steps of a path."""
    s = np.linspace(0, 1, views)[:, None] if views > 1 else np.zeros((1, 1))
    s = s - 0.5
    eye, target = curve["eye"], curve["target"]
    ahead = target - eye
    distance = np.linalg.norm(ahead)
    side = _cross(ahead / distance, np.array([0, 1, 0]))
    up = np.array([0, 1, 0])
    look = target + 0 * s
    if curve["move"] == "orbit":
        angle = curve["turn"] * s
        c, d = np.cos(angle), np.sin(angle)
        rim = eye - target
        at = target + np.concatenate([rim[0] * c + rim[2] * d, rim[1] + curve["lift"] * s, -rim[0] * d + rim[2] * c], 1)
    elif curve["move"] == "dolly":
        at = eye + (s + 0.5) * ahead * curve["share"] * 0.38 * (1, 0.2, 1) + side * curve["lift"] * s * 4
        look = target + side * curve["turn"] * s * 0.35
    elif curve["move"] == "truck":
        at = eye + side * np.sign(curve["turn"]) * s * curve["share"] * distance + up * curve["lift"] * s
        look = target + (at - eye) * 0.4
    else:
        p, k = curve["phase"], curve["shake"]
        sway = [np.sin(s * (2 + 2.5 * k[i]) + p[i]) * k[i] for i in range(6)]
        at = (
            eye
            + side * np.sign(curve["turn"]) * s * curve["share"] * distance * 0.8
            + 0.08 * distance * (side * sway[0] + up * sway[1] * 0.4)
        )
        at = at + ahead * (0.15 * s + 0.04 * sway[2])
        look = target + 0.16 * distance * (side * sway[3] + up * sway[4] * 0.6) + (at - eye) * 0.1
    roll = (
        0.03 * curve["shake"][5] * np.sin(3 * s[:, 0] + curve["phase"][5])
        if curve["move"] == "handheld"
        else np.zeros(views)
    )
    return torch.from_numpy(_look_at(at, look, roll)).float()


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cross product of 3-vectors; numpy's own spends most of its time on other shapes."""
    (x, y, z), (u, v, w) = a.T, b.T
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u], -1)


def _look_at(eye: np.ndarray, target: np.ndarray, roll: np.ndarray) -> np.ndarray:
    forward = target - eye
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = _cross(forward, np.array([0, 1, 0]))
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down = _cross(forward, right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    poses = np.tile(np.eye(4), (len(eye), 1, 1))
    poses[:, :3, :3] = np.stack([c * right + s * down, c * down - s * right, forward], 2)
    poses[:, :3, 3] = eye
    return poses


def _faults(world: "World", solids: Solids, cameras: Cameras, inside: Float[Tensor, " path"]) -> list[float]:
    """How far each of a batch of paths is from being free, varied and overlapping; 0 if all is well."""
    _origins, directions = cameras.rays()
    paths, views = directions.shape[:2]
    rays = Bundle(
        cameras.centers.reshape(-1, 3),
        torch.zeros(paths * views, dtype=torch.long),
        torch.arange(paths * views),
        directions.reshape(paths * views, -1, 3).permute(2, 1, 0).contiguous(),
    )
    distance, index = (a.T.contiguous() for a in cast(solids, rays))
    flat = directions.reshape(paths * views, -1, 3)
    depth = distance * (flat * cameras.camera_to_world.reshape(-1, 1, 4, 4)[..., :3, 2]).sum(-1)
    depth, index = depth.reshape(paths, views, -1), index.reshape(paths, views, -1)
    usual = depth.clamp_max(30).median(2).values
    near = (0.37 - depth.amin(2) / usual).clamp_min(0).amax(1)
    bins = solids.center.shape[1] + 1
    row = torch.arange(paths * views).reshape(paths, views, 1) * bins
    solid = (
        torch.bincount((index + 1 + row).flatten(), minlength=paths * views * bins).reshape(paths, views, bins)
        / index.shape[2]
    )
    dull = (solid[..., 1:].amax(-1) - 0.9).clamp_min(0).amax(1) + (solid[..., 0] - 0.5).clamp_min(0).amax(1)
    few = ((7 if world.kind == "room" else 6) - (solid > 0.005).sum(-1)).clamp_min(0).float().amax(1) * 0.1
    far = (usual.amax(1) / usual.amin(1) / 2.5 - 1).clamp_min(0)
    points = cameras.unproject(depth.reshape(paths, views, cameras.height, cameras.width).clamp_max(30))
    shared, shift = _overlap(cameras, points)
    overlap = (0.15 - shared).clamp_min(0)
    still = (0.32 - shift).clamp_min(0)
    total = inside * INSIDE + near * 3 + dull * 2 + few + far + overlap * 2 + still
    return [float(x) if x > 1e-6 else 0.0 for x in total]


def _overlap(cameras: Cameras, points: Float[Tensor, "path view height width 3"]) -> tuple[Tensor, Tensor]:
    """Share of the first and last view's points that the other one frames, and their mean shift in image widths."""
    shares, shifts = [], []
    size = torch.tensor([cameras.width, cameras.height])
    for one, other in ((0, cameras.views - 1), (cameras.views - 1, 0)):
        pixels, depth = cameras[other].project(points[:, one : one + 1])
        home, _ = cameras[one].project(points[:, one : one + 1])
        inside = ((pixels > 0) & (pixels < size)).all(-1) & (depth > 0)
        shares.append(inside.float().mean((1, 2, 3)))
        shift = (pixels - home).norm(dim=-1).clamp_max(2 * max(cameras.width, cameras.height)) / max(
            cameras.width, cameras.height
        )
        shifts.append((shift * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_min(1))
    return torch.minimum(*shares), torch.minimum(*shifts)


def _crowding(
    solids: Solids, centers: Float[Tensor, "path view 3"], limits: Float[Tensor, "2 3"]
) -> Float[Tensor, " path"]:
    """Share of cameras that are in or within 25 cm of a solid, or outside the limits."""
    away = centers[:, :, None] - solids.center[0]
    local = torch.einsum("sji,pvsj->pvsi", solids.rotation[0], away).abs()
    grown = solids.half[0] + 0.25
    within = (local < grown).all(-1) & ~solids.hollow[0] & (solids.bound[0] > 0)
    outside = ((centers < limits[0] - 1e-3) | (centers > limits[1] + 1e-3)).any(-1)
    return (within.any(-1) | outside).float().mean(1)
