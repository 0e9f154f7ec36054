"""GeometryAdapter with Gen3R's published weight names against Gen3R's published code, and its packing of tokens."""

import pytest
import torch

from diorama.models.checkpoints import convert
from diorama.models.geometry_adapter import GeometryAdapter, pack_tokens, unpack_tokens

from .golden import load


@pytest.fixture(scope="module")
def golden():
    return load("geometry_adapter")


@pytest.fixture(scope="module")
def state(golden):
    return golden.state()


@pytest.fixture(scope="module")
def model(golden, state):
    arguments, ours = convert("geometry_adapter", state, golden.config["constructor"])
    model = GeometryAdapter(**arguments).eval()
    model.load_state_dict(ours)
    return model


@torch.no_grad()
def test_the_posterior(golden, model):
    posterior = model.encode(golden.inputs["tokens"])
    found = {"mean": posterior.mean, "logvar": posterior.logvar}
    means = {f"{name}_channel_time_mean": value.mean((3, 4)) for name, value in found.items()}
    golden.check(**found, **means)


@torch.no_grad()
def test_the_posterior_of_a_wide_clip_in_chunks(golden, model):
    posterior = model.encode(golden.inputs["tokens_rect"], chunk=1)
    golden.check(mean_rect=posterior.mean, logvar_rect=posterior.logvar)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, 2])
def test_decoded_tokens(golden, model, chunk):
    decoded = model.decode(golden.inputs["latents"], chunk=chunk)
    golden.check(
        decoded=decoded,
        decoded_channel_time_mean=decoded.mean((3, 4)),
        decoded_channel_time_std=decoded.std((3, 4), correction=0),
    )


def test_packing():
    golden = load("token_packing")
    layers = [golden.inputs[f"tokens_{index}"] for index in golden.config["constructor"]["intermediate_layer_idx"]]
    golden.check(packed=pack_tokens(layers, 4, 4), token_list=torch.stack(unpack_tokens(golden.inputs["unpack"])))


def test_the_trainers_own_export_is_the_same_weights(golden, state):
    export = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    export |= {"mean": torch.zeros(16), "std": torch.ones(16)}
    arguments, ours = convert("geometry_adapter", export, golden.config["constructor"])
    expected_arguments, expected = convert("geometry_adapter", state, golden.config["constructor"])
    assert arguments == expected_arguments and ours.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())


def test_what_is_missing_unknown_or_of_another_shape_is_told_by_its_published_name(golden, state):
    config, name = golden.config["constructor"], "model.decoder.upsamples.7.time_conv.weight"
    with pytest.raises(ValueError, match=r"^geometry_adapter: 1 weights missing, first 'decoder.upsamples.7.time_conv"):
        convert("geometry_adapter", {n: t for n, t in state.items() if n != name}, config)
    with pytest.raises(ValueError, match=r"^geometry_adapter: 1 weights unknown, first 'decoder.upsamples.15.bias'$"):
        convert("geometry_adapter", state | {"model.decoder.upsamples.15.bias": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"time_conv.weight' of shape \(3,\), expected \(32, 16, 3, 1, 1\)$"):
        convert("geometry_adapter", state | {name: torch.zeros(3)}, config)
    with pytest.raises(ValueError, match=r"^folder/config.json: 'hidden_dim' is missing; accepted are latent_channels"):
        convert("geometry_adapter", state, {"latent_channels": 16}, source="folder/config.json")
