"""Rays against boxes, prisms, balls and cones, culled by cones of rays: the geometry half of the worlds' renderer."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FAR = 500.0  # where a ray that meets nothing ends, in metres
KINDS = ("box", "prism", "ball", "cone")


@dataclass(frozen=True)
class Solids:
    """Solids of one or more worlds, ordered box, prism, ball, cone and padded to equal counts (padding has bound -1).

    A prism is a box whose x half size shrinks to `taper` of itself from local bottom to top; a ball is an ellipsoid; a
    cone is an elliptic-free frustum about local y with radius half[0] at the bottom and taper * half[0] at the top.
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
    """Distance to the nearest solid (FAR if none) and its index (-1 if none); `shadow`: only what casts one."""
    touching, table = _candidates(solids, rays, shadow), _table(solids, rays.source_world, rays.source)
    groups, owners, distances, start = [], [], [], 0
    for count, test in zip(solids.counts, (_box, _prism, _ball, _cone), strict=True):
        group, solid = touching[:, start : start + count].nonzero().unbind(1)
        if len(group):
            groups.append(group)
            owners.append(solid + start)
            distances.append(_in_local_frame(table, rays, group, solid + start, test))
        start += count
    nearest = rays.direction.new_full(rays.direction.shape[1:], FAR)
    index = torch.full(nearest.shape, 1 << 30, device=nearest.device)
    if not owners:
        return nearest, torch.full_like(index, -1)
    group, owner, distance = torch.cat(groups), torch.cat(owners), torch.cat(distances, 1)
    columns = group.expand_as(distance)
    nearest = nearest.scatter_reduce(1, columns, distance, "amin")
    if shadow:
        return nearest, index
    won = (distance <= nearest.index_select(1, group)) & (distance < FAR)
    # the lowest index wins a tie, so that the answer does not depend on the order of atomic operations
    index = index.scatter_reduce(1, columns, torch.where(won, owner, 1 << 30), "amin")
    return nearest, torch.where(nearest < FAR, index, -1)


def cast_plainly(solids: Solids, rays: Bundle) -> tuple[Float[Tensor, "ray group"], Int[Tensor, "ray group"]]:
    """The same as `cast` with a loop over all solids and no culling: the reference for tests and benchmarks."""
    groups, table = (
        torch.arange(len(rays.index), device=rays.index.device),
        _table(solids, rays.source_world, rays.source),
    )
    nearest = rays.direction.new_full(rays.direction.shape[1:], FAR)
    index = torch.full(nearest.shape, -1, device=nearest.device)
    tests = [
        test for count, test in zip(solids.counts, (_box, _prism, _ball, _cone), strict=True) for _ in range(count)
    ]
    for solid, test in enumerate(tests):
        distance = _in_local_frame(table, rays, groups, torch.full_like(groups, solid), test)
        closer = (distance < nearest) & (solids.bound[rays.world, solid] > 0)
        nearest, index = torch.where(closer, distance, nearest), torch.where(closer, solid, index)
    return nearest, index


def _candidates(solids: Solids, rays: Bundle, shadow: bool) -> Bool[Tensor, "group solid"]:
    """Which groups' cones of rays touch which solids' bounding spheres.

    With axis a, half angle h, sphere at v with radius r: a.v >= cos(h) sqrt(v.v - r r) - sin(h) r, a product of five
    numbers of the group with five of the solid, which are shared by all groups of one source.
    """
    axis = rays.direction.mean(1).T
    axis = axis / (axis * axis).sum(1, keepdim=True).sqrt().clamp_min(1e-9)
    cosine = (rays.direction * axis.T[:, None]).sum(0).amin(0).clamp(0, 1)
    group = torch.cat([axis, -cosine[:, None], (1 - cosine**2).sqrt()[:, None]], 1)
    world = rays.source_world
    away = solids.center[world] - rays.source[:, None]
    bound, squared = solids.bound[world], away.square().sum(2)
    wanted = (bound > 0) & solids.casts[world] if shadow else bound > 0
    grown = bound * 1.001 + 1e-3 + 1e-3 * squared.sqrt()
    reach = torch.where(squared <= grown**2, -1e9, (squared - grown**2).clamp_min(0).sqrt())
    solid = torch.cat([away, torch.where(wanted, reach, 1e9)[..., None], grown[..., None]], 2)
    if len(world) > 8:
        return torch.einsum("gi,gsi->gs", group, solid.index_select(0, rays.index)) >= 0
    # on a CPU a few matrix products beat gathering the solids for every group
    parts = [group if len(world) == 1 else group[rays.index == i] for i in range(len(world))]
    parts = [part @ solid[i].T >= 0 for i, part in enumerate(parts)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
    rows = table.index_select(1, rays.index[group] * (table.shape[1] // len(rays.source)) + solid)
    x, y, z = rays.direction.index_select(2, group)
    turned = [torch.addcmul(rows[3 + i] * x, rows[6 + i], y).addcmul_(rows[9 + i], z) for i in range(3)]
    return test(rows[0:3], turned, rows[12:15], rows[16] > 0.5 if test is _box else rows[15])


def _safe(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-9, 1e-9, x)


def _box(origin, direction, half, hollow):
    slabs = []
    for o, d, h in zip(origin, direction, half, strict=True):
        inverse = 1 / _safe(d)
        middle, reach = -o * inverse, h * inverse.abs()
        slabs.append((middle - reach, middle + reach))
    (near_x, far_x), (near_y, far_y), (near_z, far_z) = slabs
    near = torch.maximum(torch.maximum(near_x, near_y), near_z)
    far = torch.minimum(torch.minimum(far_x, far_y), far_z)
    distance = torch.where(hollow, far, near)
    return torch.where((near <= far) & (distance > 0), distance, FAR)


def _prism(origin, direction, half, taper):
    slope = half[0] * (1 - taper) / (2 * half[1])
    near, far = torch.zeros_like(direction[0]), torch.full_like(direction[0], FAR)
    zero = torch.zeros_like(slope)
    for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1), (2, 1), (2, -1)):
        lean = slope if axis == 0 else zero
        reach = half[0] * (1 + taper) / 2 if axis == 0 else half[axis]
        facing = _safe(sign * direction[axis] + lean * direction[1] * (axis == 0))
        crossing = (reach - sign * origin[axis] - lean * origin[1]) / facing
        near = torch.where(facing < 0, torch.maximum(near, crossing), near)
        far = torch.where(facing > 0, torch.minimum(far, crossing), far)
    return torch.where((near < far) & (near > 0), near, FAR)


def _ball(origin, direction, half, _):
    o, d = [a / h for a, h in zip(origin, half, strict=True)], [a / h for a, h in zip(direction, half, strict=True)]
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = d[0] * o[0] + d[1] * o[1] + d[2] * o[2]
    # the discriminant is taken at the closest point: subtracting two large squares would ruin it in float32
    closest = [p - b / a * q for p, q in zip(o, d, strict=True)]
    inside = 1 - (closest[0] ** 2 + closest[1] ** 2 + closest[2] ** 2)
    distance = -b / a - (inside.clamp_min(0) / a).sqrt()
    return torch.where((inside > 0) & (distance > 0), distance, FAR)


def _cone(origin, direction, half, taper):
    slope = half[0] * (taper - 1) / (2 * half[1])
    radius = half[0] * (1 + taper) / 2 + slope * origin[1]
    lean = slope * direction[1]
    a = _safe(direction[0] ** 2 + direction[2] ** 2 - lean**2)
    b = origin[0] * direction[0] + origin[2] * direction[2] - radius * lean
    c = origin[0] ** 2 + origin[2] ** 2 - radius**2
    root = (b * b - a * c).clamp_min(0).sqrt()
    real = b * b >= a * c
    best = torch.full_like(a, FAR)
    for sign in (-1, 1):
        t = (-b + sign * root) / a
        height = origin[1] + t * direction[1]
        good = real & (t > 0) & (height.abs() <= half[1]) & (radius + t * lean >= 0)
        best = torch.where(good & (t < best), t, best)
    for sign in (-1, 1):
        t = (sign * half[1] - origin[1]) / _safe(direction[1])
        reach = half[0] * (taper if sign > 0 else 1)
        good = (t > 0) & ((origin[0] + t * direction[0]) ** 2 + (origin[2] + t * direction[2]) ** 2 <= reach**2)
        best = torch.where(good & (t < best), t, best)
    return best


@dataclass(frozen=True)
class Surface:
    """What the shader needs where rays hit: local position and size, face, world normal."""

    local: Float[Tensor, "*hit 3"]
    half: Float[Tensor, "*hit 3"]
    face: Int[Tensor, "*hit"]
    normal: Float[Tensor, "*hit 3"]  # outwards, in the world
    material: Int[Tensor, "*hit"]
    curved: Bool[Tensor, "*hit"]  # a cone's side, whose texture runs around it


def surface(
    solids: Solids, world: Int[Tensor, " hit"], solid: Int[Tensor, " hit"], point: Float[Tensor, "hit 3"]
) -> Surface:
    """The surface of solid `solid` at world points on it."""
    row = world * solids.center.shape[1] + solid
    every = torch.arange(len(solids.center), device=solid.device)
    table = _table(solids, every).index_select(1, row)
    turn, half, taper, hollow = table[3:12], table[12:15].T.contiguous(), table[15], table[16] > 0.5
    away = [point[:, j] - table[j] for j in range(3)]
    local = torch.stack([turn[i] * away[0] + turn[3 + i] * away[1] + turn[6 + i] * away[2] for i in range(3)], 1)
    ends = torch.tensor(solids.counts, device=solid.device).cumsum(0)
    is_prism, is_ball = (solid >= ends[0]) & (solid < ends[1]), (solid >= ends[1]) & (solid < ends[2])
    is_cone = solid >= ends[2]
    x, y, z = local.unbind(1)
    # a box's face is the one whose plane is nearest; a prism's x faces lean, hence the width at this height
    level = (y / half[:, 1]).clamp(-1, 1)
    width = half[:, 0] * (1 + taper + level * (taper - 1)) / 2
    lean = half[:, 0] * (1 - taper) / (2 * half[:, 1])
    slack = (half - local.abs()).clone()
    slack[:, 0] = torch.where(is_prism, (width - x.abs()) / (1 + lean**2).sqrt(), slack[:, 0])
    axis = slack.argmin(1)
    sign = torch.where(local.gather(1, axis[:, None])[:, 0] >= 0, 1.0, -1.0)
    normal = torch.nn.functional.one_hot(axis, 3).to(local.dtype) * sign[:, None]
    face = axis * 2 + (sign < 0)
    tilted = is_prism & (axis == 0)
    normal[:, 1] = torch.where(tilted, lean, normal[:, 1])
    capped = (half[:, 1] - y.abs()) < (width - (x * x + z * z).sqrt()).abs()
    side = torch.stack([x, lean * (x * x + z * z).sqrt(), z], 1)
    cap = torch.stack([torch.zeros_like(x), y.sign(), torch.zeros_like(x)], 1)
    normal = torch.where(is_ball[:, None], local / half**2, normal)
    normal = torch.where(is_cone[:, None], torch.where(capped[:, None], cap, side), normal)
    face = torch.where(is_ball | is_cone, torch.where(is_cone & capped & (y > 0), 2, 0), face)
    a, b, c = normal.unbind(1)
    normal = torch.stack([turn[3 * i] * a + turn[3 * i + 1] * b + turn[3 * i + 2] * c for i in range(3)], 1)
    normal = torch.nn.functional.normalize(normal, dim=1)
    normal = torch.where(hollow[:, None], -normal, normal)
    material = solids.faces.flatten()[row * 6 + face]
    return Surface(local, half, face, normal, material, is_cone & ~capped)
