"""What `convert` makes of published weights, and folders that `check_weights` refuses.

Names of VGGT, the adapter and the transformer are proven by tests/parity; here are Wan's three.
"""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file, save_file
from tests import published_gen3r as published
from tests.miniature import dit3d, rae3d

from diorama.models.checkpoints import WEIGHTS_FILE, check_weights, convert
from diorama.models.published_names import CLIP_VISION_CONFIG, KINDS, UMT5_CONFIG
from diorama.models.rae3d import RAE3D

FOLDERS = list(published.CONFIGS)


def converted(folder):
    """The model of a folder of the miniature, and its published weights."""
    kind, state = published.KINDS_OF[folder], published.state(folder)
    arguments, ours = convert(kind, state, published.CONFIGS[folder])
    model = KINDS[kind].build(arguments).eval()
    model.load_state_dict(ours)
    return model, state


def meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def numbers(tensors):
    return sum(tensor.numel() for tensor in tensors.values())


def test_wans_vae_is_named_as_diffusers_names_it():
    model, state = converted("wan_vae")
    theirs = convert_wan_vae_to_diffusers(dict(state))
    assert len(theirs) == len(state) == 194
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_wans_vae_at_full_size():
    with torch.device("meta"):
        full = AutoencoderKLWan().state_dict()
    told = KINDS["wan_vae"]
    state = {told.published(name, {"num_res_blocks": 2})[0]: tensor for name, tensor in full.items()}
    assert convert_wan_vae_to_diffusers(dict(state)).keys() == full.keys()
    config = {"latent_channels": 16, "temporal_compression_ratio": 4, "spatial_compression_ratio": 8}
    arguments, ours = convert("wan_vae", {f"model.{name}": tensor for name, tensor in state.items()}, config)
    assert arguments["base_dim"] == 96 and numbers(ours) == 126_892_531


def test_latents_whose_statistics_are_unknown_are_refused():
    with pytest.raises(ValueError, match=r"^a/config.json: latents of 48 channels; accepted are 16, "):
        convert("wan_vae", {}, {"latent_channels": 48}, source="a/config.json")


@torch.no_grad()
def test_umt5_says_what_the_published_layers_say():
    model, state = converted("text_encoder")
    ids, valid = torch.randint(0, 48, (2, 20), generator=torch.Generator().manual_seed(0)), torch.ones(2, 20)
    valid[0, 13:] = 0
    found = model(ids, attention_mask=valid)[0]
    assert torch.allclose(found[valid > 0], text_tokens(state, ids, valid)[valid > 0], atol=1e-5)


def text_tokens(state, ids, valid, heads=3):
    """Wan's umT5 in plain steps: no scale in attention, its own table of distances in every block."""
    x, steps = state["token_embedding.weight"][ids], torch.arange(ids.shape[1])
    distance = steps[None] - steps[:, None]
    far = 2 + (2 * (distance.abs().clamp(min=1) / 2).log() / math.log(128 / 2)).long()
    bucket = torch.where(distance.abs() < 2, distance.abs(), far.clamp(max=3)) + 4 * (distance > 0)
    for block in ("blocks.0.", "blocks.1."):
        own = {name.removeprefix(block): w for name, w in state.items() if name.startswith(block)}
        h = _rms(x, own["norm1.weight"])
        q, k, v = ((h @ own[f"attn.{n}.weight"].T).unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv")
        scores = q @ k.mT + own["pos_embedding.embedding.weight"][bucket].permute(2, 0, 1)
        scores = scores.masked_fill(valid[:, None, None] == 0, -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ own["attn.o.weight"].T
        h = _rms(x, own["norm2.weight"])
        gate = F.gelu(h @ own["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (h @ own["ffn.fc1.weight"].T)) @ own["ffn.fc2.weight"].T
    return _rms(x, state["norm.weight"])


def _rms(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


@torch.no_grad()
def test_clip_says_what_the_published_layers_say():
    model, state = converted("clip_image_encoder")
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = model(image, output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(found, image_tokens(state, image), atol=1e-5)


def image_tokens(state, image, heads=4):
    """The image tower of Wan's CLIP in plain steps, up to its last block but one."""
    own = {name.removeprefix("visual."): w for name, w in state.items()}
    patches = F.conv2d(image, own["patch_embedding.weight"], stride=14).flatten(2).mT
    x = torch.cat([own["cls_embedding"].expand(len(image), -1, -1), patches], 1) + own["pos_embedding"]
    x = _norm(x, own, "pre_norm")
    for block in ("transformer.0.", "transformer.1."):
        h = F.linear(_norm(x, own, f"{block}norm1"), own[f"{block}attn.to_qkv.weight"], own[f"{block}attn.to_qkv.bias"])
        q, k, v = h.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, own[f"{block}attn.proj.weight"], own[f"{block}attn.proj.bias"])
        h = F.gelu(F.linear(_norm(x, own, f"{block}norm2"), own[f"{block}mlp.0.weight"], own[f"{block}mlp.0.bias"]))
        x = x + F.linear(h, own[f"{block}mlp.2.weight"], own[f"{block}mlp.2.bias"])
    return x


def _norm(x, own, name):
    return F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])


def test_umt5_and_clip_at_full_size():
    text = convert("umt5", meta(published.text_encoder_shapes(**UMT5_CONFIG)), {"shared_pos": False})[1]
    assert text["shared.weight"].shape == (256384, 4096) and len(text) == 242 + 1  # one is there under two names
    assert numbers(text) - text["shared.weight"].numel() == 5_680_910_336
    shapes = published.clip_shapes(**CLIP_VISION_CONFIG)
    image = convert("clip_vision", meta({f"model.{name}": shape for name, shape in shapes.items()}), {})[1]
    assert numbers(image) == 632_076_800 - math.prod(shapes["visual.head"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_prefix_makes_no_difference(folder):
    kind, state, config = published.KINDS_OF[folder], published.state(folder), published.CONFIGS[folder]
    arguments, ours = convert(kind, state, config)
    same_arguments, same = convert(kind, {f"model.{name}": tensor for name, tensor in state.items()}, config)
    assert arguments == same_arguments and all(torch.equal(tensor, same[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_weight_too_few_too_many_or_of_another_shape_or_kind_is_told_by_its_published_name(folder):
    kind, state, config = published.KINDS_OF[folder], published.state(folder), published.CONFIGS[folder]
    name = sorted(name for name in state if not name.startswith(("textual", "log_scale", "visual.head")))[-1]
    for change, says in (
        ({name: None}, f"{kind}: 1 weights missing, first {name!r}"),
        ({"zoom.weight": torch.ones(1)}, f"{kind}: 1 weights unknown, first 'zoom.weight'"),
        (
            {name: torch.ones(3, 1, 7)},
            f"{kind}: weight {name!r} of shape (3, 1, 7), expected {tuple(state[name].shape)}",
        ),
        (
            {name: state[name].to(torch.float8_e4m3fn)},
            f"{kind}: weight {name!r} of float8_e4m3fn, accepted are float32, bfloat16, float16, float64",
        ),
    ):
        wrong = {key: tensor for key, tensor in (state | change).items() if tensor is not None}
        with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
            convert(kind, wrong, config)
        assert str(error.value) == says


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("umt5", {"num_heads": 5}, "'num_heads' is 5; accepted are divisors of 4096"),
        ("umt5", {"num_heads": 0}, "'num_heads' is 0; accepted are divisors of 4096"),
        ("umt5", {"vocab": "many"}, "'vocab' is 'many'; accepted is a number"),
        ("umt5", {"shared_pos": True}, "'shared_pos' is True; accepted is False, positions in each block"),
        ("clip_vision", {"vision_heads": 7}, "no config of CLIPVisionModel ("),
        ("clip_vision", {"vision_dim": None}, "'vision_dim' is None; accepted is a number"),
        ("wan_vae", {"dim_mult": 3}, "no config of AutoencoderKLWan ("),
    ],
)
def test_a_config_that_means_no_model_is_refused_in_one_line(kind, config, says):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        convert(kind, {}, config, source="a/config.json")
    assert str(error.value).startswith(f"a/config.json: {says}")


@pytest.fixture
def folder(tmp_path):
    rae3d().save_pretrained(tmp_path)
    check_weights(RAE3D, tmp_path)
    return tmp_path


def refusal(folder):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        check_weights(RAE3D, folder)
    assert str(folder) in str(error.value)
    return str(error.value)


def change(folder, **tensors):
    state = load_file(folder / WEIGHTS_FILE) | tensors
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS_FILE])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert refusal(folder).endswith(f"{name}: missing; a RAE3D folder holds config.json and {WEIGHTS_FILE}")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"dim": "wide"}', '{"attention": "joint"}', '{"heads": 0}', '{"_class_name": "DiT3D"}']
)
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json: no config of RAE3D (" in refusal(folder)


def test_truncated_weights(folder):
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "not a readable safetensors file" in refusal(folder)


def test_a_pickle_in_the_weights_place(folder):
    torch.save({"queries": torch.zeros(2)}, folder / WEIGHTS_FILE)
    assert "not a readable safetensors file" in refusal(folder)


def test_weights_of_another_model(folder):
    dit3d().save_pretrained(folder / "other")
    (folder / "other" / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
    assert "weights missing, first" in refusal(folder) and "weights unknown, first" in refusal(folder)


def test_one_weight_too_few_too_many_or_of_another_shape(folder):
    change(folder, **{"output.bias": None})
    assert refusal(folder).endswith("1 weights missing, first 'output.bias'")
    change(folder, **{"output.bias": torch.zeros(7)})
    assert refusal(folder).endswith("weight 'output.bias' of shape (7,), expected (192,)")
    change(folder, **{"output.bias": torch.zeros(192), "extra": torch.zeros(1)})
    assert refusal(folder).endswith("1 weights unknown, first 'extra'")


def test_a_config_of_another_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"neck_layers": 3}))
    assert "weights missing, first 'neck.2." in refusal(folder)
