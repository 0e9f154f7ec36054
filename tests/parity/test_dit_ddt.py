"""DiT3D with RAE's published weight names against RAE's published code, and our flow against its schedule."""

import pytest
import torch

from diorama.flow import dimension_shift, interpolate, shifted, velocity
from diorama.models.checkpoints import convert
from diorama.models.dit3d import DiT3D

from .golden import load, weights

CASES = ("plain", "pos", "qknorm")


@pytest.fixture(scope="module")
def golden():
    return load("dit_ddt")


@pytest.fixture(scope="module")
def schedules():
    return load("flow_schedules")


def published(golden, case):
    """Config and state dict as RAE's code would have them."""
    constructor = golden.config["constructor"]
    state = weights(golden.config["weights_per_case"][case]["entries"], golden.config["prefix"])
    return constructor["common"] | constructor["cases"][case], state


def converted(golden, case):
    config, state = published(golden, case)
    arguments, ours = convert("dit_ddt", state, config)
    model = DiT3D(**arguments).eval()
    model.load_state_dict(ours)
    return model


def tokens(images):
    """RAE's latents are images; ours are the same numbers row by row."""
    return images.flatten(2).mT


def images(tokens, side=4):
    return tokens.mT.unflatten(-1, (side, side))


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_the_reference(golden, case):
    told = golden.config["weights_per_case"][case]
    state = published(golden, case)[1]
    total = sum(float(tensor.double().abs().sum()) for tensor in state.values())
    assert len(state) == told["tensors"] and total == pytest.approx(told["sum_of_abs"], rel=1e-6)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_velocity_and_state_are_those_of_the_reference(golden, case):
    model, x = converted(golden, case), golden.inputs["x"]
    t, label = golden.inputs["t"], golden.inputs["y"]
    output = model(tokens(x), t, label=label)
    shared = model(tokens(x.flip(-1)), t, label=label, state=output.state)
    found = {
        "out": images(output.velocity),
        "backbone_state": output.state,
        "out_shared_state": images(shared.velocity),
    }
    golden.check(**{f"{case}_{name}": value for name, value in found.items()})
    if case == "plain":
        golden.check(plain_t_embedding=model.time(t))


@torch.no_grad()
def test_single_layers_are_those_of_the_reference_to_their_epsilons(golden):
    model = converted(golden, "qknorm")
    layers = {
        "probe_norm_small": model.blocks[0].attention_norm,
        "probe_final_norm_small": model.output_norm,
        "probe_mlp": model.blocks[0].mlp,
        "probe_q_norm_small": model.blocks[0].attention.q_norm,
    }
    golden.check(**{name: layer(golden.inputs[name]) for name, layer in layers.items()})


def test_the_published_rotary_table_is_refused_in_one_line(golden):
    with pytest.raises(ValueError, match=r"^dit_ddt with a rotary table: .* accepted is use_rope=False$"):
        convert("dit_ddt", *reversed(published(golden, "official")))


def test_weights_that_do_not_fit_are_refused_by_name(golden):
    config, state = published(golden, "plain")
    with pytest.raises(ValueError, match=r"^dit_ddt: 1 unknown weights, first 'blocks\.0\.attn\.gate\.weight'$"):
        convert("dit_ddt", state | {"blocks.0.attn.gate.weight": torch.ones(3)}, config)
    with pytest.raises(ValueError, match=r"^dit_ddt: 1 unknown weights, first 'blocks\.9\.norm1\.weight'$"):
        convert("dit_ddt", state | {"blocks.9.norm1.weight": torch.ones(64)}, config)
    less = {name: tensor for name, tensor in state.items() if name != "s_projector.bias"}
    with pytest.raises(ValueError, match=r"^dit_ddt: 1 weights missing, first 'state_projection\.bias'$"):
        convert("dit_ddt", less, config)
    with pytest.raises(ValueError, match=r"^dit_ddt: weight 'output\.bias' of shape \(23,\), expected \(24,\)$"):
        convert("dit_ddt", state | {"final_layer.linear.bias": torch.ones(23)}, config)
    with pytest.raises(
        ValueError,
        match=r"^checkpoint kind 'dit': accepted are dit_ddt, vggt, geometry_adapter, gen3r_transformer, wan_",
    ):
        convert("dit", state, config)


def test_a_configuration_that_lacks_a_key_or_a_pair_is_refused_by_file_and_key(golden, tmp_path):
    config, state = published(golden, "plain")
    for key in ("input_size", "patch_size", "in_channels", "hidden_size", "mlp_ratio", "num_classes", "use_qknorm"):
        less = {name: value for name, value in config.items() if name != key}
        with pytest.raises(ValueError, match=rf"^[^\n]*config\.yaml: '{key}' is missing; accepted are [^\n]*$"):
            convert("dit_ddt", state, less, source=tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"^dit_ddt's config: 'depth' is 28; accepted is a pair$"):
        convert("dit_ddt", state, config | {"depth": 28})
    with pytest.raises(ValueError, match=r"^dit_ddt's config: 'mlp_ratio' is None; accepted is a number$"):
        convert("dit_ddt", state, config | {"mlp_ratio": None})
    with pytest.raises(ValueError, match=r"^dit_ddt: 1 unknown weights, first 'blocks'$"):
        convert("dit_ddt", state | {"blocks": torch.ones(3)}, config)


def test_shifted_times_are_raes(schedules):
    for count in (256, 1024):
        shift = dimension_shift(count, 768)
        assert shift == pytest.approx(schedules.config[f"alpha_{count}x768"])
        grid = shifted(1 - torch.linspace(0, 0.999, 50), shift)  # RAE's own grid, which stops before 0
        found = {"shift": shifted(schedules.inputs[f"u_{count}"], shift), "sampling_grid": grid}
        schedules.check(**{f"rae_{name}_{count}x768": value for name, value in found.items()})


def test_path_and_velocity_are_raes(schedules):
    data, noise, t = (schedules.inputs[name] for name in ("data", "noise", "t"))
    schedules.check(rae_xt=interpolate(data, noise, t), rae_ut=velocity(data, noise))
