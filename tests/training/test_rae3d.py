from dataclasses import replace

import pytest
import torch
from tests.captures import capture
from tests.miniature import DIM, lively, rae3d
from tests.published_dino import in_cache
from tests.training.conftest import SIDE, VIEWS

from diorama.data.cache import WorldsCache, write_cache
from diorama.geometry.similarity import Similarity
from diorama.models.perceptual import Unavailable
from diorama.models.rae3d import RAE3D
from diorama.training import rae3d as module
from diorama.training.losses import point_loss
from diorama.training.rae3d import Config, RAE3DStage, _point_terms, _point_unit, visible_views
from diorama.training.trainer import Share, Trainer, step_generator


@pytest.fixture
def config(worlds, tmp_path):
    return Config(
        out=tmp_path / "run", **worlds, size="miniature", steps=4, batch=3, learning_rate=1e-3, warmup=0,
        precision="32-true", device="cpu", known_views=(2, 3), target_views=2, gradient_weight=0.5,
    )  # fmt: skip


def losses(stage, batch):
    ((phase, found),) = stage.phases(batch, step_generator(0, 0, 1))
    assert phase == "reconstruction"
    return {name: float(loss.detach()) for name, loss in found.items()}


@pytest.mark.parametrize("changes", [{}, dict(point_unit="scene", mirror=True, muon_rate=1e-3)], ids=["plain", "all"])
def test_one_step_lowers_the_loss_on_its_batch(config, changes):
    stage = RAE3DStage(replace(config, **changes))
    batch = stage.batch(0)
    before = losses(stage, batch)
    assert before.keys() == {"image", "gradient", "point_confident", "point_distance", "point_empty"}
    report = Trainer(stage, stage.config).train_step()
    assert report["loss"] == pytest.approx(sum(before.values()), rel=1e-5)
    assert sum(losses(stage, batch).values()) < sum(before.values())


def test_a_batch_belongs_to_its_step(config):
    one, other = RAE3DStage(config), RAE3DStage(config)
    (views, known, *_), (again, count, *_) = one.batch(5), other.batch(5)
    assert known == count in (2, 3) and torch.equal(views.images, again.images)
    assert views.images.shape == (3, known + 2, 3, SIDE, SIDE)
    assert not torch.equal(one.batch(6)[0].images[:, :2], views.images[:, :2])
    sizes = {one.batch(step)[1] for step in range(20)}
    assert sizes == {2, 3}


def test_the_views_of_a_batch_are_different_views_of_one_scene(config):
    data = WorldsCache(config.data)
    poses = data.camera_to_world
    views = RAE3DStage(replace(config, batch=8)).batch(0).views
    for row in views.cameras.camera_to_world:
        same = (row[:, None, None] == poses).all((-1, -2)).nonzero()  # view, scene, place
        assert len(set(same[:, 1].tolist())) == 1 and len(set(same[:, 2].tolist())) == len(row)


def places_of(config, views):
    poses = WorldsCache(config.data).camera_to_world
    return [
        (row[:, None, None] == poses).all((-1, -2)).nonzero()[:, 2].tolist() for row in views.cameras.camera_to_world
    ]


def test_point_errors_come_in_the_unit_asked_for(config):
    stage = RAE3DStage(config)
    views, known, *_ = stage.batch(0)
    cameras = views.cameras.normalized()[0][known:]
    points, mask = torch.rand(3, 2, SIDE, SIDE, 3) + 1, views[known:].mask
    centre = cameras.centers[:, :, None, None]
    frame, scene, distance = (_point_unit(kind, points, mask, cameras) for kind in ("frame", "scene", "distance"))
    assert frame.unique().tolist() == [1]
    torch.testing.assert_close(scene[0].squeeze(), points[0].norm(dim=-1)[mask[0]].mean())
    torch.testing.assert_close(distance[..., 0], (points - centre).norm(dim=-1))
    assert float(_point_unit("distance", centre.expand_as(points), mask, cameras).max()) == pytest.approx(1e-3)


def test_a_window_takes_neighbouring_views(config):
    config = replace(config, batch=8, known_views=(2,), target_views=1, window=3)
    found = [places for step in range(3) for places in places_of(config, RAE3DStage(config).batch(step)[0])]
    assert all(max(row) - min(row) == 2 and len(set(row)) == 3 for row in found)
    assert len({min(row) for row in found}) == VIEWS - 2


def test_known_views_come_last_again_where_asked(config):
    stage = RAE3DStage(replace(config, known_views=(3,), target_views=2, known_targets=1))
    views, known, *_ = stage.batch(0)
    assert torch.equal(views.images[:, -1], views.images[:, 0]) and known == 3 and views.images.shape[1] == 5
    assert not torch.equal(views.images[:, -2], views.images[:, 1])


def test_shares_make_up_the_batch(config):
    stage = RAE3DStage(replace(config, batch=4, mirror=True))
    whole, shares = stage.batch(2)[0], [stage.batch(2, Share(index, 2))[0] for index in (0, 1)]
    for name in ("images", "points"):
        parts = [getattr(share, name) for share in shares]
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), getattr(whole, name))


def test_losses_without_points_or_gradients(config):
    stage = RAE3DStage(replace(config, gradient_weight=0.0, point_views=0))
    assert losses(stage, stage.batch(0)).keys() == {"image"}


def test_the_loss_does_not_depend_on_the_world_it_is_measured_in(config):
    """Cameras are normalised before the model sees them, points by the same map."""
    stage = RAE3DStage(replace(config, noise=0.0))
    batch = stage.batch(0)
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).expand(3, 3, 3)
    moved = batch.views.transformed(Similarity(turn, torch.ones(3, 3), torch.full((3,), 2.0)))
    before, after = losses(stage, batch), losses(stage, batch._replace(views=moved))
    assert after == pytest.approx(before, rel=1e-3)


@torch.no_grad()
def test_validation_gives_finite_numbers_and_a_picture(config):
    values, picture = RAE3DStage(config).validate()
    assert values.keys() == {"psnr_4", "psnr_2", "psnr_1", "depth_abs_rel"}
    assert all(torch.tensor(value).isfinite() for value in values.values())
    assert picture.shape == (3, 6 * SIDE, 2 * SIDE) and picture.isfinite().all()  # truth and guess, thrice; two scenes


@torch.no_grad()
@pytest.mark.parametrize(("views", "counts"), [(2, {1}), (3, {2, 1}), (4, {2, 1}), (5, {4, 2, 1})])
def test_validation_leaves_out_what_leaves_nothing_to_predict(config, tmp_path, views, counts):
    short = write_cache(tmp_path / "short", [9], views=views, height=SIDE, width=SIDE, samples=1)
    values, picture = RAE3DStage(replace(config, validation=short)).validate()
    assert values.keys() == {f"psnr_{count}" for count in counts} | ({"depth_abs_rel"} if 4 in counts else set())
    assert all(torch.tensor(value).isfinite() for value in values.values())
    assert picture.shape == (3, 2 * len(counts) * SIDE, SIDE)


def test_caches_with_nothing_to_predict_are_refused_in_one_line(config, tmp_path):
    single = write_cache(tmp_path / "single", [9], views=1, height=SIDE, width=SIDE, samples=1)
    for changes, message in (
        (dict(known_views=(2, VIEWS)), rf"train: {VIEWS} known views of {VIEWS} leave none to predict; accepted are f"),
        (dict(known_views=(2, 3), window=3), r"train: 3 known views of 3 leave none to predict; accepted are fewer"),
        (dict(validation=single), r"single: found 1 view a scene; accepted are 2 or more"),
        (dict(size="base-256"), rf"validation: images of {SIDE}x{SIDE}; accepted are multiples of 14 "),
        (dict(data=(config.data, config.data)), r"--image-size: images of 252x252; accepted are multiples of 8 "),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
            RAE3DStage(replace(config, **changes))


def test_a_run_ends_with_a_model_that_loads(config):
    stage = RAE3DStage(config)
    trainer = Trainer(stage, config)
    trainer.train()
    model = RAE3D.from_pretrained(config.out / "model")
    for parameter, average in zip(model.parameters(), trainer.ema.shadow_params, strict=True):
        assert torch.equal(parameter, average)


def test_a_run_may_start_from_a_trained_model(config, tmp_path):
    trained = rae3d(3)
    trained.save_pretrained(tmp_path / "trained")
    stage = RAE3DStage(replace(config, start=tmp_path / "trained"))
    for name, tensor in stage.model.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
    rae3d(tokens=7).save_pretrained(tmp_path / "other")
    with pytest.raises((ValueError, RuntimeError), match="size mismatch|shape"):
        RAE3DStage(replace(config, start=tmp_path / "other"))


def test_how_many_views_hide_their_image(config):
    config = replace(config, mask_probability=0.5, mask_ratio=(0.25, 0.75), blind_probability=0.1)
    visible = visible_views(4000, VIEWS, config, torch.Generator().manual_seed(0))
    shown = visible.sum(1)
    assert float((shown == 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    some = (shown > 0) & (shown < VIEWS)
    assert float(some.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((shown == VIEWS).float().mean()) == pytest.approx(0.4, abs=0.03)
    hidden = (~visible[some]).float()
    assert hidden.sum(1).min() >= 0.25 * VIEWS - 0.5 and hidden.sum(1).max() <= 0.75 * VIEWS + 0.5
    assert hidden.mean() == pytest.approx(0.5, abs=0.03)
    assert (hidden.mean(0) - hidden.mean()).abs().max() < 0.05  # no place is hidden more often than another


@pytest.mark.parametrize(("kind", "shown"), [("mask_probability", VIEWS), ("blind_probability", 0)])
def test_nothing_and_everything_hidden(config, kind, shown):
    config = replace(config, mask_probability=0.0, blind_probability=0.0) if shown else config
    config = config if shown else replace(config, blind_probability=1.0)
    visible = visible_views(50, VIEWS, config, torch.Generator().manual_seed(0))
    assert (visible.sum(1) == shown).all()


@pytest.mark.parametrize(("masking", "low", "high"), [("paper", 0.1, 0.6), ("paper-appendix", 0.6, 0.9)])
def test_the_papers_two_ways_of_hiding_views(config, masking, low, high):
    config, views = replace(config, masking=masking), 20
    visible = visible_views(6000, views, config, torch.Generator().manual_seed(0))
    hidden = (~visible).sum(1)
    some = hidden[hidden > 0]
    assert len(some) / 6000 == pytest.approx(0.1, abs=0.01)  # and none hides all
    assert (int(some.min()), int(some.max())) == (low * views, high * views)
    assert float(some.float().mean()) == pytest.approx((low + high) / 2 * views, abs=0.03 * views)


def test_losses_and_masks_that_cannot_be_meant_are_refused_in_one_line(config):
    for changes, message in (
        (dict(masking="paper", mask_probability=0.5), r"--mask-probability 0\.5 with --masking paper, which says 0\.1"),
        (dict(adversarial_weight=0.75, adversarial_start=5), r"--discriminator-start 50000: .* at most .*start 5"),
        (dict(lpips_weight=-1.0), r"--lpips-weight -1\.0: accepted is 0 or more"),
        (dict(point_quantile=0.0), r"--point-quantile 0\.0: accepted is above 0, up to 1"),
        (dict(adversarial_weight=0.75, discriminator="vgg"), r"discriminator 'vgg': accepted are dinov2-s14, "),
    ):
        with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
            RAE3DStage(replace(config, **changes))


def test_absent_weights_are_said_before_training(config, monkeypatch, tmp_path):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    for changes, file in (
        (dict(lpips_weight=1.0), "vgg16-"),
        (dict(adversarial_weight=0.75), "dinov2_vits14_pretrain"),
    ):
        with pytest.raises(Unavailable, match=rf"^[^\n]*found no {file}[^\n]*$"):
            RAE3DStage(replace(config, **changes))


class Blur(torch.nn.Module):
    """Stands in for LPIPS, whose published weights no test has."""

    def forward(self, a, b):
        return (a.mean((1, 2, 3)) - b.mean((1, 2, 3))).square()


def test_lpips_counts_as_much_as_asked(config, monkeypatch):
    monkeypatch.setattr(module, "load_lpips", Blur)
    batch = RAE3DStage(config).batch(0)
    plain, half, whole = (losses(RAE3DStage(replace(config, lpips_weight=w)), batch) for w in (0.0, 0.5, 1.0))
    assert "lpips" not in plain and whole["lpips"] == pytest.approx(2 * half["lpips"]) and whole["lpips"] > 0
    assert plain == {name: loss for name, loss in whole.items() if name != "lpips"}


def test_what_runs_without_the_new_losses_is_what_it_was(config):
    """The losses of four steps before there were LPIPS, a discriminator and presets of masks."""
    trainer = Trainer(RAE3DStage(config), config)
    found = [trainer.train_step()["loss"] for _ in range(4)]
    assert found == pytest.approx([2.830860138, 3.323836803, 2.537285328, 6.582256317], rel=1e-4)


@pytest.fixture
def adversarial(config, monkeypatch, tmp_path):
    in_cache(monkeypatch, tmp_path / "cache")
    return replace(
        config, adversarial_weight=0.75, discriminator="miniature", discriminator_rate=1e-2, discriminator_start=1,
        adversarial_start=2, log_every=1,
    )  # fmt: skip


def states(stage):
    return [{name: x.clone() for name, x in part.state_dict().items()} for part in stage.modules.values()]


def same(one, other):
    return all(torch.equal(x, other[name]) for name, x in one.items())


def test_the_discriminator_and_what_it_says_join_at_their_steps(config, adversarial):
    """Until it counts, the autoencoder is to the last bit the one trained without."""
    without, joined = (Trainer(RAE3DStage(c), c) for c in (config, adversarial))
    for step in range(4):
        (maker, judge), one = states(joined.stage), without.train_step()
        other = joined.train_step()
        assert ("discriminator" in other, "adversarial" in other) == (step >= 1, step >= 2)
        changed, learnt = states(joined.stage)
        assert not same(changed, maker) and same(learnt, judge) == (step < 1)
        if step < 2:
            assert all(other[name] == one[name] for name in ("image", "gradient", "reconstruction_gradient_norm"))
        assert same(changed, states(without.stage)[0]) == (step < 2)
    assert other["discrimination_gradient_norm"] > 0 and not joined.stage.model.output.weight.grad


def test_resuming_with_two_optimisers_gives_the_same_curve(adversarial):
    whole, parts = (replace(adversarial, out=adversarial.out / name) for name in ("whole", "parts"))
    straight = RAE3DStage(whole)
    Trainer(straight, whole).train()
    for until in (1, 3, None):  # before, between and after both starts
        again = RAE3DStage(parts)
        Trainer(again, parts).train(until)
    assert (whole.out / "log.jsonl").read_text() == (parts.out / "log.jsonl").read_text()
    assert all(same(one, other) for one, other in zip(states(straight), states(again), strict=True))
    saved = torch.load(parts.out / "checkpoint.pt", weights_only=True)
    assert saved["optimizers"].keys() == {"reconstruction", "discrimination"}
    assert not any("embed" in name or "blocks" in name for name in saved["modules"]["discriminator"])  # no trunk
    assert set(RAE3D.from_pretrained(parts.out / "model").state_dict()) == set(straight.model.state_dict())


def test_the_makers_pictures_are_the_discriminators_too(adversarial, monkeypatch):
    """One decoding a step, and no verdict on scenes of which nothing is seen."""
    visible = torch.tensor([[True, True], [False, False], [False, True]])
    monkeypatch.setattr(module, "visible_views", lambda *_: visible)
    stage = RAE3DStage(replace(adversarial, known_views=(2,)))
    decoded, decode, judged = [], stage.model.decode_images, []
    monkeypatch.setattr(stage.model, "decode_images", lambda *inputs: decoded.append(decode(*inputs)) or decoded[-1])
    adversary = stage.adversary
    for name in ("unlikeliness", "confusion"):
        plain = getattr(adversary, name)
        monkeypatch.setattr(adversary, name, lambda *x, plain=plain: judged.append(x[:-1]) or plain(*x))
    batch = stage.batch(2)
    assert batch.step == 2
    found = dict(stage.phases(batch, step_generator(0, 2, 1)))
    assert found.keys() == {"reconstruction", "discrimination"} and len(decoded) == 1
    expected, true = (x[[0, 2]].flatten(0, 1) for x in (decoded[0], batch.views.images[:, 2:]))
    (shown,), (real, made) = judged
    assert torch.equal(shown, expected) and torch.equal(made, expected) and torch.equal(real, true)
    visible[:] = False  # then all are judged, so that every process takes part
    judged.clear()
    list(stage.phases(batch, step_generator(0, 2, 1)))
    assert len(judged[0][0]) == 6


def test_half_precision_trains_both(adversarial):
    config = replace(adversarial, precision="bf16-mixed", discriminator_start=0, adversarial_start=0)
    stage = RAE3DStage(config)
    before = states(stage)
    report = Trainer(stage, config).train_step()
    assert report["adversarial"] != 0 and report["discriminator"] == pytest.approx(1, abs=0.2)
    assert not any(same(one, other) for one, other in zip(states(stage), before, strict=True))
    assert all(p.dtype == torch.float32 for part in stage.modules.values() for p in part.parameters())


@pytest.fixture
def captures(config, tmp_path):
    """Three captures, the first without depth."""
    cache = WorldsCache(config.data)
    for scene in range(3):
        capture(tmp_path / f"captures/{scene}", cache, scene, depth=scene > 0)
    return tmp_path / "captures"


def test_captures_and_worlds_train_together_at_the_papers_shapes(config, captures):
    """Sizes, views and scenes of every step are others, on data with depth and without, and resuming is exact."""
    config = replace(
        config, data=(config.data, captures), weights=("1", "2"),
        dynamic=True, token_budget=160, pixels=(200, 800), sample_views=(4, 6), mirror=True,
        log_every=1, validate_every=4,
    )  # fmt: skip
    whole, parts = (replace(config, out=config.out / name) for name in ("whole", "parts"))
    stage = RAE3DStage(whole)
    shapes = {tuple(stage.batch(step).views.images.shape) for step in range(8)}
    assert len(shapes) > 4 and len({(shape[0], *shape[-2:]) for shape in shapes}) > 2
    Trainer(stage, whole).train()
    for until in (2, None):
        Trainer(RAE3DStage(parts), parts).train(until)
    log = (whole.out / "log.jsonl").read_text()
    assert log == (parts.out / "log.jsonl").read_text() and "NaN" not in log
    assert "validation_psnr_2" in log and "point_distance" in log


def test_what_was_skipped_stands_in_the_log_and_at_the_end(config, captures, caplog):
    for view in (2, 3):
        (captures / f"1/images/{view}.png").write_bytes(b"no photo")
    both = {"data": captures, "validation": captures}
    config = replace(config, **both, known_views=(2,), image_size=(24, 16), log_every=1, validate_every=2)
    with caplog.at_level("WARNING"):
        Trainer(RAE3DStage(config), config).train()
    log = (config.out / "log.jsonl").read_text()
    assert '"validation_bad_frames": 2.0' in log and "validation_psnr_2" in log and "NaN" not in log
    assert f"{captures}: skipped 2 bad frames" in [record.getMessage() for record in caplog.records]


def test_scenes_without_depth_have_no_say_on_points():
    torch.manual_seed(0)
    shape = (3, 2, 4, 4)
    predicted, true, confidence = torch.randn(*shape, 3), torch.randn(*shape, 3), 1 + torch.rand(shape)
    predicted.requires_grad_()
    confidence.requires_grad_()
    mask = torch.rand(shape) < 0.5
    mask[1] = False
    rows = [0, 2]
    parts = (predicted, confidence, true, mask)
    found = _point_terms(parts, torch.tensor([False, False, True]), 1.0)
    expected = point_loss(*(part[rows] for part in parts))
    assert found["distance"] == expected["distance"] and found["confident"] == expected["confident"]
    # Where a capture has no depth there may well be a surface: only the complete scene says that there is none.
    assert found["empty"] == point_loss(*(part[2:] for part in parts))["empty"]
    sum(found.values()).backward()
    assert predicted.grad is not None and not predicted.grad[1].any() and predicted.grad[0].any()
    assert confidence.grad is not None and not confidence.grad[0][~mask[0]].any() and confidence.grad[2].all()
    plain = _point_terms(parts, torch.ones(3, dtype=torch.bool), 1.0)
    assert plain == point_loss(*parts)


def test_a_step_without_any_depth_still_reaches_the_point_decoder(config, captures):
    """Else processes would wait for gradients that one of them does not have."""
    stage = RAE3DStage(replace(config, data=captures / "0", known_views=(2,), image_size=(16, 16)))
    ((_, found),) = stage.phases(stage.batch(0), step_generator(0, 0, 1))
    assert [float(loss.detach()) for name, loss in found.items() if name.startswith("point")] == [0, 0, 0]
    sum(found.values()).backward()
    head = [parameter.grad for parameter in stage.model.point_head.parameters()]
    assert all(grad is not None and not grad.any() for grad in head)


def test_a_frozen_encoder_is_chosen_loaded_and_saved_with_the_model(config, tmp_path, monkeypatch):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    chosen = replace(config, encoder="dinov2", encoder_layers=2, pixel_branch=True, attention="mutual", steps=2)
    with pytest.raises(Unavailable, match=r"^encoder 'dinov2': found no weights [^\n]*$"):
        RAE3DStage(chosen)
    sizes = dict(hidden_size=DIM, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14, mlp_ratio=2)
    lively(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes))).save_pretrained(tmp_path / "dinov2")
    chosen = replace(chosen, encoder_folder=tmp_path / "dinov2")
    stage = RAE3DStage(chosen)
    frozen = stage.model.load_encoder()
    before = [p.clone() for p in frozen.parameters()]
    Trainer(stage, chosen).train()
    assert frozen.layers == 2 and stage.model.pixel_gate.any()
    assert all(torch.equal(p, q) for p, q in zip(frozen.parameters(), before, strict=True))
    model = RAE3D.from_pretrained(chosen.out / "model")
    assert model.config.attention == "mutual" and model.load_encoder().digest == frozen.digest  # found beside it


@pytest.mark.parametrize("attention", ["hub", "one_way"])
def test_a_neck_is_chosen_trained_from_another_kinds_weights_and_saved(config, tmp_path, attention):
    model = rae3d()
    model.save_pretrained(tmp_path / "full")
    chosen = replace(config, neck_attention=attention, start=tmp_path / "full", steps=2, checkpoint_activations=True)
    stage = RAE3DStage(chosen)
    assert all(torch.equal(p, q) for p, q in zip(stage.model.parameters(), model.parameters(), strict=True))
    before = sum(losses(stage, stage.batch(0)).values())
    Trainer(stage, chosen).train()
    assert sum(losses(stage, stage.batch(0)).values()) < before
    assert RAE3D.from_pretrained(chosen.out / "model").neck.attention == attention
