import pytest
import torch

from diorama.data.cache import WorldsCache
from diorama.training import captions as module
from diorama.training.captions import Captions, named
from diorama.training.clips import Clips


def test_captions_come_from_files_or_are_said_once_by_a_users_function(worlds, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(module, "captioner", lambda images: said.append(len(images)) or "a  nice\nroom", raising=False)
    data = Clips(worlds["data"], (16, 16), unit=8)
    place, images = "diorama.training.captions:captioner", torch.zeros(2, 3, 4, 4)
    captions = Captions(data, place, tmp_path / "run")
    assert captions.of(1, 0.5, images) == WorldsCache(worlds["data"]).captions[1] and not said
    monkeypatch.setattr(data, "captions", lambda scene: ("one", "two") if scene else ())
    assert [captions.of(1, chance, images) for chance in (0.0, 0.49, 0.5, 0.99)] == ["one", "one", "two", "two"]
    assert captions.of(0, 0.5, images) == "a nice room" == captions.of(0, 0.1, images)
    assert Captions(data, place, tmp_path / "run").of(0, 0.5, images) == "a nice room" and said == [2]
    assert Captions(data, "", tmp_path / "none").of(0, 0.5, images) == ""
    for wrong in ("nowhere:say", "json:nothing", "json", "json:__name__"):
        with pytest.raises(ValueError, match=rf"^--captioner {wrong}: [^\n]*; accepted is [^\n]*$"):
            named(wrong)
