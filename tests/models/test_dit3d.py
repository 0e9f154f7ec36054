import json

import pytest
import torch
from tests.miniature import DIM, TOKENS, dit3d

from diorama.models.dit3d import SIZES, DiT3D


def linear(inputs, outputs):
    return inputs * outputs + outputs


def block(dim):
    """RMS norms, qkv, projection, gated MLP with two thirds of 4 x dim, six modulations."""
    hidden = int(2 / 3 * 4 * dim)
    mlp = linear(dim, 2 * hidden) + linear(hidden, dim)
    return 2 * dim + linear(dim, 3 * dim) + linear(dim, dim) + mlp + linear(dim, 6 * dim)


def expected_parameters(dim, layers, channels=768, head=2048, head_layers=2):
    return sum(
        (
            linear(2 * channels, dim),  # noisy and known tokens side by side, into the backbone
            linear(2 * channels, head),  # and once more into the head
            linear(512, dim) + linear(dim, dim),  # time: 256 frequencies, as sines and cosines
            layers * block(dim),
            linear(dim, head),  # the backbone's state, as the head's condition
            head_layers * block(head),
            head + linear(head, 2 * head) + linear(head, channels),  # output norm, its modulation, velocity
        )
    )


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NOISY, KNOWN, TIMES = noise(2, TOKENS, DIM), noise(2, TOKENS, DIM, seed=1), torch.tensor([0.2, 0.9])


@pytest.mark.parametrize(
    ("name", "published"), [("S", 197_840_596), ("B", 295_492_948), ("XL", 839_685_076)]
)  # the paper says 197.8, 295.5 and 839.7 M
def test_the_papers_sizes_have_the_papers_parameters(name, published):
    with torch.device("meta"):
        model = DiT3D(tokens=1024, channels=768, **SIZES[name])
    parameters = dict(model.named_parameters())
    assert parameters.pop("table").shape == (1024, model.config.dim)  # ours: latents have no grid to take a place from
    assert parameters.pop("head_table").shape == (1024, 2048)
    scales = [n for n in parameters if n.endswith(("q_norm.weight", "k_norm.weight"))]  # ours: qk-norm is on
    assert len(scales) == 2 * (model.config.layers + 2)
    total = sum(p.numel() for n, p in parameters.items() if n not in scales)
    assert total == expected_parameters(model.config.dim, model.config.layers) == published


@pytest.mark.parametrize("condition", ["channel", "token", "prefix", "none"])
def test_a_new_model_says_velocity_0(condition):
    torch.manual_seed(0)
    model = DiT3D(
        tokens=TOKENS, channels=DIM, dim=32, layers=2, heads=4, head_dim=48, head_heads=4, condition=condition
    )
    known = None if condition == "none" else KNOWN
    assert torch.equal(model(NOISY, TIMES, known).velocity, torch.zeros(2, TOKENS, DIM))


@pytest.mark.parametrize("condition", ["channel", "token", "prefix", "none"])
@torch.no_grad()
def test_everything_the_denoiser_is_told_matters(condition):
    model = dit3d(condition=condition)
    known = None if condition == "none" else KNOWN
    before = model(NOISY, TIMES, known).velocity
    assert before.shape == NOISY.shape
    changed = {
        "noisy": model(NOISY.flip(0), TIMES, known),
        "time": model(NOISY, TIMES + 0.05, known),
        "places": model(NOISY.roll(1, 1), TIMES, known),
    }
    if known is not None:
        changed["known"] = model(NOISY, TIMES, known.flip(0))
        changed["places of the known"] = model(NOISY, TIMES, known.roll(1, 1))
    for name, output in changed.items():
        assert (output.velocity - before).abs().max() > 1e-2, name
    rolled = changed["places"].velocity.roll(-1, 1)
    assert (rolled - before).abs().max() > 1e-2, "a token's index must matter"


@pytest.mark.parametrize("condition", ["channel", "token", "prefix", "none"])
@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other(condition):
    model = dit3d(condition=condition)
    known = None if condition == "none" else KNOWN
    both = model(NOISY, TIMES, known).velocity
    one = model(NOISY[1:], TIMES[1:], None if known is None else known[1:]).velocity
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("condition", ["channel", "token", "prefix"])
@torch.no_grad()
def test_a_shared_state_reproduces_the_output_and_skips_the_backbone(condition):
    model = dit3d(condition=condition)
    whole = model(NOISY, TIMES, KNOWN)
    model.blocks = None
    again = model(NOISY, TIMES, KNOWN, state=whole.state)
    assert torch.equal(again.velocity, whole.velocity)
    other = model(NOISY.flip(0), TIMES, KNOWN, state=whole.state)  # the head still reads the noisy tokens themselves
    assert (other.velocity - whole.velocity).abs().max() > 1e-2


@torch.no_grad()
def test_only_as_a_prefix_known_tokens_have_keys_and_values_that_no_step_changes():
    """As more tokens of one sequence they see the noisy ones and the time, so that nothing of them could be kept."""
    model = dit3d(condition="prefix", classes=2, scale=True)
    told = dict(label=torch.tensor([0, 2]), log_scale=torch.tensor([0.3, torch.nan]))
    prefix = model.prefix(KNOWN, **told)
    for noisy, times in ((NOISY, TIMES), (NOISY.flip(0), TIMES / 2)):
        whole = model(noisy, times, KNOWN, **told).velocity
        assert torch.equal(model(noisy, times, KNOWN, prefix=prefix, **told).velocity, whole)
    unlike = model(NOISY, TIMES, KNOWN, prefix=model.prefix(KNOWN.flip(0), **told), **told).velocity
    assert (unlike - model(NOISY, TIMES, KNOWN, **told).velocity).abs().max() > 1e-2
    mixed, seen = dit3d(condition="token"), []
    mixed.blocks[1].register_forward_hook(lambda _, inputs, output: seen.append(output[1].keys[:, :, TOKENS:]))
    for noisy, times in ((NOISY, TIMES), (NOISY.flip(0), TIMES), (NOISY, TIMES / 2)):
        mixed(noisy, times, KNOWN)
    assert all((keys - seen[0]).abs().max() > 1e-2 for keys in seen[1:])


@torch.no_grad()
def test_each_class_has_its_own_row_and_the_last_is_no_class():
    model = dit3d(condition="none", classes=3)
    assert model.label.weight.shape == (4, 32)
    outputs = [model(NOISY, TIMES, label=torch.full((2,), label)).velocity for label in range(4)]
    for first in range(4):
        for second in range(first):
            assert (outputs[first] - outputs[second]).abs().max() > 1e-3
    assert not torch.equal(model(NOISY, TIMES).velocity, outputs[3])  # no label at all is not the null class


def test_what_does_not_fit_the_condition_is_refused():
    with pytest.raises(ValueError, match=r"^condition 'cross': accepted are 'channel', 'token', 'prefix' and 'none'$"):
        dit3d(condition="cross")
    with pytest.raises(ValueError, match="condition 'none'"):
        dit3d(condition="none")(NOISY, TIMES, KNOWN)
    with pytest.raises(ValueError, match="condition 'channel'"):
        dit3d()(NOISY, TIMES)


@pytest.mark.parametrize("condition", ["channel", "token", "prefix", "none"])
def test_gradients_reach_every_parameter(condition):
    model = dit3d(condition=condition, classes=1).train()
    output = model(NOISY, TIMES, None if condition == "none" else KNOWN, torch.tensor([0, 1]))
    output.velocity.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_a_new_scale_says_nothing_and_an_unknown_one_never_does():
    plain = dit3d()
    scaled = DiT3D(**{**plain.config, "scale": True})
    fresh = scaled.state_dict()
    assert fresh.keys() - plain.state_dict().keys() == {"scale_embed.map.weight", "scale_embed.map.bias"}
    scaled.load_state_dict(
        plain.state_dict() | {name: fresh[name] for name in fresh if name.startswith("scale_embed.")}
    )
    scales, nothing = torch.tensor([-1.0, 2.0]), torch.full((2,), torch.nan)
    before = plain(NOISY, TIMES, KNOWN).velocity
    assert torch.equal(scaled(NOISY, TIMES, KNOWN, log_scale=scales).velocity, before)
    for parameter in scaled.scale_embed.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(scaled(NOISY, TIMES, KNOWN, log_scale=nothing).velocity, before)
    assert torch.equal(scaled(NOISY, TIMES, KNOWN, log_scale=-torch.inf * scales.abs()).velocity, before)
    assert torch.equal(scaled(NOISY, TIMES, KNOWN).velocity, before)
    told = [scaled(NOISY, TIMES, KNOWN, log_scale=x).velocity for x in (scales, scales + 0.1, scales - 5)]
    for first, second in ((told[0], before), (told[0], told[1]), (told[0], told[2])):
        assert (first - second).abs().amax((-1, -2)).min() > 1e-3
    half = torch.tensor([-1.0, torch.nan])
    mixed = scaled(NOISY, TIMES, KNOWN, log_scale=half).velocity
    torch.testing.assert_close(mixed, torch.stack([told[0][0], before[1]]), atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_scale_and_stay_finite_where_it_is_unknown():
    model = dit3d(scale=True).train()
    log_scale = torch.tensor([0.5, torch.nan])
    model(NOISY, TIMES, KNOWN, log_scale=log_scale).velocity.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_a_model_without_a_scale_refuses_one_and_is_saved_as_ever(tmp_path):
    with pytest.raises(ValueError, match="^log_scale given: this DiT3D was made without scale$"):
        dit3d()(NOISY, TIMES, KNOWN, log_scale=torch.zeros(2))
    for scale in (False, True):
        dit3d(scale=scale).save_pretrained(tmp_path / str(scale))
        assert ("scale" in json.loads((tmp_path / str(scale) / "config.json").read_text())) is scale
        assert (DiT3D.from_pretrained(tmp_path / str(scale)).scale_embed is not None) is scale


@torch.no_grad()
def test_saving_and_loading_gives_the_same_model(tmp_path):
    model = dit3d()
    model.save_pretrained(tmp_path)
    again = DiT3D.from_pretrained(tmp_path)
    assert torch.equal(again(NOISY, TIMES, KNOWN).velocity, model(NOISY, TIMES, KNOWN).velocity)
