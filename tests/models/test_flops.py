"""What the models cost, counted by torch on tensors that hold no numbers."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from diorama.models.dit3d import SIZES as DENOISERS
from diorama.models.dit3d import DiT3D
from diorama.models.rae3d import RAE3D
from diorama.models.rae3d import SIZES as AUTOENCODERS

VIEWS, SIDE, PATCH = 16, 252, 14


def counted(function):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def attention_flops(queries, keys, dim):
    return 2 * 2 * queries * keys * dim


def decoding(attention):
    with torch.device("meta"):
        model = RAE3D(**AUTOENCODERS["base-1024"] | dict(point_layers=0, attention=attention))
        latents, rays = torch.empty(1, 1024, 768), torch.empty(1, VIEWS, 6, SIDE, SIDE)
    return counted(lambda: model.decode(latents, rays))


def test_the_counter_sees_attention():
    x = torch.empty(1, 4, 100, 16, device="meta")
    count = counted(lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x))
    assert count == attention_flops(100, 100, 64)


def test_decoding_from_cached_latents_needs_at_least_3_3_times_fewer_flops():
    one_way, mutual = decoding("one_way"), decoding("mutual")
    assert mutual / one_way >= 3.3
    # Both against the formula, so that the ratio is not one of two miscounts.
    m, n, d = 1024, (SIDE // PATCH) ** 2, 768
    ends = 2 * n * (7 * PATCH**2 * d + d * 3 * PATCH**2)  # ray embedding and output of one view
    projections = 2 * 12 * d * d  # of one token in one layer
    expected = VIEWS * (ends + 16 * ((m + n) * projections + attention_flops(m + n, m + n, d)))
    assert abs(mutual / expected - 1) < 1e-3
    once = 15 * (m * projections + attention_flops(m, m, d)) + 2 * m * 2 * d * d
    expected = once + VIEWS * (ends + 16 * (n * projections + attention_flops(n, m + n, d)))
    assert abs(one_way / expected - 1) < 1e-3


def test_the_tiny_denoiser_is_tiny():
    tokens, channels = AUTOENCODERS["tiny"]["tokens"], AUTOENCODERS["tiny"]["dim"]
    with torch.device("meta"):
        model = DiT3D(tokens=tokens, channels=channels, **DENOISERS["tiny"])
        noisy, t = torch.empty(1, tokens, channels), torch.empty(1)
    assert 1e8 < counted(lambda: model(noisy, t, noisy)) <= 8e9
    assert DENOISERS["tiny"]["head_dim"] <= 512


def test_a_shared_state_saves_the_backbone():
    with torch.device("meta"):
        model = DiT3D(tokens=1024, channels=768, **DENOISERS["XL"])
        noisy, t, state = torch.empty(1, 1024, 768), torch.empty(1), torch.empty(1, 1024, 1152)
    whole, head = (counted(lambda s=s: model(noisy, t, noisy, state=s)) for s in (None, state))
    assert 1.40e12 < whole < 1.42e12 and 0.35e12 < head < 0.36e12  # 1411 and 358 GFLOP


def test_a_prefix_saves_nearly_half_of_the_known_tokens_as_a_sequence():
    """XL at m = 1024: known tokens cost their attention alone, once their keys and values are there."""
    noisy, t = torch.empty(1, 1024, 768, device="meta"), torch.empty(1, device="meta")
    with torch.device("meta"):
        sequence, apart = (
            DiT3D(tokens=1024, channels=768, **DENOISERS["XL"], condition=c) for c in ("token", "prefix")
        )
        prefix = apart.prefix(noisy)
    whole = counted(lambda: sequence(noisy, t, noisy))
    step = counted(lambda: apart(noisy, t, noisy, prefix=prefix))
    assert 2.70e12 < whole < 2.75e12 and 1.52e12 < step < 1.56e12  # 2727 and 1540 GFLOP
