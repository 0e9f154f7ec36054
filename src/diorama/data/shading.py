"""Light and colour of the worlds: sun, lamps, shadows, sky, fog, tone curve, and adaptive antialiasing."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diorama.data.raycast import FAR, Bundle, Solids, Surface, cast, surface, trimmed
from diorama.data.textures import Atlas, albedo, atlas, look_up
from diorama.geometry.cameras import Cameras

LAMPS = 3
TILE = 8
CONTRAST = 0.08  # neighbouring pixels that differ by more are antialiased


@dataclass(frozen=True)
class Air:
    """Lamps, sky and fog of worlds; all colours linear."""

    lamp: Float[Tensor, "world lamp 3"]  # positions; the sun is a lamp 90 m away
    power: Float[Tensor, "world lamp 3"]  # black: no lamp
    fades: Float[Tensor, "world lamp"]  # 1: falls off with distance, 0: the sun
    zenith: Float[Tensor, "world 3"]
    horizon: Float[Tensor, "world 3"]
    sun: Float[Tensor, "world 3"]
    above: Float[Tensor, "world 3"]  # ambient light of upward faces
    below: Float[Tensor, "world 3"]
    fog: Float[Tensor, " world"]  # per metre
    exposure: Float[Tensor, " world"]

    @classmethod
    def of(cls, sky: dict, lamps: list, fog: float) -> "Air":
        """One world's air from a layout's sky and at most three (position, colour, fades) lamps."""
        rows = [*lamps, *[((0, 50, 0), (0, 0, 0), False)] * (LAMPS - len(lamps))]
        tensors = [torch.tensor(np.array(column, dtype=np.float32))[None] for column in zip(*rows, strict=True)]
        colors = {
            name: torch.tensor(np.array(sky[name], dtype=np.float32))[None]
            for name in ("zenith", "horizon", "sun", "above", "below")
        }
        return cls(*tensors, **colors, fog=torch.tensor([fog], dtype=torch.float32), exposure=torch.ones(1))


@dataclass(frozen=True)
class Stage:
    """All that stays the same while one batch of worlds is rendered."""

    solids: Solids
    materials: Float[Tensor, "world material number"]
    air: Air
    table: Atlas

    def to(self, device) -> "Stage":
        """On another device."""

        def moved(record: Any) -> Any:
            return replace(
                record,
                **{f.name: v.to(device) for f in fields(record) if isinstance(v := getattr(record, f.name), Tensor)},
            )

        return Stage(moved(self.solids), self.materials.to(device), moved(self.air), self.table)


def exposed(stage: Stage, eyes: Float[Tensor, "eye 3"]) -> Air:
    """One world's air with the exposure of an average photo, metered all around from a few points.

    The power below one leaves dark rooms darker than bright ones, as cameras' programs do.
    """
    angle = torch.linspace(0, 2 * torch.pi, 49)[:-1].reshape(6, 8)
    flat = torch.stack(
        [torch.stack([angle.sin(), torch.full_like(angle, y), angle.cos()]) for y in (-0.5, -0.2, 0.1, 0.35)], 1
    )
    direction = torch.nn.functional.normalize(flat.reshape(3, 24, 8), dim=0).mT.repeat(1, 1, len(eyes))
    index = torch.arange(len(eyes)).repeat_interleave(24)
    color, distance = _shade(
        stage, Bundle(eyes, torch.zeros(len(eyes), dtype=torch.long), index, direction), torch.full((len(index),), 0.1)
    )
    light = color.mean(0)[distance < FAR].clamp(0.01, 2).log().mean().exp()
    return replace(stage.air, exposure=(0.17 / light).pow(0.65).clamp(0.5, 3).reshape(1))


def render_worlds(
    solids: Solids, materials: Tensor, air: Air, pictures: Tensor | None, cameras: Cameras, samples: int
) -> tuple[Float[Tensor, "world view 3 height width"], Float[Tensor, "world view height width"]]:
    """Images in [0, 1] and distances along the rays of pixel centres, on the cameras' device."""
    device = cameras.camera_to_world.device
    table = atlas(pictures, device)
    if device.type != "cpu":
        stage = Stage(trimmed(solids), materials, air, table).to(device)
        return render_together(stage, cameras, samples, 1 << 21)
    # a CPU's cache likes one world and a few views at a time
    parts = []
    for i in range(len(materials)):
        stage = Stage(trimmed(_one(solids, i)), materials[i : i + 1], _one(air, i), table)
        own = Cameras(cameras.camera_to_world[i : i + 1], cameras.intrinsics[i : i + 1], cameras.height, cameras.width)
        parts.append(render_together(stage, own, samples, 1 << 15))
    images, distances = (torch.cat(part) for part in zip(*parts, strict=True))
    return images, distances


def _one(record: Any, index: int) -> Any:
    """A record of one of several worlds."""
    columns = {f.name: v[index : index + 1] for f in fields(record) if isinstance(v := getattr(record, f.name), Tensor)}
    return replace(record, **columns)


def render_together(
    stage: Stage, cameras: Cameras, samples: int, pixels: int
) -> tuple[Float[Tensor, "world view 3 height width"], Float[Tensor, "world view height width"]]:
    """Images and distances of all a stage's worlds, as many views at once as have about so many pixels."""
    count, views = cameras.camera_to_world.shape[:2]
    step = max(1, pixels // (cameras.height * cameras.width))
    flat = [(w, v) for w in range(count) for v in range(views)]
    images, distances = [], []
    for start in range(0, len(flat), step):
        w, v = torch.tensor(flat[start : start + step], device=stage.materials.device).unbind(1)
        image, distance = _render(
            stage, w, cameras.camera_to_world[w, v].float(), cameras.intrinsics[w, v].float(), cameras, samples
        )
        images.append(image)
        distances.append(distance)
    shape = (count, views, cameras.height, cameras.width)
    return torch.cat(images, 1).reshape(3, *shape).movedim(0, 2).contiguous(), torch.cat(distances).reshape(shape)


def _directions(pose: Tensor, intrinsics: Tensor, x: Tensor, y: Tensor) -> Float[Tensor, "3 ray group"]:
    """Unit world directions through image positions (x, y), one group per pose."""
    a = (x - intrinsics[:, 0, 2]) / intrinsics[:, 0, 0]
    b = (y - intrinsics[:, 1, 2]) / intrinsics[:, 1, 1]
    length = 1 / (a * a + b * b + 1).sqrt()
    return torch.stack([(pose[:, i, 0] * a + pose[:, i, 1] * b + pose[:, i, 2]) * length for i in range(3)])


def _render(
    stage: Stage, world: Tensor, pose: Tensor, intrinsics: Tensor, cameras: Cameras, samples: int
) -> tuple[Tensor, Tensor]:
    height, width, device = cameras.height, cameras.width, pose.device
    rows, columns = -(-height // TILE), -(-width // TILE)
    cell = torch.arange(rows * columns, device=device)
    inner = torch.arange(TILE * TILE, device=device)
    y = (cell // columns * TILE + (inner // TILE)[:, None]).clamp_max(height - 1)
    x = (cell % columns * TILE + (inner % TILE)[:, None]).clamp_max(width - 1)
    image = torch.arange(len(world), device=device).repeat_interleave(len(cell))
    again = (1, len(world))
    rays = Bundle(
        pose[:, :3, 3],
        world,
        image,
        _directions(pose[image], intrinsics[image], x.repeat(again) + 0.5, y.repeat(again) + 0.5),
    )
    color, distance = _shade(stage, rays, 1 / intrinsics[image, 0, 0])
    color = _tone(color * _of(stage.air.exposure, rays.world))
    color, distance = (_untile(a, len(world), rows, columns)[..., :height, :width] for a in (color, distance[None]))
    color, distance = color.contiguous(), distance[0].contiguous()
    edge = _edges(color).flatten().nonzero()[:, 0] if samples > 1 else torch.empty(0)
    if len(edge):
        view, pixel = edge // (height * width), edge % (height * width)
        offsets = _offsets(samples, device)
        sx, sy = pixel % width + offsets[:, 0, None], pixel // width + offsets[:, 1, None]
        rays = Bundle(pose[:, :3, 3], world, view, _directions(pose[view], intrinsics[view], sx, sy))
        fine, _ = _shade(stage, rays, 1 / intrinsics[view, 0, 0] / samples**0.5)
        fine = _tone(fine * _of(stage.air.exposure, rays.world)).sum(1)
        flat = color.view(3, -1)
        flat.index_copy_(1, edge, (fine + flat.index_select(1, edge)) / samples)
    return color, distance


def _untile(a: Float[Tensor, "channel ray group"], images: int, rows: int, columns: int) -> Tensor:
    a = a.reshape(-1, TILE, TILE, images, rows, columns).permute(0, 3, 4, 1, 5, 2)
    return a.reshape(-1, images, rows * TILE, columns * TILE)


def _offsets(samples: int, device) -> Float[Tensor, "sample 2"]:
    """Sub-pixel positions in [0, 1]^2 besides the centre, spread by the R2 sequence."""
    i = torch.arange(1, samples, device=device, dtype=torch.float32)[:, None]
    return (i * torch.tensor([0.7548777, 0.5698403], device=device) + 0.5) % 1


def _edges(color: Float[Tensor, "3 view height width"]) -> Bool[Tensor, "view height width"]:
    """Pixels that differ visibly from one of their four neighbours."""
    edge = torch.zeros(color.shape[1:], dtype=torch.bool, device=color.device)
    for axis in (1, 2):
        step = color.diff(dim=axis + 1).abs_().amax(0) > CONTRAST
        size = edge.shape[axis]
        edge.narrow(axis, 0, size - 1).logical_or_(step)
        edge.narrow(axis, 1, size - 1).logical_or_(step)
    return edge


def _tone(linear: Tensor) -> Tensor:
    """Linear light to sRGB in [0, 1] with a photographic shoulder instead of clipping."""
    x = linear.clamp_min(0)
    x = (x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)).clamp(0, 1)
    return x.pow(1 / 2.2)


def _shade(
    stage: Stage, rays: Bundle, angle: Float[Tensor, " group"]
) -> tuple[Float[Tensor, "3 ray group"], Float[Tensor, "ray group"]]:
    """Linear colour and distance of rays; `angle` is a pixel's size in radians, per group."""
    distance, index = cast(stage.solids, rays)
    hit = (index >= 0).flatten().nonzero()[:, 0]
    color = torch.zeros_like(rays.direction)
    if len(hit) < distance.numel():
        free = (index < 0).any(0).nonzero()[:, 0]
        some = Bundle(rays.source, rays.source_world, rays.index[free], rays.direction[..., free])
        color = color.index_copy_(2, free, _sky(stage, some))
    if not len(hit):
        return color, distance
    group, air = hit % distance.shape[1], stage.air
    source = rays.index.index_select(0, group)
    world = rays.source_world.index_select(0, source)
    direction, t = rays.direction.flatten(1).index_select(1, hit), distance.flatten().index_select(0, hit)
    point = _of(rays.source, source) + direction * t
    found = surface(stage.solids, world, index.flatten().index_select(0, hit), point)
    kinds = stage.materials.flatten(0, 1).T.contiguous()
    material = kinds.index_select(1, world * stage.materials.shape[1] + found.material)
    facing = (found.normal * direction).sum(0)
    mirror = direction - 2 * facing * found.normal
    facing = facing.abs_()
    # a slanted pixel covers more texture; the square root is a compromise between blur and aliasing
    foot = t * angle.index_select(0, group) / facing.clamp_min(0.1).sqrt_()
    base = albedo(material, stage.table, *_coordinates(found), foot)
    gloss, emission = material[13], material[12]
    light = _ambient(stage, world, point, found.normal)
    shine = torch.zeros_like(base)
    for lamp in range(air.lamp.shape[1]):
        if (air.power[:, lamp] > 0).any():
            towards, reach, fade = _towards(air, world, point, lamp)
            diffuse = (towards * found.normal).sum(0).clamp_min_(0)
            glint = (mirror * towards).sum(0).clamp_min_(0).pow_(3).square_().square_().square_() * gloss * 0.25
            bright = _bright(stage, rays, lamp, (hit, distance, reach), torch.maximum(diffuse, glint))
            power = _of(air.power[:, lamp], world) * (fade * bright)
            light, shine = light.addcmul_(power, diffuse), shine.addcmul_(power, glint)
    # glossy things also reflect the light of their surroundings towards grazing angles
    fresnel = gloss * 0.5 * (1 - facing).clamp_(0, 1) ** 3
    lit = base * light * (1 - fresnel) + shine + fresnel * _of(air.above, world)
    lit = torch.where(emission > 0, base * emission, lit)
    mist = 1 - torch.exp(-_of(air.fog, world) * t)
    color.flatten(1).index_copy_(1, hit, lit * (1 - mist) + _of(air.horizon, world) * mist)
    return color, distance


def _coordinates(found: Surface) -> tuple[Tensor, Tensor, Tensor]:
    """Texture position on the face in metres (in [0, 1] for windows of pictures), and height above the face's foot."""
    x, y, z = found.local
    lying = (found.face == 2) | (found.face == 3)
    u = torch.where(found.face < 2, z, x)
    u = torch.where(found.curved, torch.atan2(x, z) * found.half[0], u)
    return u, torch.where(lying, z, y), torch.where(lying, 1e9, y + found.half[1])


def _of(values: Tensor, world: Tensor) -> Tensor:
    """Each ray's column of its world's values; one world's column simply broadcasts, which spares a gather."""
    columns = values.movedim(0, -1)
    return columns if len(values) == 1 else columns.index_select(-1, world)


def _ambient(stage: Stage, world: Tensor, point: Tensor, normal: Tensor) -> Float[Tensor, "3 hit"]:
    """Light from above and below, darkened by how close a room's walls or the floor are."""
    center, half, hollow = (_of(a[:, 0], world) for a in (stage.solids.center, stage.solids.half, stage.solids.hollow))
    gap = (half - (point - center).abs_()).clamp_min_(0)
    room = (1 - 0.35 * (1 - normal.abs()) * torch.exp(gap.div_(-0.35))).prod(0)
    height = point[1].clamp_min(0)
    ground = 1 - 0.4 * (1 - normal[1].clamp_min(0)) * torch.exp(height.div_(-0.4))
    up = 0.5 + 0.5 * normal[1]
    light = _of(stage.air.above, world) * up + _of(stage.air.below, world) * (1 - up)
    return light * torch.where(hollow, room, ground)


def _towards(air: Air, world: Tensor, point: Tensor, lamp: int) -> tuple[Tensor, Tensor, Tensor]:
    """Directions from points to a lamp, the distances, and the share of its power that gets as far."""
    away = _of(air.lamp[:, lamp], world) - point
    reach = (away * away).sum(0).sqrt_().clamp_min_(1e-6)
    fade = torch.where(_of(air.fades[:, lamp], world) > 0.5, 1 / (0.6 + reach * reach), 1.0)
    return away / reach, reach, fade


def _bright(
    stage: Stage, rays: Bundle, lamp: int, hits: tuple[Tensor, Tensor, Tensor], matter: Float[Tensor, " hit"]
) -> Bool[Tensor, " hit"]:
    """Which points a lamp shines on, not shadowed.

    `hits`: rays of the points, all rays' distances, the points' distances to the lamp; only groups of points where
    light would `matter` are tested for shadows.
    """
    (at, distance, reach), air = hits, stage.air
    lamps = air.lamp[rays.source_world, lamp]
    keep = torch.zeros_like(distance).view(-1).index_copy_(0, at, matter).view_as(distance).amax(0) > 1e-6
    keep = keep.nonzero()[:, 0]
    if not len(keep):
        return torch.zeros_like(reach, dtype=torch.bool)
    # the group's points, seen from the lamp, are again a bundle with one origin; rays into the sky stop at the
    # group's nearest point
    stop = distance.index_select(1, keep)
    stop = torch.where(stop < FAR, stop, stop.amin(0))
    index = rays.index.index_select(0, keep)
    grid = rays.direction.flatten(0, 1).index_select(1, keep).view(3, *stop.shape).mul_(stop)
    grid += _of(rays.source - lamps, index)[:, None]
    grid /= (grid * grid).sum(0).sqrt_()
    seen, _ = cast(stage.solids, Bundle(lamps, rays.source_world, index, grid), shadow=True)
    nearest = torch.zeros_like(distance).index_copy_(1, keep, seen).view(-1).index_select(0, at)
    return nearest > reach - 0.01 - 2e-4 * reach


def _sky(stage: Stage, rays: Bundle) -> Float[Tensor, "3 ray group"]:
    air, d, world = stage.air, rays.direction, rays.world
    height = d[1].clamp(0, 1)
    blend = height**0.55
    horizon, zenith, sun, glow = (
        _of(a, world)[:, None] for a in (air.horizon, air.zenith, air.sun, air.power[:, 0] * 0.5)
    )
    color = horizon * (1 - blend) + zenith * blend
    # clouds live on a plane far above, so they shrink towards the horizon
    u, v = (d[i] / (height + 0.15) * 0.3 + sun[i] for i in (0, 2))
    layer = torch.full_like(u, 1, dtype=torch.int).flatten()
    cloud = look_up(stage.table.grey, layer, u.flatten(), v.flatten(), torch.full_like(u, 0.01).flatten())
    cover = ((cloud.view_as(height) - 0.5) * 3).clamp_(0, 1) * (height * 4).clamp_(0, 1)
    color = color + (horizon * 0.35 + 0.6 - color) * cover * 0.8
    return color + (d * sun).sum(0).clamp_(0, 1) ** 32 * glow
