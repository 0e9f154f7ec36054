"""The denoiser of two halves by its symmetries; tests/parity compares it with the published one."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from tests.miniature import lively

from diorama.models.gen3r_transformer import Gen3RTransformer

SMALL = dict(
    num_attention_heads=2, attention_head_dim=12, in_channels=9, out_channels=4, text_dim=6, freq_dim=16, ffn_dim=32,
    num_layers=2, image_dim=10, added_kv_proj_dim=24, control_channels=3,
)  # fmt: skip


def transformer(**changes):
    torch.manual_seed(0)
    return lively(Gen3RTransformer(**SMALL | changes))


@pytest.fixture(scope="module")
def model():
    return transformer()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(height=4, width=8, batch=1):
    """Latents, time, text, image tokens; and the cameras' control."""
    given = dict(
        hidden_states=noise(batch, 9, 2, height, width),
        timestep=torch.linspace(100, 900, batch),
        encoder_hidden_states=noise(batch, 7, 6, seed=1),
        encoder_hidden_states_image=noise(batch, 257, 10, seed=2),
    )
    return given | {"control": noise(batch, 3, 2, 8 * height, 8 * width, seed=3)}


def swapped(x):
    return x.roll(x.shape[-1] // 2, -1)


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        model = Gen3RTransformer()
    assert sum(p.numel() for p in model.parameters()) == 1_616_337_728
    assert sum(p.numel() for p in model.patch_embedding.control.parameters()) == 51_909_120


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(4, 8), (8, 8), (8, 4), (2, 12)])
def test_the_halves_share_their_positions_whatever_the_shape(model, height, width):
    """Nothing but the position could tell the halves apart, so exchanging them exchanges the outputs."""
    given = inputs(height, width) | {"control": None}
    before = model(**given).sample
    after = model(**given | {"hidden_states": swapped(given["hidden_states"])}).sample
    torch.testing.assert_close(after, swapped(before), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_tiling_positions_run_on():
    model, given = transformer(tiled_rope=False), inputs() | {"control": None}
    before = model(**given).sample
    after = model(**given | {"hidden_states": swapped(given["hidden_states"])}).sample
    assert (after - swapped(before)).abs().max() > 1e-3


@torch.no_grad()
def test_everything_the_denoiser_is_told_matters(model):
    given = inputs()
    before = model(**given).sample
    assert before.shape == (1, 4, 2, 4, 8)
    for name, value in given.items():
        after = model(**given | {name: value + noise(*value.shape, seed=9)}).sample
        assert (after - before).abs().max() > 1e-3, name
    rolled = model(**given | {"hidden_states": given["hidden_states"].roll(2, -2)}).sample
    assert (rolled.roll(-2, -2) - before).abs().max() > 1e-3, "a row's index must matter"


@torch.no_grad()
def test_no_control_is_not_a_control_of_zeros(model):
    given = inputs()
    none = model(**given | {"control": None}).sample
    zeros = model(**given | {"control": torch.zeros_like(given["control"])}).sample
    assert (none - zeros).abs().max() > 1e-3  # the adapter has biases, which "no camera" of the training includes


@torch.no_grad()
def test_control_stays_near_the_patch_it_belongs_to(model):
    """A patch embeds its 16x16 pixels of control and, through two 3x3 convolutions, those of two patches around."""
    given = inputs(12, 16)
    embedded = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, arguments: embedded.append(arguments[0]))
    model(**given)
    given["control"][:, :, 1, 5 * 16 + 3, 4 * 16 + 9] += 1  # frame 1, patch in row 5, column 4
    model(**given)
    hook.remove()
    changed = (embedded[0] - embedded[1]).abs().amax((0, 2)).unflatten(0, (2, 6, 8)) > 0
    expected = torch.zeros_like(changed)
    expected[1, 3:, 2:7] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
@pytest.mark.parametrize("words", [0, 7, 31, 32, 500, 512])
def test_text_is_read_as_filled_up_with_zeros_to_512_tokens(words):
    model, given = transformer(), inputs(batch=2)
    text = noise(2, words, 6, seed=1)
    short = model(**given | {"encoder_hidden_states": text}).sample
    full = torch.cat([text, torch.zeros(2, 512 - words, 6)], 1)
    for block in model.blocks:
        block.attn2.processor = WanAttnProcessor()  # diffusers' own, which reads every zero
    torch.testing.assert_close(short, model(**given | {"encoder_hidden_states": full}).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other(model):
    given = inputs(batch=2)
    both = model(**given, return_dict=False)[0]
    one = model(**{name: value[1:] for name, value in given.items()}).sample
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter():
    model = transformer().train()
    model(**inputs()).sample.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_checkpointing_changes_no_gradient():
    model = transformer().train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(**inputs()).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@torch.no_grad()
def test_saving_and_loading_gives_the_same_model(tmp_path):
    model = transformer(tiled_rope=False)
    model.save_pretrained(tmp_path)
    again = Gen3RTransformer.from_pretrained(tmp_path)
    assert {key: value for key, value in again.config.items() if key in SMALL} == SMALL
    assert again.config.tiled_rope is False
    torch.testing.assert_close(again(**inputs()).sample, model(**inputs()).sample, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match=r"^latents 6 wide: accepted are multiples of 4, two halves of whole patches$"):
        model(**inputs(4, 6))
    with pytest.raises(ValueError, match=r"^text of 513 tokens: accepted are at most 512$"):
        model(**inputs() | {"encoder_hidden_states": noise(1, 513, 6)})
    with pytest.raises(ValueError, match=r"^camera control of shape \(3, 2, 4, 8\): accepted is \(3, 2, 32, 64\)$"):
        model(**inputs() | {"control": noise(1, 3, 2, 4, 8)})
