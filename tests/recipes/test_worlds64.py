"""The recipe of the feature net, on a made-up cache of colours."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

FILE = Path(__file__).parents[2] / "recipes" / "worlds64.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("worlds64_recipe", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Colours(SimpleNamespace):
    """Scenes of one colour each; half are rooms with walls, half are outdoors with trees."""

    views = 3

    def __init__(self, scenes: int = 12) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 99, (scenes, self.views, 64, 64, 3), np.uint8)
        self.images[::2, ..., 0] += 150
        rooms = [{"kind": "room", "wall": f"colour {i % 2}", "height": 2.5, "beds": 1} for i in range(scenes)]
        outdoors = [{"kind": "outdoor", "trees": i} if i % 3 else {"kind": "outdoor"} for i in range(scenes)]
        self.attributes = [(rooms if i % 2 else outdoors)[i] for i in range(scenes)]

    def __len__(self) -> int:
        return len(self.images)


def test_attributes_count_where_their_kind_of_world_has_them(recipe) -> None:
    cache = Colours()
    attributes = recipe.Attributes(cache)
    assert list(attributes.values.items()) == [
        ("kind", ["outdoor", "room"]),
        ("wall", ["colour 1"]),
        ("beds", [1]),
        ("trees", [0, 2, 4, 8, 10]),
    ]
    assert attributes.weights == [3.0, 3.0, 1.0, 1.0]
    rows = [[0, -1, -1, 0], [1, 0, 0, -1], [0, -1, -1, 1], [1, 0, 0, -1], [0, -1, -1, 2]]
    assert attributes.labels(cache)[:5].tolist() == rows
    cache.attributes[2]["trees"] = 77  # a value that training never saw
    assert attributes.labels(cache)[2].tolist() == [0, -1, -1, -1]


def test_a_resumed_run_is_the_run_that_was_not_stopped(recipe, monkeypatch, tmp_path) -> None:
    cache, finals = Colours(), []
    attributes = recipe.Attributes(cache)
    monkeypatch.setattr(recipe, "BATCH", 8)
    monkeypatch.setattr(recipe, "EVERY", 2)

    class Killed(Exception):
        pass

    def die_after(step: int):
        def say(text: str, **_) -> None:
            if text.startswith(f"step {step} "):
                raise Killed

        return say

    for name, stop in (("whole", 0), ("killed", 2)):
        torch.manual_seed(0)
        learner = recipe.Learner(sum(attributes.sizes))
        monkeypatch.setattr(recipe, "print", die_after(stop), raising=False)
        if stop:
            with pytest.raises(Killed):
                recipe.train(cache, learner, attributes, 4, tmp_path / name)
            learner = recipe.Learner(sum(attributes.sizes))
            monkeypatch.setattr(recipe, "print", die_after(0), raising=False)
        recipe.train(cache, learner, attributes, 4, tmp_path / name)
        finals.append(learner.state_dict())
    torch.testing.assert_close(finals[0], finals[1])


def test_it_learns_and_folds_its_normalisation_in(recipe, monkeypatch, tmp_path) -> None:
    cache = Colours()
    attributes = recipe.Attributes(cache)
    monkeypatch.setattr(recipe, "BATCH", 16)
    torch.manual_seed(0)
    learner = recipe.Learner(sum(attributes.sizes))
    recipe.train(cache, learner, attributes, 20, tmp_path / "training.pt")
    learner.eval()
    majority = torch.tensor([0, 0, 0, 0])
    told = recipe.accuracies(cache, learner, attributes, majority)
    assert told["kind"] == {"net": 1.0, "majority": 0.5, "views": 36}
    assert told["beds"]["views"] == 18
    net = recipe.folded(learner, cache, count=512)
    images = recipe.pictures(cache, torch.arange(12), torch.zeros(12, dtype=torch.long))
    with torch.no_grad():
        plain, ours = learner.embed(images), net(images)
        drawn = torch.cat([net(torch.from_numpy(v).movedim(-1, 1) / 255) for v in cache.images])
    # The same features up to one scale and shift each, of mean 0 and variance 1.
    centred, expected = ours - ours.mean(0), plain - plain.mean(0)
    scale = centred.norm(dim=0) / expected.norm(dim=0)
    torch.testing.assert_close(centred, expected * scale, atol=1e-3, rtol=1e-3)
    assert drawn.mean(0).abs().max() < 0.2 and (drawn.std(0) - 1).abs().max() < 0.2
