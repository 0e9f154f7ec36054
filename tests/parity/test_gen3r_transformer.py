"""Gen3RTransformer with Gen3R's published weight names against Gen3R's published code."""

import inspect

import pytest
import torch

from diorama.models.checkpoints import convert
from diorama.models.gen3r_transformer import PIXELS, Gen3RTransformer

from .golden import load


@pytest.fixture(scope="module")
def golden():
    return load("gen3r_transformer")


@pytest.fixture(scope="module")
def state(golden):
    return golden.state()


@pytest.fixture(scope="module")
def models(golden, state):
    """One with the rotary table of both halves, one with Wan's own; the weights are the same."""
    arguments, ours = convert("gen3r_transformer", state, golden.config["constructor"])
    made = {tiled: Gen3RTransformer(**arguments, tiled_rope=tiled).eval() for tiled in (True, False)}
    for model in made.values():
        model.load_state_dict(ours)
    return made


@torch.no_grad()
def velocity(golden, model, suffix="", camera=True):
    given = golden.inputs
    return model(
        torch.cat([given[f"x{suffix}"], given[f"y{suffix}"]], 1),
        given["t"],
        given["context_0"][None],
        given["clip_fea"],
        control=given[f"y_camera{suffix}"] if camera else None,
    ).sample


def test_the_prediction(golden, models):
    golden.check(out=velocity(golden, models[True]), out_no_camera=velocity(golden, models[True], camera=False))


def test_positions_are_chosen_by_the_configuration(golden, models):
    golden.check(
        out_plain_rope=velocity(golden, models[False]),
        out_square=velocity(golden, models[False], "_square"),
        out_square_tiled=velocity(golden, models[True], "_square"),
    )


@torch.no_grad()
def test_the_camera_adapter(golden, models):
    control = golden.inputs["y_camera"].transpose(1, 2)
    folded = torch.nn.functional.pixel_unshuffle(control, PIXELS).transpose(1, 2)
    golden.check(control_adapter=models[True].patch_embedding.control(folded))


@pytest.mark.parametrize(
    ("probe", "place"),
    [
        ("norm1_small", "blocks.0.norm1"),
        ("norm3_small", "blocks.0.norm2"),
        ("norm_q_small", "blocks.0.attn1.norm_q"),
        ("norm_k_img_small", "blocks.0.attn2.norm_added_k"),
        ("head_norm_small", "norm_out"),
        ("ffn", "blocks.0.ffn"),
        ("img_emb", "condition_embedder.image_embedder"),
        ("text_embedding", "condition_embedder.text_embedder"),
    ],
)
@torch.no_grad()
def test_a_part_by_itself(golden, models, probe, place):
    golden.check(**{f"probe_{probe}": models[True].get_submodule(place)(golden.inputs[f"probe_{probe}"])})


def test_every_name_of_the_published_size_has_its_place(golden):
    larger = {96: 1536, 576: 9216, 32: 4096}  # from the fixture's widths to the published ones
    names = {}
    for name, shape in golden.config["weights"]["entries"].items():
        widths = larger | {256: 8960} if ".ffn." in name else larger
        shape = [widths.get(size, size) for size in shape]
        copies = 30 if name.startswith("blocks.0.") else 1
        if not name.startswith("blocks.1."):
            names |= {
                name.replace("blocks.0.", f"blocks.{i}.", 1): torch.empty(shape, device="meta") for i in range(copies)
            }
    config = dict(
        in_dim=36, dim=1536, ffn_dim=8960, freq_dim=256, text_dim=4096, out_dim=16, num_heads=12, num_layers=30,
        eps=1e-6, in_dim_control_adapter=24,
    )  # fmt: skip
    arguments, ours = convert("gen3r_transformer", names, config)
    assert len(ours) == len(names)
    assert sum(tensor.numel() for tensor in ours.values()) == 1_616_337_728
    defaults = inspect.signature(Gen3RTransformer.__init__).parameters
    assert arguments == {name: defaults[name].default for name in arguments}


def test_what_is_missing_or_unknown_is_told_by_its_published_name(golden, state):
    config, name = golden.config["constructor"], "blocks.1.cross_attn.norm_k_img.weight"
    with pytest.raises(ValueError, match=rf"^gen3r_transformer: 1 weights missing, first '{name}'$"):
        convert("gen3r_transformer", {n: t for n, t in state.items() if n != name}, config)
    with pytest.raises(ValueError, match=r"^gen3r_transformer: 1 weights unknown, first 'blocks.2.modulation'$"):
        convert("gen3r_transformer", state | {"blocks.2.modulation": torch.zeros(1, 6, 96)}, config)
    with pytest.raises(
        ValueError, match=r"^gen3r_transformer's config: 'num_heads' is missing; accepted are in_dim, dim"
    ):
        convert("gen3r_transformer", state, {k: v for k, v in config.items() if k != "num_heads"})
    with pytest.raises(
        ValueError, match=r"^gen3r_transformer's config: 'num_heads' is 7; accepted are divisors of 96$"
    ):
        convert("gen3r_transformer", state, config | {"num_heads": 7})
