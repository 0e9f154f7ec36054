from dataclasses import replace

import pytest
import torch
from tests.miniature import rae3d
from tests.training.conftest import SIDE, VIEWS

from diorama.data.cache import WorldsCache, write_cache
from diorama.geometry.similarity import Similarity
from diorama.models.rae3d import RAE3D
from diorama.training.rae3d import Config, RAE3DStage, _point_unit, visible_views
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
    (views, known), (again, count) = one.batch(5), other.batch(5)
    assert known == count in (2, 3) and torch.equal(views.images, again.images)
    assert views.images.shape == (3, known + 2, 3, SIDE, SIDE)
    assert not torch.equal(one.batch(6)[0].images[:, :2], views.images[:, :2])
    sizes = {one.batch(step)[1] for step in range(20)}
    assert sizes == {2, 3}


def test_the_views_of_a_batch_are_different_views_of_one_scene(config):
    data = WorldsCache(config.data)
    poses = data.camera_to_world
    views, _ = RAE3DStage(replace(config, batch=8)).batch(0)
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
    views, known = stage.batch(0)
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
    views, known = stage.batch(0)
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
    views, known = stage.batch(0)
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).expand(3, 3, 3)
    moved = views.transformed(Similarity(turn, torch.ones(3, 3), torch.full((3,), 2.0)))
    before, after = losses(stage, (views, known)), losses(stage, (moved, known))
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
