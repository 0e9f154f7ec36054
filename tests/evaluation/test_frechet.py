"""Distances between sets against closed forms, and what the embedded feature net makes of rendered worlds."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

from diorama.data.worlds import World, render, world
from diorama.evaluation import frechet
from diorama.evaluation.frechet import (
    NetFeatures,
    bootstrap,
    dinov2,
    frechet_distance,
    inception,
    kernel_distance,
    worlds64,
)
from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import pan
from diorama.models import perceptual
from diorama.models.perceptual import Unavailable

SCENES, VIEWS = 24, 3


def gaussian(count: int, dim: int, *, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    return mean + scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaped(count: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Features whose sample mean and covariance are exactly these."""
    x = gaussian(count, len(mean), seed=seed)
    x = x - x.mean(0)
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(x.T).reshape(len(mean), -1)), x.T, upper=False
    )
    return (torch.linalg.cholesky(covariance) @ whitened).T + mean


def covariance(dim: int, seed: int) -> Tensor:
    factor = gaussian(dim, dim, seed=seed)
    return factor @ factor.T + 0.1 * torch.eye(dim, dtype=torch.float64)


def test_of_gaussians_with_diagonal_covariance_it_is_the_closed_form() -> None:
    mean_a, mean_b = torch.tensor([1.0, 2, 3]).double(), torch.tensor([0.0, 2, 5]).double()
    spread_a, spread_b = torch.tensor([1.0, 4, 9]).double(), torch.tensor([4.0, 4, 1]).double()
    a, b = shaped(600, mean_a, spread_a.diag(), 0), shaped(700, mean_b, spread_b.diag(), 1)
    expected = (mean_a - mean_b).square().sum() + (spread_a.sqrt() - spread_b.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("dim", [1, 5, 24])
def test_of_any_gaussians_it_is_the_formula_with_a_matrix_root(dim: int) -> None:
    a, b = (shaped(600, gaussian(1, dim, seed=s)[0], covariance(dim, s), s) for s in (1, 2))
    first, second = (np.atleast_2d(np.cov(x.numpy().T)) for x in (a, b))
    root = scipy.linalg.sqrtm(first @ second)
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(first + second - 2 * np.real(root))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_equal_sets_are_at_distance_0_and_order_does_not_matter() -> None:
    a, b = gaussian(600, 20).float(), gaussian(500, 20, seed=1, mean=0.3).float()
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_fewer_images_than_dimensions_need_no_epsilon() -> None:
    """A matrix root of such a product loses half of the digits, or is complex."""
    a = gaussian(30, 100)
    assert frechet_distance(a, a + 0.1, minimum=30) == pytest.approx(100 * 0.1**2, rel=1e-9)
    # Twice as far from the mean: sum (2 s - s)^2 = the trace of the covariance.
    wider = a.mean(0) + 2 * (a - a.mean(0))
    assert frechet_distance(a, wider, minimum=30) == pytest.approx(torch.cov(a.T).trace().item(), rel=1e-9)
    # Spreads in orthogonal subspaces have a product of zero, which rounding must not fill up.
    turned = torch.linalg.qr(gaussian(100, 100, seed=2)).Q
    b = gaussian(30, 50, seed=3) @ turned[50:]
    a = gaussian(30, 50) @ turned[:50]
    expected = (a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace()
    assert frechet_distance(a, b, minimum=30) == pytest.approx(expected.item(), rel=1e-10)


def test_kernel_distance_is_the_mean_over_pairs_spelled_out() -> None:
    a, b = gaussian(7, 4), gaussian(5, 4, seed=1, mean=0.5)

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 4 + 1) ** 3

    within = [np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    expected = sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b, minimum=2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("block", [1000, 20])
def test_kernel_distance_is_unbiased_on_halves_of_one_set(block: int) -> None:
    halves = [gaussian(120, 6, seed=seed).split(60) for seed in range(150)]
    values = torch.tensor([kernel_distance(a, b, block=block, minimum=2) for a, b in halves])
    error = values.std() / len(values) ** 0.5
    assert values.mean().abs() < 3 * error
    assert (values < 0).any() and (values > 0).any()
    # The biased form, with each image's kernel with itself, would stand this far off.
    diagonal = sum((((x.square().sum(1) / 6 + 1) ** 3).mean() / 60) for x in halves[0])
    assert diagonal > 10 * error


def test_blocks_agree_with_the_whole_and_cover_unequal_sets() -> None:
    a, b = gaussian(900, 8), gaussian(700, 8, seed=1, mean=0.4)
    whole = kernel_distance(a, b)
    assert kernel_distance(a, b, block=200) == pytest.approx(whole, rel=0.2)
    assert kernel_distance(a, b, block=200) == kernel_distance(a, b, block=200)
    with pytest.raises(ValueError, match="900 and 5 images in 9 blocks"):
        kernel_distance(a, b[:5], block=100, minimum=2)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_few_images_and_broken_features_are_refused(distance) -> None:
    a, few = gaussian(500, 3), gaussian(499, 3)
    distance(a, a)
    with pytest.raises(ValueError, match=r"sets of 500 and 499 images: accepted are 500 or more .*`minimum`"):
        distance(a, few)
    distance(a, few, minimum=499)
    a[3, 1] = torch.nan
    with pytest.raises(ValueError, match="features of 1 of 500 images are not finite"):
        distance(a, a)


def per_scene(scenes: int, views: int, dim: int, spread: float, seed: int) -> Tensor:
    """Views that differ little within a scene and much between scenes."""
    between = gaussian(scenes, dim, seed=seed, scale=spread).repeat_interleave(views, 0)
    return between + gaussian(scenes * views, dim, seed=seed + 1, scale=0.1)


def test_the_interval_comes_from_scenes_and_holds_the_value() -> None:
    a, b = (per_scene(20, 25, 3, 1.0, seed) for seed in (0, 10))
    of = torch.arange(20).repeat_interleave(25)
    found = bootstrap(frechet_distance, a, b, (of, of + 100), samples=100)
    assert found.value == frechet_distance(a, b)
    assert found.low < found.value < found.high
    assert (found.images, found.scenes) == (500, 20)
    assert str(found).endswith("(500 images of 20 scenes)")
    # Were each image its own scene, the interval would be far too narrow.
    images = torch.arange(500)
    narrow = bootstrap(frechet_distance, a, b, (images, images + 1000), samples=100)
    assert found.high - found.low > 2 * (narrow.high - narrow.low)


def test_the_same_scenes_are_drawn_together() -> None:
    a = per_scene(20, 25, 3, 1.0, 0)
    of = torch.arange(20).repeat_interleave(25)
    shifted = bootstrap(frechet_distance, a, a + 1, (of, of), samples=50)
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((3, 3, 3), rel=1e-9)
    with pytest.raises(ValueError, match="over 1 scene"):
        bootstrap(frechet_distance, a, a, (of * 0, of * 0))


def test_draws_of_few_images_do_not_refuse_what_the_whole_allows() -> None:
    of = torch.cat([torch.arange(20), torch.full((490,), 7)])  # one scene has most of the images
    a = gaussian(510, 2)
    assert bootstrap(kernel_distance, a, a + 1, (of, of), samples=20).images == 510
    with pytest.raises(ValueError, match="accepted are 511"):
        bootstrap(kernel_distance, a, a + 1, (of, of), samples=20, minimum=511)


def standing_in(place: World) -> Cameras:
    """A camera that turns about itself, which takes less time to find than a path free of collisions."""
    eye = place.limits[0].lerp(place.limits[1], 0.3) * torch.tensor([1, 0, 1]) + torch.tensor([0, 1.4, 0])
    forward = F.normalize(place.focus.mean(0) - eye, dim=0)
    right = F.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 1, 0])), dim=0)
    pose = torch.eye(4)
    pose[:3] = torch.stack([right, torch.linalg.cross(forward, right), forward, eye], -1)
    return pan(Cameras.from_fov(70.0, 64, 64, pose[None]), VIEWS, 60.0)


@pytest.fixture(scope="module")
def rendered() -> Tensor:
    """Views of rooms first, then as many of outdoor places: "image 3 64 64"."""
    kinds = ["room"] * (SCENES // 2) + ["outdoor"] * (SCENES // 2)
    places = [world(seed, kind=kind) for seed, kind in enumerate(kinds)]
    return torch.cat([render(place, standing_in(place), samples=1).images for place in places])


@pytest.fixture(scope="module")
def look() -> NetFeatures:
    return worlds64()


near = partial(frechet_distance, minimum=2)


def blurred(images: Tensor, sigma: float) -> Tensor:
    offsets = torch.arange(-9, 10.0)
    window = torch.exp(-0.5 * (offsets / sigma) ** 2)
    window /= window.sum()
    padded = F.pad(images, (9, 9, 9, 9), mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(padded, window[None, None, None]), window[None, None, :, None]).reshape(images.shape)


def rising(values: list[float]) -> bool:
    return all(before < after for before, after in zip([1e-6, *values], values, strict=False))


def test_worlds64_is_farther_the_more_the_images_are_blurred(rendered, look) -> None:
    true = look(rendered)
    assert true.shape == (SCENES * VIEWS, 64) and true.dtype == torch.float32
    assert near(true, true) == pytest.approx(0, abs=1e-9)
    assert rising([near(true, look(blurred(rendered, sigma))) for sigma in (0.5, 1.0, 2.0, 4.0)])


def test_worlds64_is_farther_the_noisier_the_images(rendered, look) -> None:
    true, noise = look(rendered), torch.randn(rendered.shape, generator=torch.Generator().manual_seed(0))
    assert rising([near(true, look((rendered + sigma * noise).clamp(0, 1))) for sigma in (0.02, 0.05, 0.1, 0.2)])


def test_worlds64_is_farther_the_more_scenes_are_of_another_kind(rendered, look) -> None:
    rooms, outdoors = look(rendered).chunk(2)
    mixed = [torch.cat([outdoors[: k * VIEWS], rooms[k * VIEWS :]]) for k in (2, 4, 8, 12)]
    assert rising([near(rooms, images) for images in mixed])
    # Repeating few of the scenes, as a collapsed generator would, is seen too.
    repeated = [rooms[torch.arange(len(rooms)) % (kept * VIEWS)] for kept in (9, 6, 3, 1)]
    assert rising([near(rooms, images) for images in repeated])


def test_worlds64_does_not_care_about_batches_or_whole_pixels(rendered, look) -> None:
    some = rendered[:6]
    torch.testing.assert_close(look(some), torch.cat([look(some[:1]), look(some[1:])]), atol=1e-4, rtol=1e-4)
    assert look(F.interpolate(some, (96, 33))).shape == (6, 64)
    larger = F.interpolate(rendered, (128, 128), mode="bicubic").clamp(0, 1)
    assert near(look(rendered), look(larger)) < near(look(rendered), look(blurred(rendered, 1.0)))


def test_the_embedded_file_is_the_one_the_code_knows(monkeypatch) -> None:
    folder = Path(perceptual.__file__).parents[1] / "weights" / "worlds64"
    file = folder / "worlds64.safetensors"
    assert file.stat().st_size < 1_000_000
    assert perceptual.WORLDS64_SHA256 in (folder / "README.md").read_text()
    monkeypatch.setattr(perceptual, "WORLDS64_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: found SHA-256 .* accepted is 0000") as caught:
        worlds64()
    assert "\n" not in str(caught.value)


def test_nets_that_the_user_lacks_are_named_in_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(frechet, "DINOV2", "diorama-tests/absent")
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    for make, says in ((inception, "fd_inception: needs the package torch-fidelity"), (dinov2, "fd_dinov2: found no")):
        with pytest.raises(Unavailable, match=f"^{says}") as caught:
            make()
        assert "\n" not in str(caught.value)


def test_inception_is_given_8_bit_images_and_a_local_file(monkeypatch, tmp_path) -> None:
    """A stand-in for torch-fidelity, whose call is the real one's."""
    import sys
    from types import ModuleType

    seen = []

    class Extractor(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
            super().__init__()
            seen.append((features_list, feature_extractor_weights_path))

        def forward(self, x):
            assert x.dtype == torch.uint8
            return (x.float().mean((-1, -2)),)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(module, "FeatureExtractorInceptionV3", Extractor, raising=False)
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(Unavailable, match=r"fd_inception: found no weights-inception-2015-12-05-6726825d\.pth"):
        inception()
    file = tmp_path / "inception" / frechet.INCEPTION_FILE
    file.parent.mkdir()
    file.touch()
    features = inception()
    assert features.name == "inception"
    assert features(torch.full((2, 3, 40, 40), 0.5)).tolist() == [[128.0] * 3] * 2
    assert seen == [(["2048"], str(file))]


def test_dinov2_reads_a_local_folder(monkeypatch, tmp_path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(tmp_path / "dinov2-large")
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    features = dinov2()
    images = torch.rand(2, 3, 50, 40, generator=torch.Generator().manual_seed(0))
    out = features(images)
    assert features.name == "dinov2" and out.shape == (2, 8) and not out.requires_grad
    torch.testing.assert_close(out[:1], features(images[:1]), atol=1e-4, rtol=1e-4)
