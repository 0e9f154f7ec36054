"""What the procedural worlds are furnished with: a builder of solids and materials, furniture, trees, houses."""

from dataclasses import dataclass

import numpy as np

from diorama.data.textures import LEAVES, NOISES, PATTERNS, WIDTH

CAPACITY = {"box": 104, "prism": 6, "ball": 24, "cone": 24}  # padded counts, equal in all worlds so that they batch
MATERIALS = 96
WALLS = {
    "white": "e8e6e0", "cream": "e9dfc4", "grey": "a9abad", "beige": "cbb898", "blue": "8fa9bf", "green": "9fb08c",
    "yellow": "e2c878", "pink": "dcb0a8", "terracotta": "b9714f", "teal": "4f8583", "navy": "3b4a66", "red": "9c4540",
}  # fmt: skip
WOODS = (("8a5a33", "6a3f20"), ("b98a58", "95683c"), ("d2b48a", "b7935f"), ("5a3a26", "40271a"), ("c9c2b4", "a69d8c"))
FABRICS = ("7d3b3b", "3f5a7a", "5b6b4a", "8c8c88", "c9bfae", "3a3a40", "a8763e", "6d5a7e", "d0c9b8", "2f5f5b")
Color = tuple[float, float, float]
Paint = str | tuple[float, ...]  # an sRGB code, or linear red, green and blue
Real = int | float


def linear(code: str) -> Color:
    """Linear RGB of a hexadecimal sRGB colour."""
    return tuple((int(code[i : i + 2], 16) / 255) ** 2.2 for i in (0, 2, 4))


@dataclass(frozen=True)
class Spot:
    """A place on the floor: local x to the right, y up, z to the front, turned by `yaw` radians about y."""

    x: Real = 0.0
    z: Real = 0.0
    yaw: Real = 0.0
    y: Real = 0.0

    def rotation(self) -> np.ndarray:
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])

    def __call__(self, x: Real, y: Real, z: Real) -> np.ndarray:
        return self.rotation() @ np.array([x, y, z]) + np.array([self.x, self.y, self.z])

    def on(self, x: Real, z: Real, yaw: Real = 0.0, y: Real = 0.0) -> "Spot":
        """A spot given in this one's frame."""
        p = self(x, y, z)
        return Spot(p[0], p[2], self.yaw + yaw, p[1])


class Builder:
    """Collects the solids, materials and counts of one world; everything is drawn from `rng`."""

    def __init__(self, rng: np.random.Generator, pictures: int = 0) -> None:
        self.rng, self.pictures = rng, pictures
        self.solids: dict[str, list[tuple]] = {kind: [] for kind in CAPACITY}
        self.materials: list[np.ndarray] = []
        self.counts: dict[str, int] = {}

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def room_for(self, box: int = 0, ball: int = 0, cone: int = 0, prism: int = 0) -> bool:
        """Whether so many more solids still fit."""
        wanted = {"box": box, "ball": ball, "cone": cone, "prism": prism}
        fits = all(len(self.solids[kind]) + n <= CAPACITY[kind] for kind, n in wanted.items())
        return fits and len(self.materials) + 6 < MATERIALS

    def paint(self, pattern: str = "plain", a: Paint = "808080", b: Paint = "", c: Paint = "", **fields) -> int:
        """A material's index; colours are sRGB codes or linear triples, the rest as in textures.FIELDS."""
        one, two, three = (linear(x) if isinstance(x, str) else x for x in (a, b or a, c or a))
        values = {"scale": 1.0, "grain": 0.25, "emission": 0.0, "gloss": 0.0, "skirt": -1e9, "layer": 0, "turn": 0}
        u, v = self.rng.uniform(0, 1, 2)
        values |= {"u": u, "v": v, "pattern": PATTERNS.index(pattern)} | fields
        order = ("pattern", "scale", "grain", "emission", "gloss", "u", "v", "skirt", "layer", "turn")
        row = np.array([*one, *two, *three, *(values[name] for name in order)], dtype=np.float32)
        if len(row) != WIDTH:
            raise AssertionError(f"a material has {len(row)} numbers, the shader reads {WIDTH}")
        self.materials = [*self.materials, row]
        return len(self.materials) - 1

    def add(self, kind: str, at: Spot, center, size, material: int, **more) -> None:
        """One solid of full `size` centred at `center` in the spot's frame; `faces` overrides materials by face."""
        rotation = at.rotation()
        for axis, angle in more.get("tilt", {}).items():
            c, s = np.cos(angle), np.sin(angle)
            rotation = rotation @ (np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) if axis == "x" else
                                   np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))  # fmt: skip
        faces = np.full(6, material)
        for face, other in more.get("faces", {}).items():
            faces[face] = other
        half = np.asarray(size, dtype=np.float64) / 2
        self.solids[kind].append(
            (
                at(*center),
                rotation,
                half,
                more.get("taper", 1.0),
                more.get("casts", True),
                more.get("hollow", False),
                faces,
            )
        )

    def box(self, at, center, size, material, **more) -> None:
        self.add("box", at, center, size, material, **more)

    def cone(self, at, center, radius, height, material, taper=1.0, **more) -> None:
        self.add("cone", at, center, (2 * radius, height, 2 * radius), material, taper=taper, **more)

    def pick(self, options):
        return options[self.rng.integers(len(options))]

    def wood(self, scale: Real = 0.12) -> int:
        a, b = self.pick(WOODS)
        return self.paint("planks", a, b, scale=scale, gloss=0.15, turn=float(self.rng.integers(2)))

    def fabric(self) -> int:
        a = self.pick(FABRICS)
        kind = self.pick(("plain", "plain", "noise", "stripes", "checker"))
        b = self.pick(FABRICS) if kind != "noise" else tuple(min(1.0, 1.8 * x + 0.02) for x in linear(a))
        return self.paint(kind, a, b, scale=self.rng.uniform(0.12, 0.35), grain=0.35, layer=self.rng.integers(NOISES))

    def art(self) -> int:
        """A picture: one of the user's if there are any, else dead leaves."""
        layer = NOISES + (LEAVES + self.rng.integers(self.pictures) if self.pictures else self.rng.integers(LEAVES))
        return self.paint("picture", "ffffff", scale=self.rng.uniform(0.7, 1.4), grain=0.0, layer=layer)


def table(b: Builder, at: Spot, width: Real, depth: Real, height: Real) -> None:
    top, b_legs = b.wood(), b.wood()
    b.box(at, (0, height - 0.02, 0), (width, 0.04, depth), top)
    for sx in (-1, 1):
        for sz in (-1, 1):
            b.box(
                at,
                (sx * (width / 2 - 0.06), height / 2 - 0.02, sz * (depth / 2 - 0.06)),
                (0.05, height - 0.04, 0.05),
                b_legs,
            )
    b.count("tables")
    clutter(b, at.on(0, 0, y=height), width * 0.8, depth * 0.8)


def clutter(b: Builder, at: Spot, width: Real, depth: Real) -> None:
    """Small things standing on a surface: vases, bowls, books, boxes."""
    for _ in range(b.rng.integers(1, 4)):
        x, z = b.rng.uniform(-width / 2, width / 2), b.rng.uniform(-depth / 2, depth / 2)
        kind, color = b.rng.integers(4), b.paint("plain", b.pick(FABRICS), gloss=0.4)
        spot = at.on(x, z, b.rng.uniform(0, 6.28))
        if kind == 0 and b.room_for(cone=1):
            h = b.rng.uniform(0.12, 0.32)
            b.cone(spot, (0, h / 2, 0), h * 0.3, h, color, taper=b.rng.uniform(0.4, 1.2))
        elif kind == 1 and b.room_for(ball=1):
            r = b.rng.uniform(0.05, 0.12)
            b.add("ball", spot, (0, r, 0), (2 * r,) * 3, color)
        elif b.room_for(box=1):
            h = b.rng.uniform(0.05, 0.28)
            b.box(spot, (0, h / 2, 0), (b.rng.uniform(0.12, 0.25), h, b.rng.uniform(0.1, 0.2)), color)


def chair(b: Builder, at: Spot) -> None:
    wood, seat = b.wood(), b.fabric()
    b.box(at, (0, 0.45, 0), (0.44, 0.06, 0.44), seat)
    b.box(at, (0, 0.74, -0.2), (0.44, 0.5, 0.04), wood)
    for sx in (-1, 1):
        for sz in (-1, 1):
            b.box(at, (sx * 0.19, 0.21, sz * 0.19), (0.045, 0.42, 0.045), wood)
    b.count("chairs")


def sofa(b: Builder, at: Spot, width: Real) -> None:
    cloth = b.fabric()
    b.box(at, (0, 0.22, 0.42), (width, 0.4, 0.8), cloth)
    b.box(at, (0, 0.45, 0.12), (width, 0.8, 0.22), cloth)
    for sx in (-1, 1):
        b.box(at, (sx * (width / 2 - 0.1), 0.32, 0.42), (0.2, 0.6, 0.82), cloth)
    for x in b.rng.uniform(-width / 2 + 0.35, width / 2 - 0.35, b.rng.integers(0, 3)):
        if b.room_for(ball=1):
            b.add("ball", at, (x, 0.6, 0.33), (0.42, 0.4, 0.2), b.fabric(), tilt={"x": -0.25})
    b.count("sofas")


def bed(b: Builder, at: Spot, width: Real) -> None:
    frame, cover = b.wood(), b.fabric()
    b.box(at, (0, 0.16, 1.0), (width, 0.28, 2.0), frame)
    b.box(at, (0, 0.41, 1.02), (width - 0.06, 0.22, 1.94), b.paint("plain", "dedbd2"))
    b.box(at, (0, 0.45, 1.3), (width, 0.2, 1.4), cover)
    b.box(at, (0, 0.5, 0.04), (width, 1.0, 0.08), frame)
    for sx in (-1, 1):
        b.add("ball", at, (sx * width / 4, 0.56, 0.3), (width * 0.4, 0.2, 0.42), b.paint("plain", "eceae4"))
    b.count("beds")


def shelf(b: Builder, at: Spot, width: Real, height: Real) -> None:
    wood = b.wood()
    levels = int(b.rng.integers(2, 5))
    for sx in (-1, 1):
        b.box(at, (sx * (width / 2 - 0.02), height / 2, 0.17), (0.04, height, 0.32), wood)
    b.box(at, (0, height / 2, 0.02), (width - 0.08, height - 0.02, 0.03), wood)
    for i in range(levels + 1):
        y = 0.04 + (height - 0.08) * i / levels
        b.box(at, (0, y, 0.18), (width - 0.08, 0.035, 0.3), wood)
        if i < levels and b.room_for(box=4):
            tall, long = (height / levels) * b.rng.uniform(0.5, 0.8), (width - 0.1) * b.rng.uniform(0.3, 0.85)
            books = b.paint("stripes" if b.rng.random() < 0.5 else "leaves", b.pick(FABRICS), b.pick(FABRICS),
                            scale=b.rng.uniform(0.1, 0.4), layer=NOISES + b.rng.integers(LEAVES))  # fmt: skip
            x = -(width - 0.1) / 2 + long / 2 + b.rng.uniform(0, 1) * (width - 0.1 - long)
            b.box(at, (x, y + 0.018 + tall / 2, 0.16), (long, tall, 0.2), books)
    b.count("shelves")


def cabinet(b: Builder, at: Spot, width: Real, height: Real) -> None:
    body, front = b.wood(), b.paint("tiles", b.pick(WOODS)[0], "", "2a2018", scale=width / 2, u=0.0, v=0.0, grain=0.2)
    b.box(at, (0, height / 2, 0.24), (width, height, 0.48), body, faces={4: front})
    b.count("cabinets")
    if height < 1.2:
        clutter(b, at.on(0, 0.24, y=height), width * 0.8, 0.25)


def floor_lamp(b: Builder, at: Spot) -> None:
    metal, glow = b.paint("plain", "3a3a3a", gloss=0.5), b.paint("plain", "fff0d0", emission=1.6, grain=0.0)
    b.cone(at, (0, 0.02, 0), 0.14, 0.04, metal)
    b.cone(at, (0, 0.75, 0), 0.018, 1.5, metal)
    b.cone(at, (0, 1.55, 0), 0.2, 0.3, glow, taper=0.65, casts=False)
    b.count("lamps")


def plant(b: Builder, at: Spot) -> None:
    pot, leaf = b.paint("plain", b.pick(("b9714f", "d8d4cc", "4a4a4a"))), foliage(b, 0.35, kinds=3)
    b.cone(at, (0, 0.17, 0), 0.14, 0.34, pot, taper=1.3)
    for _ in range(int(b.rng.integers(2, 4))):
        dx, dz, y, r = *b.rng.uniform(-0.14, 0.14, 2), b.rng.uniform(0.55, 1.1), b.rng.uniform(0.28, 0.5)
        b.add("ball", at, (dx, y, dz), (r, r * 1.4, r), leaf)
    b.count("plants")


def foliage(b: Builder, scale: Real, kinds: int = 5) -> int:
    a, c = b.pick(
        (("4e6b2c", "20331a"), ("6b8a3a", "2c4420"), ("3f5f3a", "1a2c1c"), ("8a7a35", "4a3a1a"), ("a0602c", "55280f"))[
            :kinds
        ]
    )
    return b.paint("noise", c, a, scale=scale, grain=0.6, layer=0)


def wall_art(b: Builder, at: Spot, y: Real, width: Real, height: Real) -> None:
    frame = b.paint("plain", b.pick(("2a2018", "e8e4da", "b08a4a")))
    b.box(at, (0, y, 0.015), (width, height, 0.03), frame, casts=False)
    b.box(at, (0, y, 0.02), (width - 0.08, height - 0.08, 0.03), b.art(), casts=False)
    b.count("pictures")


def window(b: Builder, at: Spot, width: Real, bright: Real) -> None:
    """A bright view with a white frame and a cross; `bright` is its emission."""
    frame, y, height = b.paint("plain", "efede8"), 1.5, 1.25
    view = b.paint("outlook", (0.9, 0.93, 0.97), (0.2, 0.3, 0.14), (0.42, 0.62, 0.95), emission=bright, grain=0.0,
                   layer=0, u=b.rng.uniform(0, 1), v=b.rng.uniform(-0.3, 0.3))  # fmt: skip
    b.box(at, (0, y, 0.01), (width + 0.16, height + 0.16, 0.04), frame, casts=False)
    b.box(at, (0, y, 0.02), (width, height, 0.04), view, casts=False)
    b.box(at, (0, y, 0.035), (0.05, height, 0.04), frame, casts=False)
    b.box(at, (0, y, 0.035), (width, 0.05, 0.04), frame, casts=False)
    b.box(at, (0, y - height / 2 - 0.1, 0.08), (width + 0.24, 0.04, 0.18), frame, casts=False)
    if b.rng.random() < 0.5 and b.room_for(box=2):
        cloth = b.fabric()
        for sx in (-1, 1):
            b.box(at, (sx * (width / 2 + 0.14), 1.2, 0.1), (0.36, 2.1, 0.08), cloth)
    b.count("windows")


def door(b: Builder, at: Spot) -> None:
    frame, leaf = b.paint("plain", b.pick(("efede8", "d8d0c0"))), b.wood(0.3)
    b.box(at, (0, 1.04, 0.015), (1.04, 2.1, 0.05), frame, casts=False)
    b.box(at, (0, 1.0, 0.025), (0.9, 2.0, 0.05), leaf, casts=False)
    b.add("ball", at, (0.36, 1.0, 0.09), (0.07,) * 3, b.paint("plain", "b0a070", gloss=0.8), casts=False)
    b.count("doors")


def tree(b: Builder, at: Spot, height: Real) -> None:
    bark, leaf = (
        b.paint("noise", "5a4632", "3a2c20", scale=0.5, grain=0.5, layer=2),
        foliage(b, b.rng.uniform(0.8, 1.6)),
    )
    if b.rng.random() < 0.35:
        b.cone(at, (0, height * 0.12, 0), 0.14, height * 0.24, bark)
        for i in range(3):
            b.cone(at, (0, height * (0.32 + 0.23 * i), 0), height * (0.26 - 0.06 * i), height * 0.36, leaf, taper=0.02)
    else:
        b.cone(at, (0, height * 0.3, 0), 0.06 * height / 2, height * 0.6, bark, taper=0.6)
        for _ in range(3):
            p, r = b.rng.uniform(-0.14, 0.14, 2) * height, b.rng.uniform(0.3, 0.5) * height
            b.add("ball", at, (p[0], height * b.rng.uniform(0.6, 0.8), p[1]), (r, r * 0.9, r), leaf)
    b.count("trees")


def house(b: Builder, at: Spot, width: Real, depth: Real, height: Real) -> None:
    wall, skirt = b.pick(tuple(WALLS.values())), b.rng.uniform(0, 0.5)
    kind = b.pick(("plain", "brick", "brick", "planks"))
    bricks = ("9a5040", "7a3a2c", "b8b0a4") if kind == "brick" else (wall, wall, "8a867e")
    side = b.paint(kind, *bricks, scale=0.16 if kind == "brick" else 0.25, skirt=skirt, grain=0.3)
    gable = b.paint(kind if kind != "brick" else "plain", *bricks, scale=0.25, grain=0.3)
    tile = b.paint(
        "brick",
        *b.pick((("8a4a34", "6a3424", "4a2a20"), ("55585e", "44464c", "303238"), ("7a6a55", "655848", "4a4036"))),
        scale=0.3,
    )
    b.box(at, (0, height / 2, 0), (width, height, depth), side)
    roof = b.rng.uniform(0.3, 0.6) * width
    b.add("prism", at, (0, height + roof / 2, 0), (width, roof, depth), gable, taper=0.02)
    lean = np.arctan2(roof, width / 2)
    for sx in (-1, 1):
        slope = np.hypot(roof, width / 2) * 1.12
        b.box(at, (sx * width / 4 * 1.06, height + roof / 2, 0), (slope, 0.1, depth + 0.5), tile,
              tilt={"z": -sx * lean})  # fmt: skip
    frame, glass = (
        b.paint("plain", "efede8"),
        b.paint("noise", "2a3a4c", "8fb0c8", scale=3.0, gloss=1.0, grain=0.0, layer=3),
    )
    for front in (at.on(0, depth / 2), at.on(width / 2, 0, np.pi / 2), at.on(-width / 2, 0, -np.pi / 2)):
        across = width if front.yaw == at.yaw else depth
        slots = np.linspace(-across / 2, across / 2, int(across // 1.7) + 2)[1:-1]
        for i, x in enumerate(slots):
            if not b.room_for(box=2):
                return
            if front.yaw == at.yaw and i == len(slots) // 2:
                b.box(front, (x, 1.02, 0.0), (1.0, 2.05, 0.12), b.wood(0.3))
            else:
                b.box(front, (x, height * 0.55, 0), (0.98, 1.28, 0.1), frame)
                b.box(front, (x, height * 0.55, 0), (0.84, 1.14, 0.13), glass)
    b.count("houses")


def fence(b: Builder, start: Spot, length: Real) -> None:
    wood, posts = b.wood(0.2), int(length // 1.2)
    if b.rng.random() < 0.4:
        return b.box(start, (length / 2, 0.5, 0), (length, 1.0, 0.5), foliage(b, 0.7))
    for y in (0.4, 0.85):
        b.box(start, (length / 2, y, 0.04), (length, 0.1, 0.03), wood)
    for i in range(posts):
        b.box(start, ((i + 0.5) * length / posts, 0.55, 0), (0.1, 1.1, 0.06), wood)
    b.count("fences")


def car(b: Builder, at: Spot) -> None:
    body = b.paint("plain", b.pick(("9c2f2f", "2f4a7a", "d8d8d8", "303236", "5c7a5a", "c8a23a")), gloss=1.0, grain=0.0)
    glass, tyre = b.paint("plain", "26303a", gloss=1.0, grain=0.0), b.paint("plain", "1c1c1e")
    b.box(at, (0, 0.55, 0), (4.0, 0.55, 1.7), body)
    b.add("prism", at, (-0.2, 1.08, 0), (2.5, 0.55, 1.5), glass, taper=0.65, faces={2: body})
    for sx in (-1.25, 1.25):
        for sz in (-0.78, 0.78):
            b.cone(at, (sx, 0.32, sz), 0.32, 0.22, tyre, tilt={"x": np.pi / 2})
    b.count("cars")
