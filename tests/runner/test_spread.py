"""Two processes that torchrun starts: shares, one voice, one exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diorama.runner.spread import spread

PROGRAM = """
import sys
from diorama.runner.spread import Processes, spread
from pathlib import Path

class Squares:
    def open(self, device):
        Path(f"opened {who.rank}").write_text(device)
        return lambda items: [item**2 for item in items]

with spread("cpu") as who:
    assert type(who) is Processes and who.world == 2 and who.leads == (who.rank == 0)
    with who.first():
        assert Path("led").exists() != who.leads
        Path("led").touch()
    found = []
    who.run(Squares(), [[0, 1], [2], [3]], lambda items, results: found.extend(results))
    print("said by", who.rank, found, who.together((who.rank, found)))
"""


def torchrun(*words: str | Path, folder: Path, patience: float = 1200) -> subprocess.CompletedProcess:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(word) for word in (*start, *words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=patience, check=False, cwd=folder, env=environment
    )


@pytest.mark.timeout(1500)
def test_two_processes_share_the_batches_and_one_speaks(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = torchrun("program.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["said by 0 [0, 1, 9] [(0, [0, 1, 9]), (1, [4])]"]
    assert [(tmp_path / f"opened {rank}").read_text() for rank in (0, 1)] == ["cpu", "cpu"]


def test_ray_and_torchrun_are_not_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with (
        pytest.raises(ValueError, match="--ray local under torchrun: accepted is one of the two"),
        spread("cpu", "local"),
    ):
        pass
