import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import published_gen3r
from tests.training.exercise import SHORT, digest, one_step_lowers, resumes, total

from diorama.geometry.similarity import Similarity
from diorama.models import gen3r_transformer
from diorama.models.gen3r_transformer import Gen3RTransformer
from diorama.pipelines.base import load
from diorama.pipelines.gen3r_conditions import known_mask
from diorama.scene import Condition
from diorama.training import gen3r
from diorama.training.gen3r import Config, Gen3RStage
from diorama.training.trainer import Share, Trainer, step_generator

FRAMES, MINIATURE = 5, dict(num_attention_heads=2, attention_head_dim=12, ffn_dim=32, num_layers=1, freq_dim=16)
ROW = MINIATURE | dict(added_kv_proj_dim=24)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIORAMA_CACHE", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def config(clips, published_gen3r_folder, tmp_path, monkeypatch):
    for table in (gen3r.SIZES, gen3r_transformer.SIZES):
        monkeypatch.setitem(table, "miniature", ROW)
    told = dict(model=published_gen3r_folder, frames=FRAMES, title="trained", guidance=2.0)
    return Config(out=tmp_path / "run", **clips, **told, **SHORT)


def frozen_parts(stage):
    part = stage.pipeline
    return part.vae, part.adapter, part.vggt, part.image_encoder


def test_one_step_lowers_the_loss_and_touches_nothing_that_is_frozen(config):
    stage = Gen3RStage(config)
    before = digest(*frozen_parts(stage))
    _, parts = one_step_lowers(stage)
    assert parts == {"velocity"}
    assert digest(*frozen_parts(stage)) == before
    assert not any(p.requires_grad for x in frozen_parts(stage) for p in x.parameters())
    assert all(p.requires_grad for p in stage.model.parameters())


def test_tasks_cameras_and_captions_are_drawn_for_each_sample(config):
    stage = Gen3RStage(replace(config, batch=300))
    stage.data.cache.images = stage.data.cache.images[:, :, ::28, ::28]  # what is shown does not matter here
    stage.data.cache.depth = stage.data.cache.depth[:, :, ::28, ::28]
    stage.data.cache.height = stage.data.cache.width = 4
    batch = stage.batch(0)
    tasks = [condition.at for condition in batch.conditions]
    for at in ((0,), (0, FRAMES - 1), tuple(range(FRAMES))):
        assert tasks.count(at) / 300 == pytest.approx(1 / 3, abs=0.09)
    assert sum(batch.free) / 300 == pytest.approx(0.5, abs=0.09)
    silent = [condition.prompt == "" for condition in batch.conditions]
    assert sum(silent) / 300 == pytest.approx(0.2, abs=0.08)
    captions = set(stage.data.cache.captions)
    assert {condition.prompt for condition in batch.conditions} == captions | {""}
    assert len(captions) == 2
    shares = [stage.batch(0, Share(index, 2)) for index in (0, 1)]
    assert [c.at for pair in zip(*(s.conditions for s in shares), strict=True) for c in pair] == tasks


def test_blocks_that_compute_their_activations_again_learn_the_same(config):
    stages = []
    for again in (False, True):
        run = replace(config, out=config.out / str(again), checkpoint_activations=again, size="miniature")
        stages.append(Gen3RStage(run))
        Trainer(stages[-1], run).train_step()
    for one, other in zip(*(stage.model.parameters() for stage in stages), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_conditions_are_the_pipelines_own_and_say_nothing_of_geometry(config):
    stage = Gen3RStage(replace(config, batch=12))
    batch = next(b for b in map(stage.batch, range(9)) if len({c.at for c in b.conditions}) == 3 and any(b.free[:3]))
    batch = batch._replace(**{name: getattr(batch, name)[:4] for name in ("images", "views", "conditions", "free")})
    known = stage.known(batch)
    left, right = known.latents.chunk(2, -1)
    assert not right.any() and left[:, :16].abs().sum((1, 2, 3, 4)).gt(0).all()
    for row, (condition, free) in enumerate(zip(batch.conditions, batch.free, strict=True)):
        mask = known_mask([condition.at], FRAMES)[0]
        assert torch.equal(left[row, 16:, :, 0, 0], mask)
        assert known.control[row].any() != free
    alone = stage.pipeline.encode(batch.conditions[:1], [batch.views[0].cameras]).known
    torch.testing.assert_close(alone.latents[0], known.latents[0])
    torch.testing.assert_close(alone.image[0], known.image[0])


@torch.no_grad()
def test_what_is_learnt_is_what_decodes_to_the_clip(config):
    stage = Gen3RStage(replace(config, posterior="mean"))
    batch, pipeline = stage.batch(0), stage.pipeline
    data = stage.latents(batch.images, step_generator(0, 0, 1))
    assert torch.equal(data, stage.latents(batch.images))  # nothing is drawn
    item = batch.views[0]
    plain = pipeline.reconstruct(item, item.cameras, steps=0)
    torch.testing.assert_close(data[0], plain.latents, atol=1e-4, rtol=1e-3)
    drawn = Gen3RStage(config).latents(batch.images, step_generator(0, 0, 1))
    assert (drawn - data).abs().mean() > 0.05


def test_a_resumed_run_is_the_same_and_ends_with_a_pipeline(config, tmp_path):
    stage = resumes(Gen3RStage, replace(config, keep_latents=True), tmp_path)
    assert list((tmp_path / "whole/latents").glob("*.safetensors"))
    pipeline = load(tmp_path / "whole/model", "cpu")
    told = pipeline.config
    assert (told.title, told.guidance, told.pixels, told.views) == ("trained", 2.0, 112 * 112, FRAMES)
    item = stage.held_out.first(config, 1, FRAMES).views.apart()[0]
    scene = pipeline.generate(Condition(item[:1], (0,), "a room"), item.cameras, steps=2, guidance=1.0)
    assert scene.views.images.shape == (FRAMES, 3, 112, 112)
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert {"validation_psnr", "validation_psnr_still"} <= lines[-1].keys()


def test_kept_latents_change_nothing_and_are_not_made_again(config, monkeypatch):
    plain, keeping = Gen3RStage(config), Gen3RStage(replace(config, keep_latents=True, scale="vggt"))
    other = Gen3RStage(replace(config, scale="vggt", out=config.out.parent / "other"))
    batch = plain.batch(1)
    assert total(keeping, batch)[0] == pytest.approx(total(other, batch)[0], rel=1e-5)
    for model, name in ((keeping.pipeline.adapter, "encode"), (keeping.pipeline.vggt, "forward")):
        monkeypatch.setattr(model, name, None)
    assert total(keeping, batch)[0] == pytest.approx(total(other, batch)[0], rel=1e-5)
    assert total(plain, batch)[0] != total(other, batch)[0]  # in metres cameras are somewhere else


def test_another_adapter_reads_what_was_kept_of_the_video(config, published_gen3r_folder, tmp_path):
    other = shutil.copytree(published_gen3r_folder, tmp_path / "other")
    (file,) = (other / "geo_adapter").glob("*.safetensors")
    save_file({name: weight + 0.01 for name, weight in load_file(file).items()}, file)
    images, counts = Gen3RStage(config).batch(0).images[:1], []
    for model in (published_gen3r_folder, other, other):
        stage = Gen3RStage(replace(config, keep_latents=True, model=model))
        with torch.no_grad():
            stage.latents(images)
        counts.append(len(list((config.out / "latents").iterdir())))
    assert counts == [2, 3, 3]  # appearance and geometry, then geometry alone, then nothing


def test_cameras_may_come_in_vggts_unit(config):
    stage = Gen3RStage(replace(config, scale="vggt"))
    batch = stage.batch(0)._replace(free=[False, False])
    far = batch._replace(
        views=[item.transformed(_similarity(3.0)) for item in batch.views],
        conditions=[replace(c, views=c.views.transformed(_similarity(3.0))) for c in batch.conditions],
    )
    with torch.no_grad():
        one, other = stage.known(batch), stage.known(far)
    torch.testing.assert_close(one.control, other.control, atol=1e-3, rtol=1e-3)


def _similarity(scale):
    return Similarity(torch.eye(3), torch.ones(3), torch.tensor(scale))


def test_wan_funs_weights_begin_a_denoiser_that_does_not_see_the_mask(config, tmp_path):
    weights = published_gen3r.state("transformer", seed=5)
    name = "patch_embedding.weight"
    weights[name] = weights[name][:, :32].clone()
    (tmp_path / "wan").mkdir()
    save_file(weights, tmp_path / "wan/diffusion_pytorch_model.safetensors")
    told = published_gen3r.CONFIGS["transformer"] | {"in_dim": 32}
    (tmp_path / "wan/config.json").write_text(json.dumps(told))
    stage = Gen3RStage(replace(config, start=tmp_path / "wan"))
    embedding = stage.model.patch_embedding.weight
    assert embedding.shape[1] == 36 and torch.equal(embedding[:, :32].detach(), weights[name])
    assert not embedding[:, 32:].any()
    batch = stage.batch(0)
    with torch.no_grad():
        known = stage.known(batch)
        latents = stage.latents(batch.images)
        blind = known.latents.clone()
        blind[:, 16:] = 0
        answers = [stage.pipeline.denoise(latents, 0.5, known._replace(latents=x)) for x in (known.latents, blind)]
    assert torch.equal(*answers)
    one_step_lowers(stage)
    assert stage.model.patch_embedding.weight[:, 32:].any()


def test_a_new_denoiser_of_a_size_has_the_pipelines_widths(config):
    stage = Gen3RStage(replace(config, size="miniature"))
    told = stage.model.config
    assert (told.text_dim, told.image_dim, told.num_layers) == (published_gen3r.TEXT, published_gen3r.IMAGE, 1)
    assert stage.pipeline.transformer is stage.model
    one_step_lowers(stage)


def test_what_does_not_fit_is_refused_in_one_line(config, tmp_path):
    Gen3RTransformer(**ROW, text_dim=8, image_dim=32).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"^[^\n]*other: a denoiser of text_dim 8; accepted are [^\n]*$"):
        Gen3RStage(replace(config, start=tmp_path / "other"))
    with pytest.raises(ValueError, match=r"^--size miniature with --start [^\n]*: accepted is one of the two$"):
        Gen3RStage(replace(config, start=tmp_path / "other", size="miniature"))
