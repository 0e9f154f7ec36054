from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.miniature import images, path, rae3d
from tests.training.conftest import SIDE

from diorama.data.cache import WorldsCache, write_cache
from diorama.scene import Views
from diorama.training import latents as module
from diorama.training.dit3d import DiT3DStage
from diorama.training.latents import Latents, known_places, log_scales


@pytest.fixture
def config(dit3d_config):
    return dit3d_config


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
    assert all(part.isfinite().all() for part in stage.batch(0)[:2])


def test_the_data_is_what_the_autoencoder_says_of_all_views(config):
    """In half precision at most, over the first subset of each scene."""
    stage = DiT3DStage(config)
    cache = WorldsCache(config.data)
    wide = Latents.encoded(config.out / "others.safetensors", stage.autoencoder, cache, replace(config, seed=1))
    error = (wide.data.float().mean(-1)).abs().max()
    assert error < 2e-2  # every token keeps mean 0 and variance 1 over its channels
    assert (wide.data.float().var(-1) - 1).abs().max() < 0.1
    assert not torch.equal(wide.data, stage.latents.data)


def testknown_places():
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(1, 4, (3000,), generator=generator)
    places = known_places(count, 6, generator)
    assert torch.equal(places.sum(1), count)
    one = places[count == 1].float().mean(0)
    assert float(one[0]) == pytest.approx(0.5 + 0.5 / 6, abs=0.06)  # half of the time by rule, else by chance
    assert (one[1:] - (1 - one[0]) / 5).abs().max() < 0.04


def test_the_scale_is_the_farthest_camera_in_median_depths_of_the_first_view():
    cameras = path(3, 8, 8, batch=(2,))
    depth = 2 + torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.7
    points = cameras.unproject(depth.where(valid, 1e4))  # the sky is far, and does not count
    views = Views(images(3, 8, 8, batch=(2,)), cameras, points, valid.float())
    expected = []
    for row in range(2):
        centers = cameras.centers[row]
        expected.append((centers - centers[0]).norm(dim=-1).max() / depth[row, 0][valid[row, 0]].median())
    torch.testing.assert_close(log_scales(views), torch.stack(expected).log(), atol=1e-4, rtol=1e-4)
    assert log_scales(replace(views, points=None)).isnan().all()
    assert log_scales(replace(views, confidence=torch.zeros(2, 3, 8, 8))).isnan().all()
    assert log_scales(views[[0, 0]]).isnan().all()


def test_latents_without_scales_are_made_again_where_these_are_wanted(config, monkeypatch):
    plain = DiT3DStage(config).latents
    assert plain.log_scale is None
    assert remade(replace(config, scale_token=True), monkeypatch) > 0
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_views", None)  # both kinds of run read that file
        told, untold = DiT3DStage(replace(config, scale_token=True)).latents, DiT3DStage(config).latents
    assert told.log_scale.shape == (12,) and torch.equal(untold.data, plain.data)
