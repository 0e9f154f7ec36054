"""The recipe that lists intrinsics of photos without any, and the source that reads its list."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diorama.data.readers.imagenet import SIDECAR, SingleViewSource

FILE = Path(__file__).parents[2] / "recipes" / "data" / "intrinsics.py"
FOCAL = 20 / math.tan(math.radians(30))  # of photos whose longer side has 40 pixels


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("intrinsics_recipe", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in (("n01/a.JPEG", (40, 30)), ("n01/b.JPEG", (30, 40)), ("n02/c.JPEG", (40, 40))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L" if "c" in name else "RGB", size, 90).save(tmp_path / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "n02/d.JPEG", exif=turned)
    (tmp_path / "n02/e.JPEG").write_bytes(b"no photo")
    return tmp_path


def test_a_field_of_view_is_assumed(recipe, folder, capsys) -> None:
    recipe.main([str(folder)])
    told = capsys.readouterr()
    assert "4 photos written" in told.out and "e.JPEG" in told.err
    source = SingleViewSource(folder)
    assert [scene.name for scene in source] == ["n01/a.JPEG", "n01/b.JPEG", "n02/c.JPEG", "n02/d.JPEG"]
    for scene in source:
        views = scene.views()
        height, width = views.images.shape[-2:]
        expected = [[FOCAL, 0, width / 2], [0, FOCAL, height / 2], [0, 0, 1]]
        np.testing.assert_allclose(views.cameras.intrinsics[0], expected, atol=1e-3)
        assert torch.equal(views.cameras.camera_to_world[0], torch.eye(4, dtype=torch.float64))
    assert source[3].views().images.shape[-2:] == (40, 30)  # as its EXIF tag turns it


def test_a_killed_run_goes_on(recipe, folder) -> None:
    recipe.main([str(folder)])
    whole = (folder / SIDECAR).read_text()
    for place in range(0, len(whole), 37):
        (folder / SIDECAR).write_text(whole[:place])
        recipe.main([str(folder)])
        assert (folder / SIDECAR).read_text() == whole


def test_another_estimator_is_a_function_and_is_named(recipe, folder) -> None:
    matrix = torch.tensor([[33.0, 0, 12], [0, 34, 11], [0, 0, 1]])
    assert recipe.write(folder, lambda image: matrix, "mine") == 4
    rows = [json.loads(line) for line in (folder / SIDECAR).read_text().splitlines()]
    assert {row["by"] for row in rows} == {"mine"}
    assert torch.equal(SingleViewSource(folder)[0].frames[0].camera.intrinsics[0], matrix.double())


def test_moges_shares_become_pixels(recipe, monkeypatch) -> None:
    """Against a stand-in for its package: shares of the width and height in, pixels out."""
    shares = torch.tensor([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]])
    model = SimpleNamespace(infer=lambda image: {"intrinsics": shares}, to=lambda _: model, eval=lambda: model)
    loader = SimpleNamespace(MoGeModel=SimpleNamespace(from_pretrained=lambda _: model))
    monkeypatch.setitem(sys.modules, "moge", SimpleNamespace(model=SimpleNamespace(v2=loader)))
    monkeypatch.setitem(sys.modules, "moge.model", SimpleNamespace(v2=loader))
    monkeypatch.setitem(sys.modules, "moge.model.v2", loader)
    found = recipe.moge()(torch.zeros(3, 30, 40))
    np.testing.assert_allclose(found, [[36, 0, 20], [0, 36, 15], [0, 0, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "../a.JPEG"}, "below its folder"),
        ({"file": "/a.JPEG"}, "below its folder"),
        ({"file": 3}, "names no file"),
        ({"fx": -1}, "fx is -1"),
        ({"fx": float("nan")}, "fx is nan"),
        ({"height": 30.5}, "height is 30.5"),
        ({"width": True}, "width is True"),
        ({"cx": 10**400}, "cx is 1000"),
    ],
)
def test_lines_that_cannot_be_are_named(recipe, folder, change, words) -> None:
    recipe.main([str(folder)])
    lines = (folder / SIDECAR).read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    (folder / SIDECAR).write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"line 2.*{words}"):
        SingleViewSource(folder)


def test_what_is_absent_says_who_writes_it(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"recipes/data/intrinsics\.py"):
        SingleViewSource(tmp_path)
    (tmp_path / SIDECAR).write_text("\n")
    with pytest.raises(ValueError, match=r"recipes/data/intrinsics\.py"):
        SingleViewSource(tmp_path)
