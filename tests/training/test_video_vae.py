from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from tests.training.exercise import SHORT, one_step_lowers, resumes, total

from diorama.training import video_vae
from diorama.training.clips import in_range
from diorama.training.parts import video_vae_in
from diorama.training.trainer import step_generator
from diorama.training.video_vae import Config, VideoVAEStage

MINIATURE = dict(base_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1)


@pytest.fixture
def config(worlds, tmp_path, monkeypatch):
    monkeypatch.setitem(video_vae.SIZES, "miniature", MINIATURE)
    more = dict(frames=5, strides=(1,), statistics_clips=3)
    return Config(out=tmp_path / "run", **worlds, size="miniature", **more, **SHORT)


def test_one_step_lowers_the_loss_and_the_divergence_counts_as_it_is_told_to(config):
    stage = VideoVAEStage(config)
    _, parts = one_step_lowers(stage)
    assert parts == {"reconstruction", "divergence"}
    heavy = VideoVAEStage(replace(config, kl_weight=10 * config.kl_weight))
    heavy.model.load_state_dict(stage.model.state_dict())
    with torch.no_grad():
        light, more = (dict(next(x.phases(x.batch(0), step_generator(0, 0, 1)))[1]) for x in (stage, heavy))
    assert float(more["divergence"]) == pytest.approx(10 * float(light["divergence"]), rel=1e-4)
    assert float(more["reconstruction"]) == float(light["reconstruction"])


def test_a_resumed_run_is_the_same_and_its_latents_are_normal(config, tmp_path):
    stage = resumes(VideoVAEStage, config, tmp_path)
    model = video_vae_in(tmp_path / "whole/model")
    assert isinstance(model, AutoencoderKLWan)
    weights = stage.model.state_dict()
    assert any(not torch.equal(value, weights[name]) for name, value in model.state_dict().items())  # averaged ones
    clips = [stage.data.drawn(config, 1, 5, step_generator(0, number, 3)) for number in range(3)]
    with torch.no_grad():
        means = torch.cat([model.encode(in_range(clip.views.images)).latent_dist.mean for clip in clips])
    own = means.transpose(0, 1).flatten(1)
    torch.testing.assert_close(own.mean(1), torch.tensor(model.config.latents_mean), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own.std(1), torch.tensor(model.config.latents_std), atol=1e-5, rtol=1e-3)
    assert "validation_psnr" in (tmp_path / "whole/log.jsonl").read_text()
    second = VideoVAEStage(replace(config, out=tmp_path / "second", start=tmp_path / "whole/model"))
    assert second.model.config.latents_std == model.config.latents_std
    assert total(second, second.batch(0))[0] > 0


def test_what_does_not_fit_is_refused_in_one_line(config, tmp_path):
    with pytest.raises(ValueError, match=r"^--frames 6: accepted are 4k \+ 1 frames, such as 17, 25 and 49$"):
        VideoVAEStage(replace(config, frames=6))
    AutoencoderKLWan(**MINIATURE | dict(base_dim=8)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"^[^\n]*wide: a video VAE of another size; accepted is --size miniature$"):
        VideoVAEStage(replace(config, start=tmp_path / "wide"))
