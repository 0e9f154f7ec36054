"""Gen3R's geometry from latents on: adapter, VGGT's heads, unprojection and range of depths, as published."""

import re

import pytest
import torch

from diorama.geometry.cameras import Cameras
from diorama.models.checkpoints import convert
from diorama.models.geometry_adapter import GeometryAdapter
from diorama.models.published_names import VGGT_RULES
from diorama.models.vggt import VGGT
from diorama.pipelines.gen3r import Gen3RPipeline
from diorama.pipelines.gen3r_world import surface, unprojected

from .golden import load

POSE = "vggt.camera_head.pose_branch.fc2"


@pytest.fixture(scope="module")
def golden():
    return load("decode_geometry")


def heads(state):
    """VGGT whose heads have these published weights; its aggregator, which decoding does not ask, is left as made."""
    made = VGGT(
        dim=8, layers=4, heads=4, taps=(0, 1, 2, 3), encoder_layers=1, encoder_heads=4, camera_layers=2, camera_heads=4,
        features=8, channels=(8, 8, 16, 16),
    ).eval()  # fmt: skip
    found = {}
    for name in made.readout.state_dict():
        published = f"readout.{name}"
        for pattern, replacement in VGGT_RULES:
            published = re.sub(pattern, replacement, published)
        found[name] = state.pop(published)
    made.readout.load_state_dict(found)
    assert not state
    return made


@pytest.fixture(scope="module")
def geometry(golden):
    state = golden.state()
    state[f"{POSE}.bias"][7:9] = 0.25
    state[f"{POSE}.weight"][7:9] *= 0.05
    adapter = {name.removeprefix("geo_adapter."): value for name, value in state.items() if name[0] == "g"}
    arguments, ours = convert("geometry_adapter", adapter, golden.config["constructor"]["geo_adapter"])
    pipeline = Gen3RPipeline.__new__(Gen3RPipeline)
    pipeline.__dict__["adapter"] = GeometryAdapter(**arguments).eval()
    pipeline.adapter.load_state_dict(ours)
    pipeline.__dict__["vggt"] = heads({n.removeprefix("vggt."): value for n, value in state.items() if n[0] == "v"})
    with torch.no_grad():
        return pipeline.geometry(golden.inputs["latents"].chunk(2, -1)[1])


def test_what_the_heads_say(golden, geometry):
    golden.check(
        extrinsics=geometry.cameras.world_to_camera[..., :3, :],
        intrinsics=geometry.cameras.intrinsics,
        depth_maps=geometry.depth[..., None],
        point_maps=geometry.points,
    )


def test_the_cloud_and_its_range(golden, geometry):
    found = surface(geometry)
    golden.check(
        pcds=unprojected(found.cameras, found.depth, whole_pixels=True)[None],
        point_masks=(found.confidence > 0).float()[None],
    )


def test_without_the_quirk_points_stand_on_their_rays(geometry):
    found = surface(geometry)
    camera, depth = found.cameras[:1].to(torch.float64), found.depth[:1].double()
    exact, shifted = (unprojected(camera, depth, whole_pixels=quirk) for quirk in (False, True))
    middles, corners = (camera.project(points)[0][0] for points in (exact, shifted))
    columns = torch.arange(camera.width).double()
    torch.testing.assert_close(middles[7, :, 0], columns + 0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(corners[7, :, 0], columns, atol=1e-3, rtol=0)


def test_the_point_heads_surface_keeps_the_points_depths(geometry):
    found = surface(geometry, "head")
    camera = Cameras(found.cameras.camera_to_world[:1], found.cameras.intrinsics[:1], 560, 560)
    _, depth = camera.project(geometry.points[:, 0])
    ahead = depth[0] > 1e-3
    torch.testing.assert_close(found.depth[0][ahead], depth[0][ahead], atol=1e-4, rtol=1e-4)
    assert not found.confidence[0][depth[0] < 0].any()
