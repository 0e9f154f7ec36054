from itertools import combinations

import pytest
import torch
from tests.miniature import images, path, pipeline

from diorama.evaluation.sharing import backbone_states, best_steps, between, similarities
from diorama.scene import Condition, Views


@pytest.mark.parametrize("count", range(1, 8))
def test_the_chosen_steps_are_the_best_of_all(count):
    table = torch.rand(7, 7, generator=torch.Generator().manual_seed(count))

    def gain(starts):
        return sum(float(table[max(start for start in starts if start <= step), step]) for step in range(7))

    best = max(gain((0, *rest)) for rest in combinations(range(1, 7), count - 1))
    found = best_steps(table, count)
    assert found[0] == 0 and len(found) == count and found == sorted(set(found))
    assert gain(found) == pytest.approx(best)


@pytest.mark.parametrize("count", [0, 4])
def test_other_numbers_of_steps_are_refused(count):
    with pytest.raises(ValueError, match=rf"^{count} of 3 steps: accepted are 1 to 3$"):
        best_steps(torch.eye(3), count)


def test_steps_that_say_the_same_share_one_answer():
    states = torch.randn(3, 1, 4, 8, generator=torch.Generator().manual_seed(0))[[0, 0, 1, 1, 1, 2]]
    table = similarities(states)
    torch.testing.assert_close(table.diagonal(), torch.ones(6))
    torch.testing.assert_close(table[0, 2], torch.cosine_similarity(states[0].flatten(), states[2].flatten(), dim=0))
    assert best_steps(table, 3) == [0, 2, 5]
    assert between([1.0, 0.9, 0.8, 0.6, 0.4, 0.2], [0, 2, 5]) == [0.85, 0.3]


def test_states_are_those_of_the_steps_of_a_sampling():
    model, cameras = pipeline(guidance=1.0), path()
    photo = Condition(Views(images()), (0,))
    times, states = backbone_states(model, [photo, photo], [cameras, cameras], 4)
    assert times == pytest.approx([1.5 * t / (1 + 0.5 * t) for t in (1.0, 0.75, 0.5, 0.25)])
    assert states.shape[:2] == (4, 2) and not model.denoiser._forward_hooks
    table = similarities(states)
    chosen = best_steps(table, 3)
    counts, backbone = [], model.denoiser.backbone
    model.denoiser.backbone = lambda *what, **more: counts.append(1) or backbone(*what, **more)
    model.generate(photo, cameras, steps=4, backbone=between(times, chosen))
    assert len(counts) == 3
