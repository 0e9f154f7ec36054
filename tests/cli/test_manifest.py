"""What a line of a manifest may hold, and that a wrong one is told before anything is loaded."""

import json
from pathlib import Path

import pytest
import torch

from diorama.cli.manifest import Entry, read_manifest
from diorama.data.cameras import read_cameras

from .conftest import Command
from .test_generate import nerfstudio

DEFAULTS = Entry(line=0, out="", views=3)


def manifest(*lines: dict | str, path: Path = Path("requests.jsonl")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_lines_are_what_flags_say_where_they_are_silent(command: Command, photo) -> None:
    photo("in/a.png")
    lines = ({"out": "a"}, "", {"out": "b", "photos": "a.png", "views": 5, "seed": 7, "guidance": 1, "at": [2]})
    first, second = read_manifest(manifest(*lines, path=Path("in/x.jsonl")), DEFAULTS)
    assert first == Entry(line=1, out="a", views=3)
    assert second == Entry(line=3, out="b", photos=("a.png",), views=5, seed=7, guidance=1.0, at=(2,))
    assert first.digest("m") != second.digest("m") != second.digest("other model")
    assert first.digest("m") == Entry(line=9, out="z", views=3).digest("m")


def test_a_request_is_the_one_of_the_flags(command: Command, photo) -> None:
    """Files are beside the manifest; a photo is the first view, several have a camera each."""
    for i in range(2):
        photo(f"in/{i}.png", seed=i)
    nerfstudio(Path("in/cameras.json"), 2)
    nerfstudio(Path("in/long.json"), 5)
    lines = (
        {"out": "a", "photos": "0.png", "trajectory": "dolly:0.5", "fov": 40},
        {"out": "b", "photos": ["0.png", "1.png"], "cameras": "cameras.json"},
        {"out": "c", "trajectory": "long.json"},
        {"out": "d", "photos": ["0.png"], "trajectory": "free"},
    )
    path = manifest(*lines, path=Path("in/x.jsonl"))
    a, b, c, d = (entry.request(path.parent) for entry in read_manifest(path, DEFAULTS))
    assert a.at == (0,) and a.wanted.fov[0].item() == pytest.approx(40)
    assert a.wanted.centers[-1].tolist() == pytest.approx([0, 0, 0.5])
    assert b.at == (0, 2) and torch.equal(
        b.wanted.camera_to_world[0], read_cameras("in/cameras.json").camera_to_world[0]
    )
    assert c.known is None and c.wanted.centers[:, 0].tolist() == [0, 2, 4]
    assert (d.wanted.views, d.wanted.height, d.wanted.width, d.at) == (3, 48, 64, (0,))


def test_photos_at_places_of_the_path_have_its_cameras(command: Command, photo) -> None:
    for i in range(2):
        photo(f"{i}.png", seed=i)
    lines = ({"out": "a", "photos": ["0.png", "1.png"], "at": [2, 0], "trajectory": "truck:1"},)
    (entry,) = read_manifest(manifest(*lines), DEFAULTS)
    request = entry.request(Path())
    condition = request.condition().along(request.wanted)
    assert condition.at == (2, 0)
    assert condition.views.cameras.centers.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert "made: 1 of 1 scenes" in command.done(
        "generate", "--manifest", "requests.jsonl", "--views", 3, "--out", "made"
    )
    assert sorted(path.name for path in Path("made/a/known").glob("*.png")) == ["00000.png", "00002.png"]


BAD = {
    "no JSON": ("{", "accepted is a JSON object"),
    "a list": ([1], "accepted is a JSON object"),
    "a number": (7, "accepted is a JSON object"),
    "deep": ("[" * 100_000, "accepted is a JSON object"),
    "unknown": ({"out": "x", "photo": "a.png"}, "unknown 'photo'; accepted are out, photos, at"),
    "no out": ({"seed": 1}, "lacks 'out'"),
    "up": ({"out": "../x"}, "out '../x': accepted are letters"),
    "absolute": ({"out": "/x"}, "out '/x': accepted are letters"),
    "hidden": ({"out": ".x"}, "out '.x': accepted are letters"),
    "folder": ({"out": "a/b"}, "out 'a/b': accepted are letters"),
    "newline": ({"out": "a\n"}, "accepted are letters"),
    "ending": ({"out": "x.json"}, "out 'x.json': accepted are letters"),
    "twice": ({"out": "GOOD"}, "out 'GOOD': line 1 has that name"),
    "views": ({"out": "x", "views": 0}, "views 0: accepted is 1 or more"),
    "half": ({"out": "x", "views": 2.5}, "views: found 2.5; accepted is a whole number"),
    "true": ({"out": "x", "seed": True}, "seed: found True; accepted is a whole number"),
    "seed": ({"out": "x", "seed": -1}, "seed -1: accepted is 0 to"),
    "guidance": ('{"out": "x", "guidance": NaN}', "guidance nan: accepted is 0 or more"),
    "huge": ('{"out": "x", "guidance": 1' + "0" * 400 + "}", "accepted is a smaller number"),
    "steps": ({"out": "x", "steps": 0}, "steps 0: accepted is 1 or more"),
    "size": ({"out": "x", "size": "big"}, "size big: accepted are 64"),
    "number as text": ({"out": "x", "prompt": 3}, "prompt: found 3; accepted is text"),
    "fov": ({"out": "x", "fov": 200}, "field of view 200"),
    "trajectory": ({"out": "x", "trajectory": "orbti"}, "did you mean 'orbit'?"),
    "no path": ({"out": "x", "trajectory": "gone.json"}, "gone.json: no such file or folder"),
    "no photo": ({"out": "x", "photos": ["gone.png"]}, "gone.png: no such file or folder"),
    "outside": ({"out": "x", "photos": "../secret.png"}, "'../secret.png' leads outside the manifest's folder"),
    "link": ({"out": "x", "photos": "link.png"}, "'link.png' leads outside the manifest's folder"),
    "root": ({"out": "x", "cameras": "/etc/hosts", "photos": "a.png"}, "'/etc/hosts' leads outside"),
    "no cameras": ({"out": "x", "cameras": "bad.json", "photos": "a.png"}, "bad.json: not a JSON file"),
    "places": ({"out": "x", "photos": ["a.png"], "at": [0, 1]}, "at [0, 1] for 1 photos"),
    "place": ({"out": "x", "photos": ["a.png"], "at": [3]}, "at [3]: accepted are 0 to 2, with 3 views"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_before_anything_is_loaded(command: Command, photo, case: str) -> None:
    line, message = BAD[case]
    photo("in/a.png")
    photo("secret.png")
    Path("in/link.png").symlink_to(Path("secret.png").absolute())
    Path("in/bad.json").write_text("no JSON")
    path = manifest({"out": "good"}, line if isinstance(line, str) else json.dumps(line), path=Path("in/x.jsonl"))
    flags = ("--views", 3, "--model", command.model)
    said = command.refused("generate", "--manifest", path, *flags)
    assert said.startswith("in/x.jsonl, line 2: ")
    assert message in said


def test_all_bad_lines_are_counted_and_a_file_of_none_is_refused(command: Command) -> None:
    def said() -> str:
        return command.refused("generate", "--manifest", "requests.jsonl", "--model", command.model)

    manifest({"out": "a", "views": 0}, {"out": "b"}, "{", {"seed": 1})
    assert said() == "requests.jsonl, line 1: views 0: accepted is 1 or more (wrong too: lines 3, 4)"
    manifest("", "")
    assert said() == "requests.jsonl: no requests; accepted is a JSON object in each line"
    Path("requests.jsonl").write_bytes(b"\xff\xfe{")
    assert "not UTF-8" in said()
    Path("requests.jsonl").unlink()
    assert said() == "requests.jsonl: No such file or directory"


def test_flags_that_need_a_manifest_or_do_not_go_with_one(command: Command, photo) -> None:
    manifest({"out": "a"})
    photo()
    many = ("generate", "--manifest", "requests.jsonl")
    assert "--batch 2: only for many scenes" in command.refused("generate", "--batch", 2)
    assert "--ray local: only for many scenes" in command.refused("generate", "--ray", "local")
    assert "--batch 0: accepted is 1 or more" in command.refused(*many, "--batch", 0)
    assert "--workers 2: only a cluster has them" in command.refused(*many, "--workers", 2)
    assert "photo.png beside --manifest" in command.refused("generate", "photo.png", "--manifest", "requests.jsonl")
    assert "--overwrite beside --manifest" in command.refused(*many, "--overwrite")
    assert "--poses colmap: accepted is none beside --manifest" in command.refused(*many, "--poses", "colmap")
    assert "neither an embedded model" in command.refused(*many, "--model", "gone")
    assert "only Gen3R takes this" in command.refused(*many, "--tiling", "--model", command.model)
    assert "no folder that can be written" in command.refused(*many, "--model", command.model, "--out", "photo.png/x")
    assert "photo.png: something else" in command.refused(*many, "--model", command.model, "--out", "photo.png")
