import json

import pytest
import torch
from tests.miniature import dit3d, images, path, pipeline

from diorama.pipelines.base import PIPELINES, embedded_models, find_model, load, pick_device
from diorama.scene import Condition, Views


@pytest.fixture
def folder(tmp_path):
    pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refusal(*arguments, **options):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load(*arguments, **options)
    return str(error.value)


def test_saving_and_loading_keeps_every_bit(model, folder):
    again = load(folder, device="cpu")
    for name in ("autoencoder", "denoiser"):
        before, after = (getattr(made, name).state_dict() for made in (model, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) and after[key].dtype == torch.float32 for key in before)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: v for k, v in model.config.items() if k[0] != "_"
    }
    condition, cameras = Condition(Views(images()), (0,)), path()
    one, two = (made.generate(condition, cameras, seed=3) for made in (model, again))
    assert torch.equal(one.latents, two.latents)
    assert torch.equal(one.views.images, two.views.images) and torch.equal(one.views.points, two.views.points)


def test_a_folder_may_be_a_string(folder):
    assert load(str(folder), "cpu").config.title == "miniature"


def test_a_model_that_is_not_there(tmp_path):
    found = refusal("no-such-model")
    assert found.startswith("model 'no-such-model': neither an embedded model (")
    assert found.endswith("nor a folder with model_index.json")
    assert "neither an embedded model" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"TokenPipeline"'])
def test_an_index_that_is_none(folder, text):
    (folder / "model_index.json").write_text(text)
    assert refusal(folder) == f"{folder}/model_index.json: not a pipeline's index (JSON with _class_name)"


def test_a_pipeline_of_another_class(folder):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    found = refusal(folder)
    accepted = ", ".join(PIPELINES)
    assert found == f"{folder}/model_index.json: pipeline 'StableDiffusionPipeline', accepted are {accepted}"


@pytest.mark.parametrize("part", ["autoencoder", "denoiser"])
def test_broken_weights(folder, part):
    weights = folder / part / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert refusal(folder).startswith(f"{weights}: not a readable safetensors file")
    weights.write_bytes(b"\x80\x02}q\x00.")  # a pickle
    assert refusal(folder).startswith(f"{weights}: not a readable safetensors file")
    weights.unlink()
    assert refusal(folder).startswith(f"{weights}: missing")


def test_the_denoisers_weights_in_the_autoencoders_place(folder):
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / "denoiser" / name).rename(folder / "autoencoder" / name)
    assert refusal(folder).startswith(f"{folder}/autoencoder/config.json: no config of RAE3D (found DiT3D)")


@pytest.mark.parametrize("text", [None, "{"])
def test_a_schedule_that_is_missing_or_broken(folder, text):
    file = folder / "scheduler" / "scheduler_config.json"
    file.unlink() if text is None else file.write_text(text)
    assert str(folder) in refusal(folder)


def test_models_that_do_not_belong_together(folder):
    config = folder / "denoiser" / "config.json"
    dit3d(tokens=7).save_pretrained(folder / "denoiser")
    assert json.loads(config.read_text())["tokens"] == 7
    assert refusal(folder) == f"{folder}: the denoiser's latents are (7, 32), the autoencoder's (6, 32)"


def test_an_option_of_another_version(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"warp": 9}))
    found = refusal(folder)
    assert found.startswith(f"{folder}: not a TokenPipeline (") and "'warp'" in found


@pytest.mark.parametrize("device", ["tpu", "cuda", "mps", "CPU"])
def test_a_device_that_is_not_here(folder, device):
    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(device):
        pytest.skip(f"{device} is here")
    assert refusal(folder, device=device).startswith(f"device '{device}': accepted here are auto, ")


def test_auto_is_the_best_device_that_is_here():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto") == torch.device(best) and pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", embedded_models())
def test_embedded_models_load(name):
    assert load(name, "cpu").config.licence != "unknown"


def test_published_models_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    for name in ("gen3r", "vggt"):
        found = refusal(name)
        assert str(tmp_path / "cache" / name) in found and f"'diorama download {name}'" in found
    (tmp_path / "cache/gen3r/geo_adapter").mkdir(parents=True)
    kind, home = find_model("gen3r")
    assert (kind.__name__, kind.staged, home) == ("Gen3RPipeline", True, tmp_path / "cache/gen3r")
    (tmp_path / "gen3r/geo_adapter").mkdir(parents=True)  # what lies here comes first
    assert find_model("gen3r")[1].resolve() == tmp_path / "gen3r"
    assert refusal("gen3r", offload="disk") == "offload 'disk': accepted are none, stages, blocks"
    assert not find_model("tiny")[0].staged
