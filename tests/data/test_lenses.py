"""Lens distortion is undone: what a straightened pixel shows is where the lens images its ray."""

import math

import numpy as np
import pytest
import torch

from diorama.data.lenses import Lens


def radial(k1: float = 0.0, k2: float = 0.0, fisheye: bool = False, **more: float) -> Lens:
    values = {"fx": 50.0, "fy": 45.0, "cx": 31.0, "cy": 25.0, "k1": k1, "k2": k2} | more
    return Lens.of_named(values, 48, 64, fisheye)


def test_opencv_by_hand() -> None:
    lens = radial(0.1, 0.01, k3=0.001, k4=0.2, p1=0.02, p2=0.03)
    # x = 0.5, y = -1, r2 = 1.25; aslant: p1 2xy + p2 (r2 + 2xx) and p1 (r2 + 2yy) + p2 2xy
    factor = (1 + 0.125 + 0.015625 + 0.001953125) / 1.25
    expected = [0.5 * factor - 0.02 + 0.03 * 1.75, -factor + 0.02 * 3.25 - 0.03]
    assert lens.bent(np.array([0.5, -1.0])) == pytest.approx(expected, abs=1e-12)


def test_a_fisheye_without_coefficients_is_equidistant() -> None:
    for degrees in (1e-9, 10.0, 45.0, 80.0):
        x, y = radial(fisheye=True).bent(math.tan(math.radians(degrees)) * np.array([0.6, 0.8]))
        assert (x, y) == pytest.approx((0.6 * math.radians(degrees), 0.8 * math.radians(degrees)), abs=1e-12)


@pytest.mark.parametrize(
    "lens", [radial(-0.1, 0.02), radial(0.15, 0.05), radial(0.1, p1=0.01, p2=-0.02), radial(0.01, fisheye=True)]
)
def test_each_straightened_pixel_shows_its_ray(lens: Lens) -> None:
    columns, rows = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(48) + 0.5, indexing="xy")
    photo = torch.stack([columns, rows])
    shown = lens.straightened(photo).double().numpy()
    matrix = lens.intrinsics()
    rays = np.stack([(columns - matrix[0, 2]) / matrix[0, 0], (rows - matrix[1, 2]) / matrix[1, 1]], -1)
    expected = lens.bent(rays) * [50, 45] + [31, 25]
    # No pixel sees past the photo, but for the tenth of a pixel that the zoom leaves; half a pixel is the border's.
    assert (expected > -0.2).all() and (expected < [64.2, 48.2]).all()
    inside = ((expected > 0.5) & (expected < [63.5, 47.5])).all(-1)
    assert inside.mean() > 0.85
    np.testing.assert_allclose(shown.transpose(1, 2, 0)[inside], expected[inside], atol=1e-3)


def test_the_focal_length_grows_only_where_the_lens_sees_too_little() -> None:
    assert radial(-0.1).intrinsics()[0, 0] == 50  # a barrel shows more than a pinhole
    assert radial(0.15).intrinsics()[0, 0] > 50.5
    assert radial().intrinsics().tolist() == [[50, 0, 31], [0, 45, 25], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"folds its image over; accepted"):
        radial(-5.0).intrinsics()


def test_another_size_and_nearest() -> None:
    lens = radial(0.15)
    mask = torch.arange(24)[:, None].expand(24, 32) % 2 == 0
    found = lens.straightened(mask, "nearest")
    assert found.dtype == torch.bool
    assert found[12, 16] == mask[12, 16]
    small = lens.straightened(torch.rand(3, 24, 32))
    assert small.shape == (3, 24, 32)
    photo = torch.rand(3, 48, 64)
    assert radial().straightened(photo) is photo
    torch.testing.assert_close(radial(0.0, p1=1e-12).straightened(photo), photo, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("model", "parameters", "kind", "bends"),
    [
        ("SIMPLE_PINHOLE", [50, 31, 25], "polynomial", []),
        ("PINHOLE", [50, 45, 31, 25], "polynomial", []),
        ("SIMPLE_RADIAL", [50, 31, 25, 0.1], "polynomial", [0.1]),
        ("RADIAL", [50, 31, 25, 0.1, 0.2], "polynomial", [0.1, 0.2]),
        ("OPENCV", [50, 45, 31, 25, 0.1, 0.2, 0.3, 0.4], "polynomial", [0.1, 0.2]),
        ("FULL_OPENCV", [50, 45, 31, 25, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], "polynomial", [0.1, 0.2, 0.5, 0.6]),
        ("SIMPLE_RADIAL_FISHEYE", [50, 31, 25, 0.1], "fisheye", [0.1]),
        ("RADIAL_FISHEYE", [50, 31, 25, 0.1, 0.2], "fisheye", [0.1, 0.2]),
        ("OPENCV_FISHEYE", [50, 45, 31, 25, 0.1, 0.2, 0.3, 0.4], "fisheye", [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_colmaps_models(model: str, parameters: list[float], kind: str, bends: list[float]) -> None:
    parameters = [float(value) for value in parameters]
    lens = Lens.of_colmap(model, parameters, 48, 64)
    assert (lens.fx, lens.fy, lens.cx, lens.cy) == (50, 45 if 45 in parameters else 50, 31, 25)
    assert lens.kind == kind
    assert list(lens.radial[: len(bends)]) == bends
    assert lens.tangential == ((0.3, 0.4) if model in ("OPENCV", "FULL_OPENCV") else (0, 0))
    assert lens.straight == (not bends)
    with pytest.raises(
        ValueError, match=f"{len(parameters) - 1} parameters of {model}; accepted are {len(parameters)} finite"
    ):
        Lens.of_colmap(model, parameters[1:], 48, 64)


def test_other_models_are_refused_by_name() -> None:
    for model in ("FOV", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE", "EQUIRECTANGULAR"):
        with pytest.raises(ValueError, match=f"camera model {model}; accepted are SIMPLE_PINHOLE, .*OPENCV_FISHEYE"):
            Lens.of_colmap(model, [1.0] * 5, 48, 64)
