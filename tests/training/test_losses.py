import pytest
import torch

from diorama.training.losses import direction_loss, gradient_loss, point_loss, velocity_loss


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_images_with_the_same_edges_have_no_gradient_loss():
    true = normal(2, 3, 8, 12)
    assert gradient_loss(true, true) == 0
    assert gradient_loss(true + 0.3, true) < 1e-12
    assert gradient_loss(true + normal(2, 3, 8, 12, seed=1), true) > 0.5


def test_the_gradient_loss_is_the_mean_square_of_differences_over_scales():
    error = normal(4, 6)
    small = error.reshape(2, 2, 3, 2).mean((1, 3))
    squares = [x.diff(dim=0).square().mean() + x.diff(dim=1).square().mean() for x in (error, small)]
    torch.testing.assert_close(gradient_loss(error[None], torch.zeros(1, 4, 6)), sum(squares) / 2)
    torch.testing.assert_close(gradient_loss(error[None], torch.zeros(1, 4, 6), scales=1), squares[0])


@pytest.mark.parametrize(("confidence", "sign"), [(4.9, -1), (5.0, 0), (5.1, 1)])
def test_confidence_is_best_at_alpha_over_distance(confidence, sign):
    """Distance 0.04 and alpha 0.2: the loss falls up to a confidence of 5 and rises from there."""
    given = torch.tensor([confidence], requires_grad=True)
    loss = point_loss(torch.tensor([[0.04, 0, 0]]), given, torch.zeros(1, 3), torch.tensor([True]))["confident"]
    loss.backward()
    assert float(given.grad.round(decimals=5).sign()) == sign


def test_the_terms_of_the_point_loss():
    predicted, true, confidence = normal(2, 5, 3), normal(2, 5, 3, seed=1), 1 + normal(2, 5, seed=2).exp()
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    distance = (predicted - true).norm(dim=-1)
    found = point_loss(predicted, confidence, true, mask, alpha=0.3)
    torch.testing.assert_close(found["distance"], distance[mask].mean())
    expected = (distance * confidence - 0.3 * confidence.log())[mask].mean()
    torch.testing.assert_close(found["confident"], expected)
    torch.testing.assert_close(found["empty"], 0.3 * confidence[~mask].log().mean())


def test_points_outside_the_mask_do_not_matter():
    mask = torch.tensor([True, True, False])
    predicted, true, confidence = normal(3, 3), normal(3, 3, seed=1), torch.tensor([1.0, 2.0, 3.0])
    far = true.clone()
    far[2] = 1e6
    before, after = point_loss(predicted, confidence, true, mask), point_loss(predicted, confidence, far, mask)
    assert before == after
    predicted.requires_grad_()
    sum(point_loss(predicted, confidence, far, mask).values()).backward()
    assert predicted.grad[2].abs().max() == 0 and predicted.grad[:2].abs().min() > 0


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_points_outside_the_mask_may_be_no_numbers(odd):
    mask = torch.tensor([True, False])
    predicted, true, confidence = normal(2, 3).requires_grad_(), normal(2, 3, seed=1), torch.tensor([1.5, 2.0])
    spoiled = torch.where(mask[:, None], true, odd)
    total = sum(point_loss(predicted, confidence, spoiled, mask).values())
    (found,) = torch.autograd.grad(total, predicted)
    (expected,) = torch.autograd.grad(sum(point_loss(predicted, confidence, true, mask).values()), predicted)
    assert total.isfinite() and torch.equal(found, expected) and found[0].abs().min() > 0


@pytest.mark.parametrize("valid", [True, False])
def test_all_or_nothing_valid_stays_finite(valid):
    predicted = normal(4, 3).requires_grad_()
    losses = point_loss(predicted, torch.ones(4), predicted.detach(), torch.full((4,), valid))
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and predicted.grad.isfinite().all()  # also where the prediction is perfect


def test_velocity_points_from_data_to_noise():
    data, noise = normal(2, 4, 3), normal(2, 4, 3, seed=1)
    assert velocity_loss(noise - data, data, noise) == 0
    torch.testing.assert_close(velocity_loss(data - noise, data, noise), 4 * (noise - data).square().mean())


def test_the_direction_loss_is_one_minus_the_cosine_whatever_the_length():
    data, noise = normal(2, 5, 8), normal(2, 5, 8, seed=1)
    right = noise - data
    assert float(direction_loss(right, data, noise)) == pytest.approx(0, abs=1e-6)
    assert float(direction_loss(0.1 * right, data, noise)) == pytest.approx(0, abs=1e-6)
    assert float(direction_loss(-right, data, noise)) == pytest.approx(2, abs=1e-6)
    length = torch.tensor([3.0, 4.0] + [0.0] * 6)
    one = torch.tensor([1.0] + [0.0] * 7)
    assert float(direction_loss(one[None], -length[None], 0 * one[None])) == pytest.approx(1 - 0.6)
