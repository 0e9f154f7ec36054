from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.miniature import DIM, TOKENS, path, rae3d
from tests.training.conftest import SIDE

from diorama.data.cache import WorldsCache, write_cache
from diorama.pipelines.base import load
from diorama.scene import Condition, Views
from diorama.training import dit3d as module
from diorama.training.dit3d import Config, DiT3DStage, Latents, _known_places
from diorama.training.trainer import Trainer, step_generator


@pytest.fixture
def config(worlds, tmp_path):
    rae3d().save_pretrained(tmp_path / "autoencoder")
    return Config(
        out=tmp_path / "run", **worlds, autoencoder=tmp_path / "autoencoder", size="miniature", steps=4, batch=8,
        learning_rate=1e-3, warmup=0, precision="32-true", device="cpu", encoder_views=4, visible=(1, 2), samples=3,
    )  # fmt: skip


def loss(stage, batch):
    ((phase, found),) = stage.phases(batch, step_generator(0, 0, 1))
    assert phase == "velocity"
    return float(found["velocity"].detach())


@pytest.mark.parametrize("rate", [0.0, 1e-3], ids=["adamw", "muon"])
def test_one_step_lowers_the_loss_on_its_batch(config, rate):
    stage = DiT3DStage(replace(config, muon_rate=rate))
    batch = stage.batch(0)
    before = loss(stage, batch)
    assert before == pytest.approx(2, rel=0.2)  # a new model says 0; noise and data have variance 1 each
    trainer = Trainer(stage, stage.config)
    trainer.train_step()
    assert loss(stage, batch) < before


def test_the_model_is_asked_on_the_path_at_times_shifted_towards_noise(config):
    stage = DiT3DStage(config)
    asked, (data, known) = [], stage.batch(0)
    stage.model.register_forward_pre_hook(lambda _, arguments: asked.extend(arguments))
    loss(stage, (data, known))
    noisy, t, given = asked
    generator = step_generator(0, 0, 1)
    uniform, noise = torch.rand(8, generator=generator), torch.randn(data.shape, generator=generator)
    shift = (TOKENS * DIM / 4096) ** 0.5
    torch.testing.assert_close(t, shift * uniform / (1 + (shift - 1) * uniform))
    torch.testing.assert_close(noisy, (1 - t)[:, None, None] * data + t[:, None, None] * noise)
    assert torch.equal(given, known)


def test_only_the_denoiser_learns(config):
    stage = DiT3DStage(config)
    before = {name: tensor.clone() for name, tensor in stage.autoencoder.state_dict().items()}
    Trainer(stage, config).train_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.autoencoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in stage.autoencoder.parameters())


def test_latents_are_encoded_once_and_normalised_over_the_data(config, monkeypatch):
    stage = DiT3DStage(config)
    data, known, blind = stage.latents.data, stage.latents.known, stage.latents.blind
    assert data.shape == blind.shape == (4 * 3, TOKENS, DIM) and known.shape == (4 * 3, 2, TOKENS, DIM)
    normal = stage.autoencoder.normalize(data.float())
    assert normal.mean(0).abs().max() < 1e-2 and (normal.std(0) - 1).abs().max() < 0.1
    for first, second in ((data, blind), (data, known[:, 0]), (known[:, 0], known[:, 1]), (known[:, 0], blind)):
        assert (first - second).abs().max() > 1e-2
    monkeypatch.setattr("diorama.training.dit3d.encode_views", None)  # a second stage reads the file
    again = DiT3DStage(config)
    assert torch.equal(again.latents.data, data) and torch.equal(again.latents.known, known)
    assert not list(config.out.glob("*.part"))


def remade(config, monkeypatch):
    """How often a new stage encodes views for `config`."""
    calls, encode = [], module.encode_views
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_views", lambda *arguments: calls.append(1) or encode(*arguments))
        DiT3DStage(config)
    return len(calls)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(seed=3), r"seed was 0, is 3"),
        (dict(visible=(1,), conditions=1), r"visible was \[1, 2\], is \[1\], conditions was 2, is 1"),
        (dict(samples=2), r"samples was 3, is 2"),
        (dict(encoder_views=3), r"encoder_views was 4, is 3"),
        (dict(data="validation"), r"data was [0-9a-f]+, is [0-9a-f]+"),
    ],
)
def test_latents_of_other_settings_are_refused_by_name(config, changes, message):
    DiT3DStage(config)
    if "data" in changes:
        changes = dict(data=config.validation)
    with pytest.raises(ValueError, match=rf"^[^\n]*latents\.safetensors: made with other settings \({message}\); use"):
        DiT3DStage(replace(config, **changes))


def test_latents_of_another_autoencoder_are_refused_wherever_it_lies(config, tmp_path, monkeypatch):
    DiT3DStage(config)
    rae3d().save_pretrained(tmp_path / "same")
    rae3d(1).save_pretrained(tmp_path / "other")
    unlike = replace(config, learning_rate=1.0, batch=4, autoencoder=tmp_path / "same")
    assert remade(unlike, monkeypatch) == 0
    with pytest.raises(ValueError, match=r"settings \(autoencoder was [0-9a-f]+, is [0-9a-f]+\)"):
        DiT3DStage(replace(config, autoencoder=tmp_path / "other"))


def test_latents_that_do_not_say_what_they_are_made_of_are_made_again(config, monkeypatch):
    expected, file = DiT3DStage(config).latents.data, config.out / "latents.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)
    assert remade(config, monkeypatch) > 0
    assert torch.equal(load_file(file)["data"], expected)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"^[^\n]*latents\.safetensors: not a readable safetensors file [^\n]*$"):
        DiT3DStage(config)


def test_only_the_first_process_encodes_and_the_others_wait(config, monkeypatch, tmp_path):
    first = replace(config, out=tmp_path / "first")
    expected = DiT3DStage(first).latents
    waits = []

    def wait(seconds):
        waits.append(seconds)
        config.out.mkdir(exist_ok=True)
        if len(waits) == 3:
            (first.out / "latents.safetensors").rename(config.out / "latents.safetensors")

    monkeypatch.setattr(module.time, "sleep", wait)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert remade(config, monkeypatch) == 0 and len(waits) == 3
    assert torch.equal(DiT3DStage(config).latents.known, expected.known)


def test_one_sample_has_a_deviation_of_one(config, tmp_path):
    single = write_cache(tmp_path / "single", [9], views=4, height=SIDE, width=SIDE, samples=1)
    stage = DiT3DStage(replace(config, data=single, samples=1))
    assert len(stage.latents.data) == 1 and (stage.autoencoder.latent_std == 1).all()
    assert torch.equal(stage.autoencoder.latent_mean, stage.latents.data[0].float())
    assert all(part.isfinite().all() for part in stage.batch(0))


@pytest.mark.parametrize(("views", "accepted"), [(1, "2 to 6"), (7, "2 to 6")])
def test_views_that_a_cache_does_not_have_are_refused(config, views, accepted):
    with pytest.raises(ValueError, match=rf"^[^\n]*train: encoder_views of {views} with .* accepted are {accepted}$"):
        DiT3DStage(replace(config, encoder_views=views))


def test_the_data_is_what_the_autoencoder_says_of_all_views(config):
    """In half precision at most, over the first subset of each scene."""
    stage = DiT3DStage(config)
    cache = WorldsCache(config.data)
    wide = Latents.encoded(config.out / "others.safetensors", stage.autoencoder, cache, replace(config, seed=1))
    error = (wide.data.float().mean(-1)).abs().max()
    assert error < 2e-2  # every token keeps mean 0 and variance 1 over its channels
    assert (wide.data.float().var(-1) - 1).abs().max() < 0.1
    assert not torch.equal(wide.data, stage.latents.data)


def test_a_batch_belongs_to_its_step(config):
    one, other = DiT3DStage(config), DiT3DStage(config)
    for first, second in zip(one.batch(3), other.batch(3), strict=True):
        assert first.shape == (8, TOKENS, DIM) and torch.equal(first, second)
    assert not torch.equal(one.batch(4)[0], one.batch(3)[0])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_some_samples_know_nothing(config, share):
    stage = DiT3DStage(replace(config, blind_probability=share, batch=400))
    known = stage.batch(0)[1]
    blind = stage.autoencoder.normalize(stage.latents.blind.float())
    nothing = (known[:, None] == blind).all((-1, -2)).any(1).float().mean()
    assert float(nothing) == pytest.approx(share, abs=0.08)


def test_known_places():
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(1, 4, (3000,), generator=generator)
    places = _known_places(count, 6, generator)
    assert torch.equal(places.sum(1), count)
    one = places[count == 1].float().mean(0)
    assert float(one[0]) == pytest.approx(0.5 + 0.5 / 6, abs=0.06)  # half of the time by rule, else by chance
    assert (one[1:] - (1 - one[0]) / 5).abs().max() < 0.04


@torch.no_grad()
def test_validation_gives_finite_numbers_and_a_picture(config):
    stage = DiT3DStage(config)
    values, picture = stage.validate()
    assert values.keys() == {f"{what}_{how}" for what in ("psnr", "sharpness") for how in ("generated", "regressed")}
    assert all(torch.tensor(value).isfinite() for value in values.values())
    assert picture.shape == (3, 3 * SIDE, 2 * SIDE) and picture.isfinite().all()
    assert stage.model.training


def test_a_run_ends_with_a_pipeline_that_loads(config):
    stage = DiT3DStage(replace(config, title="trained", guidance=1.5))
    trainer = Trainer(stage, stage.config)
    trainer.train()
    pipeline = load(config.out / "model", "cpu")
    assert (pipeline.config.title, pipeline.config.guidance, pipeline.config.encoder_views) == ("trained", 1.5, 4)
    assert pipeline.config.pixels == SIDE * SIDE
    assert pipeline.scheduler.config.shift == pytest.approx((TOKENS * DIM / 4096) ** 0.5)
    for parameter, average in zip(pipeline.denoiser.parameters(), trainer.ema.shadow_params, strict=True):
        assert torch.equal(parameter, average)
    assert torch.equal(pipeline.autoencoder.latent_std, stage.autoencoder.latent_std)
    photo = Views(torch.rand(1, 3, SIDE, SIDE))
    scene = pipeline.generate(Condition(photo, (0,)), path(2, SIDE, SIDE), steps=2)
    assert scene.views.images.shape == (2, 3, SIDE, SIDE)
