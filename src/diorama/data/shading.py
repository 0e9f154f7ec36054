"""Light and colour of the worlds: sun, lamps, shadows, sky, fog, tone curve, and adaptive antialiasing."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.raycast import FAR, Bundle, Solids, cast, surface, trimmed
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
    light = color.mean(-1)[distance < FAR].clamp(0.01, 2).log().mean().exp()
    return replace(stage.air, exposure=(0.17 / light).pow(0.65).clamp(0.5, 3).reshape(1))


def render_worlds(
    solids: Solids, materials: Tensor, air: Air, pictures: Tensor | None, cameras: Cameras, samples: int
) -> tuple[Float[Tensor, "world view 3 height width"], Float[Tensor, "world view height width"]]:
    """Images in [0, 1] and distances along the rays of pixel centres, on the cameras' device."""
    device = cameras.camera_to_world.device
    stage = Stage(trimmed(solids), materials, air, atlas(pictures, device)).to(device)
    count, views = cameras.camera_to_world.shape[:2]
    # a CPU's cache likes one view at a time, a GPU wants everything at once
    step = max(1, (1 << 14 if device.type == "cpu" else 1 << 21) // (cameras.height * cameras.width))
    flat = [(w, v) for w in range(count) for v in range(views)]
    images, distances = [], []
    for start in range(0, len(flat), step):
        w, v = torch.tensor(flat[start : start + step], device=device).unbind(1)
        image, distance = _render(
            stage, w, cameras.camera_to_world[w, v].float(), cameras.intrinsics[w, v].float(), cameras, samples
        )
        images.append(image)
        distances.append(distance)
    shape = (count, views, cameras.height, cameras.width)
    return torch.cat(images).reshape(*shape, 3).movedim(-1, 2).contiguous(), torch.cat(distances).reshape(shape)


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
    angle = 1 / intrinsics[image, 0, 0]
    color, distance = _shade(stage, rays, angle)
    color = _tone(color * stage.air.exposure[rays.world, None])
    color, distance = (_untile(a, len(world), rows, columns)[:, :height, :width] for a in (color, distance[..., None]))
    color, distance = color.contiguous(), distance[..., 0].contiguous()
    if samples > 1:
        view, py, px = _edges(color).nonzero().unbind(1)
        if len(view):
            offsets = _offsets(samples, device)
            sx, sy = px + offsets[:, 0, None], py + offsets[:, 1, None]
            rays = Bundle(pose[:, :3, 3], world, view, _directions(pose[view], intrinsics[view], sx, sy))
            fine, _ = _shade(stage, rays, 1 / intrinsics[view, 0, 0] / samples**0.5)
            fine = _tone(fine * stage.air.exposure[world[view], None]).sum(0)
            color[view, py, px] = (fine + color[view, py, px]) / samples
    return color, distance


def _untile(a: Tensor, images: int, rows: int, columns: int) -> Tensor:
    a = a.reshape(TILE, TILE, images, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
    return a.reshape(images, rows * TILE, columns * TILE, -1)


def _offsets(samples: int, device) -> Float[Tensor, "sample 2"]:
    """Sub-pixel positions in [0, 1]^2 besides the centre, spread by the R2 sequence."""
    i = torch.arange(1, samples, device=device, dtype=torch.float32)[:, None]
    return (i * torch.tensor([0.7548777, 0.5698403], device=device) + 0.5) % 1


def _edges(color: Float[Tensor, "view height width 3"]) -> Tensor:
    """Pixels that differ visibly from one of their four neighbours."""
    edge = torch.zeros(color.shape[:3], dtype=torch.bool, device=color.device)
    for axis in (1, 2):
        step = (color.diff(dim=axis).abs().amax(-1)) > CONTRAST
        size = color.shape[axis]
        edge.narrow(axis, 0, size - 1).logical_or_(step)
        edge.narrow(axis, 1, size - 1).logical_or_(step)
    return edge


def _tone(linear: Tensor) -> Tensor:
    """Linear light to sRGB in [0, 1] with a photographic shoulder instead of clipping."""
    x = linear.clamp_min(0)
    x = (x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)).clamp(0, 1)
    return x.pow(1 / 2.2)


def _shade(
    stage: Stage, rays: Bundle, angle: Tensor
) -> tuple[Float[Tensor, "ray group 3"], Float[Tensor, "ray group"]]:
    """Linear colour and distance of rays; `angle` is a pixel's size in radians, per group."""
    distance, index = cast(stage.solids, rays)
    shape, air = distance.shape, stage.air
    hit = (index >= 0).flatten().nonzero()[:, 0]
    group = hit % shape[1]
    world, direction = rays.world[group], rays.direction.flatten(1).index_select(1, hit).T.contiguous()
    color = rays.direction.new_zeros(distance.numel(), 3)
    free = (index < 0).any(0).nonzero()[:, 0]
    if len(free):
        some = Bundle(rays.source, rays.source_world, rays.index[free], rays.direction[..., free])
        color = color.reshape(*shape, 3).index_copy(1, free, _sky(stage, some)).reshape(-1, 3)
    if not len(hit):
        return color.reshape(*shape, 3), distance
    t = distance.flatten()[hit]
    point = rays.origin[group] + direction * t[:, None]
    found = surface(stage.solids, world, index.flatten()[hit], point)
    material = stage.materials.flatten(0, 1).index_select(0, world * stage.materials.shape[1] + found.material)
    facing = (found.normal * direction).sum(1)
    normal = found.normal
    u, v, low = _coordinates(found, material)
    # a slanted pixel covers more texture; the square root is a compromise between blur and aliasing
    foot = t * angle[group] / facing.abs().clamp_min(0.1).sqrt()
    base = albedo(material, stage.table, u, v, low, foot)
    up = (0.5 + 0.5 * normal[:, 1])[:, None]
    light = (_of(air.above, world) * up + _of(air.below, world) * (1 - up)) * _corners(
        stage.solids, world, point, normal
    )[:, None]
    gloss, emission = material[:, 13:14], material[:, 12:13]
    mirror = direction - 2 * facing[:, None] * normal
    shine = torch.zeros_like(base)
    for lamp in range(air.lamp.shape[1]):
        if (air.power[:, lamp] > 0).any():
            towards, power = _lamp(stage, rays, world, point, lamp, (hit, distance))
            light = light + power * (towards * normal).sum(1, keepdim=True).clamp_min(0)
            shine = shine + power * gloss * 0.25 * (mirror * towards).sum(1, keepdim=True).clamp_min(0) ** 24
    # glossy things also reflect the light of their surroundings towards grazing angles
    fresnel = gloss * 0.5 * (1 - facing.abs()[:, None]).clamp(0, 1) ** 3
    lit = base * light * (1 - fresnel) + shine + fresnel * _of(air.above, world)
    lit = torch.where(emission > 0, base * emission, lit)
    mist = 1 - torch.exp(-_of(air.fog, world) * t)[:, None]
    color[hit] = lit * (1 - mist) + _of(air.horizon, world) * mist
    return color.reshape(*shape, 3), distance


def _coordinates(found, material: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Texture position on the face in metres (in [0, 1] for windows of pictures), and height above the face's foot."""
    x, y, z = found.local.unbind(-1)
    axis = found.face // 2
    u = torch.where(axis == 0, z, x)
    v = torch.where(axis == 1, z, y)
    u = torch.where(found.curved, torch.atan2(x, z) * found.half[:, 0], u)
    low = torch.where(axis == 1, 1e9, y + found.half[:, 1])
    return u, v, low


def _of(values: Tensor, world: Tensor) -> Tensor:
    """Each ray's row of its world's values; one world's row simply broadcasts, which spares a gather."""
    return values if len(values) == 1 else values[world]


def _corners(solids: Solids, world: Tensor, point: Tensor, normal: Tensor) -> Float[Tensor, " hit"]:
    """Ambient occlusion: how much a room's walls and the floor darken points close to them."""
    center, half, hollow = (_of(a[:, 0], world) for a in (solids.center, solids.half, solids.hollow))
    gap = (half - (point - center).abs()).clamp_min(0)
    across = 1 - normal.abs()
    room = (1 - 0.35 * across * torch.exp(-gap / 0.35)).prod(1)
    height = point[:, 1].clamp_min(0)
    ground = 1 - 0.4 * (1 - normal[:, 1].clamp_min(0)) * torch.exp(-height / 0.4)
    return torch.where(hollow, room, ground)


def _lamp(
    stage: Stage, rays: Bundle, world: Tensor, point: Tensor, lamp: int, hits: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Direction to a lamp and its light at points, black where shadowed; `hits`: rays of the points, all distances."""
    at, distance = hits
    air = stage.air
    away = _of(air.lamp[:, lamp], world) - point
    reach = (away * away).sum(1, keepdim=True).sqrt().clamp_min(1e-6)
    # the group's points, seen from the lamp, are again a bundle with one origin; rays into the sky stop at the
    # group's nearest point
    known = distance < FAR
    keep = known.any(0).nonzero()[:, 0]
    stop = torch.where(known, distance, distance.amin(0)).index_select(1, keep)
    shift = (rays.source - air.lamp[rays.source_world, lamp]).T.index_select(1, rays.index[keep])
    grid = shift[:, None] + rays.direction.index_select(2, keep) * stop
    grid = grid / (grid * grid).sum(0).sqrt()
    seen, _ = cast(
        stage.solids, Bundle(air.lamp[rays.source_world, lamp], rays.source_world, rays.index[keep], grid), shadow=True
    )
    nearest = torch.zeros_like(distance).index_copy(1, keep, seen)
    bright = nearest.flatten()[at][:, None] > reach - 0.01 - 2e-4 * reach
    fade = torch.where(_of(air.fades[:, lamp], world) > 0.5, 1 / (0.6 + reach[:, 0] ** 2), 1.0)[:, None]
    return away / reach, _of(air.power[:, lamp], world) * fade * bright


def _sky(stage: Stage, rays: Bundle) -> Float[Tensor, "ray group 3"]:
    air, d = stage.air, rays.direction
    height = d[1].clamp(0, 1)
    blend = (height**0.55)[..., None]
    color = _of(air.horizon, rays.world) * (1 - blend) + _of(air.zenith, rays.world) * blend
    # clouds live on a plane far above, so they shrink towards the horizon
    u, v = (d[0] / (height + 0.15)).flatten() * 0.3, (d[2] / (height + 0.15)).flatten() * 0.3
    offset = air.sun[rays.world].expand(*d.shape[1:], 3).reshape(-1, 3)
    layer = torch.full_like(u, 1, dtype=torch.long)
    cloud = look_up(stage.table.grey, layer, u + offset[:, 0], v + offset[:, 2], torch.full_like(u, 0.01)).reshape(
        height.shape
    )
    cover = ((cloud - 0.5) * 3).clamp(0, 1)[..., None] * (height * 4).clamp(0, 1)[..., None]
    glow = torch.einsum("crg,gc->rg", d, air.sun[rays.world]).clamp(0, 1)[..., None] ** 32
    color = color + (_of(air.horizon, rays.world) * 0.35 + 0.6 - color) * cover * 0.8
    return color + glow * 0.5 * air.power[rays.world, 0]
