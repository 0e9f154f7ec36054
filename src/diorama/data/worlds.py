"""Procedural worlds: rooms, outdoor places and objects with exact images, depth and cameras, deterministic by seed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.outdoors import outdoor
from diorama.data.paths import choose_path
from diorama.data.places import objects, room
from diorama.data.raycast import FAR, KINDS, Solids
from diorama.data.scenery import CAPACITY, MATERIALS, Builder, Spot
from diorama.data.shading import Air, Stage, exposed, render_worlds
from diorama.data.textures import WIDTH, atlas, read_pictures
from diorama.geometry.cameras import Cameras
from diorama.scene import Views

WORLDS_VERSION = 2  # changes whenever the picture of any seed changes
SPLITS = {
    "train": range(0, 10_000_000),
    "validation": range(10_000_000, 10_100_000),
    "test": range(10_100_000, 10_200_000),
}
PLACES = {"room": room, "outdoor": outdoor, "objects": objects}
SHARES = {"room": 0.55, "outdoor": 0.25, "objects": 0.2}


@dataclass(frozen=True, eq=False)
class World:
    """One procedural scene, y up, in metres; its solids and light have a world axis of one, so that worlds stack."""

    seed: int
    kind: str
    solids: Solids
    materials: Float[Tensor, "1 material number"]
    air: Air
    pictures: Float[Tensor, "picture 3 128 128"] | None  # a user's textures
    focus: Float[Tensor, "point 3"]  # places worth looking at
    reach: tuple[float, float]  # distance of cameras from what they look at, metres
    limits: Float[Tensor, "2 3"]  # box that cameras stay in
    caption: str
    attributes: dict[str, int | float | str]

    def path(self, views: int, height: int, width: int, *, kind: str | None = None) -> Cameras:
        """Cameras along a smooth collision-free path (orbit, dolly, truck or hand-held, by the seed unless given)."""
        return choose_path(self, views, height, width, kind)


def world(seed: int, *, kind: str | None = None, textures: str | Path | Tensor | None = None) -> World:
    """The world of a seed; `textures` is a folder of pictures, or such pictures, used for art on walls and objects.

    Raises ValueError for an unknown kind, a negative seed or a folder without pictures.
    """
    if seed < 0:
        raise ValueError(f"world seed {seed}: accepted are integers from 0 on")
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    kind = kind or drawn
    if kind not in PLACES:
        raise ValueError(f"world kind {kind!r}: accepted are {', '.join(PLACES)}")
    pictures = read_pictures(textures) if isinstance(textures, (str, Path)) else textures
    builder = Builder(rng, 0 if pictures is None else len(pictures))
    place = PLACES[kind](builder)
    attributes = {"kind": kind, "lights": len(place.lamps), **place.attributes, **builder.counts}
    materials = np.zeros((1, MATERIALS, WIDTH), np.float32)
    materials[0, : len(builder.materials)] = builder.materials
    stage = Stage(
        _pad(builder), torch.from_numpy(materials), Air.of(place.sky, place.lamps, place.fog), atlas(pictures, "cpu")
    )
    limits = torch.from_numpy(place.limits).float()
    eyes = torch.stack([limits.lerp(limits.flip(0), share)[0] for share in (0.3, 0.7)]) * torch.tensor(
        [1, 0, 1]
    ) + torch.tensor([0, 1.4, 0])
    return World(
        seed=seed,
        kind=kind,
        solids=stage.solids,
        materials=stage.materials,
        air=exposed(stage, eyes),
        pictures=pictures,
        focus=torch.from_numpy(place.focus).float(),
        reach=place.reach,
        limits=limits,
        caption=place.caption,
        attributes=attributes,
    )


def _pad(builder: Builder) -> Solids:
    """The builder's solids as tensors, each kind padded to its capacity."""
    nothing = (Spot()(0, -1e4, 0), np.eye(3), np.full(3, 0.01), 1.0, False, False, np.zeros(6, int))
    rows, bounds = [], []
    for kind in KINDS:
        mine = builder.solids[kind]
        if len(mine) > CAPACITY[kind]:
            raise AssertionError(f"{len(mine)} solids of kind {kind}, room for {CAPACITY[kind]}")
        rows += mine + [nothing] * (CAPACITY[kind] - len(mine))
        bounds += [_bound(kind, row) for row in mine] + [-1.0] * (CAPACITY[kind] - len(mine))
    center, rotation, half, taper, casts, hollow, faces = (
        torch.from_numpy(np.stack(column))[None] for column in zip(*rows, strict=True)
    )
    return Solids(
        center=center.float(),
        rotation=rotation.float(),
        half=half.float(),
        taper=taper.float(),
        bound=torch.tensor(bounds)[None],
        casts=casts,
        hollow=hollow,
        faces=faces,
        counts=(CAPACITY["box"], CAPACITY["prism"], CAPACITY["ball"], CAPACITY["cone"]),
    )


def _bound(kind: str, row: tuple) -> float:
    half, taper = row[2], row[3]
    if kind == "ball":
        return float(half.max())
    if kind == "cone":
        return float(np.hypot(half[0] * max(1, taper), half[1]))
    return float(np.linalg.norm(half * (max(1, taper) if kind == "prism" else 1, 1, 1)))


def stack(worlds: Sequence[World]) -> tuple[Solids, Float[Tensor, "world material number"], Air]:
    """Solids, materials and air of several worlds along one world axis."""

    def join(parts: list):
        rows = {f.name: [getattr(p, f.name) for p in parts] for f in fields(parts[0])}
        return replace(parts[0], **{k: torch.cat(v) for k, v in rows.items() if isinstance(v[0], Tensor)})

    return (
        join([w.solids for w in worlds]),
        torch.cat([w.materials for w in worlds]),
        join([w.air for w in worlds]),
    )


def render(world: World, cameras: Cameras, *, samples: int = 4) -> Views:
    """Images, points and confidence of one world, on the cameras' device; points are exact at pixel centres.

    Sky has confidence 0 and points FAR metres along the ray. Raises ValueError for fewer than one sample.
    """
    batched = Cameras(cameras.camera_to_world[None], cameras.intrinsics[None], cameras.height, cameras.width)
    views = render_batch([world], batched, samples=samples)
    assert views.points is not None and views.confidence is not None
    return Views(views.images[0], cameras, views.points[0], views.confidence[0])


def render_batch(worlds: Sequence[World], cameras: Cameras, *, samples: int = 4) -> Views:
    """The same for several worlds at once, cameras "batch view" with one batch entry per world; fast on a GPU."""
    if cameras.camera_to_world.shape[:-3] != (len(worlds),):
        found = tuple(cameras.camera_to_world.shape[:-3])
        raise ValueError(f"{len(worlds)} worlds need cameras of batch shape ({len(worlds)},), found {found}")
    if samples < 1:
        raise ValueError(f"{samples} samples a pixel: accepted are integers from 1 on")
    if any(w.pictures is not worlds[0].pictures for w in worlds):
        raise ValueError("worlds rendered together must share one set of texture pictures (the same tensor)")
    images, distance = render_worlds(*stack(worlds), worlds[0].pictures, cameras, samples)
    hit = (distance < FAR).to(images.dtype)
    origins, directions = cameras.rays()
    return Views(images, cameras, origins + directions * distance[..., None], hit)
