"""The discriminator of RAE: a frozen DINO ViT-S/16 and five heads, evaluation mode."""

import pytest
import torch
from tests.published_dino import published

from diorama.models.discriminator import TRUNK_FILES, TRUNKS, Discriminator, Trunk, load_trunk

from .golden import load, weights

OURS = {"weight_orig": "parametrizations.weight.original"} | {
    f"weight_{letter}": f"parametrizations.weight.0._{letter}" for letter in "uv"
}


@pytest.fixture(scope="module")
def golden():
    return load("dino_discriminator")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> Trunk:
    """The file's weights, keys' biases included, which the reference sets to 0: a softmax does not see them."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "dino").mkdir()
    torch.save(weights(published(384, 12, 16, 14), "dino."), folder / "dino" / TRUNK_FILES["dino-s16"][0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIORAMA_CACHE", str(folder))
        return load_trunk("dino-s16")


@torch.no_grad()
def test_features_and_logits_are_the_references(golden, trunk):
    told = golden.config["constructor"]
    assert TRUNKS["dino-s16"]["taps"] == tuple(told["key_depths"])
    heads = Discriminator(trunk.channels, told["ks"]).eval()
    names = {name: name.rpartition(".") for name in golden.state()}
    state = {f"{stem}.{OURS.get(leaf, leaf)}": golden.state()[name] for name, (stem, _, leaf) in names.items()}
    heads.load_state_dict(state)
    features = trunk((golden.inputs["image"] + 1) / 2)
    assert len(features) == golden.config["number_of_heads"]
    golden.check(features_last=features[0], features_first_key=features[1], logits=heads(features))


@torch.no_grad()
def test_the_activation_is_the_approximate_one(golden, trunk):
    """The reference's numbers can tell the two apart."""
    exact = Trunk(**TRUNKS["dino-s16"] | dict(gelu="none")).eval()
    exact.load_state_dict(trunk.state_dict())
    with pytest.raises(AssertionError, match="features_last"):
        golden.check(features_last=exact((golden.inputs["image"] + 1) / 2)[0])
