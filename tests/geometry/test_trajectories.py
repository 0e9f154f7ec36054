"""Camera paths: where they begin, how they move, and what they do when asked for something else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diorama.geometry import trajectories
from diorama.geometry.cameras import Cameras
from diorama.geometry.rotations import geodesic_angle
from diorama.geometry.trajectories import TRAJECTORIES, interpolate, keyframe_places, trajectory

from .drawing import close, close_cameras, quick, random_cameras, seeds

names = st.sampled_from(sorted(TRAJECTORIES))


def local(path):
    """The path in its first camera's frame, where right, down and forward are the axes."""
    return path.relative_to(path.camera_to_world[..., 0, :, :])


def steps(path):
    """Distance and angle from each view to the next."""
    rotation = path.camera_to_world[..., :3, :3]
    return path.centers.diff(dim=-2).norm(dim=-1), geodesic_angle(rotation[..., :-1, :, :], rotation[..., 1:, :, :])


@quick
@given(names, seeds, st.integers(1, 9), st.sampled_from([(1,), (2, 1)]))
def test_every_path_begins_at_its_camera_exactly(name, seed, views, batch):
    for dtype in (torch.float32, torch.float64):
        start = random_cameras(seed, *batch).to(dtype)
        path = trajectory(name, start, views).checked()
        assert path.views == views
        assert path.camera_to_world.dtype == path.intrinsics.dtype == dtype
        assert torch.equal(path[0].camera_to_world, start.camera_to_world)
        assert torch.equal(path[0].intrinsics, start.intrinsics)


@quick
@given(names, seeds)
def test_every_path_follows_its_camera(name, seed):
    start = random_cameras(seed, 1)
    path = trajectory(name, start, 6)
    home = trajectory(name, local(start), 6)
    close_cameras(local(path), home)


@quick
@given(names, seeds)
def test_every_path_is_smooth(name, seed):
    # Twice as many views: steps halve and their changes quarter, which only a smooth path does.
    start, coarse, fine = random_cameras(seed, 1), 41, 81
    bends = []
    for views in (coarse, fine):
        path = trajectory(name, start, views)
        for values in (path.camera_to_world, path.intrinsics.log1p()):
            bends.append(values.diff(n=2, dim=-3).norm(dim=(-1, -2)).amax())
    for before, after in zip(bends[:2], bends[2:], strict=True):
        assert after <= 0.27 * before + 1e-9


@pytest.mark.parametrize(("name", "axis", "sign"), [("dolly", 2, 1), ("truck", 0, 1), ("pedestal", 1, -1)])
def test_translations_go_straight(name, axis, sign):
    path = local(trajectory(name, random_cameras(0, 1), 5, 2.0))
    expected = torch.zeros(5, 3, dtype=torch.float64)
    expected[:, axis] = sign * torch.linspace(0, 2, 5)
    close(path.centers, expected)
    close(steps(path)[1], torch.zeros(4).double())


@pytest.mark.parametrize(("name", "image_axis", "sign"), [("pan", 0, 1), ("tilt", 1, -1)])
def test_turns_stay_in_place(name, image_axis, sign):
    path = local(trajectory(name, random_cameras(0, 1), 4, 30.0))
    close(path.centers, torch.zeros(4, 3).double())
    close(steps(path)[1].rad2deg(), torch.full((3,), 10.0).double())
    assert sign * path.camera_to_world[-1, image_axis, 2] > 0  # looks right, looks up


@quick
@given(seeds, st.floats(-360, 360), st.floats(0.2, 5))
def test_orbit_looks_at_its_target(seed, degrees, radius):
    path = local(trajectories.orbit(random_cameras(seed, 1), 7, degrees, radius))
    target = torch.tensor([0, 0, radius], dtype=torch.float64)
    close(path.centers + radius * path.camera_to_world[:, :3, 2], target.expand(7, 3))
    close(steps(path)[1].rad2deg(), torch.full((6,), abs(degrees) / 6).double(), 1e-6)
    close(path.centers[:, 1], torch.zeros(7).double())
    if 1 < degrees < 179:
        assert path.centers[-1, 0] > 0  # to the right


def test_spiral_winds_outwards_and_looks_at_its_target():
    path = local(trajectories.spiral(random_cameras(0, 1), 33, radius=0.4, turns=2.0, distance=3.0))
    reach = path.centers.norm(dim=-1)
    close(reach, torch.linspace(0, 0.4, 33).double(), 1e-6)
    offset = torch.tensor([0, 0, 3.0]).double() - path.centers
    close(torch.linalg.cross(offset, path.camera_to_world[:, :3, 2]), torch.zeros(33, 3).double(), 1e-6)


def test_zoom_changes_only_the_focal_length():
    start = random_cameras(0, 1)
    path = trajectories.zoom(start, 5, 2.0)
    assert torch.equal(path.camera_to_world, start.camera_to_world.expand(5, 4, 4))
    close(path.intrinsics[:, 0, 0] / start.intrinsics[:, 0, 0], 2 ** torch.linspace(0, 1, 5).double(), 1e-6)
    assert torch.equal(path.intrinsics[:, :2, 2], start.intrinsics[:, :2, 2].expand(5, 2))
    close_cameras(trajectory("zoom_out", path[-1], 5), trajectories.zoom(path[-1], 5, 1 / 1.5))


@pytest.mark.parametrize(
    ("alias", "name", "sign"),
    [
        ("arc_left", "pan", -1),
        ("arc_right", "pan", 1),
        ("translate_up", "tilt", 1),
        ("translate_down", "tilt", -1),
        ("move-forward", "dolly", 1),
        ("move-backward", "dolly", -1),
        ("move-left", "truck", -1),
        ("move-right", "truck", 1),
        ("move-up", "pedestal", 1),
        ("Move-Down", "pedestal", -1),
    ],
)
def test_aliases(alias, name, sign):
    start = random_cameras(0, 1)
    close_cameras(trajectory(alias, start, 4, 0.3), trajectory(name, start, 4, 0.3 * sign))
    last = trajectory(alias, start, 4)[-1]
    assert not torch.allclose(last.camera_to_world, start.camera_to_world)


@quick
@given(seeds, st.integers(1, 5), st.integers(0, 12), st.sampled_from([(), (2,)]))
def test_interpolate_passes_through_its_keyframes(seed, count, more, batch):
    keyframes = random_cameras(seed, *batch, count)
    path = interpolate(keyframes, count + more).checked()
    places = keyframe_places(count, count + more)
    assert places[0] == 0
    assert len(set(places)) == count
    assert count == 1 or places[-1] == count + more - 1
    assert torch.equal(path[places].camera_to_world, keyframes.camera_to_world)
    assert torch.equal(path[places].intrinsics, keyframes.intrinsics)


@quick
@given(seeds)
def test_interpolate_moves_with_the_world(seed):
    keyframes = random_cameras(seed, 4)
    close_cameras(local(interpolate(keyframes, 15)), interpolate(local(keyframes), 15))


@quick
@given(seeds)
def test_two_keyframes_give_a_uniform_slerp(seed):
    distance, angle = steps(interpolate(random_cameras(seed, 2), 9))
    close(distance, distance[:1].expand(8))
    close(angle, angle[:1].expand(8), 1e-7)


def test_interpolate_finds_a_circle_and_has_no_corners():
    keyframes = trajectories.orbit(Cameras.from_fov(60.0, 4, 4).to(torch.float64), 7, 180.0, 2.0)
    path = interpolate(keyframes, 121)
    target = torch.tensor([0, 0, 2.0], dtype=torch.float64)
    assert float((path.centers - target).norm(dim=-1).sub(2).abs()[20:-20].amax()) < 0.01
    # At a keyframe the change of velocity is of the order of a step squared, not of a step.
    keyframes = random_cameras(1, 4)
    bends = [
        interpolate(keyframes, views).camera_to_world.diff(n=2, dim=0).norm(dim=(-1, -2)).amax() for views in (61, 121)
    ]
    assert bends[1] < 0.35 * bends[0]


@pytest.mark.parametrize(("count", "views"), [(3, 2), (0, 4)])
def test_interpolate_needs_a_view_for_each_keyframe(count, views):
    with pytest.raises(ValueError, match=rf"{views} views through {count} keyframes"):
        keyframe_places(count, views)


def test_errors_are_one_line():
    start = random_cameras(0, 1)
    with pytest.raises(ValueError, match=r"^no trajectory is called 'orbitt', did you mean 'orbit'\?.*spiral.*$"):
        trajectory("orbitt", start, 4)
    with pytest.raises(ValueError, match=r"^no trajectory is called 'xyz'\. Accepted: static, orbit[^\n]*$"):
        trajectory("xyz", start, 4)
    with pytest.raises(ValueError, match="static has no amplitude"):
        trajectory("static", start, 4, 1.0)
    for name in TRAJECTORIES:
        with pytest.raises(ValueError, match="path of 0 views"):
            trajectory(name, start, 0)
        with pytest.raises(ValueError, match="starts at one camera, found 2"):
            trajectory(name, random_cameras(0, 2), 4)
        if name != "static":
            with pytest.raises(ValueError, match="nan: accepted is a finite number"):
                trajectory(name, start, 4, math.nan)
    for name in ("zoom", "zoom_out"):
        with pytest.raises(ValueError, match="factor 0.0: accepted is a finite number above 0"):
            trajectory(name, start, 4, 0.0)
    with pytest.raises(ValueError, match="radius -1.0"):
        trajectories.orbit(start, 4, radius=-1.0)
