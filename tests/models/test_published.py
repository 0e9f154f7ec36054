"""Gen3R's published layout read from disk: what comes out, what it costs, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import published_gen3r as published
from torch.utils._python_dispatch import TorchDispatchMode

from diorama.models.checkpoints import convert
from diorama.models.published import GEN3R, is_gen3r, read_gen3r, read_model, read_weights

NAMES = {folder: (name, kind) for name, (folder, kind) in GEN3R.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("gen3r") / "published")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "gen3r")


def test_all_components_come_with_their_weights(whole):
    made = read_gen3r(whole, dtype=torch.float32)
    assert made.keys() == {*GEN3R, "tokenizer", "scheduler"}
    for folder, (name, kind) in NAMES.items():
        expected = convert(kind, published.state(folder), published.CONFIGS[folder])[1]
        found = made[name].state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
        assert not made[name].training and not any(buffer.is_meta for buffer in made[name].buffers())
    assert made["scheduler"].config.shift == 2
    ids = made["tokenizer"](["a red room"], padding="max_length", max_length=16).input_ids[0]
    assert made["tokenizer"].decode(ids, skip_special_tokens=True) == "a red room"
    assert ids[-1] == made["tokenizer"].pad_token_id == 0


def test_half_precision_spares_what_diffusers_spares_and_survives_saving(whole, tmp_path):
    for name, model in read_gen3r(whole, only=list(GEN3R)).items():
        model.save_pretrained(tmp_path / name)
        option = "dtype" if name in ("text_encoder", "image_encoder") else "torch_dtype"
        again = type(model).from_pretrained(tmp_path / name, **{option: torch.bfloat16}).state_dict()
        found = model.state_dict()
        assert found.keys() == again.keys()
        assert all(found[key].dtype == again[key].dtype and torch.equal(found[key], again[key]) for key in found)
        wide = {key for key, tensor in found.items() if tensor.dtype == torch.float32}
        assert {"vggt": "readout.camera.empty_code" in wide, "transformer": "scale_shift_table" in wide}.get(
            name, not wide
        )


def test_words_have_one_table(whole):
    model = read_gen3r(whole, only=("text_encoder",))["text_encoder"]
    assert model.shared.weight is model.encoder.embed_tokens.weight


class Written(TorchDispatchMode):
    """Bytes of new tensors by dtype, but for those that are merely reserved."""

    def __init__(self):
        super().__init__()
        self.bytes = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        if isinstance(out, torch.Tensor) and out.device.type == "cpu" and "empty" not in str(function):
            known = [a.untyped_storage().data_ptr() for a in arguments if isinstance(a, torch.Tensor) and not a.is_meta]
            if out.untyped_storage().data_ptr() not in known:
                self.bytes[out.dtype] = self.bytes.get(out.dtype, 0) + out.nbytes
        return out


@pytest.mark.parametrize("kind", ["umt5", "clip_vision", "wan_vae", "geometry_adapter"])
def test_no_copy_in_full_precision_ever_exists(whole, kind):
    place = next(folder for folder, (_, other) in NAMES.items() if other == kind)
    with Written() as written:
        model = read_model(kind, whole / place)
    stored = sum(parameter.nbytes for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert stored <= written.bytes[torch.bfloat16] <= 1.01 * stored
    assert written.bytes.get(torch.float32, 0) < 0.03 * stored  # transformers makes its norms' ones


@pytest.mark.parametrize("form", ["one file", "no index", "pickle"])
def test_shards_single_files_and_pickles_are_the_same(folder, form):
    place = folder / "text_encoder"
    expected = read_weights(place)
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    (place / f"{published.WEIGHTS}.index.json").unlink()
    if form != "no index":
        for file in place.glob("*.safetensors"):
            file.unlink()
    if form == "one file":
        save_file(expected, place / published.WEIGHTS)
    if form == "pickle":
        torch.save(expected, place / "models_t5_umt5-xxl-enc-bf16.pth")
    found = read_weights(place)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_layout_is_recognised(whole, tmp_path):
    assert is_gen3r(whole) and not is_gen3r(tmp_path) and not is_gen3r(whole / "vggt")


def refusal(folder, **options):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read_gen3r(folder, **options)
    return str(error.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize("place", list(published.CONFIGS))
def test_a_wrong_checkpoint_is_refused_in_one_line_with_its_folder(folder, place):
    only = (NAMES[place][0],)
    file = sorted((folder / place).glob("*.safetensors"))[-1]
    good, content = load_file(file), file.read_bytes()
    name = max(name for name in good if "textual" not in name and "log_scale" not in name)
    plain = name.removeprefix("model.") if all(key.startswith("model.") for key in good) else name
    extra = name.replace(plain, "zoom.weight")
    for change, says in (
        ({name: None}, f"1 weights missing, first {plain!r}"),
        ({extra: torch.ones(1)}, "1 weights unknown, first 'zoom.weight'"),
        ({name: torch.ones(3, 1, 7)}, f"weight {plain!r} of shape (3, 1, 7), expected {tuple(good[name].shape)}"),
        (
            {name: good[name].to(torch.int8)},
            f"weight {plain!r} of int8, accepted are float32, bfloat16, float16, float64",
        ),
    ):
        save_file({key: tensor for key, tensor in (good | change).items() if tensor is not None}, file)
        assert refusal(folder, only=only) == f"FOLDER/{place}: {published.KINDS_OF[place]}: {says}"
    file.write_bytes(content[:-5])
    assert refusal(folder, only=only).startswith(f"FOLDER/{place}/{file.name}: not a readable safetensors file (")
    file.unlink()
    found = refusal(folder, only=only)
    assert found.startswith(f"FOLDER/{place}") and ("missing; diffusion_" in found or "no weights; accepted" in found)
    shutil.rmtree(folder / place)
    assert refusal(folder, only=only).startswith(
        f"FOLDER/{place}: missing; a published Gen3R holds the folders transformer, wan_"
    )


@pytest.mark.parametrize("text", [None, "", "[]", '{"vocab": "many"}'])
def test_a_config_that_is_none(folder, text):
    file = folder / "text_encoder/config.json"
    file.unlink() if text is None else file.write_text(text)
    assert refusal(folder, only=("text_encoder",)).startswith("FOLDER/text_encoder/config.json: ")


def test_other_broken_files(folder):
    place = folder / "text_encoder"
    index = place / f"{published.WEIGHTS}.index.json"
    index.write_text("{}")
    assert refusal(folder, only=("text_encoder",)).startswith(f"FOLDER/text_encoder/{index.name}: no 'weight_map'")
    index.unlink()
    file = sorted(place.glob("*.safetensors"))[0]
    shutil.copy(file, place / "zoom.safetensors")
    assert "zoom.safetensors: 'blocks.0" in refusal(
        folder, only=("text_encoder",)
    ) and "stands in another file" in refusal(folder, only=("text_encoder",))
    for file in place.glob("*.safetensors"):
        file.unlink()
    torch.save({"weights": [1, 2]}, place / "a.pth")
    assert refusal(folder, only=("text_encoder",)).startswith(
        "FOLDER/text_encoder/a.pth: something else than names with tensors"
    )
    torch.save({"path": folder}, place / "a.pth")  # a class of Python's, which might do anything
    assert refusal(folder, only=("text_encoder",)).startswith(
        "FOLDER/text_encoder/a.pth: not a readable file of tensors ("
    )
    (place / "a.pth").write_bytes(b"")
    assert refusal(folder, only=("text_encoder",)).startswith(
        "FOLDER/text_encoder/a.pth: not a readable file of tensors ("
    )


def test_tokenizer_and_scheduler_are_looked_for_where_they_are_published(folder):
    (folder / "tokenizer/tokenizer.json").write_text("{")
    assert refusal(folder, only=("tokenizer",)).startswith("FOLDER/tokenizer: no tokenizer (")
    (folder / "scheduler/scheduler_config.json").unlink()
    assert refusal(folder, only=("scheduler",)).startswith("FOLDER/scheduler/scheduler_config.json: missing")
    assert refusal(folder, only=("denoiser",)).startswith("component 'denoiser': accepted are transformer, vae, ")


def test_nothing_is_built_before_all_is_looked_at(folder):
    config = folder / "clip_image_encoder/config.json"
    config.write_text(json.dumps(published.CONFIGS["clip_image_encoder"] | {"vision_layers": 4}))
    with Written() as written:
        assert refusal(folder).startswith(
            "FOLDER/clip_image_encoder: clip_vision: 12 weights missing, first 'visual.tr"
        )
    assert sum(written.bytes.values()) < 2**20
