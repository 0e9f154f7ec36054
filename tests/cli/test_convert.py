"""`diorama convert`: what it writes loads as the published weights do; what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import published_gen3r, published_vggt

from diorama.models.published import GEN3R, is_gen3r, read_gen3r
from diorama.pipelines.base import load


@pytest.fixture
def published(tmp_path) -> Path:
    """Gen3R as published, in the folder where commands run."""
    folder = published_gen3r.write(tmp_path / "published")
    (folder / "LICENSE.txt").write_text("terms")
    return Path("published")


def stored(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_gen3r_becomes_a_pipeline_of_ours_that_holds_the_same(command, published):
    result = command("convert", published, "deep/ours")
    assert result.code == 0, result.err
    assert "deep/ours: 0.00 GB in bfloat16, from 0.01 GB; use it as --model deep/ours" in result.out
    ours = Path("deep/ours")
    assert {place.name for place in ours.iterdir()} == {
        *GEN3R, "tokenizer", "scheduler", "model_index.json", "LICENSE.txt",
    }  # fmt: skip
    index = json.loads((ours / "model_index.json").read_text())
    assert index["_class_name"] == "Gen3RPipeline" and "non-commercial" in index["licence"] and index["views"] == 49
    assert not is_gen3r(ours) and not [place for place in ours.rglob("*") if ".part" in place.name]
    for name, model in read_gen3r(published, only=list(GEN3R)).items():
        found, expected = stored(ours / name), model.state_dict()
        assert expected.keys() - found.keys() <= {"encoder.embed_tokens.weight"}  # tied: it stands there once
        assert all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in found)
    assert all(str(Path.cwd()) not in file.read_text() for file in ours.rglob("*.json"))


def test_what_is_written_loads_as_what_was_read(command, published):
    assert command("convert", published, "ours", "--dtype", "float32").code == 0
    pipelines = [load(folder, "cpu") for folder in (published, "ours")]
    assert pipelines[0].config.keys() == pipelines[1].config.keys()
    for name in ("transformer", "vae", "adapter", "vggt", "image_encoder"):
        one, other = (getattr(pipeline, name).state_dict() for pipeline in pipelines)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert pipelines[0].scheduler.config.shift == pipelines[1].scheduler.config.shift == 2


def test_vggt_becomes_a_pipeline_of_ours(command, tmp_path):
    published_vggt.write(tmp_path / "vggt")
    assert command("convert", "vggt", "ours").code == 0
    model, expected = load("ours", "cpu").vggt.state_dict(), load("vggt", "cpu").vggt.state_dict()
    kept = [key for key in model if key.startswith("readout.")]
    assert kept and all(torch.equal(model[key], expected[key]) for key in kept)
    assert all(torch.equal(model[key], expected[key].bfloat16().float()) for key in model if key not in kept)
    assert "README.md" in {file.name for file in Path("ours").iterdir()}


def test_what_is_refused(command, published):
    assert command.refused("convert", "nowhere", "ours") == "nowhere: no folder; accepted is one of published weights"
    assert command.refused("convert", published, published).startswith("published: exists already")
    shutil.copytree(published / "wan_vae", "part")
    assert command.refused("convert", "part", "ours").startswith(
        "part: no weights that we know; accepted are Gen3R and"
    )
    assert command.refused("convert", command.model, "ours").endswith("as they were published")
    assert "ours already" in command.refused("convert", command.model, "ours")
    file = published / "geo_adapter" / published_gen3r.WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])
    assert command.refused("convert", published, "ours").startswith(f"{file}: not a readable safetensors file (")
    shutil.rmtree(published / "tokenizer")
    assert command.refused("convert", published, "ours").startswith("published/tokenizer: missing; a published Gen3R")


def test_a_broken_tokenizer_leaves_nothing(command, published):
    (published / "tokenizer/tokenizer.json").write_text("{")
    assert command.refused("convert", published, "ours").startswith("published/tokenizer: no tokenizer (")
