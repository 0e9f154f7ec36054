"""VGGT with its published weight names against its published code, at two sizes."""

import pytest
import torch

from diorama.geometry.cameras import Cameras
from diorama.models.checkpoints import convert
from diorama.models.vggt import SIZES, VGGT, cameras_from_codes

from .golden import load, weights


@pytest.fixture(scope="module", params=["vggt_tiny", "vggt_small"])
def golden(request):
    return load(request.param)


@pytest.fixture(scope="module")
def state(golden):
    return weights(golden.config["weights"]["entries"], golden.config["prefix"])


@pytest.fixture(scope="module")
def model(golden, state):
    arguments, ours = convert("vggt", state, golden.config["constructor"])
    model = VGGT(**arguments).eval()
    model.load_state_dict(ours)
    return model


@pytest.fixture(scope="module")
def tiny():
    golden = load("vggt_tiny")
    return golden.config["constructor"], weights(golden.config["weights"]["entries"], golden.config["prefix"])


def dense(output):
    return {
        "depth": output.depth[..., None],
        "depth_conf": output.depth_confidence,
        "points": output.points,
        "points_conf": output.points_confidence,
    }


def test_the_weights_are_those_of_the_reference(golden, state):
    told = golden.config["weights"]
    total = sum(float(tensor.double().abs().sum()) for tensor in state.values())
    assert len(state) == told["tensors"] and total == pytest.approx(told["sum_of_abs"], rel=1e-6)


@torch.no_grad()
def test_tokens_cameras_depth_and_points_are_those_of_the_reference(golden, model):
    images = golden.inputs["images"]
    golden.check(dino_patch_tokens=model.encode_patches(images.flatten(0, 1)))
    layers = model.encode(images)
    golden.check(**{f"tokens_{index}": layer for index, layer in enumerate(layers)})
    output = model.decode(layers, *images.shape[-2:])
    golden.check(pose_enc_iterations=output.camera_codes, **dense(output))


@torch.no_grad()
def test_single_layers_are_those_of_the_reference_to_their_epsilons(golden, model):
    head, block = model.readout.camera, model.frame_blocks[0]
    layers = {
        "probe_dino_norm_small": model.encoder.blocks[0].attention_norm,
        "probe_dino_final_norm_small": model.encoder.norm,
        "probe_frame_norm_small": block.attention_norm,
        "probe_global_q_norm_small": model.global_blocks[0].attention.q_norm,
        "probe_trunk_norm_small": head.trunk[0].attention_norm,
        "probe_camera_token_norm_small": head.token_norm,
        "probe_camera_adaln_norm_small": head.modulated_norm,
        "probe_dpt_norm_small": model.readout.depth.norm,
        "probe_block_mlp": block.mlp,
        "probe_pose_branch": head.code_branch,
    }
    golden.check(**{name: layer(golden.inputs[name]) for name, layer in layers.items()})


def test_codes_of_cameras_are_read_as_the_reference_reads_them():
    golden = load("geometry")
    codes = torch.cat([golden.inputs["pose_enc"][..., :7], golden.inputs["fov"]], -1)
    cameras = cameras_from_codes(codes, 28, 42).checked()
    golden.check(extrinsics=cameras.world_to_camera[..., :3, :], intrinsics=cameras.intrinsics)
    depth = golden.inputs["depth"][..., 0]
    depth = torch.where(depth > 5.2, 12 * depth, depth)
    half = torch.zeros(3, 3)
    half[:2, 2] = 0.5  # they unproject from whole pixel numbers
    shifted = Cameras(cameras.camera_to_world[0], cameras.intrinsics[0] + half, 28, 42)
    golden.check(world_points=shifted.unproject(depth))


def test_tiny_is_the_size_of_the_reference(tiny):
    arguments, ours = convert("vggt", tiny[1], tiny[0])
    with torch.device("meta"):
        model = VGGT(**SIZES["tiny"])
    assert {key: model.config[key] for key in arguments} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }
    assert len(ours) == len(tiny[1])


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_prefix_and_the_track_head_make_no_difference(tiny, prefix):
    config, state = tiny
    more = state | {"track_head.tracker.norm.weight": torch.ones(3)}
    found = convert("vggt", {prefix + name: tensor for name, tensor in more.items()}, config)[1]
    expected = convert("vggt", state, config)[1]
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_weights_that_do_not_fit_are_refused_by_their_published_names(tiny):
    config, state = tiny
    for name in ("camera_head.tracker.weight", "encoder.norm.weight", "model.camera_head.token_norm.bias"):
        with pytest.raises(ValueError, match=rf"^vggt: 1 weights unknown, first '{name}'$"):
            convert("vggt", state | {name: torch.ones(3)}, config)
    for name in ("aggregator.patch_embed.mask_token", "depth_head.scratch.refinenet1.resConfUnit1.conv1.bias"):
        less = {other: tensor for other, tensor in state.items() if other != name}
        with pytest.raises(ValueError, match=rf"^vggt: 1 weights missing, first '{name}'$"):
            convert("vggt", less, config)
    with pytest.raises(ValueError, match=r"^vggt: weight 'camera_head\.embed_pose\.bias' of shape \(3,\), expected"):
        convert("vggt", state | {"camera_head.embed_pose.bias": torch.ones(3)}, config)


@pytest.mark.parametrize("config", [{}, {"img_size": 518, "patch_size": 14, "embed_dim": 1024}])
def test_the_published_config_means_the_published_size(config):
    with pytest.raises(ValueError, match=r"^vggt: 1403 weights missing, first 'aggregator\.camera_token'$"):
        convert("vggt", {}, config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"aggregator": {"rope_freq": 50}}, "'rope_freq' is 50; accepted is 100"),
        ({"aggregator": {"patch_embed": "conv"}}, "'patch_embed' is 'conv'; accepted are dinov2_vits14_reg, "),
        ({"aggregator": {"depth": "deep"}}, "'depth' is 'deep'; accepted is a number"),
        ({"embed_dim": [1024]}, r"'embed_dim' is \[1024\]; accepted is a number"),
        ({"dino": 5}, "'dino' is 5; accepted is a table of keywords"),
        ({"dino": {"img_size": 518, "depth": 2}}, "'num_heads' is missing; accepted are img_size, depth, num_heads"),
        ({"camera_head": {"num_heads": 7}}, r"no config of VGGT \(2048 channels do not divide into 7 heads\)"),
        ({"intermediate_layer_idx": [0, 1, 2, 3]}, r"no config of VGGT \(taps \(0, 1, 2, 3\): accepted are four"),
    ],
)
def test_a_config_that_is_none_is_refused_in_one_line(tmp_path, change, says):
    with pytest.raises(ValueError, match=rf"^[^\n]*config\.json: {says}[^\n]*$"):
        convert("vggt", {}, change, source=tmp_path / "config.json")
