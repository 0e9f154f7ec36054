import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.published_dino import FILE, TRUNK, in_cache, published, state
from torch import nn

from diorama.models import discriminator as module
from diorama.models.discriminator import TRUNK_FILES, TRUNKS, Discriminator, Trunk, load_trunk
from diorama.models.perceptual import Unavailable


@pytest.fixture
def file(monkeypatch, tmp_path):
    return in_cache(monkeypatch, tmp_path / "cache")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count=2, height=32, width=32, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def heads():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Discriminator((16, 16, 8))


def test_the_table_names_published_nets():
    assert TRUNKS.keys() == TRUNK_FILES.keys() == {"dinov2-s14", "dino-s8", "dino-s16"}
    for told in TRUNKS.values():
        assert (told["dim"], told["layers"], told["heads"], told["taps"]) == (384, 12, 6, (2, 5, 8, 11))
        with torch.device("meta"):
            trunk = Trunk(**told)
        count = sum(p.numel() for p in trunk.parameters())
        assert count == pytest.approx(21.7e6, rel=0.03)  # a ViT-S
        assert trunk.position.shape[1] == 1 + (224 // told["patch"]) ** 2


def spelled_out(weights, images):
    """Features of the miniature trunk, a published name at a time."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((images.movedim(1, -1) - mean) / std).movedim(-1, 1)
    x = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=TRUNK["patch"])
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + weights["pos_embed"]
    outputs = []
    for layer in range(TRUNK["layers"]):
        part = {
            name.removeprefix(f"blocks.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        y = F.layer_norm(x, x.shape[-1:], part["norm1.weight"], part["norm1.bias"], 1e-6)
        y = F.linear(y, part["attn.qkv.weight"], part["attn.qkv.bias"])
        q, k, v = y.unflatten(-1, (3, TRUNK["heads"], -1)).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, part["attn.proj.weight"], part["attn.proj.bias"])
        y = F.layer_norm(x, x.shape[-1:], part["norm2.weight"], part["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, part["mlp.fc1.weight"], part["mlp.fc1.bias"]), approximate="tanh")
        x = x + F.linear(y, part["mlp.fc2.weight"], part["mlp.fc2.bias"])
        outputs.append(x[:, 1:].mT)
    return [outputs[at] for at in (-1, *TRUNK["taps"])]


@torch.no_grad()
def test_a_trunk_gives_the_tokens_after_its_last_block_and_its_taps(file):
    trunk = load_trunk("miniature")
    assert trunk.channels == (16, 16, 16) and not trunk.training
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    expected = spelled_out(torch.load(file, weights_only=True), pictures())
    for found, right in zip(trunk(pictures()), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pictures_of_other_sizes_are_resized(file):
    trunk, other = load_trunk("miniature"), pictures(1, 20, 48)
    resized = F.interpolate(other, (32, 32), mode="bilinear")
    assert torch.equal(trunk(other)[0], trunk(resized)[0]) and trunk(other)[0].shape == (1, 16, 16)


def test_gradients_go_through_a_frozen_trunk(file):
    trunk, images = load_trunk("miniature"), pictures().requires_grad_()
    sum(tokens.square().sum() for tokens in trunk(images)).backward()
    assert images.grad.abs().amin((2, 3)).shape == (2, 3) and images.grad.isfinite().all()
    assert (images.grad.abs() > 0).float().mean() > 0.99


def test_the_second_version_loads_with_its_scales_and_its_larger_table(monkeypatch, tmp_path):
    in_cache(monkeypatch, tmp_path)
    monkeypatch.setitem(module.TRUNKS, "miniature", TRUNK | dict(layer_scale=1.0))
    weights = state(published(16, 3, 8, 7, second=True))
    save_file(weights, tmp_path / "dino" / "miniature.safetensors")
    (tmp_path / "dino" / FILE[0]).unlink()
    trunk = load_trunk("miniature")
    torch.testing.assert_close(trunk.blocks[1].mlp_scale.gamma.data, weights["blocks.1.ls2.gamma"])
    assert torch.equal(trunk.position[:, :1], weights["pos_embed"][:, :1]) and trunk.position.shape == (1, 17, 16)
    even = weights | {"pos_embed": torch.ones(1, 50, 16) * torch.arange(16)}
    save_file(even, tmp_path / "dino" / "miniature.safetensors")
    torch.testing.assert_close(load_trunk("miniature").position[0, 3], torch.arange(16.0))


def test_absent_weights_are_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(Unavailable, match=r"^adversarial loss with dinov2-s14: found no dinov2_vits14_pretrain\.pth"):
        load_trunk("dinov2-s14")
    with pytest.raises(ValueError, match=r"^discriminator 'vgg': accepted are dinov2-s14, .*, worlds64$"):
        load_trunk("vgg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(extra=torch.zeros(2)), r"1 weights do not fit miniature, first 'extra', found \(2,\), accepted is none"),
        (dict(cls_token=None), r"1 weights .* first 'class_token', found none, accepted is \(1, 1, 16\)"),
        (
            {"blocks.0.norm1.bias": torch.zeros(3)},
            r"first 'blocks\.0\.attention_norm\.bias', found \(3,\), accepted",
        ),
        (dict(pos_embed=torch.zeros(1, 4, 16)), r"'pos_embed' of shape \(1, 4, 16\), expected a class and a square"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(file, change, message):
    weights = torch.load(file, weights_only=True) | change
    torch.save({name: tensor for name, tensor in weights.items() if tensor is not None}, file)
    with pytest.raises(ValueError, match=rf"^[^\n]*miniature\.pth: [^\n]*{message}[^\n]*$"):
        load_trunk("miniature")


def test_a_broken_file_is_refused_in_one_line(file):
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"^[^\n]*miniature\.pth: not readable weights \([^\n]*\)$"):
        load_trunk("miniature")


def test_the_embedded_trunk_needs_no_file():
    trunk, images = load_trunk("worlds64"), pictures(2, 64, 64).requires_grad_()
    features = trunk(images)
    assert [tuple(x.shape[1:]) for x in features] == [(128, 16), (32, 256), (64, 64), (96, 16)]
    assert trunk.channels == (128, 32, 64, 96) and not any(p.requires_grad for p in trunk.parameters())
    # What it says in the end is a mean of its last map, the first one here.
    torch.testing.assert_close(trunk.net(images), trunk.net.embed(features[0].mean(-1)))
    features[0].sum().backward()
    assert images.grad.abs().sum() > 0
    logits = Discriminator(trunk.channels)(features)
    assert logits.shape == (2, 16 + 256 + 64 + 16)


def tokens(count=3, length=12, seed=0):
    return [normal(count, dim, length, seed=seed + at) for at, dim in enumerate((16, 16, 8))]


def test_every_picture_is_judged_alone(heads):
    together = heads.eval()(tokens())
    assert together.shape == (3, 3 * 12)
    for at in range(3):
        torch.testing.assert_close(heads([x[at : at + 1] for x in tokens()])[0], together[at], rtol=1e-4, atol=1e-5)


def test_tokens_stand_in_a_ring(heads):
    heads.eval()
    turned = heads([x.roll(5, -1) for x in tokens()]).unflatten(1, (3, 12))
    torch.testing.assert_close(turned, heads(tokens()).unflatten(1, (3, 12)).roll(5, -1), rtol=1e-4, atol=1e-5)


def test_no_layer_can_stretch_more_than_one(heads):
    for convolution in (layer for layer in heads.modules() if isinstance(layer, nn.Conv1d)):
        with torch.no_grad():
            convolution.parametrizations.weight.original.mul_(7)
        for _ in range(300):
            _ = convolution.weight  # each look in training mode is one iteration
        assert float(torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2)) == pytest.approx(1, rel=1e-2)


def test_half_precision_around_it_does_not_matter(heads):
    heads.eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = heads(tokens())
    assert found.dtype == torch.float32 and torch.equal(found, heads(tokens()))


def test_gradients_reach_every_parameter(heads):
    heads(tokens()).square().mean().backward()
    for name, parameter in heads.named_parameters():
        if name.endswith((".0.0.bias", ".fn.0.bias")):  # which the norm behind them takes out again
            continue
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
