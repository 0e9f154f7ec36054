import math

import pytest
import torch
from tests.miniature import lively

from diorama.nn.embeddings import PatchEmbed, RayEmbed, TimeEmbed


def test_patches_become_tokens_row_by_row():
    embed, x = lively(PatchEmbed(3, 5, 4)), torch.randn(2, 3, 8, 12)
    tokens = embed(x)
    assert tokens.shape == (2, 6, 5)
    patch = x[:, :, 4:8, 8:12]  # second row, third column
    torch.testing.assert_close(tokens[:, 5], patch.flatten(1) @ embed.weight.flatten(1).T + embed.bias)


@pytest.mark.parametrize("frequencies", [0, 3])
def test_ray_tokens_say_whether_their_view_shows_its_image(frequencies):
    embed, rays = lively(RayEmbed(16, 4, frequencies)), torch.randn(2, 6, 8, 8)
    seen, hidden = (embed(rays, torch.full((2,), flag)) for flag in (True, False))
    mixed = embed(rays, torch.tensor([True, False]))
    torch.testing.assert_close(mixed, torch.stack([seen[0], hidden[1]]))
    constant = embed.map.weight[:, 6].sum((-1, -2))  # the seventh channel is 1 all over the patch
    torch.testing.assert_close(seen - hidden, constant.expand_as(seen), rtol=1e-4, atol=1e-5)


def test_frequencies_tell_near_rays_apart():
    near = torch.zeros(1, 6, 4, 4)
    other = near + 1e-3
    hidden = torch.zeros(1, dtype=torch.bool)
    plain, fine = lively(RayEmbed(16, 4, 0)), lively(RayEmbed(16, 4, 8))
    change = [(embed(near, hidden) - embed(other, hidden)).norm() for embed in (plain, fine)]
    assert change[1] > 10 * change[0]


def test_the_fourier_features_are_octaves_of_the_mean_ray():
    embed = lively(RayEmbed(16, 4, 2))
    rays, hidden = torch.randn(1, 6, 4, 8), torch.zeros(1, dtype=torch.bool)
    mean = rays[0, :, :, 4:].mean((-1, -2))  # of the second patch
    angles = torch.stack([math.pi * mean, 2 * math.pi * mean], -1).flatten()
    features = torch.cat([angles.sin(), angles.cos()])
    plain = embed.map(torch.cat([rays, torch.zeros(1, 1, 4, 8)], 1))
    torch.testing.assert_close(
        (embed(rays, hidden) - plain)[0, 1], features @ embed.fourier.weight.T, rtol=1e-4, atol=1e-5
    )


def test_the_products_give_the_squared_distance_of_rays_as_a_bilinear_form():
    """The side product of two lines is 0 where they meet; its square is bilinear in the products of each."""
    lines = torch.nn.functional.normalize(torch.randn(2, 3), dim=-1)
    points = torch.randn(2, 3)
    first, second = (torch.cat([torch.linalg.cross(o, d), d]) for o, d in zip(points, lines, strict=True))
    side = first[:3] @ second[3:] + first[3:] @ second[:3]
    embed = RayEmbed(21, 4, products=True)
    embed.products.weight.data = torch.eye(21)
    maps = torch.stack([first, second])[:, :, None, None].expand(-1, -1, 4, 4)
    hidden = torch.zeros(2, dtype=torch.bool)
    plain = embed.map(torch.cat([maps, torch.zeros(2, 1, 4, 4)], 1))
    features = (embed(maps, hidden) - plain)[:, 0]
    swap = torch.eye(6)[[3, 4, 5, 0, 1, 2]]  # pairs one line's moment with the other's direction
    outer = swap @ torch.outer(second, second) @ swap
    i, j = embed.pairs
    weights = outer[i, j] * torch.where(i == j, 1.0, 2.0)
    torch.testing.assert_close(features[0] @ weights, side.square(), rtol=1e-4, atol=1e-5)


def test_time_features_are_frozen_and_kept_with_the_weights():
    embed = TimeEmbed(8, 16)
    assert "frequencies" in embed.state_dict() and "frequencies" not in dict(embed.named_parameters())
    t = torch.tensor([0.0, 0.3])
    angles = 2 * math.pi * t[:, None] * embed.frequencies
    torch.testing.assert_close(embed(t), embed.mlp(torch.cat([angles.sin(), angles.cos()], -1)))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_times_in_half_precision(kind):
    torch.manual_seed(0)
    embed, t = TimeEmbed(16), torch.linspace(0, 1, 7)
    exact = embed(t)
    rough = embed.to(kind)(t)
    assert rough.dtype == kind
    torch.testing.assert_close(rough.float(), exact, atol=0.02, rtol=0.02)
