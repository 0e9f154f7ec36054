"""Frozen encoders from miniature checkpoints under published names, against transformers and plain formulas."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tests.miniature import images, lively

from diorama.models.encoders import ENCODERS, SIZES_KEPT, PositionCache, find_encoder, read_encoder
from diorama.models.perceptual import Unavailable

DIM, LAYERS, HEADS, SIDE = 32, 6, 4, 3  # the table of positions has SIDE x SIDE places
MIXING = 2  # DA3's first block that knows of places and views
PATCH = {"dinov2": 14, "plain_dinov2": 14, "siglip2": 16, "da3": 14}
KINDS = {kind: kind.removeprefix("plain_") for kind in PATCH}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def write(kind, folder, seed=0):
    """A published folder with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "da3":
        save_file({f"model.{name}": tensor for name, tensor in da3_state(seed).items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_name": "da3-base"}))
        return folder
    torch.manual_seed(seed)
    sizes = dict(hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=2 * DIM)
    if kind == "siglip2":
        vision = sizes | {"image_size": 16 * SIDE, "patch_size": 16}
        text = sizes | dict(vocab_size=7, max_position_embeddings=4, bos_token_id=0, eos_token_id=1)
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    else:
        name = "Dinov2" if kind == "plain_dinov2" else "Dinov2WithRegisters"
        config = getattr(transformers, f"{name}Config")(**sizes, image_size=14 * SIDE, patch_size=14)
        model = getattr(transformers, f"{name}Model")(config)
    lively(model, seed).save_pretrained(folder)
    return folder


def da3_state(seed):
    """DA3's weights under their published names; a head's too."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "cls_token": (1, 1, DIM), "camera_token": (1, 2, DIM), "pos_embed": (1, 1 + SIDE**2, DIM),
        "patch_embed.proj.weight": (DIM, 3, 14, 14), "patch_embed.proj.bias": (DIM,),
        "norm.weight": (DIM,), "norm.bias": (DIM,),
    }  # fmt: skip
    for block in range(LAYERS):
        parts = {
            **{f"norm{n}.{leaf}": (DIM,) for n in (1, 2) for leaf in ("weight", "bias")},
            **{f"ls{n}.gamma": (DIM,) for n in (1, 2)},
            "attn.qkv.weight": (3 * DIM, DIM), "attn.qkv.bias": (3 * DIM,),
            "attn.proj.weight": (DIM, DIM), "attn.proj.bias": (DIM,),
            "mlp.fc1.weight": (4 * DIM, DIM), "mlp.fc1.bias": (4 * DIM,),
            "mlp.fc2.weight": (DIM, 4 * DIM), "mlp.fc2.bias": (DIM,),
        }  # fmt: skip
        if block >= MIXING:
            parts |= {f"attn.{x}_norm.{leaf}": (DIM // HEADS,) for x in "qk" for leaf in ("weight", "bias")}
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in parts.items()}
    state = {
        f"backbone.pretrained.{name}": torch.randn(shape, generator=generator) * (0.1 if len(shape) == 4 else 0.3)
        for name, shape in shapes.items()
    }
    return state | {"head.norm.weight": torch.ones(4), "cam_dec.fc_t.bias": torch.ones(3)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("encoders")
    return {kind: write(kind, home / kind) for kind in PATCH}


@pytest.fixture(scope="module", params=PATCH)
def kind(request):
    return request.param


@pytest.fixture
def encoder(kind, folders):
    return read_encoder(KINDS[kind], folders[kind])


def test_every_place_of_the_grid_gets_a_token_whatever_the_encoders_patch(encoder):
    assert encoder.dim == DIM and encoder.depth == LAYERS
    for grid in ((1, 1), (2, 3), (SIDE, SIDE), (5, 4)):
        tokens = encoder(images(2, 14 * grid[0], 14 * grid[1]), grid)
        assert tokens.shape == (2, grid[0] * grid[1], DIM) and tokens.isfinite().all()
    assert encoder(images(0, 28, 42), (2, 3)).shape == (0, 6, DIM)


def test_tokens_are_frozen_whatever_is_asked(encoder):
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    picture = images(1, 28, 42).requires_grad_()
    assert not encoder(picture, (2, 3)).requires_grad


def test_a_token_speaks_of_its_own_place(encoder):
    """Rows first: a change in the last corner moves the last token most."""
    before = images(1, 42, 56)
    after = before.clone()
    after[..., 28:, 42:] = 1 - after[..., 28:, 42:]
    change = (encoder(after, (3, 4)) - encoder(before, (3, 4))).norm(dim=-1)[0]
    assert change.argmax() == 11


@pytest.mark.parametrize("plain", [False, True])
def test_dinov2_is_transformers_own(folders, plain):
    kind = "plain_dinov2" if plain else "dinov2"
    model = getattr(transformers, "Dinov2Model" if plain else "Dinov2WithRegistersModel").from_pretrained(folders[kind])
    picture = images(2, 28, 70)
    with torch.no_grad():
        told = model.eval()((picture - MEAN) / STD)
    special = 1 if plain else 5
    found = read_encoder("dinov2", folders[kind])(picture, (2, 5))
    torch.testing.assert_close(found, told.last_hidden_state[:, special:])


def test_siglip2_sees_the_picture_resized_to_the_same_grid(folders):
    """The paper's rule: height / 14 * 16, its own colours, no class token."""
    model = transformers.SiglipVisionModel.from_pretrained(folders["siglip2"])
    picture = images(2, 28, 70)
    larger = F.interpolate(picture, (32, 80), mode="bicubic")
    with torch.no_grad():
        told = model.eval()((larger - 0.5) / 0.5, interpolate_pos_encoding=True)
    found = read_encoder("siglip2", folders["siglip2"])(picture, (2, 5))
    torch.testing.assert_close(found, told.last_hidden_state)
    assert not torch.equal(found, read_encoder("siglip2", folders["siglip2"])(larger.flip(-1), (2, 5)))


def test_a_picture_of_larger_patches_is_made_smaller_without_aliases(folders):
    encoder = read_encoder("dinov2", folders["dinov2"])
    picture = images(1, 64, 96)
    smaller = F.interpolate(picture, (28, 42), mode="bicubic", antialias=True)
    torch.testing.assert_close(encoder(picture, (2, 3)), encoder(smaller, (2, 3)))


def plain_da3(state, picture):
    """DA3's backbone on one view, written from its published names with no layer of ours; every layer, normed."""
    weights = {name.removeprefix("backbone.pretrained."): tensor for name, tensor in state.items()}
    height, width = picture.shape[-2] // 14, picture.shape[-1] // 14
    normal = (picture - MEAN) / STD
    patches = F.conv2d(normal, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=14)
    x = torch.cat([weights["cls_token"].expand(len(picture), -1, -1), patches.flatten(2).mT], 1)
    table = weights["pos_embed"]
    if (height, width) != (SIDE, SIDE):
        square = table[:, 1:].reshape(1, SIDE, SIDE, DIM).permute(0, 3, 1, 2)
        scale = ((height + 0.1) / SIDE, (width + 0.1) / SIDE)
        square = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
        table = torch.cat([table[:, :1], square.permute(0, 2, 3, 1).reshape(1, -1, DIM)], 1)
    x = x + table
    rows, columns = torch.meshgrid(torch.arange(height) + 1, torch.arange(width) + 1, indexing="ij")
    local = torch.cat([torch.zeros(1, 2), torch.stack([rows.flatten(), columns.flatten()], -1)])
    everywhere = torch.cat([torch.zeros(1, 2), torch.ones(height * width, 2)])
    outputs = []
    for index in range(LAYERS):
        block = {name.split(".", 2)[2]: t for name, t in weights.items() if name.startswith(f"blocks.{index}.")}
        if index == MIXING:
            x[:, 0] = weights["camera_token"][:, 0]
        places = None if index < MIXING else everywhere if index % 2 else local
        x = x + block["ls1.gamma"] * plain_attention(norm(x, block, "norm1", 1e-6), block, places)
        inner = F.gelu(F.linear(norm(x, block, "norm2", 1e-6), block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + block["ls2.gamma"] * F.linear(inner, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
        outputs.append(norm(x, weights, "norm", 1e-5)[:, 1:])
    return outputs


def norm(x, weights, name, eps):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def plain_attention(x, block, places):
    """Token by token and head by head; heads turn by complex multiplication."""
    queries, keys, values = F.linear(x, block["attn.qkv.weight"], block["attn.qkv.bias"]).split(DIM, -1)
    channels, mixed = DIM // HEADS, []
    for head in range(HEADS):
        q, k, v = (t[..., head * channels : (head + 1) * channels] for t in (queries, keys, values))
        if places is not None:
            q, k = norm(q, block, "attn.q_norm", 1e-5), norm(k, block, "attn.k_norm", 1e-5)
            q, k = turned(q, places), turned(k, places)
        mixed.append((q @ k.mT / channels**0.5).softmax(-1) @ v)
    return F.linear(torch.cat(mixed, -1), block["attn.proj.weight"], block["attn.proj.bias"])


def turned(x, places):
    halves = []
    for half, place in zip(x.chunk(2, -1), places.T, strict=True):
        real, imaginary = half.chunk(2, -1)
        pairs = real.shape[-1]
        angle = place[:, None] * 100.0 ** (-torch.arange(pairs) / pairs)
        spun = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
        halves += [spun.real, spun.imag]
    return torch.cat(halves, -1)


@pytest.mark.parametrize("grid", [(SIDE, SIDE), (2, 5), (1, 1)])
def test_da3_is_what_its_published_code_does_with_one_view(folders, grid):
    picture = images(2, 14 * grid[0], 14 * grid[1])
    expected = plain_da3(da3_state(0), picture)
    torch.testing.assert_close(read_encoder("da3", folders["da3"])(picture, grid), expected[-1], atol=2e-5, rtol=1e-4)
    summed = read_encoder("da3", folders["da3"], 3)(picture, grid)
    torch.testing.assert_close(summed, expected[3] + expected[4] + expected[5], atol=5e-5, rtol=1e-4)


def test_da3_of_the_published_size_has_the_published_parameters():
    from diorama.models.encoders import DA3

    with torch.device("meta"):
        model = DA3(768, 12, 12, patch=14, grid=37, mixing=4)
    block = 12 * 768**2 + (3 + 1 + 4 + 1) * 768 + 4 * 768 + 2 * 768
    special = 768 * (1 + 2 + 1 + 37**2 + 2)
    expected = 12 * block + 8 * 4 * 64 + special + 3 * 14 * 14 * 768 + 768
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("name", ["dinov2", "plain_dinov2", "siglip2"])  # DA3's is above
def test_the_sum_of_layers_adds_earlier_ones_each_through_the_final_norm(folders, name):
    picture, kind = images(1, 28, 42), KINDS[name]
    one, summed = (read_encoder(kind, folders[name], count) for count in (1, 3))
    layers = summed.model.encoder.layers if name == "siglip2" else summed.model.encoder.layer
    final = summed.model.post_layernorm if name == "siglip2" else summed.model.layernorm
    raw = []
    for layer in layers[-3:-1]:
        layer.register_forward_hook(lambda module, given, made: raw.append(final(made)[:, -6:]))
    found = summed(picture, (2, 3))
    torch.testing.assert_close(found, one(picture, (2, 3)) + raw[0] + raw[1])
    assert all(state.abs().max() > 0.1 for state in raw)


def test_the_last_of_several_layers_is_the_one_that_stands_alone(encoder):
    normal = images(1, 2 * encoder.patch, 3 * encoder.patch)
    (alone,), (_, last) = encoder.hidden(normal, 1), encoder.hidden(normal, 2)
    torch.testing.assert_close(alone, last)


@pytest.mark.parametrize("layers", [0, LAYERS + 1])
def test_layers_that_are_not_there_are_refused(kind, folders, layers):
    with pytest.raises(ValueError, match=rf": {layers} layers asked for; accepted are 1 to {LAYERS}$"):
        read_encoder(KINDS[kind], folders[kind], layers)


def test_positions_are_resized_once_for_every_size(encoder, monkeypatch):
    made = []
    resize = F.interpolate

    def counted(x, *rest, **options):
        made.append(x.shape[1])
        return resize(x, *rest, **options)

    monkeypatch.setattr(F, "interpolate", counted)
    for grid in ((2, 3), (2, 3), (3, 2), (2, 3), (3, 2)):
        encoder(images(1, encoder.patch * grid[0], encoder.patch * grid[1]), grid)
    assert made == [DIM, DIM]


def test_the_oldest_table_is_forgotten():
    made = []

    def resized(tokens, height, width):
        made.append((height, width))
        return torch.zeros(1, height * width, 2)

    cache, tokens = PositionCache(resized), torch.zeros(1, 1, 2)
    assert cache(tokens, 1, 2) is cache(tokens, 1, 2)
    assert made == [(1, 2)]
    for width in range(SIZES_KEPT):
        cache(tokens, 2, width + 1)
    assert len(cache.known) == SIZES_KEPT
    cache(tokens, 1, 2)
    assert made.count((1, 2)) == 2


def test_half_precision_is_near_and_leaves_no_table_behind(encoder):
    picture = images(1, 28, 42)
    expected = encoder(picture, (2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(picture, (2, 3))
    half = encoder.to(torch.bfloat16)(picture, (2, 3))
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        assert (found.float() - expected).norm() < 0.1 * expected.norm()
    wide = encoder.to(torch.float32)
    assert wide(picture, (2, 3)).dtype == torch.float32
    assert all(table.dtype == torch.float32 for table in wide.positions.known.values())


def test_the_digest_is_of_the_weights_and_not_of_their_files(kind, folders, tmp_path):
    first = read_encoder(KINDS[kind], folders[kind]).digest
    assert len(first) == 32
    torch.save(load_file(folders[kind] / "model.safetensors"), tmp_path / "weights.pth")
    (tmp_path / "config.json").write_bytes((folders[kind] / "config.json").read_bytes())
    assert read_encoder(KINDS[kind], tmp_path).digest == first
    assert read_encoder(KINDS[kind], write(kind, tmp_path / "other", seed=1)).digest != first


def test_siglip2_without_its_text_tower_is_the_same(folders, tmp_path):
    transformers.SiglipVisionModel.from_pretrained(folders["siglip2"]).save_pretrained(tmp_path)
    alone, whole = (read_encoder("siglip2", folder) for folder in (tmp_path, folders["siglip2"]))
    assert alone.digest == whole.digest
    assert torch.equal(alone(images(1, 28, 42), (2, 3)), whole(images(1, 28, 42), (2, 3)))


@pytest.mark.parametrize("trouble", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit_are_refused_by_name_in_one_line(kind, folders, tmp_path, trouble, capfd):
    state = load_file(folders[kind] / "model.safetensors")
    name = next(n for n in sorted(state) if n.endswith("norm1.weight") and not n.startswith("text_model"))
    if trouble == "missing":
        del state[name]
    elif trouble == "unexpected":
        name = name.replace("norm1.weight", "norm1.extra")
        state[name] = torch.ones(1)
    else:
        state[name] = torch.ones(DIM + 1)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders[kind] / "config.json").read_bytes())
    with pytest.raises(ValueError, match=rf"^{tmp_path}: 1 weights {trouble}, first '[^\n]*norm1[^\n]*$"):
        read_encoder(KINDS[kind], tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("wanted", "given"), [("dinov2", "siglip2"), ("siglip2", "dinov2"), ("dinov2", "da3")])
def test_another_kind_of_model_is_refused(folders, wanted, given):
    with pytest.raises(ValueError, match=rf"config.json: found model_type [^\n]*; accepted for {wanted} are [^\n]*$"):
        read_encoder(wanted, folders[given])


def test_what_is_no_da3_is_refused(folders):
    with pytest.raises(ValueError, match=r": no weights of DA3's backbone; accepted is depth-anything/DA3-BASE$"):
        read_encoder("da3", folders["dinov2"])


def test_naflex_is_refused(folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    (tmp_path / "model.safetensors").write_bytes((folders["siglip2"] / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"found model_type 'siglip2'; accepted for siglip2 are siglip, "):
        read_encoder("siglip2", tmp_path)


@pytest.mark.parametrize("name", ENCODERS)
def test_weights_are_found_in_the_folder_then_in_the_caches_and_never_fetched(name, tmp_path, monkeypatch, folders):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    looked = f"{tmp_path / 'here'}, {tmp_path / 'cache' / name} and the Hugging Face cache"
    message = rf"^encoder '{name}': found no weights \(huggingface\.co/{ENCODERS[name].repository}, .*{looked}$"
    with pytest.raises(Unavailable, match=message):
        find_encoder(name, tmp_path / "here")
    repository = tmp_path / "hub" / f"models--{ENCODERS[name].repository.replace('/', '--')}"
    write(name, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert find_encoder(name, tmp_path / "here") == repository / "snapshots" / "abc"
    write(name, tmp_path / "cache" / name)
    assert find_encoder(name, tmp_path / "here") == tmp_path / "cache" / name
    write(name, tmp_path / "here")
    assert find_encoder(name, tmp_path / "here") == tmp_path / "here"
