import math
from dataclasses import replace

import pytest
import torch
from tests.miniature import rae3d
from tests.training.conftest import SIDE, VIEWS

from diorama.models.observed_memory import ObservedMemory, Sweep
from diorama.training.losses import log_depth_loss
from diorama.training.observed_memory import Config, ObservedMemoryStage, colour_loss, hypothesis_loss
from diorama.training.trainer import Trainer, step_generator


@pytest.fixture
def config(worlds, tmp_path):
    rae3d().save_pretrained(tmp_path / "autoencoder")
    return Config(
        out=tmp_path / "run", **worlds, autoencoder=tmp_path / "autoencoder", size="miniature", steps=4, batch=3,
        learning_rate=1e-3, warmup=0, precision="32-true", device="cpu", known_views=(1, 3), target_views=2,
        gradient_weight=0.5,
    )  # fmt: skip


def losses(stage, batch):
    ((phase, found),) = stage.phases(batch, step_generator(0, 0, 1))
    assert phase == "search"
    return {name: float(loss.detach()) for name, loss in found.items()}


def test_one_step_lowers_the_loss_on_its_batch_and_leaves_the_autoencoder(config):
    stage = ObservedMemoryStage(config)
    batch, frozen = stage.batch(0), {name: w.clone() for name, w in stage.autoencoder.state_dict().items()}
    before = losses(stage, batch)
    searches = {f"{name}_{kind}" for name in ("coarse", "fine") for kind in ("search", "colours")}
    assert before.keys() == {"image", "gradient", "depth"} | searches
    Trainer(stage, stage.config).train_step()
    assert sum(losses(stage, batch).values()) < sum(before.values())
    assert all(torch.equal(weight, frozen[name]) for name, weight in stage.autoencoder.state_dict().items())


def test_stopped_and_resumed_is_as_not_stopped(config):
    whole = Trainer(ObservedMemoryStage(config), config)
    whole.train(until=2)
    expected = whole.train_step()
    again = Trainer(ObservedMemoryStage(config), config)
    assert again.step == 2 and again.train_step()["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_targets_are_never_known(config):
    stage = ObservedMemoryStage(config)
    for step in range(10):
        views, known = stage.batch(step)
        assert known in (1, 3) and views.images.shape == (3, known + 2, 3, SIDE, SIDE)
        poses = views.cameras.camera_to_world
        assert all(len({tuple(pose.flatten().tolist()) for pose in row}) == known + 2 for row in poses)


def test_validation_and_the_saved_model(config):
    stage = ObservedMemoryStage(config)
    with torch.no_grad():
        values, picture = stage.validate()
    kinds = ("psnr_{}", "psnr_{}_latents", "depth_abs_rel_{}")
    assert values.keys() == {kind.format(known) for kind in kinds for known in (4, 2, 1)}
    assert picture.shape == (3, 2 * SIDE, 9 * SIDE) or picture.shape == (3, 9 * SIDE, 2 * SIDE)
    stage.save(config.out / "model")
    assert isinstance(ObservedMemory.from_pretrained(config.out / "model"), ObservedMemory)


def test_what_cannot_be_trained_is_refused(config):
    with pytest.raises(ValueError, match=rf"^[^\n]*: found {VIEWS} views a scene; accepted are 7 or more$"):
        ObservedMemoryStage(replace(config, known_views=(5,)))
    rae3d(point_layers=0, point_taps=(0,)).save_pretrained(config.out / "blind")
    with pytest.raises(ValueError, match=r"^[^\n]*blind: decodes no points; accepted is a RAE3D with point_layers$"):
        ObservedMemoryStage(replace(config, autoencoder=config.out / "blind"))


def sweep(likely, tried):
    shape = (1, 1, 3, *likely.shape[1:])
    return Sweep(
        likely[None, None],
        tried[None, None],
        math.log(2),
        tried[None, None, 0],
        torch.zeros(shape),
        *2 * [torch.ones(shape)[:, :, :1]],
    )


def test_hypothesis_loss_is_the_cross_entropy_with_the_two_nearest():
    likely = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None].expand(4, 1, 1)
    tried = torch.tensor([0.25, 0.5, 1.0, 2.0])[:, None, None]
    yes = torch.ones(1, 1, 1, 1, dtype=torch.bool)

    def loss(disparity, mask=yes, likely=likely, tried=tried):
        return float(hypothesis_loss(sweep(likely, tried), torch.full((1, 1, 1, 1), 1 / disparity), mask))

    assert loss(0.5) == pytest.approx(-math.log(0.2), rel=1e-5)
    assert loss(2**-0.5) == pytest.approx(-(math.log(0.2) + math.log(0.3)) / 2, rel=1e-4)  # half way, in the log
    assert loss(50.0) == pytest.approx(-math.log(0.4), rel=1e-5)  # beyond the last
    assert loss(0.001) == pytest.approx(-math.log(0.1), rel=1e-5)
    assert loss(1.0, ~yes) == 0
    sky = torch.cat([torch.zeros(1, 1, 1), tried[1:]])
    assert loss(1.0, ~yes, tried=sky) == pytest.approx(-math.log(0.1), rel=1e-5)
    assert loss(0.001, tried=sky) == pytest.approx(-math.log(0.2), rel=1e-5)  # far, but a surface


def test_colour_loss_counts_what_was_seen():
    true = torch.rand(1, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(1, 1, 1, 2, 2)
    seen[..., 0] = 1
    small = torch.nn.functional.avg_pool2d(true[0], 2)[None]
    found = Sweep(
        torch.ones(1, 1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2), 1.0, torch.ones(1, 1, 2, 2), small + 0.5, seen, seen
    )
    assert float(colour_loss(found, true)) == pytest.approx(0.25 / 2, rel=1e-4)
    found = found._replace(colours=small + 0.5 * (1 - seen))
    assert float(colour_loss(found, true)) == pytest.approx(0, abs=1e-9)


def test_log_depth_loss_is_a_mean_of_ratios_and_ignores_the_rest():
    true = torch.tensor([[1.0, 2.0], [3.0, math.nan]])
    predicted = torch.tensor([[2.0, 1.0], [3e9, 5.0]], requires_grad=True)
    loss = log_depth_loss(predicted, true, true.isfinite())
    assert loss.item() == pytest.approx((2 * math.log(2) + 3) / 3, rel=1e-5)
    loss.backward()
    assert predicted.grad.isfinite().all() and predicted.grad[1, 1] == 0
