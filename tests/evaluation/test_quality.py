"""The quality benchmark's pieces, on two scenes and a tiny random model."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diorama.data.cache import WorldsCache, write_cache
from diorama.data.worlds import SPLITS
from diorama.evaluation.baselines import copy_nearest
from diorama.evaluation.metrics import constant_depth_abs_rel, depth_abs_rel, psnr
from diorama.evaluation.quality import (
    BOUND,
    MODEL,
    batches,
    depth_scores,
    difference,
    generation,
    mean,
    picture_scores,
    reconstruction,
    sampled,
    summary,
    tuned_blur,
)
from diorama.models.dit3d import DiT3D
from diorama.models.rae3d import RAE3D
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition

SIDE, VIEWS = 16, 5
BLUR = {"nearest": 1.0, "plane warp": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> WorldsCache:
    folder = tmp_path_factory.mktemp("worlds")
    write_cache(folder, SPLITS["test"][:2], views=VIEWS, height=SIDE, width=SIDE, samples=1)
    return WorldsCache(folder, allow_test=True)


@pytest.fixture(scope="module")
def pipeline() -> TokenPipeline:
    torch.manual_seed(0)
    points = dict(point_layers=2, point_taps=(0, 0, 1, 1), point_features=8, point_channels=(8, 8, 8, 8))
    autoencoder = RAE3D(
        patch=8, tokens=6, dim=32, heads=2, neck_layers=1, decoder_layers=1, ray_frequencies=2, **points
    )
    denoiser = DiT3D(tokens=6, channels=32, dim=32, layers=1, heads=2, head_dim=32, head_layers=1, head_heads=2)
    scheduler = FlowMatchEulerDiscreteScheduler()
    return TokenPipeline(autoencoder, denoiser, scheduler, title="random", pixels=SIDE * SIDE, steps=2)


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    """The benchmark's script as a module."""
    path = Path(__file__).parents[2] / "benchmarks" / "quality.py"
    spec = importlib.util.spec_from_file_location("quality_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_batches_cover_every_scene_once_and_come_apart_again(data: WorldsCache) -> None:
    parts = list(batches(data, (3, 0), 2, 1))
    assert [list(rows) for rows, _ in parts] == [[0], [1]]
    whole = data.batch(torch.arange(2), torch.tensor([[3, 0]] * 2))
    for (_, part), single in zip(parts, whole.apart(), strict=True):
        torch.testing.assert_close(part.images[0], single.images)
        torch.testing.assert_close(part.points[0], single.points)
        torch.testing.assert_close(part.cameras.camera_to_world[0], single.cameras.camera_to_world)


def test_every_method_is_scored_on_the_unseen_views_whatever_the_batch(
    pipeline: TokenPipeline, data: WorldsCache
) -> None:
    scores = reconstruction(pipeline, data, 2, BLUR, batch=2)
    one_by_one = reconstruction(pipeline, data, 2, BLUR, batch=1)
    assert scores.keys() == one_by_one.keys() >= {"nearest", "plane warp, blurred", "mean of known", BOUND, MODEL}
    for name, part in scores.items():
        for metric, values in part.items():
            assert values.shape == (2,)
            torch.testing.assert_close(values, one_by_one[name][metric], atol=1e-3, rtol=1e-3, equal_nan=True)
    views = data.batch(torch.arange(2), torch.tensor([[0, 4, 1, 2, 3]] * 2))
    copied = copy_nearest(views[:2], views.cameras[2:])
    torch.testing.assert_close(scores["nearest"]["psnr"], psnr(copied, views.images[:, 2:]).mean(1))


def test_the_summary_compares_with_the_best_simple_baseline(pipeline: TokenPipeline, data: WorldsCache) -> None:
    scores = reconstruction(pipeline, data, 1, BLUR, batch=2)
    told = summary(scores)
    against = told["rae3d_minus_best_baseline"]["psnr"]
    simple = {name: part["psnr"] for name, part in told["pictures"].items() if name not in (MODEL, BOUND)}
    assert against["baseline"] == max(simple, key=simple.__getitem__)
    assert against["mean"] == pytest.approx(told["pictures"][MODEL]["psnr"] - max(simple.values()), abs=2e-4)
    assert told["rae3d_minus_best_copy"]["psnr"]["baseline"] in ("mean of known", "nearest", "nearest, blurred")
    assert told["depth"]["best_constant"] > 0
    assert told["depth"]["rae3d_minus_constant"]["scenes"] == 2
    json.dumps(told, allow_nan=False)


def test_the_truth_has_no_depth_error_and_all_the_gradient_energy(data: WorldsCache) -> None:
    views = data.batch(torch.arange(2), torch.arange(VIEWS).expand(2, -1))
    found = depth_scores(views, views)
    torch.testing.assert_close(found["abs_rel"], torch.zeros(2))
    torch.testing.assert_close(found["best_constant"], constant_depth_abs_rel(views.depth, views.mask).nanmean(1))
    assert (depth_abs_rel(views.depth * 2, views.depth, views.mask).nanmean() - 1).abs() < 1e-5
    assert picture_scores(views.images, views.images)["ssim"].min() > 0.9999


def test_a_scene_is_generated_alike_whatever_its_batch(pipeline: TokenPipeline, data: WorldsCache) -> None:
    views = data.batch(torch.arange(2), torch.arange(VIEWS).expand(2, -1)).apart()
    conditions, paths = [Condition(scene[0], (0,)) for scene in views], [scene.cameras for scene in views]
    both = sampled(pipeline, conditions, paths, range(2), seeds=2, steps=2, batch=3)
    second = sampled(pipeline, conditions[1:], paths[1:], range(1, 2), seeds=2, steps=2, batch=2)
    assert both.shape == (2, 2, VIEWS, 3, SIDE, SIDE)
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=0)
    assert (both[:, 0] - both[:, 1]).abs().max() > 1e-4


def test_generation_scores_every_scene(pipeline: TokenPipeline, data: WorldsCache) -> None:
    scores = generation(pipeline, data, 2, seeds=2, steps=1, batch=2)
    assert all(values.shape == (2,) for values in scores.values())
    assert (scores["unseen_share"] > 0).any()
    assert scores["spread_free"].min() > 0


def test_scenes_without_a_value_are_left_out() -> None:
    a, b = torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([0.5, 1.0, 2.5])
    assert mean(a) == 2
    assert difference(a, b) == {"mean": 0.5, "low": 0.5, "high": 0.5, "scenes": 2}
    assert mean(a[1:2]) is None
    assert difference(a[1:2], b[1:2])["mean"] is None


def test_the_benchmark_writes_what_it_prints(
    quality: ModuleType, pipeline: TokenPipeline, data: WorldsCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = quality.Options(out=tmp_path / "quality.json", seeds=2, steps=1, batch=2)
    blur = tuned_blur(data, 2)
    assert quality.training_side(pipeline) == SIDE
    report = quality.described(pipeline, options, SIDE) | quality.measure(pipeline, data, blur, 2, options)
    quality.show(report, quality.Console(width=200))
    printed = capsys.readouterr().out
    for word in (
        "4 known views",
        "1 known view",
        "plane warp, blurred",
        MODEL,
        "where nothing was seen",
        "best constant",
    ):
        assert word in printed
    options.out.write_text(json.dumps(report, allow_nan=False))
    assert quality.stored_blur(options.out, SIDE) == blur
    assert quality.stored_blur(options.out, 2 * SIDE) is None
    assert quality.stored_blur(tmp_path / "absent.json", SIDE) is None


def test_one_seed_has_no_spread(quality: ModuleType) -> None:
    with pytest.raises(ValueError, match="--seeds 1.*at least 2"):
        quality.Options(seeds=1)
