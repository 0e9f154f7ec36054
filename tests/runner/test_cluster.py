"""A Ray cluster of this machine whose workers are killed: every request is done, and once, and right."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tests.cli.conftest import until
from tests.miniature import observed_memory, pipeline

import diorama
from diorama.cli.main import main
from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import orbit
from diorama.runner.cluster import ALONE, SETTINGS, Cluster, cluster
from diorama.runner.work import Failed
from diorama.scene import Condition, Scene

COUNT = 200
PATIENCE = 400  # seconds until the next thing has to have happened
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from diorama.cli.main import main
from diorama.runner.cluster import cluster

class Refusing:
    def open(self, device):
        raise ValueError(f"no model for {device}")

class Deadly:
    def open(self, device):
        Path(f"opened {os.getpid()}").touch()
        return self.do
    def do(self, items):
        if 2 in items and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if 5 in items:
            raise ValueError("five")
        return [10 * item for item in items]

def listening():
    pids = {str(os.getpid())}
    folders = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    parents = {path.name: (path / "stat").read_text().rpartition(")")[2].split()[1] for path in folders}
    while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= more
    mine = set()
    for pid in pids:
        try:
            mine |= {os.readlink(file) for file in Path("/proc", pid, "fd").iterdir()}
        except OSError:
            pass
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in mine:
                yield words[1].partition(":")[0]

with cluster("local", "cpu", 2) as who:
    told = []
    found = {"workers": who.workers, "listening": sorted(set(listening()))}
    who.run(Deadly(), [[1, 2], [3], [4, 5]], lambda items, results: told.append((list(items), list(results))))
    try:
        who.run(Refusing(), [[1]], lambda items, results: None)
    except ValueError as error:
        found["refused"] = str(error)
    found |= {"told": sorted(told), "opened": len(list(Path().glob("opened *")))}
    Path("found.json").write_text(json.dumps(found))
    for words in json.loads(sys.argv[1]):
        print(words[0], main(words), flush=True)
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="workers are found in /proc")
@pytest.mark.timeout(1000)
def test_200_requests_with_workers_killed_twice_are_200_correct_scenes(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    """One cluster for all that needs one, since a loaded machine takes a minute to start it."""
    pytest.importorskip("ray")
    lines = [json.dumps({"out": f"scene-{i}", "seed": i, "views": 2 + i % 2}) + "\n" for i in range(COUNT)]
    (tmp_path / "requests.jsonl").write_text("".join(lines))
    short = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))  # paths of sockets may have 107 letters
    try:
        said, killed = run_and_kill(tmp_path, tiny_pipeline_folder, short)
        assert using(str(short)) == []  # nothing outlives the command
    finally:
        shutil.rmtree(short, ignore_errors=True)
    assert len(set(killed)) == 2
    assert "generate 0" in said and f"made: {COUNT} of {COUNT} scenes ({COUNT} made" in said
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {"run.json", ".lock", *(f"scene-{i}" for i in range(COUNT))}
    check_scenes(tmp_path / "made")
    assert "evaluate 0" in said
    check_scores(tmp_path, tiny_pipeline_folder)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["workers"] == 2
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}  # the last: as IPv6
    assert set(found["listening"]) <= loopback, "reached from elsewhere"
    assert found["told"] == [[[1, 2], [10, 20]], [[3], [30]], [[4, 5], [40, ["five"]]]]
    assert found["opened"] in (2, 3)  # the one that died, its heir, and the other unless it came too late
    assert found["refused"] == "no model for cpu"


def run_and_kill(folder: Path, model: Path, short: Path) -> tuple[str, list[int]]:
    """What the program says, and which of its workers were killed in the midst of the manifest."""
    flags = [str(model), "--ray", "local", "--device", "cpu"]
    words = [
        ["generate", "--manifest", "requests.jsonl", "--out", "made", "--batch", "4", "--model", *flags],
        ["evaluate", *flags, "worlds", "--scenes", "1", "--out", "scores", "--cache", "cache"],
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(short), "HOME": str(short)}
    command, log, killed = [sys.executable, "-c", PROGRAM, json.dumps(words)], folder / "log", []
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stream, stderr=stream)
    try:
        for many in (COUNT // 5, COUNT // 2):
            assert until(lambda many=many: scenes(folder) >= many or process.poll() is not None, PATIENCE), (
                log.read_text()
            )
            if found := workers(process.pid):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
        assert until(lambda: process.poll() is not None, PATIENCE), log.read_text()
        if "timed out during startup" in log.read_text():
            pytest.skip("three times Ray's own parts did not start in the 30 s that they wait for each other")
        assert process.returncode == 0, log.read_text()
        return log.read_text(), killed
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def scenes(folder: Path) -> int:
    return sum(path.name[0] != "." for path in (folder / "made").glob("scene-*"))


def workers(process: int) -> list[int]:
    """Our workers among the processes below this one."""
    below, found = [process], []
    while below:
        parent = below.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            below += [int(child) for child in task.read_text().split()]
        try:
            name = Path(f"/proc/{parent}/cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::Worker"):
            found.append(parent)
    return found


def using(folder: str) -> list[str]:
    """Command lines that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [line] if folder in (line := file.read_text(errors="replace")) else []
        except OSError:
            continue
    return found


def check_scenes(made: Path) -> None:
    """Every scene is the one of its request, made here in one call."""
    start = Cameras.from_fov(60.0, 32, 32)
    paths = [orbit(start, 2 + i % 2) for i in range(COUNT)]
    expected = pipeline(memory=observed_memory()).generate([Condition()] * COUNT, paths, seed=list(range(COUNT)))
    for i, scene in enumerate(expected):
        found = diorama.open(made / f"scene-{i}")
        assert isinstance(found, Scene) and found.provenance.seed == i
        assert (found.latents - scene.latents).abs().max() <= 1e-4
        assert (found.views.images - scene.views.images).abs().max() <= 1.01 / 255


def check_scores(folder: Path, model: Path) -> None:
    """A cluster evaluates as one process does."""
    words = ("evaluate", str(model), "worlds", "--scenes", "1", "--device", "cpu", "--cache", str(folder / "cache"))
    assert main([*words, "--out", str(folder / "alone")]) == 0
    lines = [(folder / name / "scenes.jsonl").read_text().splitlines() for name in ("scores", "alone")]
    assert len(lines[0]) == 3
    for theirs, ours in zip(*(map(json.loads, part) for part in lines), strict=True):
        assert (theirs["setting"], theirs["scene"], theirs["strip"]) == (ours["setting"], ours["scene"], ours["strip"])
        numbers, expected = ({k: x for k, x in line["metrics"].items() if x is not None} for line in (theirs, ours))
        assert numbers == pytest.approx(expected, rel=1e-3) and len(numbers) > 3
    assert (folder / "scores/summary.json").is_file() and not list((folder / "scores").glob("scenes.*.jsonl"))


class FakeRay(ModuleType):
    """As much of Ray as starting needs; `init` raises these, one after the other."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__("ray")
        self.errors, self.asked, self.ended = list(errors), [], 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: object) -> None:
        self.asked.append(options)
        if self.errors:
            raise self.errors.pop(0)

    def shutdown(self) -> None:
        self.ended += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0}


class FakeWorkers(FakeRay):
    """Ray's calls, each done when its answer is fetched; workers die at the calls of these numbers, ready or not."""

    def __init__(self, *deaths: int) -> None:
        super().__init__()
        self.deaths, self.calls, self.alive = deaths, 0, 0
        self.exceptions = SimpleNamespace(
            RayActorError=type("RayActorError", (Exception,), {}), RayTaskError=type("RayTaskError", (Exception,), {})
        )

    def is_initialized(self) -> bool:
        return True

    def put(self, value: object) -> object:
        return value

    def remote(self, **resources: object):
        assert resources == {"num_cpus": 1, "num_gpus": 0}

        def start(kind: type):
            return SimpleNamespace(remote=lambda *arguments: self.worker(kind(*arguments)))

        return start

    def worker(self, made: object) -> SimpleNamespace:
        self.alive += 1
        assert self.alive <= 3, "more workers than asked for"
        calls = {name: SimpleNamespace(remote=partial(partial, getattr(made, name))) for name in ("ready", "results")}
        return SimpleNamespace(**calls, killed=False)

    def wait(self, answers: list) -> tuple[list, list]:
        return answers[:1], answers[1:]

    def get(self, answer: partial) -> object:
        self.calls += 1
        if self.calls in self.deaths:
            raise self.exceptions.RayActorError("the actor died\nin a fall")
        try:
            return answer()
        except Exception as error:
            told = self.exceptions.RayTaskError()
            told.cause = error
            raise told from None

    def kill(self, worker: SimpleNamespace) -> None:
        assert not worker.killed
        worker.killed = True
        self.alive -= 1


class Tens:
    """Ten times the items; five cannot be."""

    def open(self, device: str):
        assert device == "cpu"
        return self.do

    def do(self, items):
        if 5 in items:
            raise ValueError("five")
        return [10 * item for item in items]


def done(monkeypatch: pytest.MonkeyPatch, ray: FakeWorkers, batches: list, work: object = None) -> dict:
    monkeypatch.setitem(sys.modules, "ray", ray)
    found: dict = {}

    def kept(items, results) -> None:
        assert not found.keys() & set(items), "done twice"
        found.update(zip(items, results, strict=True))

    with cluster("local", "cpu", 3) as who:
        who.run(work or Tens(), batches, kept)
    assert ray.alive == 0
    return found


@pytest.mark.parametrize("deaths", [(), (1,), (4,), (2, 3, 9), (5, 6, 7, 8, 10), tuple(range(2, 14, 2))], ids=str)
def test_everything_is_done_once_whoever_dies(monkeypatch: pytest.MonkeyPatch, deaths: tuple[int, ...]) -> None:
    batches = [[i, i + 1] for i in range(0, 20, 2)]
    found = done(monkeypatch, FakeWorkers(*deaths), batches)
    assert found == {i: Failed("five") if i == 5 else 10 * i for i in range(20)}
    assert done(monkeypatch, FakeWorkers(), []) == {}


def test_workers_that_never_do_anything_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="^13 workers died one after the other: the actor died$"):
        done(monkeypatch, FakeWorkers(*range(100)), [[1], [2], [3]])

    class Refusing:
        def open(self, device: str):
            raise ValueError("no model")

    with pytest.raises(ValueError, match="^no model$"):
        done(monkeypatch, FakeWorkers(), [[1], [2]], Refusing())


def started(monkeypatch: pytest.MonkeyPatch, ray: FakeRay, address: str, **asked: object) -> Cluster:
    for name in {**SETTINGS, **ALONE}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with cluster(address, **{"device": "auto", "workers": None, **asked}) as found:
        assert ray.ended == len(ray.asked) - 1
    assert ray.ended == len(ray.asked)
    return found


def test_a_local_cluster_is_small_silent_and_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    assert started(monkeypatch, ray, "local", workers=2).workers == 2
    (asked,) = ray.asked
    assert (asked["address"], asked["num_cpus"], asked["include_dashboard"]) == ("local", 2, False)
    assert asked["object_store_memory"] <= 2**28
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and os.environ["RAY_AUTH_MODE"] == "token"
    far = FakeRay()
    assert started(monkeypatch, far, "far:6379").workers == 3
    assert far.asked[0]["address"] == "far:6379" and "num_cpus" not in far.asked[0]
    assert "RAY_AUTH_MODE" not in os.environ  # as that cluster has it


def test_a_cluster_that_is_slow_to_start_is_started_again_and_another_error_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Exception("The current node timed out during startup. This could\nhappen")
    ray = FakeRay(slow, slow)
    started(monkeypatch, ray, "local")
    assert len(ray.asked) == 3
    with pytest.raises(OSError, match="^--ray local: The current node timed out during startup. This could$"):
        started(monkeypatch, FakeRay(slow, slow, slow), "local")
    with pytest.raises(OSError, match="^--ray auto: Could not find any running Ray instance$"):
        started(monkeypatch, FakeRay(ConnectionError("Could not find any running Ray instance\nat all")), "auto")
    with pytest.raises(ValueError, match="--device cuda: the cluster has no GPU; accepted are auto and cpu"):
        started(monkeypatch, FakeRay(), "auto", device="cuda")
