import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests import miniature
from tests.training.conftest import SIDE, VIEWS

from diorama.export.nerfstudio import write_nerfstudio
from diorama.models.dit3d import DiT3D
from diorama.pipelines.base import load
from diorama.scene import Condition, Views
from diorama.training.lora import Config, LoRAStage
from diorama.training.trainer import Trainer, step_generator

NEW = ".lora_"  # in the names of what an adapter adds


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Five photos of 40x24 pixels with cameras, as somebody took them."""
    photos = miniature.images(5, 24, 40)
    write_nerfstudio(Views(photos, miniature.path(5, 24, 40)), tmp_path / "capture")
    return tmp_path / "capture"


@pytest.fixture
def config(tmp_path: Path, capture: Path) -> Config:
    """A short run on a capture, of a pipeline in which everything matters."""
    pipeline = miniature.pipeline(encoder_views=4, pixels=SIDE * SIDE)
    pipeline.register_modules(memory=miniature.observed_memory())
    pipeline.save_pretrained(tmp_path / "trained")
    return Config(
        out=tmp_path / "run", model=str(tmp_path / "trained"), data=capture, rank=2, alpha=4, steps=4, batch=4,
        learning_rate=1e-2, warmup=0, precision="32-true", device="cpu", save_every=2,
    )  # fmt: skip


def loss(stage: LoRAStage) -> float:
    ((_, found),) = stage.phases(stage.batch(0), step_generator(0, 0, 1))
    return float(found["velocity"].detach())


def tensors(stage: LoRAStage) -> dict[str, torch.Tensor]:
    """All that the stage holds, by part and name."""
    parts = {"denoiser": stage.model, "autoencoder": stage.autoencoder, "memory": stage.trained.memory}
    return {f"{part}.{name}": x.clone() for part, module in parts.items() for name, x in module.state_dict().items()}


def asked(model: torch.nn.Module) -> torch.Tensor:
    """What a denoiser says to one request."""
    generator = torch.Generator().manual_seed(3)
    noisy, known = torch.randn(2, 2, miniature.TOKENS, miniature.DIM, generator=generator)
    with torch.no_grad():
        return model(noisy, torch.tensor([0.2, 0.9]), known).velocity


def test_a_fresh_adapter_changes_nothing(config: Config) -> None:
    before = load(config.model, "cpu").denoiser
    stage = LoRAStage(config)
    assert asked(before).abs().mean() > 0.01
    assert torch.equal(asked(stage.pipeline().denoiser), asked(before))


@pytest.mark.parametrize("layers", [("attention",), ("mlp",), ("attention", "mlp")], ids="-".join)
def test_a_step_lowers_the_loss_and_changes_the_adapter_of_the_chosen_layers_alone(config: Config, layers) -> None:
    stage = LoRAStage(replace(config, layers=layers))
    before, first = tensors(stage), loss(stage)
    trainer = Trainer(stage, config)
    trainer.train_step()
    trainer.train_step()  # the first leaves A as it is: B is 0
    assert loss(stage) < first
    after = tensors(stage)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in after if NEW in name}
    assert {name.split(".")[3] for name in changed} == set(layers)
    assert {name.split(".")[1] for name in changed} == {"blocks", "head_blocks"}
    assert not any("modulation" in name for name in changed)


def test_the_run_leaves_a_whole_pipeline_with_the_adapter_merged_and_the_adapter_beside_it(config: Config) -> None:
    stage = LoRAStage(replace(config, title="mine"))
    trainer = Trainer(stage, stage.options)
    trainer.train()
    merged, base = load(config.out / "model", "cpu"), load(config.model, "cpu")
    with trainer.averaged():
        beside = asked(stage.pipeline().denoiser)
    assert (beside - asked(base.denoiser)).abs().mean() > 1e-3
    torch.testing.assert_close(asked(merged.denoiser), beside, atol=1e-5, rtol=1e-5)
    read = PeftModel.from_pretrained(base.denoiser, str(config.out / "adapter"))
    torch.testing.assert_close(asked(read.merge_and_unload()), beside, atol=1e-5, rtol=1e-5)

    assert merged.config.title == "mine"
    for name in ("licence", "pixels", "encoder_views", "steps", "guidance"):
        assert merged.config[name] == base.config[name]
    assert merged.scheduler.config.shift == stage.shift == 1.5
    for part in ("autoencoder", "memory"):
        state = getattr(merged, part).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in getattr(base, part).state_dict().items())
    fresh, state = DiT3D.from_pretrained(Path(config.model) / "denoiser").state_dict(), merged.denoiser.state_dict()
    moved = {name.rsplit(".", 2)[-2] for name, value in fresh.items() if not torch.equal(value, state[name])}
    assert state.keys() == fresh.keys() and moved == {"qkv", "proj", "gate_value", "out"}
    scene = merged.generate(Condition(Views(miniature.images()), (0,)), miniature.path(2), steps=2)
    assert scene.views.images.isfinite().all()


def test_the_adapter_is_two_files_of_pefts_own_format(config: Config) -> None:
    Trainer(stage := LoRAStage(config), config).train()
    folder = config.out / "adapter"
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    about = json.loads((folder / "adapter_config.json").read_text())
    assert (about["peft_type"], about["r"], about["lora_alpha"]) == ("LORA", 2, 4)
    found = load_file(folder / "adapter_model.safetensors")
    learnt = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
    assert len(found) == 4 * 4 * 2 and sum(value.numel() for value in found.values()) == learnt
    assert not any(config.model in str(value) for value in about.values())  # it is for others too


def test_a_run_that_was_stopped_ends_with_the_same_adapter(config: Config) -> None:
    whole, halves = replace(config, out=config.out / "whole"), replace(config, out=config.out / "halves")
    Trainer(LoRAStage(whole), whole).train()
    Trainer(LoRAStage(halves), halves).train(until=2)
    second = Trainer(LoRAStage(halves), halves)
    assert second.step == 2
    second.train()
    one, other = (load_file(run.out / "adapter/adapter_model.safetensors") for run in (whole, halves))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert (whole.out / "log.jsonl").read_text() == (halves.out / "log.jsonl").read_text()


def test_size_and_views_follow_the_model_and_the_capture(config: Config, worlds, capsys) -> None:
    stage = LoRAStage(config)
    assert capsys.readouterr().out == f"{config.data}: learnt from and validated on, since there is no --validation\n"
    sample = stage.batch(0)
    # Of 256 pixels in whole patches of 8: 16x24 is nearer to 24x40 in its proportions than 16x16.
    assert sample.draw.views.images.shape == (4, 4, 3, 16, 24)
    assert set(sample.draw.masks[1].sum(1).tolist()) <= {0, 1, 2, 3}
    values, picture = stage.validate()
    assert values.keys() >= {"psnr_generated", "psnr_regressed"} and picture.isfinite().all()
    stage = LoRAStage(replace(config, image_size=(24, 16), encoder_views=3, visible=(2, 5), **worlds))
    assert capsys.readouterr().out == ""
    assert stage.held_out.views == VIEWS
    sample = stage.batch(0)
    assert sample.draw.views.images.shape == (4, 3, 3, SIDE, SIDE)  # worlds keep their own
    assert set(sample.draw.masks[1].sum(1).tolist()) <= {0, 2}


def test_what_cannot_be_used_is_refused_in_one_line(config: Config, tmp_path: Path) -> None:
    def refused(**changes) -> str:
        with pytest.raises(ValueError, match=r"^[^\n]*$") as found:
            LoRAStage(replace(config, **changes))
        return str(found.value)

    assert "neither an embedded model (" in refused(model="nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model_index.json").write_text('{"_class_name": "VGGTPipeline"}')
    assert "other: found a VGGTPipeline; accepted are" in refused(model=str(tmp_path / "other"))
    by_class = miniature.pipeline()
    by_class.register_modules(denoiser=miniature.dit3d(1, classes=3))
    by_class.save_pretrained(tmp_path / "by-class")
    assert "by-class: made for single images by class" in refused(model=str(tmp_path / "by-class"))
    assert "--rank 0 --alpha 4" in refused(rank=0)
    assert "--layers : accepted are" in refused(layers=())
    (tmp_path / "capture/transforms.json").unlink()
    assert "found photos that nothing tells the cameras of" in refused()


def test_more_views_than_there_are_are_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*capture: encoder_views of 9 with .* accepted are 2 to 5$"):
        LoRAStage(replace(config, encoder_views=9))
    with pytest.raises(ValueError, match=r"^--visible 4 5 with samples of 4 views: accepted are numbers from 1 to 3$"):
        LoRAStage(replace(config, visible=(4, 5)))
    write_nerfstudio(Views(miniature.images(1), miniature.path(1)), tmp_path / "single")
    with pytest.raises(ValueError, match=r"^[^\n]*single: found one view .* accepted are captures of 2 views or more$"):
        LoRAStage(replace(config, data=tmp_path / "single"))
