import pytest
import torch
from tests.miniature import lively

from diorama.nn.attention import Attention
from diorama.nn.rope import Rotation, grid_rotation


def at(row, column, dim=8):
    """The rotation of one token at a place of the grid, counted from 1."""
    turned = grid_rotation((row, column), dim)
    return Rotation(turned.cosine[-1:], turned.sine[-1:])


def test_a_pair_turns_by_its_place_times_its_frequency():
    """Of 8 channels 0, 2 and 1, 3 turn by rows, 4, 6 and 5, 7 by columns; the second pair ten times slower."""
    x = torch.randn(1, 1, 1, 8, dtype=torch.float64)
    found = at(3, 5).turn(x)
    for first, second, angle in ((0, 2, 3.0), (1, 3, 0.3), (4, 6, 5.0), (5, 7, 0.5)):
        expected = torch.complex(x[..., first], x[..., second]) * torch.exp(torch.tensor(1j * angle))
        torch.testing.assert_close(found[..., first], expected.real, atol=1e-6, rtol=0)
        torch.testing.assert_close(found[..., second], expected.imag, atol=1e-6, rtol=0)


def test_products_depend_on_offsets_alone():
    query, key = torch.randn(2, 1, 1, 1, 16)

    def product(here, there):
        return (at(*here, dim=16).turn(query) * at(*there, dim=16).turn(key)).sum()

    torch.testing.assert_close(product((2, 3), (4, 9)), product((5, 1), (7, 7)), atol=1e-5, rtol=0)
    assert (product((2, 3), (4, 9)) - product((2, 3), (9, 4))).abs() > 1e-2


def test_special_tokens_do_not_turn_and_stand_before_the_grid():
    rotation, x = grid_rotation((2, 3), 8, special=5), torch.randn(2, 4, 11, 8)
    found = rotation.turn(x)
    assert torch.equal(found[:, :, :5], x[:, :, :5])
    for index in range(6):
        expected = at(1 + index // 3, 1 + index % 3).turn(x[:, :, 5 + index :][:, :, :1])
        torch.testing.assert_close(found[:, :, 5 + index :][:, :, :1], expected)


def test_views_in_a_row_turn_alike():
    rotation, x = grid_rotation((2, 2), 8, special=1), torch.randn(3, 2, 5, 8)
    joined = rotation.repeated(3).turn(x.transpose(0, 1).flatten(1, 2)[None])
    torch.testing.assert_close(joined[0].unflatten(1, (3, 5)).transpose(0, 1), rotation.turn(x))


def test_a_rotation_keeps_the_dtype():
    assert grid_rotation((1, 2), 4).turn(torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_heads_that_have_no_halves_of_pairs_are_refused():
    with pytest.raises(ValueError, match=r"^heads of 6 channels: .* multiple of 4$"):
        grid_rotation((2, 2), 6)


@torch.no_grad()
def test_attention_turns_queries_and_keys_after_their_norm_and_no_values():
    attention = lively(Attention(16, 2, bias=True, qk_norm=torch.nn.LayerNorm))
    rotation, x = grid_rotation((2, 3), 8), torch.randn(2, 6, 16)
    queries, keys, values = attention.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    queries, keys = rotation.turn(attention.q_norm(queries)), rotation.turn(attention.k_norm(keys))
    mixed = (queries @ keys.mT / 8**0.5).softmax(-1) @ values
    found, own = attention(x, None, rotation)
    torch.testing.assert_close(found, attention.proj(mixed.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(own.keys, keys)
    torch.testing.assert_close(own.values, values)
    assert (found - attention(x)[0]).abs().max() > 1e-2
