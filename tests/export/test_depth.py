"""Depth in codes and colours."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diorama.export.depth import coloured_depth, depth_codes, depth_unit, preview, write_depth
from diorama.export.world import World
from diorama.geometry.similarity import Similarity
from diorama.scene import Scene, Views


def scaled(scene: Scene, scale: float) -> Views:
    return scene.views.transformed(replace(Similarity.identity(), scale=torch.tensor(scale)))


@pytest.mark.parametrize(("scale", "millimetres"), [(1, True), (15, True), (0.01, False), (1000, False)])
def test_codes_are_millimetres_or_as_fine_as_they_can_be(scene: Scene, scale: float, millimetres: bool) -> None:
    views = scaled(scene, float(scale))
    assert views.depth is not None
    assert views.mask is not None
    unit = depth_unit(views)
    assert (unit == 0.001) == millimetres
    codes = depth_codes(views, unit)
    assert np.array_equal(codes > 0, views.mask.numpy())
    valid = views.mask.numpy()
    assert np.abs(codes * unit - views.depth.double().numpy())[valid].max() <= unit * 0.51
    assert millimetres or codes.max() == 65535


def test_no_valid_depth_at_all(scene: Scene) -> None:
    views = replace(scene.views, confidence=torch.zeros(3, 16, 24))
    assert depth_codes(views, depth_unit(views)).max() == 0
    assert preview(views).shape == (2 * 134 + 6, 3 * 198 + 6, 3)
    with pytest.raises(ValueError, match="no depth"):
        depth_unit(Views(scene.views.images))


def test_non_finite_and_negative_depth_is_no_depth(scene: Scene) -> None:
    assert scene.views.points is not None
    points = scene.views.points.clone()
    points[0, 8, 8] = torch.nan
    points[0, 8, 9] = torch.inf
    points[0, 8, 10] = -5
    codes = depth_codes(replace(scene.views, points=points), 0.001)
    assert codes[0, 8, 8:12].tolist()[:3] == [0, 0, 0]
    assert codes[0, 8, 11] > 0


def test_near_is_red_far_is_blue_and_nothing_is_grey() -> None:
    depth = torch.linspace(1, 10, 64)[None, None].repeat(1, 8, 1)
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[..., 30] = False
    colours = coloured_depth(depth, valid)[0, :, 0]
    assert colours[0, 2] > colours[2, 2] + 0.3
    assert colours[2, 60] > colours[0, 60]
    assert colours[:, 30].tolist() == [0.5, 0.5, 0.5]


def test_preview_shows_the_first_and_the_last_view(scene: Scene) -> None:
    many = scene.views[[0] + [1] * 18 + [2]]
    sheet = preview(many)
    assert sheet.shape == (2 * 134 + 6, 8 * 198 + 6, 3)
    alone = preview(scene.views)
    assert (
        np.array_equal(sheet[:, :198], alone[:, :198])
        or np.abs(sheet[6:134, 6:198].astype(int) - alone[6:134, 6:198]).max() <= 1
    )
    assert np.abs(sheet[6:134, -198:-6].astype(int) - alone[6:134, -198:-6]).max() <= 1


def test_files_give_the_depth_back_and_say_in_what(scene: Scene, tmp_path: Path) -> None:
    write_depth(scene.views, tmp_path / "depth", world=World("metre", 2.0, "z"))
    about = json.loads((tmp_path / "depth/depth.json").read_text())
    assert about == {"depth": "z", "unit_per_code": 0.001, "unit": "metre", "scale": 2.0, "up": "z"}
    assert scene.views.depth is not None and scene.views.mask is not None
    for number, (depth, valid) in enumerate(zip(scene.views.depth.numpy(), scene.views.mask.numpy(), strict=True)):
        with Image.open(tmp_path / f"depth/{number:05d}.png") as image:
            assert image.mode == "I;16"
            assert image.info["unit"] == "metre"
            codes = np.asarray(image) * float(image.info["unit_per_code"])
        assert np.abs(codes - depth)[valid].max() <= 0.00051
        assert (codes[~valid] == 0).all()
        array = np.load(tmp_path / f"depth/{number:05d}.npy")
        assert array.dtype == np.float32
        assert np.array_equal(array[valid], depth[valid])
        assert np.isnan(array[~valid]).all()
    with pytest.raises(ValueError, match="have no depth"):
        write_depth(Views(scene.views.images), tmp_path / "other")
