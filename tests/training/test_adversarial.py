import subprocess
import sys

import pytest
import torch
from tests.published_dino import in_cache
from torch import nn

from diorama.training import adversarial as module
from diorama.training.adversarial import Adversary, augmented, balanced, cropped

SIDE = 32


@pytest.fixture
def adversary(monkeypatch, tmp_path):
    in_cache(monkeypatch, tmp_path / "cache")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Adversary("miniature")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=6, height=SIDE, width=SIDE, seed=0):
    return torch.rand(count, 3, height, width, generator=seeded(seed))


def test_the_makers_loss_reaches_the_pictures_and_not_the_heads(adversary):
    images = pictures().requires_grad_()
    before = {name: tensor.clone() for name, tensor in adversary.heads.state_dict().items()}
    adversary.unlikeliness(images, seeded()).backward()
    assert images.grad.flatten(1).abs().sum(1).min() > 0
    assert all(p.grad is None and p.requires_grad for p in adversary.heads.parameters()) and adversary.heads.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in adversary.heads.state_dict().items())


def test_the_discriminators_loss_reaches_the_heads_and_not_the_pictures(adversary):
    true, made = pictures(), pictures(seed=1).requires_grad_()
    adversary.confusion(true, made, seeded()).backward()
    assert made.grad is None and all(p.grad is None for p in adversary.trunk.parameters())
    assert sum(float(p.grad.abs().sum()) for p in adversary.heads.parameters()) > 0


def test_the_discriminator_learns_to_tell_smooth_pictures_from_sharp_ones():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adversary = Adversary("worlds64")
    optimizer, generator, losses = torch.optim.AdamW(adversary.heads.parameters(), 1e-2), seeded(), []

    def pair():
        true = nn.functional.interpolate(torch.rand(8, 3, 16, 16, generator=generator), (64, 64))
        return true, nn.functional.avg_pool2d(true, 9, 1, 4)

    for _ in range(60):
        loss = adversary.confusion(*pair(), generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[:5]) / 5 > 0.95  # a new judge says about 0 of either
    assert sum(losses[-5:]) / 5 < 0.8
    with torch.no_grad():
        sharp, smooth = (adversary.unlikeliness(images, seeded()) for images in pair())
    assert sharp < smooth


@torch.no_grad()
def test_the_discriminator_sees_made_pictures_as_8_bits_show_them(adversary, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "augmented", lambda images, _: shown.append(images) or images)
    made = 2 * pictures() - 0.5
    adversary.confusion(pictures(seed=1), made, seeded())
    true, found = shown[0].chunk(2)
    assert torch.equal(true, pictures(seed=1))
    torch.testing.assert_close(found * 255, (made.clamp(0, 1) * 255).round())


def test_crops_are_squares_from_anywhere():
    images = torch.arange(48).expand(1, 3, 20, 48).float()
    found = [cropped(images, 16, seeded(seed)) for seed in range(200)]
    assert {x.shape for x in found} == {(1, 3, 16, 16)}
    assert {int(x[0, 0, 0, 0]) for x in found} == set(range(33))
    assert cropped(images, 224, seeded()).shape == (1, 3, 20, 20)  # not larger than there is
    assert torch.equal(cropped(pictures(), SIDE, seeded()), pictures())


def test_colours_change_within_their_bounds():
    """On even pictures of two halves, of which no move hides a half."""
    images = torch.zeros(500, 3, SIDE, SIDE)
    images[..., : SIDE // 2] = torch.tensor([0.7, 0.5, 0.3])[:, None, None]
    images[..., SIDE // 2 :] = torch.tensor([0.4, 0.4, 0.4])[:, None, None]
    found = augmented(images, seeded())
    coloured, grey = found[:, :, 16, 10], found[:, :, 16, 22]  # at most four pixels from where they were
    contrast = (coloured.mean(1) - grey.mean(1)) / 0.1
    assert 0.5 <= contrast.min() < 0.52 and 1.48 < contrast.max() <= 1.5
    saturation = (coloured[:, 0] - coloured[:, 2]) / 0.4 / contrast
    assert 0 <= saturation.min() < 0.02 and 1.98 < saturation.max() <= 2
    assert (grey[:, 0] - grey[:, 2]).abs().max() < 1e-6
    brightness = found.mean((1, 2, 3)) - images.mean()  # which contrast keeps
    assert brightness.abs().max() < 0.25 + 0.02 and brightness.max() > 0.2 and brightness.min() < -0.2


def test_pictures_move_by_whole_pixels_up_to_an_eighth(monkeypatch):
    """With the draws of colours in the middle, where they change nothing."""
    images, rand = pictures(300, 16, 24), torch.rand

    def moved_only(*shape, generator):
        draws = rand(*shape, generator=generator)
        draws[2:] = 0.5
        return draws

    monkeypatch.setattr(torch, "rand", moved_only)
    found, moves = augmented(images, seeded()), set()
    for before, after in zip(images, found, strict=True):
        padded = nn.functional.pad(before, (3, 3, 2, 2), value=0.5)
        places = [
            (y - 2, x - 3)
            for y in range(5)
            for x in range(7)
            if torch.allclose(padded[:, y : y + 16, x : x + 24], after, atol=1e-6)
        ]
        assert len(places) == 1
        moves.update(places)
    assert moves == {(y, x) for y in range(-2, 3) for x in range(-3, 4)}


def test_augmentation_is_each_pictures_own_and_the_generators():
    same = pictures(1).expand(4, -1, -1, -1)
    found = augmented(same, seeded())
    assert torch.equal(found, augmented(same, seeded())) and not torch.equal(found, augmented(same, seeded(1)))
    assert len({round(float(x.mean()), 4) for x in found}) == 4
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmented(same, seeded()), found)


class Maker(nn.Module):
    """Two layers to pictures; the second is the output."""

    def __init__(self):
        super().__init__()
        generator = seeded(3)
        self.inner = nn.Parameter(0.1 * torch.randn(4, 8, generator=generator))
        self.output = nn.Parameter(0.1 * torch.randn(8, 3 * SIDE * SIDE, generator=generator))

    def forward(self, x):
        return ((x @ self.inner).tanh() @ self.output).unflatten(-1, (3, SIDE, SIDE))


@pytest.fixture
def parts(adversary):
    maker, x, true = Maker(), torch.randn(5, 4, generator=seeded(4)), pictures(5)

    def reconstruction(images):
        return {"image": (images - true).square().mean(), "second": 0.3 * (images - true).abs().mean()}

    return maker, maker(x), reconstruction, lambda images: adversary.unlikeliness(images, seeded(7))


def test_the_balanced_losses_are_the_plain_ones_with_a_constant_weight(parts):
    """The same values, and the same gradients of every parameter, as with the ratio written out."""
    maker, images, reconstruction, realism = parts
    plain, adversarial = reconstruction(images), realism(images)
    norms = [
        torch.autograd.grad(loss, maker.output, retain_graph=True)[0].norm()
        for loss in (sum(plain.values()), adversarial)
    ]
    weight = 0.75 * (norms[0] / (norms[1] + 1e-6)).detach()
    expected = torch.autograd.grad(
        sum(plain.values()) + weight * adversarial, list(maker.parameters()), retain_graph=True
    )
    losses = balanced(images, maker.output, reconstruction, realism, 0.75)
    assert losses.keys() == {"image", "second", "adversarial"}
    for name, right in (plain | {"adversarial": weight * adversarial}).items():
        torch.testing.assert_close(losses[name].detach(), right.detach())
    found = torch.autograd.grad(torch.stack([*losses.values()]).sum(), list(maker.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_adversarial_pull_is_as_strong_as_asked(parts):
    maker, images, reconstruction, realism = parts
    alone = torch.autograd.grad(sum(reconstruction(images).values()), maker.output, retain_graph=True)[0]
    losses = balanced(images, maker.output, reconstruction, realism, 0.5)
    both = torch.autograd.grad(sum(losses.values()), maker.output)[0]
    assert float((both - alone).norm() / alone.norm()) == pytest.approx(0.5, rel=1e-3)


def test_the_trunk_is_gone_through_backwards_once(parts, adversary):
    maker, images, reconstruction, realism = parts
    count = []
    adversary.trunk.embed.register_full_backward_hook(lambda *_: count.append(1))
    sum(balanced(images, maker.output, reconstruction, realism, 0.5).values()).backward()
    assert len(count) == 1 and maker.inner.grad.abs().sum() > 0


TWO = """
import sys, torch
from torch import nn
from diorama.training.adversarial import balanced

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
x, true = torch.randn(4, 3, generator=generator), torch.rand(4, 3, 2, 2, generator=generator)
output = nn.Parameter(torch.randn(3, 12, generator=generator))
direction = torch.randn(3, 2, 2, generator=generator)

def weight(rows):
    images = (x[rows] @ output).unflatten(-1, (3, 2, 2))
    judged = lambda shown: -(shown * direction).tanh().mean()
    losses = balanced(images, output, lambda shown: {"image": (shown - true[rows]).square().mean()}, judged, 1.0)
    return float((losses["adversarial"] / judged(images)).detach())

shared = weight(slice(rank, None, 2))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
print(shared, weight(slice(None)), weight(slice(rank, None, 2)))
"""


def test_two_processes_agree_on_the_weight_of_the_whole_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    started = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path / "store"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    answers = [process.communicate(timeout=300) for process in started]
    assert all(process.returncode == 0 for process in started), answers
    (shared, whole, alone), (again, _, other) = ([float(x) for x in out.split()] for out, _ in answers)
    assert shared == pytest.approx(again, rel=1e-6) and shared == pytest.approx(whole, rel=1e-5)
    assert abs(alone - other) > 1e-3 * whole  # each on its own would have weighed otherwise
