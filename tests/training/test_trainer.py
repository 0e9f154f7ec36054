import json
import math
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from diorama.training import trainer as module
from diorama.training.kernels import kernel_optimizers
from diorama.training.trainer import Diverged, Run, Trainer, learning_rate_share, matrix_optimizers, step_generator


@dataclass(frozen=True)
class ToyRun(Run):
    width: int = 4
    noise: float = 0.01


class ToyStage:
    """A regression whose prediction a critic, with its own optimiser, learns to rate."""

    def __init__(self, run):
        torch.manual_seed(run.seed)
        self.run, self.spoiled, self.noises, self.validated, self.saved = run, False, [], [], []
        self.maker, self.critic = nn.Linear(run.width, 2), nn.Linear(2, 1)
        self.modules = {"maker": self.maker, "critic": self.critic}
        self.optimizers = {
            name: [torch.optim.AdamW(part.parameters(), run.learning_rate)] for name, part in self.modules.items()
        }

    def batch(self, step, share):
        return share(torch.randn(self.run.batch, self.run.width, generator=step_generator(self.run.seed, step, 0)))

    def phases(self, batch, generator):
        noise = self.run.noise * torch.randn(len(batch), 2, generator=generator)
        made = self.maker(batch + (math.nan if self.spoiled else 0)) + noise
        self.noises.append(noise)
        error = (made - batch[:, :2]).square()
        yield "maker", {"first": error[:, 0].mean(), "second": error[:, 1].mean()}
        yield "critic", {"rating": (self.critic(made.detach()) - error.detach().sum(1, keepdim=True)).square().mean()}

    def weights(self):
        return [p.detach().clone() for part in self.modules.values() for p in part.parameters()]

    def validate(self):
        self.validated.append(self.weights())
        return {"number": 1.5}, torch.full((3, 4, 6), 0.5)

    def save(self, folder):
        self.saved.append(self.weights())
        folder.mkdir(parents=True)
        save_file(self.maker.state_dict(), folder / "weights.safetensors")


@pytest.fixture
def run(tmp_path):
    return ToyRun(
        out=tmp_path / "run", steps=6, batch=8, learning_rate=0.05, warmup=2, ema=0.9, precision="32-true",
        log_every=1, save_every=100, validate_every=100, device="cpu",
    )  # fmt: skip


def made(run):
    stage = ToyStage(run)
    return stage, Trainer(stage, run)


SHARED = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_trainer import ToyRun, ToyStage
from diorama.training.trainer import Trainer

out, devices = Path(sys.argv[2]), int(sys.argv[3])
plain = ToyRun(out=out, steps=4, batch=8, learning_rate=0.05, warmup=2, precision="32-true",
               log_every=1, save_every=2, validate_every=4, device="cpu", devices=devices, noise=0.0)

def train(run, until=None):
    stage = ToyStage(run)
    trainer = Trainer(stage, run)
    trainer.train(until)
    (run.out / f"process {trainer.share.index} of {trainer.share.of}").write_text(repr(stage.weights()))
    return trainer

trainer = train(plain)
if devices > 1:  # a run that draws noise, and the same in two parts
    train(replace(plain, out=out / "whole", noise=0.1))
    for until in (2, None):
        train(replace(plain, out=out / "parts", noise=0.1), until)
    stage = ToyStage(replace(plain, out=out / "spoiled"))
    with Trainer(stage, stage.run) as trainer:  # leaves the group at its end
        stage.spoiled = trainer.share.index == 1
        try:
            trainer.train()
        except ValueError as error:
            (out / f"message {trainer.share.index}").write_text(str(error))
    assert not torch.distributed.is_initialized()
""".replace("import sys", "import sys, torch", 1)


def log(run):
    return [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]


def test_training_lowers_the_losses_of_both_phases(run):
    stage, trainer = made(replace(run, steps=200))
    reports = [trainer.train_step() for _ in range(200)]
    for name in ("first", "second", "rating"):
        start, end = (sum(report[name] for report in part) / 20 for part in (reports[:20], reports[-20:]))
        assert end < 0.2 * start, name
    report = reports[-1]
    assert report["loss"] == pytest.approx(report["first"] + report["second"] + report["rating"])
    assert {"maker_gradient_norm", "critic_gradient_norm", "learning_rate"} <= report.keys()
    assert trainer.step == 200 and all(p.grad is None for p in stage.maker.parameters())


def test_a_run_leaves_its_log_picture_checkpoint_and_model(run):
    run = replace(run, validate_every=3)
    stage, trainer = made(run)
    trainer.train()
    lines = log(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [(line["step"], line["validation_number"]) for line in lines if "loss" not in line] == [(3, 1.5), (6, 1.5)]
    with Image.open(run.out / "sample_0000003.png") as picture:
        assert picture.size == (6, 4) and picture.getpixel((0, 0)) == (128, 128, 128)
    assert (run.out / "checkpoint.pt").exists() and not (run.out / "checkpoint.part").exists()
    assert len(stage.saved) == 1 and (run.out / "model" / "weights.safetensors").exists()


def test_resuming_gives_the_next_losses_bit_for_bit(run):
    straight, whole = made(replace(run, out=run.out / "a"))
    whole.train()
    stopped = replace(run, out=run.out / "b")
    made(stopped)[1].train(until=3)
    assert not (stopped.out / "model").exists()
    again, rest = made(stopped)
    assert rest.step == 3
    rest.train()
    for one, two in zip(log(whole.run), log(stopped), strict=True):
        assert one == two
    assert all(torch.equal(a, b) for a, b in zip(straight.weights(), again.weights(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.shadow_params, rest.ema.shadow_params, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(straight.saved[0], again.saved[0], strict=True))


@pytest.mark.timeout(900)
def test_two_processes_train_as_one_and_only_the_first_writes(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SHARED)
    for devices in (1, 2):
        out = tmp_path / str(devices)
        command = [sys.executable, script, Path(__file__).parent, out, str(devices)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
    one, first, second = (tmp_path / name for name in ("1/process 0 of 1", "2/process 0 of 2", "2/process 1 of 2"))
    assert first.read_text() == second.read_text()
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["modules"] for name in ("1", "2")]
    torch.testing.assert_close(states[0], states[1])
    assert one.exists() and (tmp_path / "2/model/weights.safetensors").exists()
    lines = (tmp_path / "2/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 4]
    alone = [json.loads(line) for line in (tmp_path / "1/log.jsonl").read_text().splitlines()]
    for one, mean in zip(alone, map(json.loads, lines), strict=True):
        assert mean == pytest.approx(one, rel=1e-6, abs=2e-6)  # of both processes' halves, not of the first's
    whole, parts = tmp_path / "2/whole", tmp_path / "2/parts"
    assert (whole / "log.jsonl").read_text() == (parts / "log.jsonl").read_text()
    ends = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, parts)]
    for name in ("modules", "optimizers", "ema"):
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=0)
    for process in (0, 1):  # though only the second saw it
        assert (tmp_path / f"2/message {process}").read_text() == "step 0: maker loss is nan; lower the learning rate"


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_trainer import ToyRun, ToyStage, killed_run
from diorama.training.trainer import Trainer

class Waiting(ToyStage):
    def batch(self, step, share):
        if step == 9:
            time.sleep(1000)  # whoever kills it need not hurry
        return super().batch(step, share)

run = killed_run(Path(sys.argv[2]))
Trainer(Waiting(run), run).train()
"""


def killed_run(out):
    return ToyRun(out=out, steps=12, batch=8, learning_rate=0.05, warmup=2, precision="32-true", log_every=1,
                  save_every=3, validate_every=4, device="cpu")  # fmt: skip


@pytest.mark.timeout(500)
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path):
    """Killed while it works, at no particular moment; its log is in the end, to the byte, that of a run left alone."""
    script, run = tmp_path / "run.py", killed_run(tmp_path / "killed")
    script.write_text(KILLED)
    with subprocess.Popen([sys.executable, script, Path(__file__).parent, run.out], stderr=subprocess.PIPE) as process:
        try:
            end = time.monotonic() + 400
            while process.poll() is None and time.monotonic() < end and not (run.out / "checkpoint.pt").exists():
                time.sleep(0.02)
            while process.poll() is None and time.monotonic() < end and len(log(run)) < 5:
                time.sleep(0.02)
            assert process.poll() is None, process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    stage, trainer = made(run)
    assert trainer.step in (3, 6, 9) and not (run.out / "model").exists()
    trainer.train()
    alone, whole = made(replace(run, out=tmp_path / "alone"))
    whole.train()
    assert (run.out / "log.jsonl").read_bytes() == (whole.run.out / "log.jsonl").read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(stage.weights(), alone.weights(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(stage.saved[0], alone.saved[0], strict=True))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_passes_make_the_gradients_of_the_whole_batch(run, accumulate):
    """Of both phases, the second after the first's step."""
    run = replace(run, noise=0.0)
    (whole, one), (parts, some) = made(run), made(replace(run, accumulate=accumulate))
    for _ in range(3):
        assert some.train_step() == pytest.approx(one.train_step(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(parts.weights(), whole.weights(), rtol=1e-5, atol=1e-6)
    assert len(whole.noises) == 3 and len(parts.noises) == 3 * accumulate


def test_a_step_with_noise_has_other_noise_in_every_pass(run):
    stage, trainer = made(replace(run, accumulate=4))
    trainer.train_step()
    assert len({float(noise.sum()) for noise in stage.noises}) == 4


def test_batches_are_drawn_ahead_and_none_too_many(run, monkeypatch):
    stage, trainer = made(run)
    drawn, batch = [], stage.batch

    def seen(step, share):
        drawn.append((step, threading.current_thread()))
        return batch(step, share)

    monkeypatch.setattr(stage, "batch", seen)
    trainer.train(until=3)
    trainer.train()
    assert [step for step, _ in drawn] == list(range(6))
    here = threading.main_thread()
    assert [thread is here for _, thread in drawn] == [True, False, False, True, False, False]


def test_an_error_in_drawing_a_batch_ends_the_run(run, monkeypatch):
    stage, trainer = made(run)
    batch = stage.batch

    def broken(step, share):
        if step == 2:
            raise OSError("shard.tar: cut short")
        return batch(step, share)

    monkeypatch.setattr(stage, "batch", broken)
    with pytest.raises(OSError, match=r"^shard\.tar: cut short$"):
        trainer.train()
    assert trainer.step == 2


def test_the_speed_is_in_a_file_of_its_own(run):
    trainer = made(run)[1]
    trainer.train()
    lines = [json.loads(line) for line in (run.out / "speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 5, 6]  # the first was counted
    forward = 2 * 8 * 4 * 2 + 2 * 8 * 2 * 1  # maker and critic; backward again for their weights
    assert list(trainer.meter.counted.values()) == [2 * forward]
    (peak,) = {line["measured_peak_flops"] for line in lines}
    for line in lines:
        assert line["flops"] == pytest.approx(line["samples_per_second"] / 8 * 2 * forward, rel=1e-6)
        assert line["mfu"] == pytest.approx(line["flops"] / peak, abs=1e-6)


def test_processes_draw_their_own_noise():
    mine, other = (torch.rand(3, generator=step_generator(0, 5, 1, process)) for process in (0, 1))
    assert not torch.equal(mine, other)


def test_a_batch_that_does_not_divide_is_refused(run):
    with pytest.raises(ValueError, match=r"^a batch of 8 over 3 devices: accepted is a multiple of 3$"):
        made(replace(run, devices=3))


def test_every_step_has_its_own_noise(run):
    stage, trainer = made(run)
    for _ in range(3):
        trainer.train_step()
    assert len({float(noise.sum()) for noise in stage.noises}) == 3


def test_lines_of_the_log_after_the_checkpoint_are_dropped(run):
    """A crash leaves steps that no checkpoint holds, and perhaps half a line."""
    made(run)[1].train(until=3)
    before = log(run)
    with (run.out / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 9.0}\n{"step": 4, "validation_number": 9.0}\n{"step": 5, "lo')
    made(run)[1].train()
    after = log(run)
    assert after[:3] == before and [line["step"] for line in after] == [1, 2, 3, 4, 5, 6, 6]
    assert all(line.get("loss") != 9.0 for line in after) and not (run.out / "log.part").exists()


def test_a_log_without_a_checkpoint_begins_anew(run):
    run.out.mkdir()
    (run.out / "log.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    made(run)[1].train(until=2)
    assert [line["step"] for line in log(run)] == [1, 2] and log(run)[0]["loss"] != 9.0


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(run):
    stage, trainer = made(run)
    stage.maker.weight.register_hook(lambda gradient: gradient * math.inf)
    before = stage.weights()
    with pytest.raises(Diverged, match=r"^step 0: maker gradient is (nan|inf); lower the learning rate$"):
        trainer.train_step()
    assert all(torch.equal(a, b) for a, b in zip(stage.weights(), before, strict=True))


def test_a_broken_checkpoint_is_refused_in_one_line(run):
    made(run)[1].train(until=1)
    whole = (run.out / "checkpoint.pt").read_bytes()
    for content in (b"", whole[: len(whole) // 2], pickle.dumps([1], protocol=2)):
        (run.out / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"^[^\n]*checkpoint\.pt: no readable checkpoint \([^\n]+$"):
            made(run)


def test_a_checkpoint_is_read_on_the_processor(run, monkeypatch):
    """AdamW counts its steps there; a count on a GPU is waited for at every step."""
    made(run)[1].train(until=1)
    seen, load = [], torch.load
    monkeypatch.setattr(module.torch, "load", lambda *a, **k: seen.append(k["map_location"]) or load(*a, **k))
    made(run)
    assert seen == ["cpu"]


def test_stopping_early_does_not_change_the_schedule(run):
    stage, trainer = made(run)
    trainer.train(until=2)
    group = stage.optimizers["maker"][0].param_groups[0]
    assert group["lr"] == pytest.approx(run.learning_rate)  # the end of the warm-up, not of the cosine


def test_a_crash_while_saving_leaves_the_old_checkpoint(run, monkeypatch):
    made(run)[1].train(until=3)
    before = (run.out / "checkpoint.pt").read_bytes()

    def crash(state, path):
        path.write_bytes(b"half of a check")
        raise KeyboardInterrupt

    monkeypatch.setattr(module.torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        made(run)[1].train(until=5)
    assert (run.out / "checkpoint.pt").read_bytes() == before
    assert made(run)[1].step == 3


def test_other_settings_are_refused_in_one_line_but_not_where_and_how_often(run):
    made(run)[1].train(until=1)
    message = (
        r"^[^\n]*checkpoint\.pt: made with other settings "
        r"\(learning_rate was 0\.05, is 0\.1, width was 4, is 5\); use them or another --out$"
    )
    with pytest.raises(ValueError, match=message):
        Trainer(ToyStage(run), replace(run, learning_rate=0.1, width=5))
    assert Trainer(ToyStage(run), replace(run, log_every=7, save_every=1, validate_every=9, device="auto")).step == 1


def test_a_checkpoint_from_before_a_setting_existed_resumes(run):
    made(run)[1].train(until=1)
    state = torch.load(run.out / "checkpoint.pt", weights_only=True)
    del state["run"]["width"]
    torch.save(state, run.out / "checkpoint.pt")
    assert made(run)[1].step == 1


def test_a_checkpoint_of_another_version_is_refused(run):
    made(run)[1].train(until=1)
    state = torch.load(run.out / "checkpoint.pt", weights_only=True)
    assert state.keys() == {"version", "step", "run", "modules", "optimizers", "ema"} and state["version"] == 1
    torch.save(state | {"version": 0}, run.out / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"^[^\n]*checkpoint\.pt: checkpoint version 0, accepted is 1$"):
        made(run)


def test_averaged_weights_are_validated_and_saved_and_the_raw_ones_trained(run):
    stage, trainer = made(run)
    trainer.train()
    raw, average = stage.weights(), trainer.ema.shadow_params
    for shown in (stage.validated[-1], stage.saved[-1]):
        assert all(torch.equal(a, b) for a, b in zip(shown, average, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(raw, average, strict=True))
    assert torch.equal(load_file(run.out / "model" / "weights.safetensors")["weight"], average[0])


def test_the_average_follows_the_weights(run):
    """With a decay that grows as 1 - 1 / (step + 1) ** 0.75 up to the run's."""
    stage, trainer = made(replace(run, steps=4, ema=0.5))
    expected = stage.weights()[0]
    for step in range(4):
        trainer.train_step()
        decay = 0 if step == 0 else min(0.5, 1 - (1 + step) ** -0.75)
        expected = decay * expected + (1 - decay) * stage.weights()[0]
    torch.testing.assert_close(trainer.ema.shadow_params[0], expected)


def test_a_raising_block_gets_the_raw_weights_back(run):
    stage, trainer = made(run)
    trainer.train_step()
    trainer.train_step()
    raw = stage.weights()
    seen = []

    def fail():
        with trainer.averaged():
            seen.append(stage.weights()[0])
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert not torch.equal(seen[0], raw[0]) and torch.equal(stage.weights()[0], raw[0])


def test_the_learning_rate_warms_up_and_follows_a_cosine(tmp_path):
    run = Run(out=tmp_path, steps=110, warmup=10, final_rate=0.1)
    found = [learning_rate_share(step, run) for step in (0, 4, 9, 10, 60, 110, 200)]
    assert found == pytest.approx([0.1, 0.5, 1, 1, 0.1 + 0.9 * 0.5, 0.1, 0.1])
    assert learning_rate_share(0, replace(run, warmup=0)) == 1
    quarter = learning_rate_share(35, run)
    assert quarter == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi / 4)))


def test_the_optimisers_use_that_rate(run):
    stage, trainer = made(replace(run, warmup=10))
    report = trainer.train_step()
    rates = [group["lr"] for part in stage.optimizers.values() for o in part for group in o.param_groups]
    assert rates == pytest.approx([0.005, 0.005]) and report["learning_rate"] == pytest.approx(0.005)


def test_gradients_are_clipped(run, monkeypatch):
    stage, trainer = made(replace(run, clip=1e-3))
    norms, step = [], stage.optimizers["maker"][0].step

    def spy(*arguments):
        norms.append(torch.stack([p.grad.norm() for p in stage.maker.parameters()]).norm())
        return step(*arguments)

    monkeypatch.setattr(stage.optimizers["maker"][0], "step", spy)
    report = trainer.train_step()
    assert report["maker_gradient_norm"] > 1e-2 and float(norms[0]) == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(run):
    stage, trainer = made(run)
    trainer.train_step()
    before = stage.weights()
    stage.spoiled = True
    with pytest.raises(ValueError, match=r"^step 1: maker loss is nan; lower the learning rate$"):
        trainer.train_step()
    assert all(torch.equal(a, b) for a, b in zip(stage.weights(), before, strict=True)) and trainer.step == 1


def test_random_numbers_belong_to_a_seed_a_step_and_a_purpose():
    draws = {
        key: torch.rand(3, generator=step_generator(*key)).tolist()
        for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 7, 0))
    }
    assert len({tuple(draw) for draw in draws.values()}) == len(draws)
    assert torch.rand(3, generator=step_generator(0, 1, 0)).tolist() == draws[0, 1, 0]


def test_muon_gets_the_blocks_matrices_and_adamw_the_rest(run):
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)]), "input": nn.Linear(4, 4)})
    (alone,) = matrix_optimizers(model, run, 0.0)
    assert isinstance(alone, torch.optim.AdamW) and len(alone.param_groups[0]["params"]) == 4
    adamw, muon = matrix_optimizers(model, run, 0.01)
    assert muon.param_groups[0]["params"] == [model["blocks"][0].weight] and muon.param_groups[0]["lr"] == 0.01
    assert {id(p) for p in adamw.param_groups[0]["params"]} == {
        id(p) for p in (model["blocks"][0].bias, model["input"].weight, model["input"].bias)
    }


def test_muon_moves_a_kernel_as_the_matrix_from_what_it_reads_to_its_outputs(run):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv3d(1, 1, 1))
    (alone,) = kernel_optimizers(model, run, 0.0)
    assert isinstance(alone, torch.optim.AdamW) and len(alone.param_groups[0]["params"]) == 4
    adamw, muon = kernel_optimizers(model, run, 0.01)
    kernel = model[0].weight
    assert muon.param_groups[0]["params"] == [kernel] and len(adamw.param_groups[0]["params"]) == 3
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    plain = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):  # so that momentum counts
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1).clone()
        muon.step()
        plain.step()
    assert torch.equal(kernel.detach().flatten(1), matrix.detach())
    again = kernel_optimizers(model, run, 0.01)[1]
    again.load_state_dict(muon.state_dict())  # momentum is kept, in the kernel's shape
    assert again.state[kernel]["momentum_buffer"].shape == kernel.shape
