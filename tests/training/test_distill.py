import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import miniature
from tests.training.conftest import SIDE, VIEWS

from diorama.pipelines.base import load
from diorama.scene import Condition, Views
from diorama.training import distill
from diorama.training.distill import Config, DistillStage
from diorama.training.trainer import Share, Trainer, step_generator
from diorama.training.trajectories import knots, mean_velocities


@pytest.fixture
def config(tmp_path: Path, worlds) -> Config:
    """A short run, of a teacher in which everything matters."""
    pipeline = miniature.pipeline(encoder_views=4, pixels=SIDE * SIDE, steps=6)
    pipeline.register_modules(memory=miniature.observed_memory())
    pipeline.save_pretrained(tmp_path / "teacher")
    return Config(
        out=tmp_path / "run", model=str(tmp_path / "teacher"), **worlds, sampling_steps=2, teacher_steps=6,
        teacher_batches=3, visible=(1, 2), steps=4, batch=4, learning_rate=1e-3, warmup=0, precision="32-true",
        device="cpu", save_every=2,
    )  # fmt: skip


@pytest.fixture
def same(config: Config) -> Config:
    """One whose student is right from the start: the teacher takes as few steps, and no guidance."""
    return replace(config, teacher_steps=2, guidance=1.0)


def loss(stage: DistillStage) -> float:
    ((phase, found),) = stage.phases(stage.batch(0), step_generator(0, 0, 1))
    assert phase == "pieces" and list(found) == ["piece_0", "piece_1"]
    return float(torch.stack(list(found.values())).sum().detach())


def test_trajectories_are_the_teachers_own_samples(config: Config) -> None:
    stage = DistillStage(config)
    conditions, paths, views = stage._requests()
    context, null = stage.teacher.branches(conditions, paths, [0, 1], {"guidance": 2.0})
    noise = stage.teacher.noise(paths, [0, 1])
    settings = {"steps": 6, "guidance": 2.0, "interval": (0.0, 1.0)}
    with torch.no_grad():
        expected = stage.teacher.sampled(noise, context, null, settings)

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        return stage.teacher.velocity(x, t, context, null, 2.0)

    pieces = mean_velocities(velocity, noise, knots(stage.teacher.scheduler, 6), 2)
    spans = -torch.tensor(stage.times).diff()
    torch.testing.assert_close(noise - (spans[:, None, None] * pieces).sum(1), expected, atol=1e-4, rtol=1e-4)
    assert stage.guidance == 2.0 and len(views) == VIEWS - 2
    kept = stage.kept[torch.arange(12)]
    assert kept.noise.shape == kept.known.shape == (12, miniature.TOKENS, miniature.DIM) and len(stage.kept) == 12
    assert abs(float(kept.noise.std()) - 1) < 0.1 and kept.noise.flatten(1).unique(dim=0).shape[0] == 12
    # With nothing known there is nothing to guide by, else guidance tells.
    plain = DistillStage(replace(config, guidance=1.0, out=config.out.parent / "plain")).kept[torch.arange(12)]
    assert torch.equal(plain.noise, kept.noise) and torch.equal(plain.known, kept.known)
    assert (plain.pieces - kept.pieces).abs().amax((1, 2, 3)).median() > 1e-2


def test_a_student_that_is_right_has_no_loss_and_the_teachers_samples(same: Config) -> None:
    stage = DistillStage(replace(same, guidance=1.0))
    assert loss(stage) < 1e-5  # trajectories are kept in half precision
    with torch.no_grad():
        values, picture = stage.validate()
    assert values["distance_teacher_in_few_steps"] == pytest.approx(values["distance_student"], abs=1e-6)
    assert values["distance_student"] > 0.01  # the teacher's own samples take 6 steps
    assert picture.shape == (3, 4 * SIDE, 2 * SIDE) and picture.isfinite().all() and stage.model.training


def test_the_loss_is_what_the_students_own_steps_lack(same: Config) -> None:
    stage = DistillStage(same)
    with torch.no_grad():
        stage.model.output.bias.add_(0.5)  # a constant error of every velocity
        pieces, spans = stage.batch(0), -torch.tensor(stage.times).diff()
        ((_, found),) = stage.phases(pieces, step_generator(0, 0, 1))
    assert float(found["piece_0"]) == pytest.approx(0.25 / 2, rel=1e-2)
    own = pieces.noise - spans[0] * (pieces.pieces[:, 0] + 0.5)
    with torch.no_grad():
        says = stage.model(own, torch.full((4,), stage.times[1]), pieces.known).velocity
    ends = pieces.noise - spans[0] * pieces.pieces[:, 0] - spans[1] * pieces.pieces[:, 1]
    missed = (own - spans[1] * says - ends) / spans[1]
    assert float(found["piece_1"]) == pytest.approx(float(missed.square().mean()) / 2, rel=1e-2)


@pytest.mark.parametrize("rate", [0.0, 1e-3], ids=["adamw", "muon"])
def test_steps_lower_the_loss_and_change_the_student_alone(config: Config, rate: float) -> None:
    stage = DistillStage(replace(config, muon_rate=rate))
    parts = {name: getattr(stage.teacher, name) for name in ("denoiser", "autoencoder", "memory")}
    before = {name: {key: x.clone() for key, x in part.state_dict().items()} for name, part in parts.items()}
    first, trainer = loss(stage), Trainer(stage, stage.config)
    trainer.train_step()
    assert loss(stage) < first
    for name, part in parts.items():
        assert all(torch.equal(x, before[name][key]) for key, x in part.state_dict().items())
    learnt, taught = stage.model.state_dict(), before["denoiser"]
    assert any(not torch.equal(x, taught[key]) for key, x in learnt.items())


def test_a_run_that_was_stopped_ends_with_the_same_student(config: Config) -> None:
    whole, halves = replace(config, out=config.out / "whole"), replace(config, out=config.out / "halves")
    Trainer(DistillStage(whole), whole).train()
    Trainer(DistillStage(halves), halves).train(until=2)
    second = Trainer(DistillStage(halves), halves)
    assert second.step == 2
    second.train()
    assert (whole.out / "log.jsonl").read_text() == (halves.out / "log.jsonl").read_text()
    one, other = (load(run.out / "model", "cpu").denoiser.state_dict() for run in (whole, halves))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_saved_pipeline_takes_few_steps_and_no_guidance_by_itself(config: Config, monkeypatch) -> None:
    stage = DistillStage(config)
    Trainer(stage, config).train()
    saved, teacher = load(config.out / "model", "cpu"), load(config.model, "cpu")
    assert (saved.config.steps, saved.config.guidance, saved.config.title) == (2, 1.0, "miniature, 2 steps")
    for name in ("licence", "pixels", "encoder_views"):
        assert saved.config[name] == teacher.config[name]
    assert saved.scheduler.config.shift == 1.5
    for part in ("autoencoder", "memory"):
        state = getattr(saved, part).state_dict()
        assert all(torch.equal(x, state[key]) for key, x in getattr(teacher, part).state_dict().items())
    asked = []
    saved.denoiser.register_forward_pre_hook(lambda _, given: asked.append((len(given[0]), float(given[1][0]))))
    photo = Views(miniature.images(1, SIDE, SIDE))
    scene = saved.generate(Condition(photo, (0,)), miniature.path(3, SIDE, SIDE))
    assert scene.views.images.isfinite().all()
    assert asked == [(1, pytest.approx(t)) for t in stage.times[:-1]]  # one pass a step: no other branch


def test_trajectories_are_made_once_each_by_one_process(config: Config, monkeypatch) -> None:
    first = DistillStage(config)
    folder = config.out / "trajectories"
    assert sorted(file.name for file in folder.iterdir()) == [f"{number:06d}.safetensors" for number in range(3)]
    before = first.kept[torch.arange(12)]
    (folder / "000001.safetensors").unlink()  # as after a run that was killed
    made, whole = [], DistillStage._trajectories

    def counted(self, online, number):
        made.append(number)
        return whole(self, online, number)

    monkeypatch.setattr(DistillStage, "_trajectories", counted)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")  # whose share is every second
    again = DistillStage(config).kept[torch.arange(12)]
    assert made == [1]
    assert all(torch.equal(one, other) for one, other in zip(before[:3], again[:3], strict=True))
    with pytest.raises(ValueError, match=r"000001.safetensors: made with other settings \(guidance was 2.0, is 3.0\)"):
        DistillStage(replace(config, guidance=3.0))


def test_a_batch_belongs_to_its_step_and_is_shared(config: Config) -> None:
    stage = DistillStage(config)
    whole, parts = stage.batch(3), [stage.batch(3, Share(index, 2)) for index in (0, 1)]
    assert torch.equal(whole.noise[0::2], parts[0].noise) and torch.equal(whole.pieces[1::2], parts[1].pieces)
    assert not torch.equal(stage.batch(2).noise, whole.noise)


def test_a_teacher_with_a_scale_is_told_it_at_times(config: Config, tmp_path: Path) -> None:
    pipeline = miniature.pipeline(encoder_views=4, pixels=SIDE * SIDE)
    pipeline.register_modules(denoiser=miniature.dit3d(1, scale=True))
    pipeline.save_pretrained(tmp_path / "scaled")
    stage = DistillStage(replace(config, model=str(tmp_path / "scaled"), scale_dropout=0.5))
    told = stage.kept[torch.arange(12)].log_scale.isfinite()
    assert told.any() and not told.all() and math.isfinite(loss(stage))


def test_the_teachers_scenes_are_made_once(config: Config, monkeypatch) -> None:
    stage = DistillStage(config)
    conditions, paths, _ = stage._requests()
    scenes = stage.teacher.generate(conditions, paths, seed=[0, 1])
    latents = torch.stack([scene.latents for scene in scenes])
    torch.testing.assert_close(stage._reference["many_latents"], stage.autoencoder.normalize(latents))
    monkeypatch.setattr(DistillStage, "_made", None)
    again = DistillStage(config)._reference
    assert all(torch.equal(x, again[name]) for name, x in stage._reference.items())
    assert json.loads((Path(config.model) / "model_index.json").read_text())["steps"] == 6


def test_what_cannot_be_used_is_refused_in_one_line(config: Config, tmp_path: Path) -> None:
    def refused(**changes) -> str:
        with pytest.raises(ValueError, match=r"^[^\n]*$") as found:
            DistillStage(replace(config, **changes))
        assert not config.out.exists()
        return str(found.value)

    assert "neither an embedded model (" in refused(model="nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model_index.json").write_text('{"_class_name": "VGGTPipeline"}')
    assert "other: found a VGGTPipeline; accepted are" in refused(model=str(tmp_path / "other"))
    by_class = miniature.pipeline()
    by_class.register_modules(denoiser=miniature.dit3d(1, classes=3))
    by_class.save_pretrained(tmp_path / "by-class")
    assert "by-class: made for single images by class" in refused(model=str(tmp_path / "by-class"))
    assert refused(teacher_steps=5) == "--teacher-steps 5 with --sampling-steps 2: accepted is a multiple of it"
    assert "--teacher-batches 0: accepted is 1 or more" in refused(teacher_batches=0)
    assert "encoder_views of 7 with scenes of 6 views; accepted are 2 to 6" in refused(encoder_views=7)
    assert "--visible 4 5 with samples of 4 views: accepted are numbers from 1 to 3" in refused(visible=(4, 5))


def test_more_scenes_than_are_looked_at_are_left_out(config: Config, monkeypatch) -> None:
    monkeypatch.setattr(distill, "SCENES", 1)
    assert DistillStage(config)._reference["many_images"].shape[0] == 1
