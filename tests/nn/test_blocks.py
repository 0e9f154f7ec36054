import pytest
import torch
from tests.miniature import lively

from diorama.nn.blocks import Block, ModulatedBlock, SwiGLU, modulate


def test_a_block_adds_attention_and_then_its_mlp():
    block, x = lively(Block(12, 3)), torch.randn(2, 5, 12)
    middle = x + block.attention(block.attention_norm(x))[0]
    torch.testing.assert_close(block(x)[0], middle + block.mlp(block.mlp_norm(middle)))


def test_a_blocks_keys_and_values_are_those_that_it_hands_out():
    block, x = lively(Block(12, 3)), torch.randn(2, 5, 12)
    for alone, own in zip(block.keys_values(x), block(x)[1], strict=True):
        torch.testing.assert_close(alone, own)


def test_a_block_has_no_biases_and_starts_smaller_the_deeper_it_stands():
    blocks = [Block(64, 4, depth=depth) for depth in (0, 7)]
    assert not [name for name, _ in blocks[0].named_parameters() if name.endswith("bias")]
    for block, expected in zip(blocks, (0.02 / 2**0.5, 0.02 / 4), strict=True):
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert block.attention.proj.weight.std().item() == pytest.approx(expected, rel=0.1)
        assert block.mlp[2].weight.std().item() == pytest.approx(expected, rel=0.1)


def test_swiglu_gates_with_its_first_half():
    layer, x = lively(SwiGLU(6, 4)), torch.randn(3, 6)
    gate, value = layer.gate_value(x).split(4, -1)
    torch.testing.assert_close(layer(x), layer.out(gate * gate.sigmoid() * value))


def test_modulation_scales_around_one_and_shifts():
    x, shift, scale = torch.randn(2, 5, 6), torch.randn(2, 1, 6), torch.randn(2, 1, 6)
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale) + shift)


def test_a_new_modulated_block_changes_nothing():
    x = torch.randn(2, 5, 12)
    assert torch.equal(ModulatedBlock(12, 3)(x, torch.randn(2, 1, 12))[0], x)


def test_a_condition_may_differ_from_token_to_token():
    block, x, condition = lively(ModulatedBlock(12, 3)), torch.randn(2, 5, 12), torch.randn(2, 1, 12)
    alike = block(x, condition)[0]
    torch.testing.assert_close(block(x, condition.repeat(1, 5, 1))[0], alike)
    one = condition.repeat(1, 5, 1)
    one[:, 3] += 1
    change = (block(x, one)[0] - alike).abs().amax((0, 2))
    assert change[3] == change.max() > 1e-2
