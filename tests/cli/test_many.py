"""`diorama generate --manifest`: the same scenes whatever the batches, and whatever stopped a run before."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.runner.test_spread import torchrun

import diorama
from diorama import Scene
from diorama.export import folder as folder_writer
from diorama.pipelines.tokens import TokenPipeline

from .conftest import Command, Result
from .test_manifest import manifest

BOUND = 1e-4  # between batches, in float32
LINES = (  # three shapes, mixed up, with seeds and settings of their own
    {"out": "a", "seed": 1},
    {"out": "b", "photos": "0.png", "seed": 2},
    {"out": "c", "photos": ["1.png", "2.png"], "at": [1, 0], "seed": 1},
    {"out": "d", "seed": 3},
    {"out": "e", "photos": "2.png", "seed": 4, "trajectory": "dolly:0.3"},
    {"out": "f", "views": 3, "seed": 5},
    {"out": "g", "photos": "1.png", "seed": 2, "steps": 2},
    {"out": "h", "photos": "1.png", "seed": 6, "guidance": 1},
    {"out": "i", "seed": 2**40},
    {"out": "j", "photos": "0.png", "seed": 7},
    *({"out": f"k{i}", "seed": 10 + i} for i in range(6)),  # nine without a photo
)
COUNT = len(LINES)
MAIN = "import json, sys; from diorama.cli.main import main; sys.exit(main(json.loads(sys.argv[1])))"


@pytest.fixture
def requests(command: Command, photo) -> Path:
    for i in range(3):
        photo(f"{i}.png", seed=i)
    return manifest(*LINES)


@pytest.fixture
def made(command: Command, requests: Path):
    """Runs a manifest in the present folder."""

    def run(*flags: str | Path | int, out: str = "made", path: Path = requests) -> Result:
        return command.small("generate", "--manifest", path, "--views", 2, "--device", "cpu", "--out", out, *flags)

    return run


def opened(path: str | Path) -> Scene:
    scene = diorama.open(path)
    assert isinstance(scene, Scene) and scene.latents is not None
    return scene


def same(first: str, second: str, bound: float = BOUND) -> None:
    """All that two folders of results hold."""
    for line in LINES:
        one, other = (opened(Path(folder, str(line["out"]))) for folder in (first, second))
        assert one.condition.at == other.condition.at and one.provenance.seed == line["seed"]
        assert one.views.images.shape == other.views.images.shape
        assert (one.latents - other.latents).abs().max() <= bound  # type: ignore[operator]
        assert (one.views.points - other.views.points).abs().max() <= bound  # type: ignore[operator]
        assert (one.views.images - other.views.images).abs().max() <= 1.01 / 255  # a rounding to 8 bits


def files(folder: str = "made") -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_results_do_not_depend_on_batches(command: Command, made, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = TokenPipeline.generate
    for batch in (1, 3, 8):
        sizes: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(TokenPipeline, "generate", lambda *a, s=sizes, **k: s.append(len(a[1])) or generate(*a, **k))
            result = made("--batch", batch, out=f"made-{batch}")
        assert result.code == 0, result.err
        assert f"made-{batch}: {COUNT} of {COUNT} scenes ({COUNT} made" in result.out
        assert max(sizes) == batch and sum(sizes) == COUNT
    same("made-1", "made-3")
    same("made-1", "made-8")
    for line, flags in ((LINES[1], ("0.png",)), (LINES[4], ("2.png", "--trajectory", "dolly:0.3")), (LINES[8], ())):
        command.done("generate", *flags, "--views", 2, "--seed", line["seed"], "--out", f"alone-{line['out']}")
        alone, batched = opened(f"alone-{line['out']}"), opened(f"made-8/{line['out']}")
        assert (alone.latents - batched.latents).abs().max() <= BOUND  # type: ignore[operator]
        assert alone.provenance.settings == batched.provenance.settings


def test_a_second_run_makes_only_what_is_missing_with_one_load(made, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, seeds, load, generate = [], [], TokenPipeline.load_folder.__func__, TokenPipeline.generate
    monkeypatch.setattr(TokenPipeline, "load_folder", classmethod(lambda *a: loads.append(a) or load(*a)))
    monkeypatch.setattr(TokenPipeline, "generate", lambda *a, **k: seeds.extend(k["seed"]) or generate(*a, **k))
    assert made().code == 0
    assert len(loads) == 1 and sorted(seeds) == sorted(line["seed"] for line in LINES)
    before = {path: path.stat().st_mtime_ns for path in Path("made").rglob("*") if path.name[0] != "."}
    loads.clear(), seeds.clear()
    assert f"{COUNT} of {COUNT} scenes (0 made" in made().out
    assert loads == seeds == []
    changed = {str(path) for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"made/run.json"}
    shutil.rmtree("made/d")
    assert "(1 made" in made().out
    assert seeds == [3]
    manifest(*LINES, {"out": "k.mp4", "seed": 9}, {"out": "l.ply", "seed": 9})
    assert f"{COUNT + 2} of {COUNT + 2} scenes (2 made" in made().out
    assert Path("made/k.mp4").stat().st_size > 100 and Path("made/l.ply").read_bytes().startswith(b"ply")


def test_a_killed_run_goes_on_and_leaves_nothing_half_written(made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(out="whole").code == 0
    written, write = [], folder_writer._write_tensors

    def killed(path: Path, tensors: object) -> None:
        written.append(path)
        if len(written) == 10:
            raise KeyboardInterrupt
        write(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(folder_writer, "_write_tensors", killed)
        assert made("--batch", 2).code == 130
    first = files() - {"run.json", ".lock"}
    assert 1 < len(first) < COUNT and first < {line["out"] for line in LINES}
    times = {name: Path("made", name).stat().st_mtime_ns for name in first}
    for left in ("made/.d.0123abcd.part/images", "made/.e.0123abcd.part.old"):  # what a kill leaves
        Path(left).mkdir(parents=True)
    assert f"({COUNT - len(first)} made" in made().out
    assert files() == {"run.json", ".lock", *(line["out"] for line in LINES)}
    assert times == {name: Path("made", name).stat().st_mtime_ns for name in first}
    same("made", "whole")


def test_failures_are_told_at_the_end_and_stop_no_other(made, photo, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bad.png").write_bytes(b"no photo")
    photo("large.png", 96, 128)
    generate = TokenPipeline.generate

    def out_of_memory(*arguments, **options):
        if 99 in options["seed"]:
            raise RuntimeError("out of memory:\n too much")
        return generate(*arguments, **options)

    path = manifest(
        {"out": "bad", "photos": "bad.png"},
        {"out": "good", "photos": "0.png"},
        {"out": "said", "prompt": "a room"},
        {"out": "sizes", "photos": ["0.png", "large.png"], "at": [0, 1]},
        {"out": "x", "seed": 98},
        {"out": "much", "seed": 99},
        {"out": "y", "seed": 100},
    )
    with monkeypatch.context() as patch:
        patch.setattr(TokenPipeline, "generate", out_of_memory)
        result = made(path=path)
    assert result.code == 1
    assert "made: 3 of 7 scenes (3 made" in result.out
    lines = [line.removeprefix("diorama: requests.jsonl, ") for line in result.err.splitlines()]
    told = ["line 1 (bad)", "line 3 (said)", "line 4 (sizes)", "line 6 (much)"]
    assert [line.split(":")[0] for line in lines] == told
    assert "bytes that are no image" in lines[0] and "trained without text" in lines[1] and "one size" in lines[2]
    assert lines[3].endswith("RuntimeError: out of memory: too much")
    assert files() == {"run.json", ".lock", "good", "x", "y"}
    photo("bad.png")
    assert "5 of 7 scenes (2 made" in made(path=path).out  # what was mended, and what had been too much


def test_a_full_disk_stops_everything(made, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, tensors: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(folder_writer, "_write_tensors", full)
    result = made()
    assert (result.code, result.err) == (2, f"diorama: {Path('made/a').absolute()}: the disk is full\n")
    assert files() == {"run.json", ".lock"}


def test_what_another_request_or_model_made_is_not_taken_for_it(command: Command, made) -> None:
    assert made().code == 0
    other = Path(shutil.copytree(command.model, "other"))
    weights = bytearray((other / "denoiser/diffusion_pytorch_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "denoiser/diffusion_pytorch_model.safetensors").write_bytes(weights)
    before = sorted(Path("made").rglob("*"))
    many = ("generate", "--manifest", "requests.jsonl", "--out", "made", "--device", "cpu")
    said = command.refused(*many, "--views", 2, "--model", other)
    assert "requests.jsonl, line 1: " in said and "made by another request or model" in said
    assert "line 1: " in command.refused(*many, "--views", 3, "--model", command.model)
    manifest(*LINES[:2], LINES[2] | {"seed": 8}, *LINES[3:])
    assert "line 3: " in command.refused(*many, "--views", 2, "--model", command.model)
    assert sorted(Path("made").rglob("*")) == before
    Path("mine").mkdir()
    Path("mine/photo.jpg").touch()
    assert "mine: something else; accepted is a new folder" in made(out="mine").err
    Path("mine/run.json").write_text(json.dumps({"method": "nearest"}))
    assert "not what 'diorama generate --manifest' wrote" in made(out="mine").err


def test_two_runs_do_not_write_into_one_folder(made) -> None:
    fcntl = pytest.importorskip("fcntl")
    assert made().code == 0
    with Path("made/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = made()
    assert result.code == 2 and "another run writes there" in result.err
    assert made().code == 0


@pytest.mark.timeout(1500)
def test_two_processes_of_torchrun_share_a_manifest_and_a_benchmark(made, command: Command) -> None:
    """What fails in one is told once, and both end with it; the next run has nothing else to do."""
    assert made(out="whole").code == 0
    Path("bad.png").write_bytes(b"no photo")
    manifest(*LINES, {"out": "bad", "photos": "bad.png"})
    generate = ("generate", "--manifest", "requests.jsonl", "--views", 2, "--out", "made", "--batch", 2)
    evaluate = ("evaluate", "nearest", "worlds", "--scenes", 1, "--cache", "cache", "--device", "cpu")
    Path("run.py").write_text(MAIN)

    def shared(*words: object) -> Any:
        return torchrun("run.py", json.dumps([str(word) for word in words]), folder=Path.cwd())

    done = shared(*generate, "--device", "cpu", "--model", command.model)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count(f"{COUNT} of {COUNT + 1} scenes") == 1
    assert done.stderr.count(f"line {COUNT + 1} (bad): ") == 1
    assert files() == {"run.json", ".lock", *(line["out"] for line in LINES)}
    same("made", "whole")
    assert f"{COUNT} of {COUNT + 1} scenes (0 made" in made().out
    done = shared(*evaluate, "--out", "scores")
    assert done.returncode == 0 and done.stdout.count("nearest on worlds, 1 scenes") == 1, done.stderr
    assert command(*evaluate, "--out", "alone").code == 0
    texts = [Path(out, "scenes.jsonl").read_text().splitlines() for out in ("scores", "alone")]
    lines = [[json.loads(line) for line in text] for text in texts]
    assert len(lines[0]) == 3 and not list(Path("scores").glob("scenes.*.jsonl"))
    for theirs, ours in zip(*lines, strict=True):
        assert theirs | {"timing": 0} == ours | {"timing": 0}
