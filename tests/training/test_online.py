import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.miniature import DIM, TOKENS
from tests.training.conftest import SIDE

from diorama.data.cache import WorldsCache
from diorama.training import dit3d as module
from diorama.training import online
from diorama.training.dit3d import DiT3DStage
from diorama.training.latents import draw, encoded
from diorama.training.trainer import Trainer, step_generator


@pytest.fixture
def config(dit3d_config):
    return replace(dit3d_config, online=True, statistics_batches=3, blind_probability=0.25)


@pytest.fixture
def photos(tmp_path):
    """Photos of two classes beside a list of their intrinsics, as of ImageNet."""
    rows = []
    for number in range(6):
        file = tmp_path / f"photos/n0{number % 2}/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((24, 20), 10 + 20 * number).convert("RGB").save(file)
        lens = dict(fx=20.0, fy=20.0, cx=12.0, cy=10.0, height=20, width=24)
        rows.append({"file": f"n0{number % 2}/{number}.png", **lens})
    (tmp_path / "photos/intrinsics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "photos"


def loss(stage, batch):
    ((_, found),) = stage.phases(batch, step_generator(0, 0, 1))
    return float(found["velocity"].detach())


def apart(model, views, mask):
    """One encoding on its own."""
    return model.encode(views.images, views.cameras.normalized()[0].plucker(), mask)


@torch.no_grad()
def test_samples_of_the_same_draw_have_the_latents_that_are_kept(dit3d_config):
    stage = DiT3DStage(dit3d_config)
    drawn = draw(
        WorldsCache(dit3d_config.data),
        torch.arange(12) % 4,
        stage.config,
        step_generator(0, 0, 2),
        turn=torch.zeros(12).long(),
    )
    found = encoded(stage.autoencoder, drawn)
    assert drawn.masks.shape == (4, 12, 4) and drawn.masks[0].all() and not drawn.masks[-1].any()
    kept = torch.stack([stage.latents.data, *stage.latents.known.unbind(1), stage.latents.blind])
    for mask, latents, half in zip(drawn.masks, found, kept, strict=True):
        torch.testing.assert_close(latents, apart(stage.autoencoder, drawn.views, mask), atol=1e-5, rtol=1e-5)
        assert (latents - half.float()).abs().mean() < 0.03  # kept as bfloat16 finds them; others are 1 away


@torch.no_grad()
def test_a_step_encodes_its_views_once_for_both(config):
    stage, looks = DiT3DStage(config), []
    sample = stage.batch(0)
    stage._encoded(sample)
    stage.autoencoder.image_embed.register_forward_hook(lambda *_: looks.append(1))
    batch = stage._encoded(sample)
    assert len(looks) == 1
    views, (everything, known) = sample.draw
    assert everything.all() and views.images.shape == (8, 4, 3, SIDE, SIDE)
    for latents, mask in ((batch.data, everything), (batch.known, known)):
        expected = stage.autoencoder.normalize(apart(stage.autoencoder, views, mask))
        torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)


def test_conditions_are_drawn_as_the_flags_say(config):
    stage = DiT3DStage(replace(config, batch=400, visible=(1, 3)))
    count = stage.batch(0).draw.masks[1].sum(1)
    assert set(count.tolist()) == {0, 1, 3}
    assert float((count == 0).float().mean()) == pytest.approx(0.25, abs=0.08)
    dynamic = replace(stage.online.config, dynamic=True, hidden=(0.6, 0.9), blind_probability=0.0)
    stage.online.config = dynamic
    counts = stage.online._known(1000, 16, step_generator(0, 0, 0)).sum(1)
    assert counts.min() >= 1 and counts.max() <= 7 and counts.unique().numel() == counts.max() - counts.min() + 1
    assert float(counts.float().mean()) == pytest.approx(16 * 0.25, abs=0.3)
    assert stage.online._known(9, 2, step_generator(0, 0, 0)).sum(1).tolist() == [1] * 9


def test_statistics_are_found_before_the_first_step_and_kept(config, monkeypatch):
    stage = DiT3DStage(config)
    later = [stage.online.batches.batch(step).views for step in range(config.steps, config.steps + 3)]
    with torch.no_grad():
        latents = torch.cat(
            [apart(stage.autoencoder, v, torch.ones(v.images.shape[:2], dtype=torch.bool)) for v in later]
        )
    first = loss(stage, stage.batch(0))
    model = stage.autoencoder
    torch.testing.assert_close(model.latent_mean, latents.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.latent_std, latents.std(0).clamp(min=1e-3), atol=1e-5, rtol=1e-4)
    assert torch.equal(load_file(config.out / "statistics.safetensors")["mean"], model.latent_mean)
    monkeypatch.setattr(online.Online, "statistics", None)  # a second stage reads the file
    again = DiT3DStage(config)
    assert loss(again, again.batch(0)) == first
    with pytest.raises(
        ValueError, match=r"^[^\n]*statistics\.safetensors: made with other settings \(statistics_batches"
    ):
        DiT3DStage(replace(config, statistics_batches=2))


def test_training_lowers_the_loss_and_resumes_exactly(config):
    whole = Trainer(DiT3DStage(config), config)
    batch = whole.stage.batch(0)
    before = loss(whole.stage, batch)
    losses = [whole.train_step()["loss"] for _ in range(3)]
    assert loss(whole.stage, batch) < before
    other = replace(config, out=config.out.parent / "other")
    Trainer(DiT3DStage(other), other).train(until=2)
    resumed = Trainer(DiT3DStage(other), other)
    assert resumed.step == 2 and resumed.train_step()["loss"] == losses[2]


def test_sizes_and_numbers_of_views_may_change_from_step_to_step(config, worlds):
    changing = replace(
        config, data=(worlds["data"], worlds["validation"]), dynamic=True, pixels=(200, 700), aspects=(0.5, 2.0),
        sample_views=(2, 5), token_budget=200,
    )  # fmt: skip
    stage = DiT3DStage(changing)
    trainer = Trainer(stage, changing)
    shapes = {tuple(stage.batch(step).draw.views.images.shape) for step in range(8)}
    assert all(trainer.train_step()["loss"] > 0 for _ in range(3))
    assert len({shape[1] for shape in shapes}) > 1 and len({shape[3:] for shape in shapes}) > 1
    assert stage.latents is None and stage.model.config.tokens == TOKENS and stage.model.config.channels == DIM
    stage.online.batches.close()


def test_photos_are_learnt_by_the_class_of_their_folder(config, photos, worlds):
    images = replace(config, data=photos, single_images=True, image_size=(16, 16), label_dropout=0.0)
    stage = DiT3DStage(images)
    assert stage.classes.names == ["n00", "n01"] and stage.model.config.classes == 2
    sample = stage.batch(0)
    assert sample.draw.views.images.shape == (8, 1, 3, 16, 16) and not sample.draw.masks[1].any()
    found = stage.online.batches.batch(0)
    assert sample.label.tolist() == [int(name.startswith("n01")) for name in found.names]
    assert set(sample.label.tolist()) == {0, 1}
    before = loss(stage, sample)
    Trainer(stage, images).train_step()
    assert loss(stage, sample) < before
    stage.online.batches.close()
    both = module.Classes((photos, worlds["data"]), "kind")
    kinds = [row["kind"] for row in WorldsCache(worlds["data"]).attributes]
    assert both.names == sorted({"n00", "n01", *kinds})
    assert [both.names[place] for place in both.of(["n01/1.png", "world 0", "world 3"])] == ["n01", kinds[0], kinds[3]]
    assert both.of(["somewhere else", "world 99"]).tolist() == [len(both.names)] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(dynamic=True),
            r"^--dynamic: samples of one folder of worlds alone are encoded once; accepted is --online$",
        ),
        (dict(data="both"), r"^2 of --data: samples of one folder of worlds alone .* accepted is --online$"),
        (dict(data="photos"), r"^[^\n]*photos: no worlds, which alone are encoded once; accepted is --online$"),
    ],
    ids=["dynamic", "both", "photos"],
)
def test_what_cannot_be_encoded_once_is_refused(dit3d_config, worlds, photos, changes, message):
    named = {"both": (worlds["data"], worlds["validation"]), "photos": photos}
    changes = {key: named.get(value, value) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        DiT3DStage(replace(dit3d_config, **changes))
