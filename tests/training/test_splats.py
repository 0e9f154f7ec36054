"""Fitting Gaussians, by a rasteriser that stands in for gsplat's: they come to look like views they have not seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.gaussians import gsplat, rasterization  # noqa: F401 - a fixture

from diorama.export.splat import Gaussians, gaussians_of, write_gaussians
from diorama.export.world import World
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.scene import Views
from diorama.training.splats import Config, fit, fit_tested, gsplat_rasteriser, likeness

pytestmark = pytest.mark.usefixtures("gsplat")


@pytest.fixture
def views() -> Views:
    """Six pictures of a striped wall that leans away, with its exact points."""
    poses = torch.eye(4).repeat(6, 1, 1)
    poses[:, 0, 3] = torch.linspace(-0.4, 0.4, 6)
    cameras = Cameras.from_fov(60.0, 18, 24, poses)
    rays = cameras.directions()
    points = cameras.unproject((3 + 0.3 * cameras.centers[:, None, None, 0]) / (1 - 0.3 * rays[..., 0]))
    stripes = torch.stack([3 * points[..., 0], 2 * points[..., 1], points.sum(-1)], -1)
    return Views(0.5 + 0.4 * stripes.sin().movedim(-1, 1), cameras, points)


@pytest.fixture
def start(views: Views) -> Gaussians:
    """Few and coarse: what they look like is blurred."""
    found = gaussians_of(views, voxel=0.25)
    assert 80 < len(found) < 400
    return found


def test_they_come_to_look_like_the_views_and_like_those_held_out(views: Views, start: Gaussians) -> None:
    steps = []
    found = fit_tested(start, views, Config(80), every=3, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(step, 80) for step in range(1, 81)]
    assert (found.tested, found.held_out) == (2, True)
    assert np.mean(found.losses[-10:]) < 0.5 * np.mean(found.losses[:10])
    assert found.after > found.before + 6
    rasterise = gsplat_rasteriser(start, views.cameras)
    assert likeness(found.gaussians, views[[1, 4]], rasterise) == pytest.approx(found.after)
    for name, tensor in vars(found.gaussians).items():
        assert tensor.shape[1:] == getattr(start, name).shape[1:]
        assert name == "rest" or not torch.equal(tensor[:50], getattr(start, name)[:50]), f"{name} did not move"
    assert torch.equal(start.means, gaussians_of(views, voxel=0.25).means), "the beginning was changed"


def test_the_seed_decides(views: Views, start: Gaussians) -> None:
    first, same, other = (fit_tested(start, views, Config(4, seed), every=0) for seed in (1, 1, 2))
    assert (first.tested, first.held_out) == (6, False)
    assert first.losses == same.losses != other.losses
    assert all(
        torch.equal(a, b) for a, b in zip(vars(first.gaussians).values(), vars(same.gaussians).values(), strict=True)
    )


def test_colours_that_change_with_the_direction(views: Views) -> None:
    """A wall that is dark from the left and bright from the right: one colour cannot say it, one harmonic can."""
    light = torch.linspace(0.3, 0.7, 6)[:, None, None, None].expand_as(views.images)
    views = replace(views, images=light)
    rasterise = gsplat_rasteriser(gaussians_of(views, voxel=0.25), views.cameras)
    found = {}
    for degree in (0, 1):
        start = gaussians_of(views, voxel=0.25, degree=degree)
        assert start.degree == degree
        # The published rate of the harmonics is meant for thousands of steps.
        found[degree] = fit(start, views, rasterise, Config(60))[0]
    assert found[1].rest.abs().amax() > 1e-3 and found[0].rest.shape[1] == 0
    assert likeness(found[1], views, rasterise) > likeness(found[0], views, rasterise)


def test_what_is_invisible_or_broken_is_left_out(views: Views, start: Gaussians) -> None:
    opacities = start.opacities.clone()
    opacities[:20] = -9.0
    means = start.means.clone()
    means[20:25, 2] = -1000.0  # behind every camera
    changed = replace(start, opacities=opacities, means=means)
    rasterise = gsplat_rasteriser(start, views.cameras)
    found, _ = fit(changed, views, rasterise, Config(1))
    assert len(found) == len(start) - 20, "what no view happens to see stays"
    with pytest.raises(ValueError, match="no visible Gaussian is left"):
        fit(replace(start, opacities=torch.full_like(opacities, -20.0)), views, rasterise, Config(1))


def test_the_near_plane_follows_the_scenes_unit(views: Views, start: Gaussians, gsplat) -> None:  # noqa: F811
    """A scene in kilometres is fitted like the same in metres: no plane at a fixed distance cuts into it."""
    planes = []

    def watched(**arguments):
        planes.append(arguments["near_plane"])
        return rasterization(**arguments)

    gsplat.rasterization = watched
    whole = likeness(start, views, gsplat_rasteriser(start, views.cameras))
    small = Similarity(torch.eye(3), torch.zeros(3), torch.tensor(1e-3))
    moved = replace(start, means=1e-3 * start.means, scales=start.scales + np.log(1e-3))
    shrunk = views.transformed(small)
    assert likeness(moved, shrunk, gsplat_rasteriser(moved, shrunk.cameras)) == pytest.approx(whole, abs=1e-2)
    assert planes[-1] == pytest.approx(1e-3 * planes[0], rel=1e-3)


def test_the_file_says_what_was_fitted(views: Views, start: Gaussians, tmp_path: Path) -> None:
    """Read field by field as viewers do, the file gives the same pictures."""
    start = replace(start, rest=0.2 * torch.randn(len(start), 3, 3, generator=torch.Generator().manual_seed(3)))
    found, _ = fit(start, views, gsplat_rasteriser(start, views.cameras), Config(3))
    write_gaussians(found, tmp_path / "a.ply", World("metre", 1.0, "-y"))
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    names = [line.split()[2] for line in header.decode("ascii").split("\n") if line.startswith("property float ")]
    table = dict(zip(names, torch.from_numpy(np.frombuffer(body, "<f4").reshape(len(found), 62).copy()).T, strict=True))
    columns = lambda *wanted: torch.stack([table[name] for name in wanted], -1)  # noqa: E731
    rotation = columns(*(f"rot_{i}" for i in range(4)))
    assert torch.allclose(rotation.norm(dim=-1), torch.ones(len(found)), atol=1e-5)
    # The format keeps red's fifteen harmonics, then green's, then blue's.
    rest = torch.stack([columns(*(f"f_rest_{15 * channel + i}" for i in range(3))) for channel in range(3)], -1)
    assert all((table[f"f_rest_{15 * channel + i}"] == 0).all() for channel in range(3) for i in range(3, 15))
    cameras = views.cameras
    images, _, _ = rasterization(
        means=columns("x", "y", "z"),
        quats=rotation,
        scales=columns(*(f"scale_{i}" for i in range(3))).exp(),
        opacities=table["opacity"].sigmoid(),
        colors=torch.cat([columns(*(f"f_dc_{i}" for i in range(3)))[:, None], rest], 1),
        viewmats=torch.linalg.inv(cameras.camera_to_world),
        Ks=cameras.intrinsics,
        width=24,
        height=18,
        sh_degree=1,
    )
    ours = gsplat_rasteriser(found, cameras)(found, cameras)
    assert torch.allclose(images.movedim(-1, 1), ours, atol=1e-4)


def test_what_it_refuses(views: Views, start: Gaussians) -> None:
    with pytest.raises(ValueError, match="no cameras"):
        fit_tested(start, Views(views.images))
    with pytest.raises(ValueError, match="1 step or more"):
        Config(0)
    with pytest.raises(ValueError, match="degree 4 of the harmonics"):
        gaussians_of(views, degree=4)
