"""Gen3R's published layout, in miniature, through a pipeline and into a folder of ours."""

import json
import shutil

import pytest
import torch
from tests.miniature import images, path

from diorama.pipelines.base import load
from diorama.pipelines.gen3r import Gen3RPipeline
from diorama.scene import Condition, Shot, Views

SIDE = 112


@pytest.fixture(scope="module")
def saved(gen3r, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "gen3r"
    gen3r.save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "broken")


def refusal(folder, **options):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load(folder, "cpu", **options)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_the_published_layout_is_known_by_what_lies_in_it(gen3r_folder, tmp_path, gen3r_home):
    bare = shutil.copytree(gen3r_folder, tmp_path / "bare")
    (bare / "model_index.json").unlink()
    for folder in (gen3r_folder, bare):
        made = load(folder, "cpu")
        assert isinstance(made, Gen3RPipeline) and made.text_encoder is None
        config = made.config
        assert (config.pixels, config.views, config.steps, config.guidance) == (560 * 560, 49, 50, 5.0)
        assert (config.negative_prompt, config.parity, made.scheduler.config.shift) == ("bad detailed", False, 2.0)
        assert "non-commercial" in config.licence


def test_what_was_saved_makes_the_same(gen3r, saved, monkeypatch, tmp_path):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))  # or the text of one would be read for the other
    again = load(saved, "cpu")
    assert type(again) is type(gen3r) and again.config.steps == gen3r.config.steps == 2
    for name in ("transformer", "vae", "adapter", "vggt", "image_encoder"):
        before, after = (getattr(made, name).state_dict() for made in (gen3r, again))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    condition = Condition(Views(images(1, SIDE, SIDE)), (0,), "a red room")
    one, two = (made.generate(condition, path(5, SIDE, SIDE), seed=3) for made in (gen3r, again))
    torch.testing.assert_close(one.latents, two.latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.views.images, two.views.images, atol=1e-4, rtol=1e-4)
    one, two = (made.reconstruct(Views(images(5, SIDE, SIDE)), steps=0) for made in (gen3r, again))
    torch.testing.assert_close(one.views.points, two.views.points, atol=1e-3, rtol=1e-3)


def test_half_precision_stays_half_but_for_what_needs_digits(gen3r_folder, tmp_path, gen3r_home):
    half = load(gen3r_folder, "cpu", dtype=torch.bfloat16)
    assert half.transformer.dtype == half.vae.dtype == half.adapter.dtype == half.vggt.dtype == torch.bfloat16
    assert {p.dtype for p in half.vggt.readout.parameters()} == {torch.float32}
    half.save_pretrained(tmp_path / "half")
    again = load(tmp_path / "half", "cpu", dtype=torch.bfloat16)
    assert again.text_source().dtype == torch.bfloat16
    before, after = half.transformer.state_dict(), again.transformer.state_dict()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    scene = again.generate(Condition(Views(images(1, SIDE, SIDE)), (0,)), Shot(5, SIDE, SIDE), steps=1)
    assert scene.latents.dtype == torch.float32 and scene.views.points.isfinite().all()


def test_the_index_that_saved_pipelines_are_found_by(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert {key: value for key, value in index.items() if isinstance(value, list)} == {
        "adapter": ["diorama.models.geometry_adapter", "GeometryAdapter"],
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diorama.models.gen3r_transformer", "Gen3RTransformer"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "vggt": ["diorama.models.vggt", "VGGT"],
    }


@pytest.mark.parametrize(
    "part", ["transformer", "vae", "adapter", "vggt", "image_encoder", "text_encoder", "scheduler", "tokenizer"]
)
def test_a_part_that_is_missing(broken, part):
    shutil.rmtree(broken / part)
    assert part in refusal(broken)


@pytest.mark.parametrize("part", ["transformer", "vae", "adapter", "vggt", "image_encoder", "text_encoder"])
def test_weights_that_are_cut_off(broken, part):
    (weights,) = (broken / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-64])
    assert part in refusal(broken)


def test_an_option_of_another_version(broken):
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps(index | {"warp": 9}))
    assert "'warp'" in refusal(broken)


def test_ways_of_loading_that_there_are_not(saved, tiny_pipeline_folder):
    with pytest.raises(ValueError, match=r"^offload 'disk': accepted are none, stages, blocks$"):
        load(saved, "cpu", offload="disk")
    assert "a TokenPipeline is loaded as it is; accepted is no offload" in refusal(
        tiny_pipeline_folder, offload="stages"
    )
