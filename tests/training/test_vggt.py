from dataclasses import replace

import pytest
import torch
from tests.training.exercise import SHORT, one_step_lowers, resumes

from diorama.data.cache import write_cache
from diorama.geometry.similarity import Similarity
from diorama.models import vggt
from diorama.models.vggt import VGGT, VGGTOutput, cameras_from_codes, codes_from_cameras
from diorama.pipelines.base import load
from diorama.training.vggt import Config, VGGTStage, truth

MINIATURE = dict(
    dim=16, layers=4, heads=4, taps=(0, 1, 2, 3), encoder_layers=1, encoder_heads=4, encoder_grid=4, camera_layers=1,
    camera_heads=4, features=8, channels=(8, 8, 8, 8),
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folders of worlds of two by two patches."""
    folder, made = tmp_path_factory.mktemp("small"), dict(views=4, height=28, width=28, samples=1)
    parts = {"data": range(3), "validation": range(4, 6)}
    return {name: write_cache(folder / name, seeds, **made) for name, seeds in parts.items()}


@pytest.fixture
def config(small, tmp_path, monkeypatch):
    monkeypatch.setitem(vggt.SIZES, "miniature", MINIATURE)
    return Config(out=tmp_path / "run", **small, size="miniature", views=(2, 3), **SHORT)


def answer(true, views):
    """What a VGGT that knows the truth says."""
    sure = torch.full_like(true.depth, 1.5)
    codes = codes_from_cameras(true.cameras).expand(4, -1, -1, -1)
    return VGGTOutput(true.cameras, true.depth, sure, true.points, sure, codes)


def test_codes_of_cameras_are_read_back(config):
    cameras = VGGTStage(config).batch(0).views.cameras
    again = cameras_from_codes(codes_from_cameras(cameras), cameras.height, cameras.width)
    torch.testing.assert_close(again.camera_to_world, cameras.camera_to_world, atol=1e-4, rtol=0)
    torch.testing.assert_close(again.intrinsics, cameras.intrinsics, atol=1e-2, rtol=0)


def test_the_truth_is_in_the_first_cameras_frame_whatever_the_world(config):
    views = VGGTStage(config).batch(0).views
    true = truth(views)
    torch.testing.assert_close(true.cameras.camera_to_world[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0)
    for points, mask in zip(true.points, true.mask, strict=True):
        assert float(points[mask].norm(dim=-1).mean()) == pytest.approx(1, rel=1e-4)
    own = true.cameras.unproject(true.depth)
    torch.testing.assert_close(own[true.mask], true.points[true.mask], atol=1e-3, rtol=1e-3)
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).expand(2, 3, 3)
    moved = truth(views.transformed(Similarity(turn, torch.ones(2, 3), torch.full((2,), 3.0))))
    torch.testing.assert_close(moved.depth[true.mask], true.depth[true.mask], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(codes_from_cameras(moved.cameras), codes_from_cameras(true.cameras), rtol=0, atol=1e-3)


def test_the_truth_costs_nothing_but_its_confidence(config):
    stage = VGGTStage(config)
    views, everywhere = stage.batch(0).views, torch.ones(2, dtype=torch.bool)
    true = truth(views)
    losses = stage.losses(answer(true, views), true, everywhere)
    sure = 0.2 * torch.tensor(1.5).log()
    for name, value in losses.items():
        expected = -sure if name.endswith("confident") else sure * (~true.mask).any() if "empty" in name else 0.0
        assert float(value) == pytest.approx(float(expected), abs=2e-5), name
    wrong = answer(true, views)._replace(depth=true.depth + 1)
    worse = stage.losses(wrong, true, everywhere)
    assert float(worse["depth_distance"]) == pytest.approx(1, rel=1e-4)
    assert float(worse["depth_edges"]) == pytest.approx(0, abs=1e-5)  # a shift of all depths has none
    assert worse["camera"] == losses["camera"] and worse["point_distance"] == losses["point_distance"]


def test_scenes_without_depth_teach_neither_cameras_nor_emptiness(config):
    stage = VGGTStage(config)
    views = stage.batch(0).views
    blank = truth(replace(views, confidence=views.confidence * torch.tensor([1.0, 0]).reshape(2, 1, 1, 1)))
    made, some = answer(truth(views), views), torch.tensor([True, False])
    made = made._replace(camera_codes=made.camera_codes + torch.tensor([0.0, 1]).reshape(2, 1, 1))
    losses = stage.losses(made, blank, some)
    assert float(losses["camera"]) == pytest.approx(0, abs=1e-4)
    none = truth(replace(views, confidence=torch.zeros_like(views.confidence)))
    assert all(float(value) == 0 for value in stage.losses(made, none, torch.zeros(2, dtype=torch.bool)).values())


def test_one_step_lowers_the_loss(config):
    _, parts = one_step_lowers(VGGTStage(config))
    dense = ("confident", "distance", "empty")
    assert parts == {"camera", "depth_edges", *(f"{what}_{how}" for what in ("depth", "point") for how in dense)}


def test_a_resumed_run_is_the_same_and_ends_with_a_model_that_reconstructs(config, tmp_path):
    stage = resumes(VGGTStage, config, tmp_path)
    folder = tmp_path / "whole/model"
    views = stage.held_out.batch(torch.tensor([0]), torch.arange(3)[None]).apart()[0]
    scene = load(folder, "cpu").reconstruct(views, size=(28, 28))
    assert scene.views.points.shape == (3, 28, 28, 3) and scene.views.points.isfinite().all()
    log = (tmp_path / "whole/log.jsonl").read_text()
    assert "validation_auc_30" in log and "validation_depth_abs_rel" in log
    second = VGGTStage(replace(config, out=tmp_path / "second", start=folder))
    saved = load(folder, "cpu").vggt.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in second.model.state_dict().items())


def test_what_does_not_fit_is_refused_in_one_line(config, tmp_path, worlds):
    VGGT(**MINIATURE | dict(features=16)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"^[^\n]*wide: a VGGT of another size; accepted is --size miniature$"):
        VGGTStage(replace(config, start=tmp_path / "wide"))
    with pytest.raises(ValueError, match=r"^images of 16x16; accepted are multiples of 14 pixels$"):
        VGGTStage(replace(config, **worlds))
