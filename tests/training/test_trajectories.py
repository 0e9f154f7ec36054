import math

import pytest
import torch
from safetensors.torch import load_file
from tests import miniature

from diorama.training.trajectories import Kept, Trajectories, knots, mean_velocities


def test_a_straight_flow_has_one_velocity_in_all_pieces() -> None:
    data, noise = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    times = [1.0, 0.9, 0.6, 0.5, 0.2, 0.1, 0.0]
    found = mean_velocities(lambda x, t: (x - data) / t, noise, times, 3)  # of one point's flow; Euler makes no error
    assert found.shape == (3, 3, 5, 7)
    torch.testing.assert_close(found, (noise - data)[:, None].expand_as(found), atol=1e-5, rtol=1e-4)


def test_a_linear_flows_pieces_end_where_its_closed_form_does() -> None:
    noise, rate, steps = torch.randn(2, 4, 3), 0.7, 3000
    times = [1 - (step / steps) ** 1.3 for step in range(steps + 1)]
    found = mean_velocities(lambda x, t: rate * x, noise, times, 4)
    for piece in range(4):
        start, end = times[piece * steps // 4], times[(piece + 1) * steps // 4]
        first, last = (math.exp(rate * (t - 1)) for t in (start, end))
        torch.testing.assert_close(found[:, piece], noise * (first - last) / (start - end), atol=2e-3, rtol=2e-3)


def test_pieces_that_steps_do_not_divide_into_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^5 steps in 2 pieces: accepted is a multiple of 2$"):
        mean_velocities(lambda x, t: x, torch.randn(1, 2, 3), [1.0, 0.8, 0.6, 0.4, 0.2, 0.0], 2)


def test_the_student_stops_where_the_teacher_does_too() -> None:
    scheduler = miniature.pipeline().scheduler
    few, many = knots(scheduler, 4), knots(scheduler, 12)
    assert few == pytest.approx(many[::3], abs=1e-6) and (few[0], few[-1]) == (1, 0)
    shift = scheduler.config.shift
    assert few[1] == pytest.approx(shift * 0.75 / (1 + (shift - 1) * 0.75))


def batch(number: int) -> Trajectories:
    """Two trajectories that tell their number."""
    return Trajectories(
        torch.full((2, 3, 4), 1.0 * number), torch.randn(2, 5, 3, 4).half(), torch.randn(2, 3, 4).half()
    )


def test_what_is_read_is_what_was_made(tmp_path) -> None:
    made = {}

    def make(number: int) -> Trajectories:
        made[number] = batch(number)
        return made[number]

    kept = Kept(tmp_path / "kept", 3, {"teacher": "one"})
    kept.make(make)
    assert len(kept) == 6 and list(made) == [0, 1, 2]
    found = kept[torch.tensor([5, 0, 2])]
    assert found.noise[:, 0, 0].tolist() == [2, 0, 1] and found.log_scale is None
    for row, (number, place) in enumerate(((2, 1), (0, 0), (1, 0))):
        assert torch.equal(found.pieces[row], made[number].pieces[place].float())
        assert torch.equal(found.known[row], made[number].known[place].float())
    assert not list(kept.folder.glob("*.part")) and load_file(kept.file(0))["pieces"].dtype == torch.float16


def test_only_what_is_missing_is_made_and_nothing_of_others_is_taken(tmp_path) -> None:
    Kept(tmp_path, 2, {"teacher": "one"}).make(batch)
    made = []
    longer = Kept(tmp_path, 4, {"teacher": "one"})
    longer.make(lambda number: made.append(number) or batch(number))
    assert made == [2, 3] and len(longer) == 8
    with pytest.raises(
        ValueError, match=r"^[^\n]*000000.safetensors: made with other settings \(teacher was one, is two\)"
    ):
        Kept(tmp_path, 2, {"teacher": "two"}).make(batch)
