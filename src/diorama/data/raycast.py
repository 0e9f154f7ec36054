"""Rays against boxes, prisms, balls and cones, culled by cones of rays: the geometry half of the worlds' renderer."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FAR = 500.0  # where a ray that meets nothing ends, in metres
NEVER = 1e30  # what a miss is multiplied by
KINDS = ("box", "prism", "ball", "cone")


@dataclass(frozen=True)
class Solids:
    """Solids of one or more worlds, ordered box, prism, ball, cone and padded to equal counts (padding has bound -1).

    A prism is a box whose x half size shrinks to `taper` (a box's is 1) of itself from local bottom to top; a ball is
    an ellipsoid; a cone is an elliptic-free frustum about local y with radius half[0] at the bottom and taper * half[0]
    at the top.
    """

    center: Float[Tensor, "world solid 3"]
    rotation: Float[Tensor, "world solid 3 3"]  # columns are the local axes in the world
    half: Float[Tensor, "world solid 3"]  # half sizes in metres
    taper: Float[Tensor, "world solid"]
    bound: Float[Tensor, "world solid"]  # radius of the bounding sphere
    casts: Bool[Tensor, "world solid"]  # whether it throws a shadow
    hollow: Bool[Tensor, "world solid"]  # a room: seen from inside, boxes only
    faces: Int[Tensor, "world solid 6"]  # material of +x -x +y -y +z -z
    counts: tuple[int, int, int, int]  # how many of each kind, the same in every world


def trimmed(solids: Solids) -> Solids:
    """Without the padding that no world needs."""
    kept, counts, start = [], [], 0
    for count in solids.counts:
        most = int((solids.bound[:, start : start + count] > 0).sum(1).max()) if count else 0
        kept.append(torch.arange(start, start + most, device=solids.bound.device))
        counts.append(most)
        start += count
    index = torch.cat(kept)
    columns = {f.name: getattr(solids, f.name)[:, index] for f in fields(solids) if f.name != "counts"}
    return Solids(**columns, counts=tuple(counts))


@dataclass(frozen=True)
class Bundle:
    """Groups of rays that share an origin, so that one narrow cone rules out most solids for the whole group."""

    source: Float[Tensor, "source 3"]  # origins, each used by many groups
    source_world: Int[Tensor, " source"]
    index: Int[Tensor, " group"]  # source of each group, ascending
    direction: Float[Tensor, "3 ray group"]  # unit; groups last, so that a few rays a group still fill vectors

    @property
    def world(self) -> Int[Tensor, " group"]:
        """World of each group."""
        return self.source_world[self.index]

    @property
    def origin(self) -> Float[Tensor, "group 3"]:
        """Origin of each group."""
        return self.source[self.index]


def cast(
    solids: Solids, rays: Bundle, shadow: bool = False
) -> tuple[Float[Tensor, "ray group"], Int[Tensor, "ray group"]]:
    """Distance to the nearest solid (FAR if none) and its index (-1 if none).

    `shadow`: only solids that cast one count, and the index is not looked for.
    """
    touching, table = _candidates(solids, rays, shadow), _table(solids, rays.source_world, rays.source)
    pair, groups = touching.flatten().nonzero()[:, 0], touching.shape[1]
    solid = pair.div(groups, rounding_mode="floor")
    group, start, distances = pair - solid * groups, 0, []
    ends = torch.tensor(solids.counts, device=solid.device).cumsum(0)
    for end, test in zip(torch.searchsorted(solid, ends).tolist(), TESTS, strict=True):
        if end > start:
            distances.append(_in_local_frame(table, rays, group[start:end], solid[start:end], test))
        start = end
    nearest = rays.direction.new_full(rays.direction.shape[1:], FAR)
    if not distances:
        return nearest, torch.full_like(nearest, -1, dtype=torch.long)
    distance = distances[0] if len(distances) == 1 else torch.cat(distances, 1)
    columns = group.expand_as(distance)
    nearest = nearest.scatter_reduce_(1, columns, distance, "amin")
    if shadow:
        return nearest, torch.full_like(nearest, -1, dtype=torch.long)
    # the lowest index wins a tie, so that the answer does not depend on the order of atomic operations
    behind = distance.sub_(nearest.index_select(1, group))
    index = torch.full_like(nearest, 1e9).scatter_reduce_(1, columns, behind.mul_(NEVER).add_(solid), "amin")
    return nearest, torch.where(nearest < FAR, index.long(), -1)


def cast_plainly(solids: Solids, rays: Bundle) -> tuple[Float[Tensor, "ray group"], Int[Tensor, "ray group"]]:
    """The same as `cast` with a loop over all solids and no culling: the reference for tests and benchmarks."""
    groups, table = (
        torch.arange(len(rays.index), device=rays.index.device),
        _table(solids, rays.source_world, rays.source),
    )
    nearest = rays.direction.new_full(rays.direction.shape[1:], FAR)
    index = torch.full(nearest.shape, -1, device=nearest.device)
    tests = [test for count, test in zip(solids.counts, TESTS, strict=True) for _ in range(count)]
    for solid, test in enumerate(tests):
        distance = _in_local_frame(table, rays, groups, torch.full_like(groups, solid), test)
        closer = (distance < nearest) & (solids.bound[rays.world, solid] > 0)
        nearest, index = torch.where(closer, distance, nearest), torch.where(closer, solid, index)
    return nearest, index


def _candidates(solids: Solids, rays: Bundle, shadow: bool) -> Bool[Tensor, "solid group"]:
    """Which groups' cones of rays touch which solids' bounding spheres.

    With axis a, half angle h, sphere at v with radius r: a.v >= cos(h) sqrt(v.v - r r) - sin(h) r, a product of five
    numbers of the group with five of the solid, which are shared by all groups of one source.
    """
    axis = rays.direction.mean(1)
    axis = axis / (axis * axis).sum(0).sqrt().clamp_min(1e-9)
    cosine = (rays.direction * axis[:, None]).sum(0).amin(0).clamp(0, 1)
    group = torch.cat([axis, -cosine[None], (1 - cosine * cosine).sqrt()[None]])
    world = rays.source_world
    away = solids.center[world] - rays.source[:, None]
    bound, squared = solids.bound[world], away.square().sum(2)
    wanted = (bound > 0) & solids.casts[world] if shadow else bound > 0
    grown = bound * 1.001 + 1e-3 + 1e-3 * squared.sqrt()
    reach = torch.where(squared <= grown**2, -1e9, (squared - grown**2).clamp_min(0).sqrt())
    solid = torch.cat([away, torch.where(wanted, reach, 1e9)[..., None], grown[..., None]], 2)
    if len(world) > 8:
        return torch.einsum("ig,gsi->sg", group, solid.index_select(0, rays.index)) >= 0
    # on a CPU a few matrix products beat gathering the solids for every group
    ends = torch.bincount(rays.index, minlength=len(world)).cumsum(0).tolist() if len(world) > 1 else [len(rays.index)]
    parts = [solid[i] @ group[:, start:end] for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)) >= 0


def _table(solids: Solids, world: Tensor, origin: Tensor | None = None) -> Float[Tensor, "17 row"]:
    """Local origin (or centre), rotation, half size, taper and hollowness of all solids of some worlds, by column."""
    rotation, place = solids.rotation[world], solids.center[world]
    if origin is not None:
        place = torch.einsum("wsji,wsj->wsi", rotation, origin[:, None] - place)
    parts = (
        place,
        rotation.flatten(2),
        solids.half[world],
        solids.taper[world, :, None],
        solids.hollow[world, :, None],
    )
    return torch.cat([p.to(place.dtype) for p in parts], 2).flatten(0, 1).T.contiguous()


def _in_local_frame(table: Tensor, rays: Bundle, group: Tensor, solid: Tensor, test) -> Float[Tensor, "ray pair"]:
    source = rays.index.index_select(0, group) * (table.shape[1] // len(rays.source))
    rows = table.index_select(1, source + solid)
    # flattened first: selecting from the last of three axes takes ten times as long
    direction = rays.direction.flatten(0, 1).index_select(1, group).reshape(3, -1, len(group))
    # one axis at a time, as the tests ask for them, so that less has to stay in the cache
    turned = (
        (rows[3 + i] * direction[0]).addcmul_(rows[6 + i], direction[1]).addcmul_(rows[9 + i], direction[2])
        for i in range(3)
    )
    return test(rows[0:3], turned, rows[12:15], rows[16] if test is _box else rows[15])


# Each test spends a ray's directions as scratch space. Misses are told by adding what a condition is violated by, times
# NEVER: on a CPU such arithmetic is ten times as fast as comparisons and `where`.


def _unless(distance: Tensor, missed: Tensor) -> Tensor:
    """The distance, or something above FAR where it is negative or `missed` is positive."""
    return torch.maximum(missed, -distance).clamp_min_(0).mul_(NEVER).add_(distance)


def _box(origin, direction, half, hollow):
    near = far = None
    for o, d, h in zip(origin, direction, half, strict=True):
        inverse = d.reciprocal_().clamp_(-1e9, 1e9)
        middle, reach = -o * inverse, inverse.abs_().mul_(h)
        enter, leave = middle - reach, middle.add_(reach)
        near = enter if near is None else torch.maximum(near, enter, out=near)
        far = leave if far is None else torch.minimum(far, leave, out=far)
    assert near is not None and far is not None  # there are three axes
    missed = near - far
    # from inside a room one sees where its rays leave it
    return _unless(torch.maximum(near, far.add_((hollow - 1) * NEVER)), missed)


def _prism(origin, direction, half, taper):
    slope, direction = half[0] * (1 - taper) / (2 * half[1]), list(direction)
    near, far = torch.zeros_like(direction[0]), torch.full_like(direction[0], FAR)
    zero = torch.zeros_like(slope)
    for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1), (2, 1), (2, -1)):
        lean = slope if axis == 0 else zero
        reach = half[0] * (1 + taper) / 2 if axis == 0 else half[axis]
        facing = sign * direction[axis] + lean * direction[1] * (axis == 0)
        facing = torch.where(facing.abs() < 1e-9, 1e-9, facing)
        crossing = (reach - sign * origin[axis] - lean * origin[1]) / facing
        near = torch.where(facing < 0, torch.maximum(near, crossing), near)
        far = torch.where(facing > 0, torch.minimum(far, crossing), far)
    return torch.where((near < far) & (near > 0), near, FAR)


def _ball(origin, direction, half, _):
    o, d = [a / h for a, h in zip(origin, half, strict=True)], [a.div_(h) for a, h in zip(direction, half, strict=True)]
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = (d[0] * o[0] + d[1] * o[1] + d[2] * o[2]).div_(a)
    # the discriminant is taken at the closest point: subtracting two large squares would ruin it in float32
    closest = [p - b * q for p, q in zip(o, d, strict=True)]
    outside = closest[0] ** 2 + closest[1] ** 2 + closest[2] ** 2 - 1
    return _unless((-b).sub_((-outside).clamp_min_(0).div_(a).sqrt_()), outside)


def _cone(origin, direction, half, taper):
    x, y, z = direction
    slope = half[0] * (taper - 1) / (2 * half[1])
    radius = half[0] * (1 + taper) / 2 + slope * origin[1]
    lean = slope * y
    a = x * x + z * z - lean * lean
    b = origin[0] * x + origin[2] * z - radius * lean
    inside = b * b - a * (origin[0] ** 2 + origin[2] ** 2 - radius**2)
    root = inside.clamp_min(0).sqrt_()
    best = torch.full_like(a, FAR)
    for sign in (-1, 1):
        t = torch.add(-b, root, alpha=sign).div_(a).nan_to_num_(-1, -1, -1)
        aside = (origin[1] + t * y).abs_().sub_(half[1])
        past = torch.maximum(-radius - t * lean, aside)
        best = torch.minimum(best, _unless(t, torch.maximum(past, -inside)))
    for sign in (-1, 1):
        t = ((sign * half[1] - origin[1]) / y).nan_to_num_(-1, -1, -1)
        aside = (origin[0] + t * x) ** 2 + (origin[2] + t * z) ** 2 - (half[0] * (taper if sign > 0 else 1)) ** 2
        best = torch.minimum(best, _unless(t, aside))
    return best


TESTS = (_box, _prism, _ball, _cone)


@dataclass(frozen=True)
class Surface:
    """What the shader needs where rays hit: local position and size, face, world normal."""

    local: Float[Tensor, "3 hit"]
    half: Float[Tensor, "3 hit"]
    face: Int[Tensor, " hit"]
    normal: Float[Tensor, "3 hit"]  # outwards, in the world
    material: Int[Tensor, " hit"]
    curved: Bool[Tensor, " hit"]  # a cone's side, whose texture runs around it


def surface(
    solids: Solids, world: Int[Tensor, " hit"], solid: Int[Tensor, " hit"], point: Float[Tensor, "3 hit"]
) -> Surface:
    """The surface of solid `solid` at world points on it."""
    row = world * solids.center.shape[1] + solid
    every = torch.arange(len(solids.center), device=solid.device)
    table = _table(solids, every).index_select(1, row)
    turn, half, taper, hollow = table[3:12], table[12:15], table[15], table[16]
    away = point - table[0:3]
    local = torch.stack([turn[i] * away[0] + turn[3 + i] * away[1] + turn[6 + i] * away[2] for i in range(3)])
    normal, face = _flat(local, half, taper)
    curved = torch.zeros_like(solid, dtype=torch.bool)
    flat, cones = sum(solids.counts[:2]), sum(solids.counts[:3])
    at = (solid >= flat).nonzero()[:, 0]
    if len(at):
        is_cone = solid.index_select(0, at) >= cones
        some = _round(local.index_select(1, at), half.index_select(1, at), taper.index_select(0, at), is_cone)
        normal, face = normal.index_copy_(1, at, some[0]), face.index_copy_(0, at, some[1])
        curved = curved.index_copy_(0, at, some[2])
    a, b, c = normal
    normal = torch.stack([turn[3 * i] * a + turn[3 * i + 1] * b + turn[3 * i + 2] * c for i in range(3)])
    normal = normal * ((1 - 2 * hollow) / (normal * normal).sum(0).sqrt_().clamp_min_(1e-12))
    material = solids.faces.flatten().index_select(0, row * 6 + face)
    return Surface(local, half, face, normal, material, curved)


def _flat(local: Tensor, half: Tensor, taper: Tensor) -> tuple[Float[Tensor, "3 hit"], Int[Tensor, " hit"]]:
    """Normals and faces of boxes and prisms: the face whose plane is nearest; a prism's x faces lean."""
    x, y, z = local
    width, lean = _profile(y, half, taper)
    slack = (width - x.abs()) / (1 + lean * lean).sqrt_()
    over, front = half[1] - y.abs(), half[2] - z.abs()
    first = slack <= torch.minimum(over, front)
    second = (over <= front).logical_and_(first.logical_not()).to(x.dtype)
    first = first.to(x.dtype)
    third = 1 - first - second
    sign = (first * x + second * y + third * z).sign()
    face = (2 * second + 4 * third + (0.5 - 0.5 * sign)).long()
    return torch.stack([first * sign, second * sign + first * lean, third * sign]), face


def _profile(y: Tensor, half: Tensor, taper: Tensor) -> tuple[Tensor, Tensor]:
    """Half width of a prism or cone at height y, and the slope of its side; a box tapers to one."""
    level = (y / half[1]).clamp_(-1, 1)
    return half[0] * (1 + taper + level * (taper - 1)) / 2, half[0] * (1 - taper) / (2 * half[1])


def _round(local: Tensor, half: Tensor, taper: Tensor, is_cone: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normals and faces of balls and cones, and whether it is a cone's side."""
    x, y, z = local
    width, lean = _profile(y, half, taper)
    radius = (x * x + z * z).sqrt()
    capped = is_cone & ((half[1] - y.abs()) < (width - radius).abs())
    cap = torch.stack([torch.zeros_like(x), y.sign(), torch.zeros_like(x)])
    cone = torch.where(capped, cap, torch.stack([x, lean * radius, z]))
    normal = torch.where(is_cone, cone, local / half**2)
    return normal, torch.where(capped & (y > 0), 2, 0), is_cone & ~capped
