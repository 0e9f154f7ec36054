import pytest
import torch
from tests.miniature import lively

from diorama.nn.dpt import DPTHead, ResidualUnit


@pytest.mark.parametrize(("grid", "size"), [((3, 5), (24, 40)), ((1, 1), (8, 8)), ((4, 2), (56, 28))])
def test_a_grid_of_tokens_becomes_a_map_of_the_image(grid, size):
    head = lively(DPTHead(12, 8, (4, 6, 8, 10), 3))
    layers = [torch.randn(2, grid[0] * grid[1], 12) for _ in range(4)]
    assert head(layers, grid, size).shape == (2, 3, *size)


def test_every_layer_and_every_weight_matters():
    head = lively(DPTHead(12, 8, (4, 6, 8, 10), 3))
    layers = [torch.randn(2, 6, 12, requires_grad=True) for _ in range(4)]
    head(layers, (2, 3), (16, 24)).square().sum().backward()
    assert all(x.grad.abs().max() > 0 for x in layers)
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_is_up_in_the_grid_is_up_in_the_map():
    head = lively(DPTHead(12, 8, (4, 6, 8, 10), 1))
    x = torch.randn(1, 64, 12)
    other = x.clone()
    other[:, :8] = torch.randn(1, 8, 12)  # the top row of an 8 x 8 grid
    change = (head([other] * 4, (8, 8), (64, 64)) - head([x] * 4, (8, 8), (64, 64)))[0, 0].abs()
    assert change[:8].mean() > 3 * change[-8:].mean()


@torch.no_grad()
def test_the_skip_is_the_identity_or_vggts_rectified_one():
    """The embedded weights were trained with the first, the published ones of VGGT with the second."""
    plain, vggt = lively(ResidualUnit(4)), ResidualUnit(4, vggt=True)
    vggt.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(plain(x) - vggt(x), x.clamp(max=0))
    for unit in (plain, vggt):
        unit.conv2.weight.zero_()
        unit.conv2.bias.zero_()
    assert torch.equal(plain(x), x) and torch.equal(vggt(x), x.relu())


@pytest.mark.parametrize("vggt", [False, True])
@pytest.mark.parametrize(("grid", "size"), [((1, 1), (14, 14)), ((2, 3), (28, 42)), ((9, 7), (126, 98))])
def test_inference_takes_fewer_products_to_the_same_map(grid, size, vggt):
    head = lively(DPTHead(12, 8, (4, 8, 8, 12), 3, vggt=vggt))
    layers = [torch.randn(3, grid[0] * grid[1], 12) for _ in range(4)]
    expected = head(layers, grid, size)
    with torch.no_grad():
        torch.testing.assert_close(head(layers, grid, size), expected, atol=1e-5, rtol=1e-4)
