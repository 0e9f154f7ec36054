import json

import numpy as np
import pytest
import torch

from diorama.data.cache import PART, WorldsCache, write_cache
from diorama.data.worlds import SPLITS, WORLDS_VERSION, render, world

SMALL = {"views": 2, "height": 8, "width": 12, "samples": 1}


def test_what_is_written_is_what_was_rendered(tmp_path):
    seeds = [3, 7, 1]
    seen = []
    cache = WorldsCache(write_cache(tmp_path, seeds, **SMALL, progress=lambda i, n: seen.append((i, n))))
    assert (len(cache), cache.views, cache.height, cache.width) == (3, 2, 8, 12)
    assert seen[-1] == (3, 3) and cache.meta["version"] == WORLDS_VERSION
    batch = cache.batch(torch.tensor([2, 0]), torch.tensor([[1, 0], [1, 1]]))
    assert batch.images.shape == (2, 2, 3, 8, 12)
    for i, (seed, order) in enumerate(((1, [1, 0]), (3, [1, 1]))):
        place = world(seed)
        views = render(place, place.path(2, 8, 12), samples=1)
        assert (batch.images[i] - views.images[order]).abs().max() <= 0.5 / 255 + 1e-6
        torch.testing.assert_close(batch.cameras.camera_to_world[i], views.cameras.camera_to_world[order])
        torch.testing.assert_close(batch.points[i], views.points[order], rtol=2e-3, atol=2e-2)
        assert torch.equal(batch.confidence[i], views.confidence[order])
        assert cache.captions[[3, 7, 1].index(seed)] == place.caption
        assert cache.attributes[[3, 7, 1].index(seed)] == place.attributes


def test_a_killed_run_continues_without_rendering_again(tmp_path):
    seeds = list(range(PART + 2))
    write_cache(tmp_path, seeds, **SMALL)
    images = np.load(tmp_path / "images.npy")
    before = (tmp_path / "parts" / "00000000.npz").stat().st_mtime_ns
    (tmp_path / "meta.json").unlink()
    (tmp_path / "parts" / f"{PART:08d}.npz").unlink()
    np.load(tmp_path / "images.npy", mmap_mode="r+")[PART:] = 0
    with pytest.raises(ValueError, match="no finished cache"):
        WorldsCache(tmp_path)
    write_cache(tmp_path, seeds, **SMALL)
    assert np.array_equal(np.load(tmp_path / "images.npy"), images) and len(WorldsCache(tmp_path)) == PART + 2
    assert (tmp_path / "parts" / "00000000.npz").stat().st_mtime_ns == before


def test_workers_write_what_one_process_writes(tmp_path):
    seeds = list(range(PART + 1))
    small = {"views": 1, "height": 8, "width": 8, "samples": 1}
    one, two = write_cache(tmp_path / "one", seeds, **small), write_cache(tmp_path / "two", seeds, **small, workers=2)
    assert np.array_equal(np.load(one / "images.npy"), np.load(two / "images.npy"))
    assert np.array_equal(np.load(one / "depth.npy"), np.load(two / "depth.npy"))


def test_test_seeds_are_refused_unless_allowed(tmp_path):
    write_cache(tmp_path, [5, SPLITS["test"].start], **SMALL)
    with pytest.raises(ValueError, match="test seeds") as error:
        WorldsCache(tmp_path)
    assert "\n" not in str(error.value)
    assert len(WorldsCache(tmp_path, allow_test=True)) == 2


def test_other_settings_versions_and_seeds_are_refused(tmp_path):
    write_cache(tmp_path, [1], **SMALL)
    with pytest.raises(ValueError, match="another samples"):
        write_cache(tmp_path, [1], **{**SMALL, "samples": 2})
    with pytest.raises(ValueError, match="each once"):
        write_cache(tmp_path / "new", [1, 1], **SMALL)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "version": WORLDS_VERSION + 1}))
    with pytest.raises(ValueError, match=f"version {WORLDS_VERSION + 1}"):
        WorldsCache(tmp_path)
