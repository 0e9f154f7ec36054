"""What the script on many views counts and compares, in small."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.miniature import rae3d

from diorama.data.cache import write_cache
from diorama.data.worlds import SPLITS

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def neck():
    """The script, found beside its own modules as when it is run."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("neck")
    finally:
        sys.path[:] = before


def test_an_exponent_is_the_power(neck):
    for power in (0.0, 1.0, 1.7):
        assert neck.exponent({views: 3 * views**power for views in (16, 32, 128)}) == pytest.approx(power, abs=1e-9)


def test_the_papers_size_grows_by_the_square_and_a_hubs_by_the_views(neck):
    found = neck.operations(neck.Options())
    assert found["full_exponent_of_operations"] > 1.5
    for kind in ("hub", "one_way"):
        assert 0.85 < found[f"{kind}_exponent_of_operations"] <= 1.0
        # The latents are gone through again, the views are not.
        assert found[f"{kind}_128_add_teraflops"] < 0.25 * found[f"{kind}_128_teraflops"]
    assert found["full_16_teraflops"] == pytest.approx(2.48 - _last(16) + 0.016, rel=0.01)  # and the embeddings
    assert found["full_128_teraflops"] / found["hub_128_teraflops"] > 5
    decoding = [value for name, value in found.items() if "decode" in name]
    assert len(decoding) == 12 and len(set(decoding)) == 1


def _last(views):
    """Teraflops of the last block that views can do without: all but their keys and values."""
    m, n, d = 1024, 324 * views, 768
    return n * (20 * d * d + 4 * d * (m + n)) / 1e12


def test_a_peak_is_what_was_there_at_once(neck):
    one, four = (neck.peak(lambda n=n: [torch.ones(2**22) for _ in range(n)], "cpu") for n in (1, 4))  # 16 MiB each
    assert 12 < one < 30 and 60 < four < 80


def test_the_script_runs_in_small_and_writes_what_it_found(neck, tmp_path, capsys):
    neck.main(neck.Options(smoke=True, out=tmp_path / "neck.json"))
    written = json.loads((tmp_path / "neck.json").read_text())
    assert written["settings"]["views"] == [5, 8, 12] and written["machine"]["cores"] > 0
    for kind in ("full", "hub", "one_way"):
        assert written["numbers"][f"{kind}_5_peak_mib"] >= 0
        assert written["numbers"][f"{kind}_12_seconds"] > 0
    assert "| views | full, TFLOP | s |" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"^--views \(4, 8\): accepted are two numbers or more, all above 4$"):
        neck.main(neck.Options(views=(4, 8)))


@pytest.mark.timeout(900)  # three short runs
def test_arms_differ_in_the_neck_and_are_compared_in_pairs(neck, monkeypatch, tmp_path):
    arms, claims = (importlib.import_module(f"ablation.{name}") for name in ("arms", "claims"))
    monkeypatch.setitem(arms.RAE3D_RUN, "batch", 2)
    for name in neck.NECKS.values():
        monkeypatch.setitem(arms.ARMS, name, replace(arms.ARMS[name], size=arms.AUTOENCODER | {"dim": 32}))
    caches = {
        name: write_cache(tmp_path / name, SPLITS[split][:2], views=views, height=64, width=64, samples=1)
        for name, split, views in (
            ("train", "train", 12), ("validation", "validation", 12), ("test", "test", 12), ("long", "test", 27),
        )
    }  # fmt: skip
    budget = neck.Budget(1e-9, "cpu", warm=0, timed=1)
    for name in neck.NECKS.values():
        assert arms.trained(name, tmp_path, caches["train"], caches["validation"], budget)[0] == 1
    evaluated = claims.Evaluated(tmp_path, caches["test"], caches["long"], "cpu")
    kinds = {evaluated.autoencoder(name).neck.attention for name in neck.NECKS.values()}
    assert kinds == {"full", "hub", "one_way"}
    verdicts = neck.qualities(evaluated, (4, 12))
    assert len(verdicts) == 8
    added = [verdict for verdict in verdicts if verdict.claim.startswith("one_way: views added")]
    assert len(added) == 2 and all(abs(verdict.difference) < 1e-3 for verdict in added)  # exact but for rounding


@torch.no_grad()
def test_grown_is_what_the_model_decodes_of_views_at_once(neck):
    from tests.miniature import images, path

    from diorama.scene import Views

    model, views = rae3d(neck_attention="one_way", point_layers=0), Views(images(5, batch=(2,)), path(5, batch=(2,)))
    rays = views.cameras.normalized()[0].plucker()
    latents = model.encode(views.images[:, :4], rays[:, :4], torch.ones(2, 4, dtype=torch.bool))
    for at_once in (1, 3, 9):
        torch.testing.assert_close(
            neck.grown(model, views, 4, at_once), model.decode(latents, rays[:, 4:]).images, atol=1e-5, rtol=1e-5
        )
