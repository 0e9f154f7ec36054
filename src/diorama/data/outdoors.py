"""Layouts of the procedural worlds under the sky: houses, trees, fences, a backdrop, and the weather."""

import numpy as np

from diorama.data import scenery
from diorama.data.places import Place, listing
from diorama.data.scenery import WALLS, Builder, Real, Spot


def outdoor(b: Builder) -> Place:
    rng = b.rng
    ground = b.pick(("grass", "grass", "gravel", "paving", "sand"))
    sky, lamps, time = _weather(b)
    paint = {
        "grass": lambda: b.paint("noise", "46562c", "76824a", scale=rng.uniform(4, 9), grain=0.8, layer=0),
        "gravel": lambda: b.paint("noise", "8a8478", "b5ad9e", scale=2.5, grain=0.8, layer=0),
        "paving": lambda: b.paint("tiles", "a39c90", "bdb5a8", "6f6a60", scale=rng.uniform(0.7, 1.2), grain=0.5),
        "sand": lambda: b.paint("noise", "c2a878", "dcc79c", scale=5.0, grain=0.5, layer=1),
    }[ground]()
    b.box(Spot(), (0, -1, 0), (600, 2, 600), paint, casts=False)
    if rng.random() < 0.5:
        road = b.paint("noise", "55565a", "76777a", scale=3.0, grain=0.5, layer=0)
        b.box(
            Spot(yaw=rng.uniform(-0.3, 0.3)),
            (0, 0.01, rng.uniform(2, 4)),
            (120, 0.04, rng.uniform(2, 4)),
            road,
            casts=False,
        )
    focus, taken = [], []
    for _ in range(int(rng.integers(1, 3))):
        angle, w, d = rng.uniform(0, 6.28), rng.uniform(4, 7), rng.uniform(4, 6)
        at = _free(b, taken, angle, rng.uniform(6, 12), 4.2)
        if at and b.room_for(box=22, prism=1):
            scenery.house(b, at, w, d, rng.uniform(2.6, 3.6))
            focus.append(at(0, 1.6, d / 2))
    many = {"tree": (4, 8, 1.3), "bush": (1, 4, 0.8), "car": (0, 2, 2.2), "bench": (0, 2, 1.0), "rock": (0, 3, 0.6)}
    numbers = {maker: rng.integers(low, high) for maker, (low, high, _) in many.items()}
    for maker, (_, _, radius) in many.items():
        for _ in range(int(numbers[maker])):
            at = _free(b, taken, rng.uniform(0, 6.28), rng.uniform(1.0, 9), radius)
            if at and b.room_for(box=6, ball=3, cone=4, prism=1):
                focus.append(_grow(b, maker, at))
    for _ in range(int(rng.integers(0, 3))):
        if b.room_for(box=9):
            yaw = rng.uniform(0, 6.28)
            scenery.fence(b, Spot(yaw=yaw).on(-3, -rng.uniform(7, 11)), rng.uniform(4, 8))
    _backdrop(b)
    attributes: dict[str, int | float | str] = {"ground": ground, "time": time}
    caption = f"outdoors on {ground} {'at' if time in ('noon', 'sunset') else 'on an'} {time} with {listing(b)}"
    limits = np.array([[-16, 0.8, -16], [16, 3.2, 16]])
    return Place(lamps, sky, rng.uniform(0.004, 0.015), np.array(focus), (4.5, 11.0), limits, attributes, caption)


def _free(b: Builder, taken: list, angle: Real, away: Real, radius: Real) -> Spot | None:
    x, z = away * np.sin(angle), away * np.cos(angle)
    if any(np.hypot(x - p, z - q) < radius + r for p, q, r in taken):
        return None
    taken.append((x, z, radius))
    return Spot(x, z, angle + np.pi + b.rng.uniform(-0.5, 0.5))


def _grow(b: Builder, maker: str, at: Spot) -> np.ndarray:
    rng = b.rng
    if maker == "tree":
        scenery.tree(b, at, rng.uniform(2.6, 5.0))
        return at(0, 1.5, 0)
    if maker == "car":
        scenery.car(b, at)
    elif maker == "bench":
        wood = b.wood()
        b.box(at, (0, 0.45, 0), (1.5, 0.06, 0.42), wood)
        b.box(at, (0, 0.72, -0.2), (1.5, 0.36, 0.05), wood)
        for sx in (-0.6, 0.6):
            b.box(at, (sx, 0.21, 0), (0.07, 0.42, 0.4), wood)
        b.count("benches")
    else:
        r = rng.uniform(0.4, 1.0)
        stone = (
            b.paint("noise", "6e6a62", "a09a8e", scale=1.2, grain=0.6, layer=0)
            if maker == "rock"
            else scenery.foliage(b, 0.6)
        )
        b.add("ball", at, (0, r * 0.35, 0), (r * 2, r * 1.3, r * 1.5), stone)
        b.count(f"{maker}s" if maker == "rock" else "bushes")
    return at(0, 0.8, 0)


def _backdrop(b: Builder) -> None:
    """Hills, hedges or blocks of flats around, so that the view does not end at an empty horizon."""
    rng = b.rng
    for i in range(int(rng.integers(4, 9))):
        angle, away = i * 0.9 + rng.uniform(-0.3, 0.3), rng.uniform(22, 45)
        at = Spot(away * np.sin(angle), away * np.cos(angle), angle + np.pi)
        if rng.random() < 0.55 and b.room_for(ball=1):
            b.add(
                "ball",
                at,
                (0, 0, 0),
                (rng.uniform(14, 30), rng.uniform(5, 14), 12),
                scenery.foliage(b, 5.0),
                casts=False,
            )
        elif b.room_for(box=1):
            color = b.paint("windows", b.pick(tuple(WALLS.values())), "", "3a4654", scale=rng.uniform(2, 3))
            height = rng.uniform(5, 18)
            b.box(at, (0, height / 2, 0), (rng.uniform(8, 14), height, 8), color, casts=False)


def _weather(b: Builder) -> tuple[dict, list, str]:
    rng = b.rng
    time = b.pick(("noon", "afternoon", "afternoon", "sunset", "overcast day"))
    height = {"noon": 1.2, "afternoon": 0.75, "sunset": 0.28}.get(time, 1.0) + rng.uniform(-0.1, 0.1)
    angle = rng.uniform(0, 6.28)
    sun = np.array([np.cos(height) * np.sin(angle), np.sin(height), np.cos(height) * np.cos(angle)])
    tint = {"sunset": (1.0, 0.62, 0.36), "overcast day": (0.35, 0.35, 0.36)}.get(time, (1.0, 0.94, 0.84))
    light = np.array(tint) * rng.uniform(1.3, 1.7)
    colors = {
        "sunset": ((0.20, 0.26, 0.48), (0.95, 0.55, 0.32)),
        "overcast day": ((0.55, 0.58, 0.62), (0.75, 0.77, 0.8)),
    }
    zenith, horizon = colors.get(time, ((0.13, 0.28, 0.62), (0.62, 0.74, 0.86)))
    above = np.array([0.34, 0.4, 0.5]) * (1.5 if time == "overcast day" else 0.7 if time == "sunset" else 1.0)
    sky = {
        "zenith": zenith,
        "horizon": horizon,
        "sun": sun,
        "above": above,
        "below": above * np.array([0.6, 0.55, 0.45]),
    }
    return sky, [(tuple(sun * 90), light, False)], time
