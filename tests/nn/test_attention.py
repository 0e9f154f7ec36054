import pytest
import torch
from tests.miniature import lively

from diorama.nn.attention import Attention, RMSNorm


def by_hand(attention, x, context):
    """Attention of tokens `x` to tokens `context`, written out head by head."""
    dim, heads = x.shape[-1], attention.heads
    width = dim // heads
    bias = torch.zeros(3 * dim) if attention.qkv.bias is None else attention.qkv.bias
    queries, keys, values = (
        tokens @ attention.qkv.weight[part * dim : (part + 1) * dim].T + bias[part * dim : (part + 1) * dim]
        for part, tokens in enumerate((x, context, context))
    )
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = attention.q_norm(queries[..., part]) @ attention.k_norm(keys[..., part]).mT / width**0.5
        outputs.append(logits.softmax(-1) @ values[..., part])
    return attention.proj(torch.cat(outputs, -1))


@pytest.fixture(params=[(False, True), (True, True), (True, False)], ids=["plain", "bias", "no qk-norm"])
def attention(request):
    bias, qk_norm = request.param
    return lively(Attention(12, 3, bias=bias, qk_norm=qk_norm))


def test_self_attention_is_the_formula(attention):
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(attention(x)[0], by_hand(attention, x, x))


def test_with_a_memory_tokens_attend_to_it_and_to_themselves(attention):
    x, others = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    found = attention(x, attention.keys_values(others))[0]
    torch.testing.assert_close(found, by_hand(attention, x, torch.cat([others, x], 1)))
    assert (found - attention(x)[0]).abs().max() > 1e-2


def test_keys_and_values_are_those_that_forward_gives(attention):
    x = torch.randn(2, 5, 12)
    for alone, own in zip(attention.keys_values(x), attention(x)[1], strict=True):
        torch.testing.assert_close(alone, own)


def test_a_repeated_memory_keeps_the_copies_of_a_scene_together(attention):
    memory = attention.keys_values(torch.randn(2, 4, 12))
    for once, often in zip(memory, memory.repeated(3), strict=True):
        assert torch.equal(often, once.repeat_interleave(3, 0))


def test_channels_that_do_not_divide_into_heads_are_refused():
    with pytest.raises(ValueError, match=r"^10 channels do not divide into 3 heads$"):
        Attention(10, 3)


def test_rms_norm_stays_in_half_precision():
    norm = lively(RMSNorm(8, eps=1e-6))
    x = torch.randn(4, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
