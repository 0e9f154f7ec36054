import json
from dataclasses import replace

import pytest
import torch
from tests.training.exercise import SHORT, digest, one_step_lowers, resumes, total

from diorama.models import geometry_adapter
from diorama.models.geometry_adapter import GeometryAdapter
from diorama.training.adapter import AdapterStage, Config
from diorama.training.gen3r_losses import pointwise_kl
from diorama.training.parts import adapter_in
from diorama.training.trainer import Trainer, step_generator

RECONSTRUCTION = {"tokens", "camera_token", "camera", "depth", "points"}
SIMILARITY = {"tokens_direction", "camera_token_direction"}


@pytest.fixture
def config(clips, published_gen3r_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(geometry_adapter.SIZES, "miniature", dict(dim=8, reduction=10))
    parts = dict(vggt=published_gen3r_folder / "vggt", video_vae=published_gen3r_folder / "wan_vae")
    more = dict(frames=5, short_frames=1, short_steps=1, statistics_clips=3)
    return Config(out=tmp_path / "run", **clips, **parts, size="miniature", **more, **SHORT)


def test_one_step_lowers_the_loss_and_touches_nothing_that_is_frozen(config):
    stage = AdapterStage(replace(config, short_steps=0))
    frozen = digest(stage.vggt, stage.vae)
    _, parts = one_step_lowers(stage)
    assert parts == RECONSTRUCTION | SIMILARITY | {"alignment"}
    assert digest(stage.vggt, stage.vae) == frozen
    assert not any(p.requires_grad or p.grad is not None for x in (stage.vggt, stage.vae) for p in x.parameters())


def test_short_clips_come_first_and_a_resumed_run_is_the_same(config, tmp_path):
    stage = resumes(AdapterStage, config, tmp_path)
    assert [stage.batch(step).views.images.shape[1] for step in range(3)] == [1, 5, 5]
    folder = tmp_path / "whole/model"
    saved = adapter_in(folder)
    assert isinstance(saved, GeometryAdapter) and saved.config.channels == 160
    clips = [stage.data.drawn(config, 1, 5, step_generator(0, number, 3)) for number in range(3)]
    with torch.no_grad():
        means = torch.cat([saved.encode(stage.tokens(clip.views.images)).mean for clip in clips])
    means = means.transpose(0, 1).flatten(1)
    torch.testing.assert_close(means.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(means.std(1), torch.ones(16), atol=1e-3, rtol=0)
    told = json.loads((folder / "config.json").read_text())
    assert max(map(abs, told["latents_mean"])) > 1e-4 and told["latents_std"] != [1.0] * 16
    log = (tmp_path / "whole/log.jsonl").read_text()
    assert all(f"validation_{name}" in log for name in ("depth_abs_rel", "auc_30", "latent_distance"))
    again = AdapterStage(replace(config, out=tmp_path / "again", start=folder))
    assert again.model.config.latents_mean == told["latents_mean"]


@pytest.mark.parametrize(("alignment", "parts"), [("normal", {"alignment"}), ("none", set())])
def test_latents_may_be_drawn_to_something_else_or_to_nothing(config, alignment, parts):
    stage = AdapterStage(replace(config, alignment=alignment, short_steps=9))
    assert total(stage, stage.batch(0))[1] == RECONSTRUCTION | SIMILARITY | parts


def test_the_papers_forms_train_too(config):
    one_step_lowers(AdapterStage(replace(config, losses="paper", short_steps=9)))


def test_alignment_brings_the_latents_to_the_videos(config):
    stage = AdapterStage(replace(config, short_steps=99, steps=9, learning_rate=3e-3))
    images = stage.held_out.first(config, 1, 1).views.images

    @torch.no_grad()
    def apart():
        seen = stage.seen(images)
        return float(pointwise_kl(seen.moments, seen.appearance).mean())

    before, trainer = apart(), Trainer(stage, stage.config)
    for _ in range(6):
        trainer.train_step()
    assert apart() < 0.98 * before


def test_what_does_not_fit_is_refused_in_one_line(config, tmp_path, worlds):
    GeometryAdapter(channels=80, dim=8, reduction=10).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"^[^\n]*narrow: an adapter of 80 channels; accepted is one of 160, [^\n]*$"):
        AdapterStage(replace(config, start=tmp_path / "narrow"))
    with pytest.raises(ValueError, match=r"^[^\n]*train: images of 16x16; accepted are multiples of 112, rendered so"):
        AdapterStage(replace(config, **worlds))
    with pytest.raises(ValueError, match=r"^--short-frames 4: accepted are 4k \+ 1 frames"):
        AdapterStage(replace(config, short_frames=4))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^[^\n]*empty.config.json: missing; [^\n]*$"):
        AdapterStage(replace(config, video_vae=tmp_path / "empty"))
