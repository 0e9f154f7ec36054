"""DPTHead with VGGT's published weight names against VGGT's published code, behind a stand-in for its backbone."""

import re

import pytest
import torch
import torch.nn.functional as F

from diorama.nn.dpt import DPTHead, uv_embedding
from diorama.nn.embeddings import IMAGE_MEAN, IMAGE_STD

from .golden import load, weights

GRID, SIZE, HEADS = (5, 7), (70, 98), 4
RENAMED = (  # VGGT's names -> DPTHead's
    (r"projects\.", "project."),
    (r"resize_layers\.", "rescale."),
    (r"scratch\.output_conv1", "narrow"),
    (r"scratch\.output_conv2", "out"),
    (r"scratch\.layer(\d)_rn", lambda match: f"level.{int(match[1]) - 1}"),
    (r"scratch\.refinenet(\d)", lambda match: f"fuse.{int(match[1]) - 1}"),
    (r"out_conv", "out"),
    (r"resConfUnit1", "lateral"),
    (r"resConfUnit2", "unit"),
)


@pytest.fixture(scope="module")
def golden():
    return load("vggt_tiny")


@pytest.fixture(scope="module")
def state(golden):
    told = golden.config["weights"]
    state = weights(told["entries"], golden.config["prefix"])
    assert sum(float(tensor.double().abs().sum()) for tensor in state.values()) == pytest.approx(told["sum_of_abs"])
    return state


def under(state, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def head(state, name, outputs, **options):
    """Our head, holding the weights of one of VGGT's."""
    ours = {}
    for key, tensor in under(state, f"{name}.").items():
        for old, new in RENAMED:
            key = re.sub(old, new, key)
        ours[key] = tensor
    made = DPTHead(128, 16, (8, 16, 32, 32), outputs, **options)
    made.load_state_dict(ours)
    return made.eval()


def block(x, part, eps, places=None):
    """A transformer block with LayerScale, as DINOv2 and VGGT have it; `places` (row, column) turn queries and keys."""
    dim = x.shape[-1]
    y = F.layer_norm(x, (dim,), part["norm1.weight"], part["norm1.bias"], eps)
    y = F.linear(y, part["attn.qkv.weight"], part["attn.qkv.bias"]).unflatten(-1, (3, HEADS, -1))
    queries, keys, values = y.permute(2, 0, 3, 1, 4)
    if places is not None:
        queries, keys = (
            turned(F.layer_norm(z, z.shape[-1:], part[f"attn.{n}_norm.weight"], part[f"attn.{n}_norm.bias"]), places)
            for z, n in ((queries, "q"), (keys, "k"))
        )
    y = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    x = x + part["ls1.gamma"] * F.linear(y, part["attn.proj.weight"], part["attn.proj.bias"])
    y = F.layer_norm(x, (dim,), part["norm2.weight"], part["norm2.bias"], eps)
    y = F.gelu(F.linear(y, part["mlp.fc1.weight"], part["mlp.fc1.bias"]))
    return x + part["ls2.gamma"] * F.linear(y, part["mlp.fc2.weight"], part["mlp.fc2.bias"])


def turned(x, places):
    """Rotary embedding: the first half of the channels by rows, the second by columns, base 100."""
    halves = []
    for half, place in zip(x.chunk(2, -1), places.T, strict=True):
        count = half.shape[-1] // 2
        angle = place[:, None] * 100.0 ** (-torch.arange(count) / count)
        number = torch.polar(torch.ones_like(angle), angle) * torch.complex(*half.chunk(2, -1))
        halves += [number.real, number.imag]
    return torch.cat(halves, -1)


def backbone(state, images):
    """DINOv2's patch tokens, and the frame and global tokens of every layer side by side."""
    images = (images - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_STD)[:, None, None]
    dino, own = under(state, "aggregator.patch_embed."), under(state, "aggregator.")
    x = F.conv2d(images, dino["patch_embed.proj.weight"], dino["patch_embed.proj.bias"], 14).flatten(2).mT
    table = dino["pos_embed"][:, 1:].mT.unflatten(-1, (37, 37))
    x = x + F.interpolate(table, GRID, mode="bicubic", antialias=True).flatten(2).mT
    first = dino["cls_token"] + dino["pos_embed"][:, :1]
    x = torch.cat([torch.cat([first, dino["register_tokens"]], 1).expand(len(x), -1, -1), x], 1)
    for layer in range(2):
        x = block(x, under(dino, f"blocks.{layer}."), 1e-6)
    patches = F.layer_norm(x, x.shape[-1:], dino["norm.weight"], dino["norm.bias"], 1e-6)[:, 5:]
    special = torch.cat([own["camera_token"], own["register_token"]], 2)[0][[0, *[1] * (len(x) - 1)]]
    x = torch.cat([special, patches], 1)
    places = torch.cat([torch.zeros(5, 2), 1 + torch.cartesian_prod(*map(torch.arange, GRID))])
    layers = []
    for layer in range(4):
        x = frame = block(x, under(own, f"frame_blocks.{layer}."), 1e-5, places)
        x = block(x.flatten(0, 1)[None], under(own, f"global_blocks.{layer}."), 1e-5, places.repeat(len(x), 1))
        x = x.unflatten(1, (len(images), -1))[0]
        layers.append(torch.cat([frame, x], -1))
    return patches, layers


@pytest.fixture(scope="module")
def layers(golden, state):
    with torch.no_grad():
        patches, layers = backbone(state, golden.inputs["images"][0])
    golden.check(dino_patch_tokens=patches, **{f"tokens_{i}": layer[None] for i, layer in enumerate(layers)})
    return [layer[:, 5:] for layer in layers]


@torch.no_grad()
def test_depth_points_and_confidence_are_those_of_the_reference(golden, state, layers):
    depth = head(state, "depth_head", 2, vggt=True)(layers, GRID, SIZE).movedim(1, -1)[None]
    points = head(state, "point_head", 4, vggt=True)(layers, GRID, SIZE).movedim(1, -1)[None]
    golden.check(
        depth=depth[..., :1].exp(),
        depth_conf=1 + depth[..., 1].exp(),
        points=points[..., :3].sign() * points[..., :3].abs().expm1(),
        points_conf=1 + points[..., 3].exp(),
    )


@torch.no_grad()
@pytest.mark.parametrize("part", ["skip", "places"])
def test_the_reference_tells_the_skip_and_the_places_apart(golden, state, layers, part, monkeypatch):
    made = head(state, "depth_head", 2, vggt=True)
    if part == "skip":
        for module in made.fuse.modules():
            module.vggt = False
    else:
        made.vggt = False
    with pytest.raises(AssertionError, match=r"^depth: error"):
        golden.check(depth=made(layers, GRID, SIZE).movedim(1, -1)[None, ..., :1].exp())


@torch.no_grad()
def test_the_norm_is_that_of_the_reference_to_its_epsilon(golden, state):
    norm = head(state, "depth_head", 2, vggt=True).norm
    golden.check(probe_dpt_norm_small=norm(golden.inputs["probe_dpt_norm_small"]))


def test_places_are_waves_of_the_cell_centres():
    """Of a 2 x 4 grid on an image twice as wide as high: x at -3/4, -1/4, 1/4, 3/4 of half its width."""
    found = uv_embedding(8, (2, 4), (10, 20))
    wide, high = 2 / 5**0.5, 1 / 5**0.5
    x, y = wide * torch.tensor([-0.75, -0.25, 0.25, 0.75]), high * torch.tensor([-0.5, 0.5])
    assert found.shape == (8, 2, 4)
    for start, place in ((0, x.expand(2, 4)), (4, y[:, None].expand(2, 4))):
        for index, frequency in enumerate((1, 0.1)):
            torch.testing.assert_close(found[start + index], (frequency * place).sin())
            torch.testing.assert_close(found[start + 2 + index], (frequency * place).cos())
