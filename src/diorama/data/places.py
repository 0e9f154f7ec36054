"""Layouts of the procedural worlds: rooms, and arrangements of loose objects."""

from dataclasses import dataclass

import numpy as np

from diorama.data import scenery
from diorama.data.scenery import FABRICS, WALLS, Builder, Real, Spot
from diorama.data.textures import LEAVES, NOISES


@dataclass(frozen=True)
class Place:
    """The light of a layout and where cameras may be: everything but its solids."""

    lamps: list[tuple]  # (position, linear colour x irradiance at 1 m or of the sun, falls off with distance)
    sky: dict[str, tuple]  # zenith, horizon, sun direction, ambient from above and below, all linear
    fog: Real  # 1 / metres
    focus: np.ndarray  # [n, 3] points worth looking at
    reach: tuple[float, float]  # distance of the camera from its focus, metres
    limits: np.ndarray  # [2, 3] box that cameras stay in
    attributes: dict[str, int | float | str]
    caption: str


def room(b: Builder) -> Place:
    rng = b.rng
    width, depth, height = rng.uniform(3.6, 6.8), rng.uniform(3.6, 6.8), rng.uniform(2.4, 3.0)
    wall_name, floor_name = b.pick(tuple(WALLS)), b.pick(("wood", "wood", "carpet", "tiles", "checker"))
    wall, accent, floor = _walls(b, wall_name), _walls(b, b.pick(tuple(WALLS))), _floor(b, floor_name)
    ceiling = b.paint("plain", "efeeea", grain=0.05)
    faces = dict.fromkeys((0, 1, 4, 5), wall) | {2: ceiling, 3: floor}
    if rng.random() < 0.4:
        faces[int(b.pick((0, 1, 4, 5)))] = accent
    b.box(Spot(), (0, height / 2, 0), (width, height, depth), wall, faces=faces, hollow=True, casts=False)
    day = rng.random() < 0.7
    lamps, focus = [], []
    for side in rng.permutation(4):
        yaw, half = side * np.pi / 2, (depth if side % 2 == 0 else width) / 2
        at = Spot(-half * np.sin(yaw), -half * np.cos(yaw), yaw)
        focus += _furnish_wall(b, at, width if side % 2 == 0 else depth, day, lamps, first=not focus)
    focus += _middle(b, width, depth)
    warm = np.array([1.0, 0.86, 0.68])
    if not day or rng.random() < 0.5 or not lamps:
        top = (rng.uniform(-0.3, 0.3), height - 0.28, rng.uniform(-0.3, 0.3))
        b.cone(
            Spot(top[0], top[2]),
            (0, height - 0.15, 0),
            0.24,
            0.22,
            b.paint("plain", "fff4e0", emission=1.5, grain=0.0),
            taper=0.6,
            casts=False,
        )
        lamps.append((top, warm * (1.6 if day else 3.2), True))
    ambient = np.array([0.42, 0.44, 0.48]) if day else np.array([0.26, 0.23, 0.19])
    sky = {
        "zenith": (0.3, 0.5, 0.9),
        "horizon": (0.8, 0.85, 0.9),
        "sun": (0, 1, 0),
        "above": ambient,
        "below": ambient * 0.75,
    }
    lit = {"wall": wall_name, "floor": floor_name, "time": "day" if day else "evening", "height": float(height)}
    caption = f"a room with {wall_name} walls and a {floor_name} floor in the {lit['time']}, with {listing(b)}"
    limits = np.array([[-width / 2 + 0.35, 0.7, -depth / 2 + 0.35], [width / 2 - 0.35, height - 0.4, depth / 2 - 0.35]])
    return Place(lamps[:3], sky, 0.0, np.array(focus), (1.8, 4.2), limits, lit, caption)


def _walls(b: Builder, name: str) -> int:
    kind = b.pick(("plain", "plain", "plain", "stripes", "noise", "brick", "tiles"))
    a = scenery.linear(WALLS[name])
    light = tuple(min(1.0, x * b.rng.uniform(0.8, 1.25)) for x in a)
    c = scenery.linear(b.pick(("efede8", "efede8", "6a4a30")))
    joint = tuple(0.75 * x for x in a) if kind in ("brick", "tiles") else c
    scale = {"stripes": b.rng.uniform(0.25, 0.6), "noise": 2.5, "brick": 0.12, "tiles": 0.35}.get(kind, 1.0)
    return b.paint(
        kind, a, light, joint, scale=scale, skirt=0.0 if kind in ("brick", "tiles") else 0.1, layer=b.rng.integers(2)
    )


def _floor(b: Builder, name: str) -> int:
    if name == "wood":
        return b.wood(b.rng.uniform(0.14, 0.24))
    a = b.pick(FABRICS if name == "carpet" else ("d8d4cc", "b8a894", "8f9498", "c9b090"))
    if name == "carpet":
        soft = tuple(min(1.0, 1.7 * x + 0.02) for x in scenery.linear(a))
        return b.paint("noise", a, soft, scale=2.0, grain=0.5, layer=0)
    if name == "tiles":
        return b.paint("tiles", a, "e4e0d8", "77736c", scale=b.rng.uniform(0.35, 0.6), gloss=0.5)
    return b.paint("checker", a, b.pick(("3a3a3e", "6a5548", "e4e0d8")), scale=b.rng.uniform(0.6, 1.0), gloss=0.5)


def _furnish_wall(b: Builder, at: Spot, length: Real, day: bool, lamps: list, first: bool) -> list:
    """Things along one wall, left to right; returns points to look at."""
    rng, focus, cursor = b.rng, [], -length / 2 + 0.75
    while cursor < length / 2 - 0.9:
        kind = b.pick(
            ("window", "door", "shelf", "cabinet", "sofa", "bed", "lamp", "plant", "desk", "picture", "gap", "window")
        )
        space = length / 2 - 0.6 - cursor
        if first and not focus:
            kind = "window"
        spans = {"window": (1.0, 1.7), "shelf": (0.7, 1.3), "cabinet": (0.8, 1.5), "sofa": (1.4, 2.1),
                 "bed": (1.0, 1.6), "desk": (1.1, 1.5)}  # fmt: skip
        sizes = {name: rng.uniform(*span) for name, span in spans.items()}
        size = 1.1 if kind == "door" else sizes.get(kind, 0.6)
        if size > space or not b.room_for(box=17, ball=4, cone=4):
            cursor += 0.3
            if not b.room_for(box=17, ball=4, cone=4):
                break
            continue
        spot = at.on(cursor + size / 2, 0)
        _stand(b, kind, spot, size, day, lamps)
        if kind != "gap":
            focus.append(spot(0, 1.0, 0.3))
        cursor += size + rng.uniform(0.1, 0.5)
    return focus


def _stand(b: Builder, kind: str, spot: Spot, size: Real, day: bool, lamps: list) -> None:
    rng = b.rng
    if kind == "window":
        scenery.window(b, spot, size, rng.uniform(0.8, 1.6) if day else 0.05)
        if day and len(lamps) < 2:
            lamps.append((tuple(spot(0, 1.6, 0.35)), np.array([1.0, 0.98, 0.94]) * rng.uniform(2.2, 3.4), True))
    elif kind == "door":
        scenery.door(b, spot)
    elif kind == "shelf":
        scenery.shelf(b, spot, size, rng.uniform(1.1, 2.1))
    elif kind == "cabinet":
        height = b.pick((0.5, 0.75, 0.9, 1.9))
        scenery.cabinet(b, spot, size, height)
        if height < 1:
            scenery.wall_art(b, spot, rng.uniform(1.5, 1.7), size * 0.8, rng.uniform(0.5, 0.8))
    elif kind == "sofa":
        scenery.sofa(b, spot, size)
        scenery.wall_art(b, spot, 1.6, rng.uniform(0.6, 1.2), rng.uniform(0.5, 0.8))
    elif kind == "bed":
        scenery.bed(b, spot, size)
    elif kind == "desk":
        scenery.table(b, spot.on(0, 0.36), size, 0.6, 0.74)
        scenery.chair(b, spot.on(0, 0.85, np.pi + rng.uniform(-0.4, 0.4)))
    elif kind == "lamp":
        scenery.floor_lamp(b, spot.on(0, 0.3))
        if len(lamps) < 2:
            lamps.append((tuple(spot(0, 1.55, 0.3)), np.array([1.0, 0.8, 0.55]) * 0.9, True))
    elif kind == "plant":
        scenery.plant(b, spot.on(0, 0.35))
    elif kind == "picture":
        scenery.wall_art(b, spot, rng.uniform(1.4, 1.7), size, rng.uniform(0.4, 0.8))


def _middle(b: Builder, width: Real, depth: Real) -> list:
    """A rug, perhaps a dining table with chairs or a low table, in the middle of a room."""
    rng = b.rng
    at = Spot(rng.uniform(-0.1, 0.1) * width, rng.uniform(-0.1, 0.1) * depth, rng.uniform(-0.3, 0.3))
    if rng.random() < 0.6:
        pattern, one, two = b.pick(("leaves", "stripes", "noise", "plain")), b.pick(FABRICS), b.pick(FABRICS)
        scale, layer = rng.uniform(0.5, 1.5), NOISES + rng.integers(LEAVES)
        rug = b.paint(pattern, one, two, scale=scale, grain=0.4, layer=layer)
        b.box(at, (0, 0.008, 0), (rng.uniform(1.2, 2.2), 0.016, rng.uniform(1.0, 1.6)), rug, casts=False)
        b.count("rugs")
    if rng.random() < 0.75 and b.room_for(box=20, ball=3, cone=3):
        low = rng.random() < 0.4
        w, d = (
            (rng.uniform(0.7, 1.1), rng.uniform(0.45, 0.6)) if low else (rng.uniform(0.9, 1.5), rng.uniform(0.7, 0.9))
        )
        scenery.table(b, at, w, d, 0.42 if low else 0.74)
        for side in () if low else rng.permutation(4)[: rng.integers(1, 4)]:
            if b.room_for(box=6):
                out = d / 2 + 0.22 if side % 2 == 0 else w / 2 + 0.22
                spot = at.on(0, 0, side * np.pi / 2).on(0, out, np.pi + rng.uniform(-0.3, 0.3))
                scenery.chair(b, spot)
    return [at(0, 0.6, 0)]


def listing(b: Builder) -> str:
    """Counted things in words, such as "2 chairs, 1 sofa"."""
    singular = {"shelves": "shelf", "benches": "bench", "bushes": "bush", "boxes": "box"}
    words = [
        f"{n} {name if n > 1 else singular.get(name, name.removesuffix('s'))}" for name, n in sorted(b.counts.items())
    ]
    return ", ".join(words) or "nothing else"


def objects(b: Builder) -> Place:
    """Loose textured solids on a floor or a table inside a large hall: what object captures look like."""
    rng = b.rng
    size, height = rng.uniform(5, 8), rng.uniform(2.8, 4.0)
    name, floor = b.pick(tuple(WALLS)), b.pick(("wood", "carpet", "tiles", "checker"))
    faces = {2: b.paint("plain", "e8e6e0"), 3: _floor(b, floor)} | {i: _walls(b, b.pick(tuple(WALLS))) for i in (0, 1)}
    b.box(Spot(), (0, height / 2, 0), (size, height, size), _walls(b, name), faces=faces, hollow=True, casts=False)
    stage = rng.uniform(0.2, 0.7)
    b.cone(Spot(), (0, stage / 2, 0), rng.uniform(0.9, 1.3), stage, b.wood() if rng.random() < 0.5 else b.fabric())
    many = int(rng.integers(4, 11))
    for i in range(many):
        angle, away = i * 2.4 + rng.uniform(-0.4, 0.4), 0.27 * np.sqrt(i) + 0.05
        at = Spot(away * np.sin(angle), away * np.cos(angle), rng.uniform(0, 6.28), stage)
        _object(b, at)
    side = size / 2 - 0.4
    lamps = []
    for _ in range(int(rng.integers(1, 4))):
        position = (rng.uniform(-side, side), height - 0.3, rng.uniform(-side, side))
        lamps.append((position, np.array([1, 0.95, 0.86]) * rng.uniform(3, 5), True))
    ambient = np.array([0.34, 0.35, 0.37])
    sky = {
        "zenith": (0.3, 0.5, 0.9),
        "horizon": (0.8, 0.85, 0.9),
        "sun": (0, 1, 0),
        "above": ambient,
        "below": ambient * 0.7,
    }
    limits = np.array([[-side, 0.5, -side], [side, height - 0.4, side]])
    caption = f"{many} objects on a round stage in a hall with {name} walls and a {floor} floor: {listing(b)}"
    lit = {"wall": name, "floor": floor, "time": "indoors", "objects": many}
    return Place(
        [(p, c / len(lamps), f) for p, c, f in lamps],
        sky,
        0.0,
        np.array([[0, stage + 0.25, 0]]),
        (1.5, 2.6),
        limits,
        lit,
        caption,
    )


def _object(b: Builder, at: Spot) -> None:
    rng = b.rng
    pattern = b.pick(("plain", "plain", "stripes", "checker", "leaves", "leaves", "noise", "planks"))
    colors = (*FABRICS, *WALLS.values())
    one, two, scale, gloss = b.pick(colors), b.pick(colors), rng.uniform(0.1, 0.5), rng.uniform(0, 1)
    paint = b.paint(pattern, one, two, scale=scale, gloss=gloss, layer=NOISES + rng.integers(LEAVES))
    kind, r, h = int(rng.integers(5)), rng.uniform(0.1, 0.26), rng.uniform(0.15, 0.6)
    if kind == 0:
        b.add("ball", at, (0, r, 0), (2 * r,) * 3, paint)
        b.count("balls")
    elif kind == 1:
        b.cone(at, (0, h / 2, 0), r, h, paint, taper=rng.uniform(0.05, 1.0))
        b.count("cones")
    elif kind == 2 and b.room_for(prism=1):
        b.add("prism", at, (0, h / 2, 0), (2 * r, h, 2 * r), paint, taper=rng.uniform(0.02, 0.8))
        b.count("prisms")
    else:
        b.box(
            at,
            (0, h / 2, 0),
            (r * 2, h, rng.uniform(0.15, 0.45)),
            paint,
            faces={4: b.art()} if rng.random() < 0.4 else {},
        )
        b.count("boxes")
