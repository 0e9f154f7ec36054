"""Folders that `check_weights` refuses; what it accepts, tests/pipelines loads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.miniature import dit3d, rae3d

from diorama.models.checkpoints import WEIGHTS_FILE, check_weights
from diorama.models.rae3d import RAE3D


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
