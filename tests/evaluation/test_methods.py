"""Every method answers alike: as many views as wanted, at the wanted cameras, for each request its own."""

import math
from pathlib import Path

import pytest
import torch
from tests import published_gen3r, published_vggt

from diorama.evaluation.baselines import best_blur
from diorama.evaluation.methods import SIMPLE, Bound, Failure, Generation, Oracle, Prediction, Regression, find
from diorama.evaluation.metrics import psnr
from diorama.scene import Condition, Scene, Shot, Views

from .scenery import SIDE, plane


@pytest.fixture(scope="module")
def truths() -> list[Views]:
    return [plane(seed=1), plane(seed=2)]


def asked(truths: list[Views], *at: int) -> tuple[list[Condition], list, list[int]]:
    known = [Views(truth.images, truth.cameras)[at] for truth in truths]
    return [Condition(views, at) for views in known], [truth.cameras for truth in truths], [5, 6]


def answer(method, truths: list[Views], *at: int) -> list[Scene]:
    teller = method.told(truths) if isinstance(method, Oracle) else method
    return teller.generate(*asked(truths, *at))


@pytest.mark.parametrize("name", [*SIMPLE, "model", "model-regression"])
def test_a_method_gives_the_wanted_views_of_each_request_whatever_the_batch(
    name: str, truths: list[Views], tiny_pipeline_folder: Path
) -> None:
    method = find(name.replace("model", str(tiny_pipeline_folder)), device="cpu")
    scenes = answer(method, truths, 0, 3)
    for scene, truth in zip(scenes, truths, strict=True):
        assert scene.views.images.shape == truth.images.shape
        torch.testing.assert_close(scene.views.cameras.camera_to_world, truth.cameras.camera_to_world)
    (alone,) = answer_alone(method, truths[1])
    torch.testing.assert_close(scenes[1].views.images, alone.views.images, atol=1e-4, rtol=0)
    assert method.licence and method.name.endswith(name.replace("model", tiny_pipeline_folder.name))


def answer_alone(method, truth: Views) -> list[Scene]:
    conditions, cameras, seeds = asked([truth], 0, 3)
    teller = method.told([truth]) if isinstance(method, Oracle) else method
    return teller.generate(conditions, cameras, seeds[1:])


def test_bounds_know_what_others_are_asked_for_and_baselines_do_not(truths: list[Views]) -> None:
    def score(name: str) -> float:
        pairs = zip(answer(SIMPLE[name], truths, 0), truths, strict=True)
        return float(
            torch.stack([psnr(scene.views.images[1:], true.images[1:]).mean() for scene, true in pairs]).mean()
        )

    scores = {name: score(name) for name in SIMPLE}
    assert scores["truth"] == math.inf
    plain = [name for name in SIMPLE if not isinstance(SIMPLE[name], Oracle)]
    assert min(scores["plane-warp"], scores["depth-warp"]) > max(scores[name] for name in plain)  # a plane is shown
    assert {name for name in SIMPLE if isinstance(SIMPLE[name], Oracle)} == {"plane-warp", "depth-warp", "truth"}
    bare = [Views(truth.images, truth.cameras) for truth in truths]
    with pytest.raises(ValueError, match="points and confidence"):
        answer(SIMPLE["depth-warp"], bare, 0)


def test_the_nearest_view_is_copied_at_its_own_place(truths: list[Views]) -> None:
    scenes = answer(SIMPLE["nearest"], truths, 1, 2)
    for scene, truth in zip(scenes, truths, strict=True):
        torch.testing.assert_close(scene.views.images[[1, 2]], truth.images[[1, 2]])
        torch.testing.assert_close(scene.views.images[[0, 3]], truth.images[[1, 2]])
    assert best_blur(scenes[0].views.images[1:3], truths[0].images[1:3]) == 0


def test_settings_say_which_weights_and_how_they_sample(tiny_pipeline_folder: Path) -> None:
    name = str(tiny_pipeline_folder)
    first, again, other = (find(name, device="cpu", steps=steps) for steps in (None, None, 7))
    assert isinstance(first, Generation) and first.settings == again.settings
    assert (first.settings["steps"], other.settings["steps"]) == (3, 7)
    with torch.no_grad():
        next(again.pipeline.denoiser.parameters()).add_(1)
    assert Generation(again.pipeline, "changed").settings["weights_sha256"] != first.settings["weights_sha256"]
    assert first.licence == "CC0-1.0"


def test_requests_of_different_shapes_are_reconstructed_together(
    truths: list[Views], tiny_pipeline_folder: Path
) -> None:
    method = find(f"{tiny_pipeline_folder}-regression", device="cpu")
    assert isinstance(method, Regression)
    one, two = asked(truths, 0)[0][0], asked(truths, 0, 2)[0][1]
    mixed = method.generate([one, two], [truths[0].cameras, truths[1].cameras[:3]], [0, 0])
    assert [len(scene.views) for scene in mixed] == [4, 3]
    torch.testing.assert_close(
        mixed[0].views.images, method.generate([one], [truths[0].cameras], [9])[0].views.images, atol=1e-4, rtol=0
    )


def test_cameras_to_be_predicted_are_a_failure_where_that_cannot_be(
    truths: list[Views], tiny_pipeline_folder: Path
) -> None:
    request, shot = asked(truths, 0)[0][:1], [Shot(4, SIDE, SIDE)]
    (found,) = SIMPLE["nearest"].generate(request, shot, [0])
    assert found == Failure("nearest needs known views and the wanted cameras")
    for suffix in ("", "-regression"):
        with pytest.raises(ValueError, match="cannot predict"):
            find(f"{tiny_pipeline_folder}{suffix}", device="cpu").generate(request, shot, [0])
    assert isinstance(SIMPLE["truth"], Bound)


def test_unknown_methods_and_senseless_flags_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'nerf': accepted are tiny, .*tiny-regression, .*nearest.*\{folder\}"):
        find("nerf")
    with pytest.raises(ValueError, match="samples nothing"):
        find("mean", steps=3)
    with pytest.raises(ValueError, match="samples nothing"):
        find("tiny-regression", guidance=2.0)


def test_vggt_answers_for_all_views_without_cameras_and_for_no_others(truths: list[Views], tmp_path: Path) -> None:
    method = find(str(published_vggt.write(tmp_path / "VGGT-1B")), device="cpu")
    assert isinstance(method, Prediction) and (method.name, method.licence) == ("VGGT-1B", "CC-BY-NC-4.0")
    truth, places = truths[0], (2, 0, 3, 1)
    shot = Shot(len(truth), SIDE, SIDE)
    known = Condition(Views(truth.images[list(places)]), places)
    [made] = method.generate([known], [shot], [0])
    expected = method.pipeline.reconstruct(Views(truth.images)).views  # in the order of their places
    assert torch.equal(made.views.points, expected.points) and made.condition is known
    some = Condition(Views(truth.images[:2]), (0, 1))
    for request, path in ((some, shot), (known, truth.cameras), (Condition(), shot)):
        [found] = method.generate([request], [path], [0])
        assert found == Failure("VGGT-1B answers where all views are known and their cameras are not told")
    with pytest.raises(ValueError, match="samples nothing"):
        find(str(tmp_path / "VGGT-1B"), device="cpu", steps=4)


def test_gen3rs_parts_are_methods_of_their_own(
    truths: list[Views], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    folder, truth = str(published_gen3r.write(tmp_path / "gen3r")), truths[0]
    shot, order = Shot(len(truth), SIDE, SIDE), (2, 0, 3, 1)
    known = Condition(Views(truth.images[list(order)]), order)
    made = {}
    for way in ("vae", "vggt"):
        method = find(f"{folder}-{way}", device="cpu")
        method.pipeline.register_to_config(pixels=112 * 112)
        assert method.name == f"gen3r-{way}" and method.licence.startswith("non-commercial")
        (made[way],) = method.generate([known], [shot], [0])
        assert made[way].condition is known and made[way].views.images.shape == (4, 3, 112, 112)
        (found,) = method.generate([Condition(Views(truth.images[:1]), (0,))], [truth.cameras], [0])
        assert found == Failure(f"gen3r-{way} answers where all views are known")
        with pytest.raises(ValueError, match="samples nothing"):
            find(f"{folder}-{way}", device="cpu", steps=4)
    photos = Views(truth.images).resized(112, 112).images  # in the order of their places
    assert float((made["vggt"].views.images - photos).abs().mean()) < 0.05
    assert float((made["vae"].views.images - photos).abs().mean()) > 0.05
    both = find(f"{folder}-two-stage", device="cpu", steps=1, guidance=1.0)
    both.pipeline.register_to_config(pixels=112 * 112)
    request = [Condition(Views(truth.images, truth.cameras)[(0,)], (0,))], [truth.cameras], [3]
    (plain,), (other,) = both.made.generate(*request), both.generate(*request)
    assert torch.equal(plain.views.images, other.views.images)
    assert not torch.allclose(plain.views.depth, other.views.depth)
    assert both.settings["steps"] == 1 and both.settings != both.made.settings
    with pytest.raises(ValueError, match=r"^tiny-vae: tiny has no such parts; accepted is Gen3R with -vae$"):
        find("tiny-vae", device="cpu")
