import subprocess
import sys

import pytest
import torch

from diorama.training.statistics import FLOOR, Statistics

SHAPE = (5, 7)


def samples(count=1000):
    """Far from 0 next to their spread, where sums of squares in single precision say nothing."""
    generator = torch.Generator().manual_seed(0)
    spread = 0.01 + torch.rand(SHAPE, generator=generator, dtype=torch.float64)
    values = 300 + spread * torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
    return values.float()


def taken(values, *sizes):
    made = Statistics(*SHAPE)
    for part in values.split(list(sizes)):
        made.add(part)
    return made


@pytest.mark.parametrize("sizes", [(1000,), (1, 0, 2, 997), (500, 500), (1,) * 1000], ids=["one", "odd", "two", "each"])
def test_one_pass_gives_what_torch_says_of_all_at_once(sizes):
    values = samples()
    made = taken(values, *sizes)
    assert made.count == 1000
    torch.testing.assert_close(made.mean, values.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(made.std, values.double().std(0), rtol=1e-9, atol=0)


def test_half_precision_is_summed_in_double():
    values = samples().half()
    torch.testing.assert_close(taken(values, 999, 1).mean, values.double().mean(0), rtol=1e-12, atol=0)


def test_one_sample_and_constants_have_deviations_that_can_be_divided_by():
    assert torch.equal(taken(samples(1), 1).std, torch.ones(SHAPE, dtype=torch.float64))
    assert torch.equal(Statistics(*SHAPE).std, torch.ones(SHAPE, dtype=torch.float64))
    assert (taken(torch.full((9, *SHAPE), 3.0), 4, 5).std == FLOOR).all()


def test_without_other_processes_there_is_nothing_to_reduce():
    made = taken(samples(), 1000)
    assert made.reduced() is made


PROCESS = """
import sys
from datetime import timedelta
from pathlib import Path

import torch

from diorama.training.statistics import Statistics

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=Path(folder, "store").as_uri(), rank=rank, world_size=2, timeout=timedelta(seconds=90)
)
values = torch.load(folder / "samples.pt")
made = Statistics(*values.shape[1:])
for part in (values[:300].split([100, 200]), values[300:].split([699, 1]))[rank]:  # uneven shares, in pieces
    made.add(part)
made = made.reduced()
torch.save([made.count, made.mean, made.std, torch.distributed.get_world_size()], folder / f"{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.timeout(300)
def test_two_processes_find_what_one_does(tmp_path):
    torch.save(samples(), tmp_path / "samples.pt")
    words = [sys.executable, "-c", PROCESS]
    processes = [subprocess.Popen([*words, str(rank), str(tmp_path)]) for rank in (0, 1)]
    try:
        assert [process.wait(200) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    one = taken(samples(), 1000)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for count, mean, std, processes_there in found:
        assert (count, processes_there) == (1000, 2)
        torch.testing.assert_close(mean, one.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(std, one.std, rtol=1e-9, atol=0)
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])
