"""Operations of a step against sums made by hand, and what is told of them."""

from dataclasses import dataclass

import pytest
import torch

from diorama.training import speed
from diorama.training.speed import Meter, matmul_rate, shapes

CPU = torch.device("cpu")


@dataclass
class Pair:
    first: torch.Tensor
    rest: tuple


def test_shapes_of_whatever_a_batch_is():
    batch = Pair(torch.zeros(4, 2), (torch.zeros(4), None, [torch.zeros(4, 3, 1)], 7))
    assert shapes(batch) == [(4, 2), (4,), (4, 3, 1)] and shapes(3) == []


def work(meter, x, weight, again=False):
    with meter.step():
        meter.begin([x])
        with meter.counting():
            if again:
                with meter.again():
                    _ = x @ weight
            (x @ weight).sum().backward()
    meter.made(("loss",))


def test_each_shape_is_counted_once_and_other_steps_are_timed(monkeypatch):
    monkeypatch.setattr(speed, "matmul_rate", lambda *_: peaks.append(1e9) or 1e9)
    peaks, meter, weight = [], Meter(CPU, "32-true"), torch.ones(5, 3, requires_grad=True)
    work(meter, torch.ones(8, 5), weight)
    assert meter.told() == {} and not peaks  # counting takes time, so that step is none to measure
    assert list(meter.counted.values()) == [2 * (2 * 8 * 5 * 3)]  # the product, and its weight's gradient
    for _ in range(2):
        work(meter, torch.ones(8, 5), weight)
    told = meter.told()
    assert told["flops"] == pytest.approx(told["samples_per_second"] / 8 * 480)
    assert told["mfu"] == pytest.approx(told["flops"] / 1e9) and told["measured_peak_flops"] == 1e9
    work(meter, torch.ones(2, 5), weight)
    work(meter, torch.ones(2, 5), weight)
    assert list(meter.counted.values()) == [480, 120] and meter.told()["flops"] > 0 and peaks == [1e9]


def test_what_is_computed_again_is_not_the_models_work():
    meter, weight = Meter(CPU, "32-true"), torch.ones(5, 3, requires_grad=True)
    work(meter, torch.ones(8, 5), weight, again=True)
    assert list(meter.counted.values()) == [480]


def test_other_losses_are_other_work():
    meter, weight = Meter(CPU, "32-true"), torch.ones(5, 3, requires_grad=True)
    work(meter, torch.ones(8, 5), weight)
    meter.made(("loss", "discriminator"))
    assert meter.counted == {}


def test_of_endlessly_many_shapes_some_stand_for_all(monkeypatch):
    monkeypatch.setattr(speed, "KINDS", 2)
    meter, weight = Meter(CPU, "32-true"), torch.ones(5, 3, requires_grad=True)
    for samples in (2, 4, 6):
        work(meter, torch.ones(samples, 5), weight)
    assert list(meter.counted.values()) == [120, 240]
    told = meter.told()
    assert told["flops"] == pytest.approx(told["samples_per_second"] / 6 * 180)


def test_the_measured_rate_is_that_of_a_product():
    assert 1e7 < matmul_rate(CPU, "32-true") < 1e15
