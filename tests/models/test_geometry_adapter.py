"""The adapter's shapes, its arrow of time and its chunks; tests/parity compares it with the published one."""

import json

import pytest
import torch
import torch.nn.functional as F
from tests.miniature import lively

from diorama.models.geometry_adapter import CausalConv3d, GeometryAdapter, Norm, Stem, pack_tokens, unpack_tokens

CHANNELS, LATENT = 40, 4
MEAN, STD = (0.3, -0.2, 0.1, 0.0), (0.5, 2.0, 0.8, 1.5)


def adapter(mean=MEAN, std=STD):
    torch.manual_seed(0)
    sizes = dict(channels=CHANNELS, latent_channels=LATENT, dim=8, reduction=5)
    return lively(GeometryAdapter(**sizes, latents_mean=mean, latents_std=std))


@pytest.fixture(scope="module")
def model():
    return adapter()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        model = GeometryAdapter()
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts == {"encoder": 155_133_216, "quant_conv": 1_056, "post_quant_conv": 272, "decoder": 162_709_760}
    assert sum(parts.values()) == 317_844_304


@torch.no_grad()
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 4, 4), (5, 8, 12), (13, 4, 8)])
def test_latents_are_shaped_as_a_video_vaes(model, frames, height, width):
    """A patch has 14 pixels a side, a latent 8 and, after the first, four frames."""
    tokens = noise(2, CHANNELS, frames, height, width)
    posterior = model.encode(tokens)
    assert posterior.mean.shape == (2, LATENT, (frames + 3) // 4, 14 * height // 8, 14 * width // 8)
    assert model.decode(posterior.mode()).shape == tokens.shape


@torch.no_grad()
def test_no_latent_sees_a_later_frame(model):
    tokens = noise(1, CHANNELS, 13, 4, 4)
    before = model.encode(tokens).mean
    for frame in range(13):
        changed = tokens.clone()
        changed[:, :, frame] += 1
        first = (frame + 3) // 4
        difference = (model.encode(changed).mean - before).abs().amax((0, 1, 3, 4))
        assert not difference[:first].any() and difference[first] > 1e-3, frame


@torch.no_grad()
def test_no_frame_sees_a_later_latent(model):
    latents = noise(1, LATENT, 4, 7, 7)
    before = model.decode(latents)
    for index in range(4):
        changed = latents.clone()
        changed[:, :, index] += 1
        first = max(0, 4 * index - 3)
        difference = (model.decode(changed) - before).abs().amax((0, 1, 3, 4))
        assert not difference[:first].any() and difference[first] > 1e-3, index


@pytest.mark.parametrize("chunk", [1, 2, 3, 9])
def test_chunks_change_nothing_and_neither_do_they_in_the_gradient(model, chunk):
    tokens, latents = noise(1, CHANNELS, 17, 4, 8).requires_grad_(), noise(1, LATENT, 5, 7, 14).requires_grad_()
    results = []
    for size in (None, chunk):
        posterior = model.encode(tokens, chunk=size)
        decoded = model.decode(latents, chunk=size)
        loss = posterior.mean.square().sum() + posterior.logvar.sum() + decoded.square().sum()
        results.append((posterior.mean, posterior.logvar, decoded, *torch.autograd.grad(loss, (tokens, latents))))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 3, 6, 7])
def test_a_causal_convolution_is_torchs_of_the_frames_so_far(frames, side):
    """Inference, which takes frames by pairs, the way with a gradient and any split of the frames agree with it."""
    conv = lively(CausalConv3d(6, 5, side))
    x, margin = noise(2, 6, frames, 4, 3), side // 2
    expected = F.conv3d(F.pad(x, (margin,) * 4 + (2, 0)), conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)
        for first in range(1, frames):
            past = {}
            pieces = [conv(piece, past) for piece in x.tensor_split([first], 2)]
            torch.testing.assert_close(torch.cat(pieces, 2), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_norm_is_the_published_ones():
    norm = lively(Norm(6))
    x = noise(2, 6, 3, 4, 5)
    x[0, :, 0] = 0
    torch.testing.assert_close(norm(x), F.normalize(x, dim=1) * 6**0.5 * norm.gamma)


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (40, 4)])
def test_the_stem_is_a_convolution_of_enlarged_maps(size):
    stem = lively(Stem(6, 5, 3))
    maps = noise(3, 6, *size).requires_grad_()
    large = F.interpolate(maps, scale_factor=1.75, mode="nearest-exact")
    expected = F.conv2d(large, stem.weight, stem.bias, padding=1)
    weight = noise(*expected.shape, seed=1)
    torch.testing.assert_close(stem(maps), expected, atol=1e-5, rtol=1e-5)
    for found, wanted in zip(
        torch.autograd.grad((stem(maps) * weight).sum(), (maps, *stem.parameters())),
        torch.autograd.grad((expected * weight).sum(), (maps, *stem.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_statistics_normalise_the_mean_and_nothing_else(model):
    plain = adapter((0.0,) * LATENT, (1.0,) * LATENT)
    tokens, latents = noise(1, CHANNELS, 5, 4, 4), noise(1, LATENT, 2, 7, 7)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (MEAN, STD))
    found, raw = model.encode(tokens), plain.encode(tokens)
    torch.testing.assert_close(found.mean, (raw.mean - mean) / std)
    assert torch.equal(found.logvar, raw.logvar)
    torch.testing.assert_close(model.decode(latents), plain.decode(latents * std + mean))


def test_log_variances_are_clamped():
    model = adapter()
    with torch.no_grad():
        model.quant_conv.bias[LATENT:] = torch.tensor([1e4, -1e4, 0, 0])
    log_variance = model.encode(noise(1, CHANNELS, 1, 4, 4)).logvar
    assert (log_variance[:, 0] == 20).all() and (log_variance[:, 1] == -30).all()


def test_gradients_reach_every_parameter():
    model = adapter().train()
    posterior = model.encode(noise(1, CHANNELS, 9, 4, 4))
    decoded = model.decode(posterior.sample(torch.Generator().manual_seed(0)))
    decoded.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(model):
    tokens = noise(2, CHANNELS, 5, 4, 4)
    both, one = model.encode(tokens).mean, model.encode(tokens[1:]).mean
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(both)[1:], model.decode(one), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_half_precision_is_near(model):
    tokens = noise(1, CHANNELS, 5, 4, 4)
    mean = model.encode(tokens).mean
    half = adapter().to(torch.bfloat16)
    found = half.encode(tokens.bfloat16())
    assert found.mean.dtype == torch.bfloat16
    assert (found.mean.float() - mean).norm() < 0.03 * mean.norm()
    expected = model.decode(mean)
    assert (half.decode(mean.bfloat16()).float() - expected).norm() < 0.03 * expected.norm()


@torch.no_grad()
def test_an_offloaded_adapter_is_fetched_whichever_way_it_is_used():
    class Hook:
        fetched = 0

        def pre_forward(self, module):
            self.fetched += 1

    model = adapter()
    model._hf_hook = Hook()
    model.decode(model.encode(noise(1, CHANNELS, 1, 4, 4)).mode())
    assert model._hf_hook.fetched == 2


@torch.no_grad()
def test_saving_and_loading_gives_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = GeometryAdapter.from_pretrained(tmp_path)
    tokens = noise(1, CHANNELS, 5, 4, 4)
    assert torch.equal(again.encode(tokens).parameters, model.encode(tokens).parameters)
    assert json.loads((tmp_path / "config.json").read_text())["latents_std"] == list(STD)


def test_what_does_not_fit_is_refused(model):
    for shape in [(4, 4, 4), (5, 4, 6), (5, 5, 4)]:
        message = rf"^tokens of {shape[0]} frames, {shape[1]}x{shape[2]} patches: accepted are 4k \+ 1 frames, multi"
        with pytest.raises(ValueError, match=message):
            model.encode(noise(1, CHANNELS, *shape))
    with pytest.raises(ValueError, match=r"^geometry latents of 7x8: accepted are multiples of 7$"):
        model.decode(noise(1, LATENT, 1, 7, 8))
    with pytest.raises(ValueError, match=r"^latent statistics: 3 means and 4 deviations for 4 channels"):
        adapter(mean=MEAN[:3])


def test_tokens_come_back_from_their_packing():
    layers = [noise(2, 3, 5 + 6, 8, seed=index) for index in range(4)]
    packed = pack_tokens(layers, 2, 3)
    assert packed.shape == (2, 40, 3, 2, 3)
    assert torch.equal(packed[1, 8:16, 2, 1, 0], layers[1][1, 2, 5 + 3])  # layer 1, clip 1, frame 2, row 1, column 0
    for layer, again in zip(layers, unpack_tokens(packed), strict=True):
        assert torch.equal(again[:, :, 5:], layer[:, :, 5:])
        torch.testing.assert_close(again[:, :, :5], layers[3][:, :, :1].expand(-1, -1, 5, -1))
