import json
from dataclasses import replace

import pytest
import torch
from tests.miniature import DIM, TOKENS, dit3d, path, rae3d
from tests.training.conftest import SIDE

from diorama.data.cache import WorldsCache
from diorama.models.dit3d import DiT3D
from diorama.pipelines.base import load
from diorama.scene import Condition, Views
from diorama.training.dit3d import DiT3DStage
from diorama.training.trainer import Trainer, step_generator


@pytest.fixture
def config(dit3d_config):
    return dit3d_config


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
    asked, batch = [], stage.batch(0)
    data, known, label, log_scale = batch
    assert label is None and log_scale is None
    stage.model.register_forward_pre_hook(lambda _, arguments: asked.extend(arguments))
    loss(stage, batch)
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
    monkeypatch.setattr("diorama.training.latents.encode_views", None)  # a second stage reads the file
    again = DiT3DStage(config)
    assert torch.equal(again.latents.data, data) and torch.equal(again.latents.known, known)
    assert not list(config.out.glob("*.part"))


@pytest.mark.parametrize(("views", "accepted"), [(1, "2 to 6"), (7, "2 to 6")])
def test_views_that_a_cache_does_not_have_are_refused(config, views, accepted):
    with pytest.raises(ValueError, match=rf"^[^\n]*train: encoder_views of {views} with .* accepted are {accepted}$"):
        DiT3DStage(replace(config, encoder_views=views))


def test_a_batch_belongs_to_its_step(config):
    one, other = DiT3DStage(config), DiT3DStage(config)
    for first, second in zip(one.batch(3)[:2], other.batch(3)[:2], strict=True):
        assert first.shape == (8, TOKENS, DIM) and torch.equal(first, second)
    assert not torch.equal(one.batch(4)[0], one.batch(3)[0])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_some_samples_know_nothing(config, share):
    stage = DiT3DStage(replace(config, blind_probability=share, batch=400))
    known = stage.batch(0).known
    blind = stage.autoencoder.normalize(stage.latents.blind.float())
    nothing = (known[:, None] == blind).all((-1, -2)).any(1).float().mean()
    assert float(nothing) == pytest.approx(share, abs=0.08)


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


@pytest.fixture
def of_images(dit3d_config):
    """Training on single images."""
    return replace(dit3d_config, single_images=True)


def test_single_images_are_learnt_by_class_from_their_pose(of_images):
    stage = DiT3DStage(replace(of_images, label_dropout=0.0, batch=400))
    assert stage.latents.known.shape == (4 * 3, 0, TOKENS, DIM) and stage.config.encoder_views == 1
    kinds = [row["kind"] for row in WorldsCache(of_images.data).attributes]
    assert stage.classes.names == sorted(set(kinds)) and stage.model.config.classes == len(stage.classes.names)
    data, known, label, _ = stage.batch(0)
    pictures, poses = (stage.autoencoder.normalize(x.float()) for x in (stage.latents.data, stage.latents.blind))
    found = (data[:, None] == pictures).all((-1, -2)).int()
    assert (found.sum(1) == 1).all() and found.argmax(1).unique().numel() == 12
    assert torch.equal(known, poses[found.argmax(1)])
    assert [stage.classes.names[place] for place in label] == [kinds[row % 4] for row in found.argmax(1)]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_class_is_kept_from_the_model_at_times(of_images, share):
    stage = DiT3DStage(replace(of_images, label_dropout=share, batch=400))
    assert float((stage.batch(0).label == len(stage.classes.names)).float().mean()) == pytest.approx(share, abs=0.08)


def test_one_step_on_single_images_lowers_the_loss_and_the_class_matters(of_images):
    stage = DiT3DStage(replace(of_images, label_dropout=0.0, learning_rate=1e-2))
    batch, table = stage.batch(0), stage.model.label.weight.detach().clone()
    before = loss(stage, batch)
    trainer = Trainer(stage, stage.config)
    trainer.train_step()
    assert loss(stage, batch) < before
    for _ in range(3):  # the class reaches the output once that and the modulation are not 0 any more
        trainer.train_step()
    changed = (stage.model.label.weight != table).any(1)
    assert changed[batch.label].all() and not changed[-1]
    data, known, label, _ = batch
    null = torch.full_like(label, len(stage.classes.names))
    one, other = (stage.model(data, torch.full((8,), 0.5), known, label=x).velocity for x in (label, null))
    assert (one - other).abs().max() > 1e-5


def test_scenes_without_the_attribute_have_no_class(of_images):
    stage = DiT3DStage(replace(of_images, label="wall", label_dropout=0.0, batch=100))
    walls = [row.get("wall") for row in WorldsCache(of_images.data).attributes]
    assert None in walls and stage.classes.names == sorted({wall for wall in walls if wall})
    data, _, label, _ = stage.batch(0)
    pictures = stage.autoencoder.normalize(stage.latents.data.float())
    rows = (data[:, None] == pictures).all((-1, -2)).int().argmax(1)
    assert [None if x == len(stage.classes.names) else stage.classes.names[x] for x in label] == [
        walls[row % 4] for row in rows
    ]


@torch.no_grad()
def test_single_images_are_validated_by_class(of_images):
    values, picture = DiT3DStage(of_images).validate()
    assert values.keys() == {"sharpness_generated", "psnr_regressed", "sharpness_regressed"}
    assert picture.shape == (3, 3 * SIDE, 2 * SIDE) and picture.isfinite().all()


def test_the_second_stage_begins_with_the_weights_of_the_first_but_its_classes(of_images, dit3d_config, tmp_path):
    first = Trainer(DiT3DStage(of_images), of_images)
    first.train()
    folder = of_images.out / "model"
    assert json.loads((folder / "classes.json").read_text()) == first.stage.classes.names
    pipeline = load(folder, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    scenes = pipeline.generate([Condition(label=0), Condition(label=1)], path(1, SIDE, SIDE), steps=2)
    assert not torch.equal(scenes[0].latents, scenes[1].latents)
    for start in (folder, folder / "denoiser"):
        stage = DiT3DStage(replace(dit3d_config, out=tmp_path / "second", start=start))
        weights, before = stage.model.state_dict(), pipeline.denoiser.state_dict()
        assert before.keys() - weights.keys() == {"label.weight"} and not weights.keys() - before.keys()
        assert all(torch.equal(value, before[name]) for name, value in weights.items())
        assert stage.model.label is None and stage.model.config.classes == 0
    batch = stage.batch(0)
    before = loss(stage, batch)
    Trainer(stage, stage.config).train_step()
    assert loss(stage, batch) < before


def test_a_start_that_does_not_fit_is_refused_in_one_line(dit3d_config, of_images, tmp_path):
    for name, changes in (("wide", dict(head_dim=64)), ("classes", dict(classes=5)), ("right", {})):
        dit3d(**changes).save_pretrained(tmp_path / name)
    DiT3DStage(replace(dit3d_config, start=tmp_path / "classes"))
    with pytest.raises(ValueError, match=r"^--start: a DiT3D of another shape \(head_dim was 64, is 48\); [^\n]*$"):
        DiT3DStage(replace(dit3d_config, start=tmp_path / "wide"))
    with pytest.raises(ValueError, match=r"^--start: a DiT3D of another shape \(classes was 5, is \d\); [^\n]*$"):
        DiT3DStage(replace(of_images, start=tmp_path / "classes", out=tmp_path / "images"))
    with pytest.raises(ValueError, match=r"^[^\n]*nothing.config.json: missing; a DiT3D folder holds [^\n]*$"):
        DiT3DStage(replace(dit3d_config, start=tmp_path / "nothing"))
    assert isinstance(DiT3DStage(replace(dit3d_config, start=tmp_path / "right")).model, DiT3D)


@pytest.mark.parametrize("label", ["colour", "height"], ids=["absent", "no-word"])
def test_an_attribute_that_no_scene_has_is_refused(of_images, label):
    with pytest.raises(ValueError, match=rf"^[^\n]*train: no scene has a --label {label}; accepted are .*kind[^\n]*$"):
        DiT3DStage(replace(of_images, label=label))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_scale_is_told_at_times_and_belongs_to_its_sample(config, share):
    stage = DiT3DStage(replace(config, scale_token=True, scale_dropout=share, batch=400))
    data, _, _, log_scale = stage.batch(0)
    rows = (data[:, None] == stage.autoencoder.normalize(stage.latents.data.float())).all((-1, -2)).int().argmax(1)
    told = log_scale.isfinite()
    assert stage.latents.log_scale.isfinite().all() and stage.latents.log_scale.unique().numel() > 6
    assert float((~told).float().mean()) == pytest.approx(share, abs=0.08)
    assert torch.equal(log_scale[told], stage.latents.log_scale[rows][told])
    plain = DiT3DStage(replace(config, batch=400, out=config.out.parent / "plain")).batch(0)
    assert torch.equal(plain.data, data)


def test_a_scale_is_learnt_from_the_first_step_that_could_on(config):
    stage = DiT3DStage(replace(config, scale_token=True, scale_dropout=0.0, learning_rate=1e-2))
    batch, trainer = stage.batch(0), Trainer(stage, stage.config)
    before = loss(stage, batch)
    for _ in range(4):
        trainer.train_step()
    assert loss(stage, batch) < before and stage.model.scale_embed.map.weight.abs().max() > 1e-3
    data, known, _, log_scale = batch
    t = torch.full((8,), 0.5)
    one, other = (stage.model(data, t, known, log_scale=x).velocity for x in (log_scale, log_scale + 1))
    assert (one - other).abs().max() > 1e-6


@torch.no_grad()
def test_weights_without_a_scale_begin_a_run_with_one_and_say_the_same(config, tmp_path):
    dit3d(seed=3).save_pretrained(tmp_path / "old")
    dit3d(seed=3, scale=True).save_pretrained(tmp_path / "scaled")
    stage = DiT3DStage(replace(config, scale_token=True, scale_dropout=0.0, start=tmp_path / "old"))
    data, known, _, log_scale = stage.batch(0)
    t = torch.full((8,), 0.3)
    expected = dit3d(seed=3)(data, t, known).velocity
    assert torch.equal(stage.model(data, t, known, log_scale=log_scale).velocity, expected)
    with pytest.raises(ValueError, match=r"^--start: .*\(scale was True, is False\); [^\n]*$"):
        DiT3DStage(replace(config, start=tmp_path / "scaled"))


def test_the_velocitys_direction_counts_as_much_as_is_said(config):
    stage = DiT3DStage(replace(config, cosine_weight=0.5))
    ((_, found),) = stage.phases(stage.batch(0), step_generator(0, 0, 1))
    before = {name: float(value.detach()) for name, value in found.items()}
    assert before.keys() == {"velocity", "direction"}
    assert before["direction"] == pytest.approx(0.5)  # a new model's velocity is 0, which has no direction
    Trainer(stage, stage.config).train_step()
    ((_, found),) = stage.phases(stage.batch(0), step_generator(0, 0, 1))
    assert all(float(value.detach()) < before[name] for name, value in found.items())


def test_times_may_be_logit_normal_before_their_shift(config):
    stage, asked = DiT3DStage(replace(config, times="logit-normal")), []
    stage.model.register_forward_pre_hook(lambda _, arguments: asked.extend(arguments))
    loss(stage, stage.batch(0))
    drawn = 1 / (1 + (-torch.randn(8, generator=step_generator(0, 0, 1))).exp())
    shift = (TOKENS * DIM / 4096) ** 0.5
    torch.testing.assert_close(asked[1], shift * drawn / (1 + (shift - 1) * drawn))


def test_statistics_are_the_runs_own_or_those_it_starts_from(config, of_images, tmp_path):
    first = DiT3DStage(of_images)
    first.save(tmp_path / "first")
    told = dict(start=tmp_path / "first", out=tmp_path / "second")
    own = DiT3DStage(replace(config, **told)).autoencoder
    kept = DiT3DStage(replace(config, **told, statistics="start")).autoencoder
    for name in ("latent_mean", "latent_std"):
        assert torch.equal(getattr(kept, name), getattr(first.autoencoder, name))
        assert (getattr(own, name) - getattr(kept, name)).abs().max() > 1e-2
    rae3d(1).save_pretrained(tmp_path / "other")
    unlike = replace(config, **told | {"out": tmp_path / "third"}, statistics="start", autoencoder=tmp_path / "other")
    with pytest.raises(ValueError, match=r"^[^\n]*first.autoencoder: another autoencoder than --autoencoder; [^\n]*$"):
        DiT3DStage(unlike)
    for start in (None, tmp_path / "first/denoiser"):
        with pytest.raises(
            ValueError, match=r"^--statistics start with --start [^\n]* accepted is a pipeline's folder"
        ):
            DiT3DStage(replace(config, statistics="start", start=start))
