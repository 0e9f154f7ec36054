"""Planned bytes against closed forms and against what the allocator of a CPU really gave out."""

import pytest
import torch
import torch.nn.functional as F
from tests.miniature import lively
from torch import nn
from torch.profiler import ProfilerActivity, profile

from diorama.models.gen3r_transformer import Gen3RTransformer
from diorama.models.vggt import SIZES, VGGT
from diorama.pipelines.plan import Request, activation_bytes, fetched_bytes, plan, weight_bytes

KIB = 1024


@torch.no_grad()
def measured(function, *inputs):
    """Most bytes that torch's allocator had given out at once, beside what was there before, inputs included."""
    function(*inputs)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function(*inputs)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most + sum(x.numel() * x.element_size() for x in inputs)


def test_what_lives_at_once_is_counted_and_what_is_dropped_is_not():
    module, x = nn.Linear(256, 512, bias=False), torch.empty(128, 256)

    def chain(x):
        wide = module(x)  # 128 x 512
        narrow = wide[:, :256] + x  # 128 x 256, wide still there
        del wide
        return narrow.view(256, 128).mT + 1  # another, narrow still there

    assert activation_bytes(module, chain, x) == 4 * 128 * (256 + 512 + 256)
    assert activation_bytes(module, lambda x: x[:3], x) == 4 * 128 * 256
    assert activation_bytes(module, lambda x: module.weight.mT[:5], x) == 4 * 128 * 256


def test_attention_needs_no_matrix_of_all_pairs():
    x = torch.empty(1, 2, 1000, 16, device="meta")
    found = activation_bytes(nn.Identity(), lambda x: F.scaled_dot_product_attention(x, x, value=x), x)
    assert found == 2 * 4 * 2 * 1000 * 16


def test_shared_weights_are_one():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    assert weight_bytes(nn.Sequential(first, second)) == weight_bytes(first, second) == 64


def test_blocks_are_fetched_two_at_a_time_and_other_models_by_the_leaf():
    model = nn.Module()
    model.blocks, model.out = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(5)), nn.Linear(8, 2, bias=False)
    assert fetched_bytes(model) == 4 * (2 * 64 + 16)
    assert fetched_bytes(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 2))) == 4 * 64


def tiny_vggt():
    return lively(VGGT(**SIZES["tiny"])), (torch.rand(1, 3, 3, 168, 112),)


def tiny_transformer():
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=2, attention_head_dim=24, ffn_dim=192, num_layers=2, text_dim=32, freq_dim=16)
    model = lively(Gen3RTransformer(**sizes, image_dim=32, added_kv_proj_dim=48))
    inputs = torch.randn(1, 36, 3, 28, 56), torch.full((1,), 500.0), torch.randn(1, 20, 32), torch.randn(1, 257, 32)
    return model, inputs


@pytest.mark.parametrize("made", [tiny_vggt, tiny_transformer])
def test_the_plan_is_within_a_tenth_of_what_is_allocated(made):
    model, inputs = made()
    allocated = measured(model, *inputs)
    planned = activation_bytes(model.to("meta"), model, *(x.to("meta") for x in inputs))
    assert allocated > 500 * KIB
    assert abs(planned / allocated - 1) < 0.1, (planned, allocated)


def test_more_views_need_more_memory():
    model = VGGT(**SIZES["tiny"]).to("meta")
    one, five = (activation_bytes(model, model.encode, torch.empty(1, n, 3, 112, 112, device="meta")) for n in (1, 5))
    assert 3 < five / one < 6


@pytest.mark.timeout(600)
def test_a_plan_of_vggt():
    """Weights are the published 1.19 billion, with the heads in single precision."""
    stages = plan("vggt", Request(1, 14, 28))
    assert [stage.name for stage in stages] == ["tokens", "heads"]
    heads = 216_174_610 + 32_654_628 + 32_654_562
    for stage in stages:
        assert 0 <= stage.weights["stages"] - (2 * 1_190_596_120 + 2 * heads) < KIB
        assert stage.together("none") == stage.weights["none"] + stage.activations


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match=r"^plan of 'tiny': accepted are gen3r, vggt$"):
        plan("tiny", Request(1, 112, 112))
    with pytest.raises(ValueError, match=r"^48 views of 560x560: Gen3R accepts 4k \+ 1 views, multiples of 112"):
        plan("gen3r", Request(48, 560, 560))
    with pytest.raises(ValueError, match=r"^2 views of 100x112: VGGT accepts one view or more, multiples"):
        plan("vggt", Request(2, 100, 112))


@pytest.mark.timeout(600)
def test_gen3r_fits_where_it_should():
    """At most 16 GiB with models taking turns, 10 GiB with the denoiser's blocks fetched one by one."""
    stages = {stage.name: stage for stage in plan("gen3r", Request(49, 560, 560))}
    assert list(stages) == ["text", "photo", "known frames", "scale", "denoiser", "video", "geometry", "heads"]
    assert max(stage.together("stages") for stage in stages.values()) <= 16 * 2**30
    assert max(stage.together("blocks") for stage in stages.values()) <= 10 * 2**30
    tokens = 13 * 35 * 70
    assert stages["denoiser"].activations > 2 * tokens * 8960 * 2  # the widest layer, before and after its GELU
    assert stages["denoiser"].weights["blocks"] < 0.2 * stages["denoiser"].weights["stages"]
    assert 2 * 5_680_910_336 <= stages["text"].weights["stages"] < 2.01 * 5_680_910_336
