"""Two processes, passes, sharding, compiling: each way of making a step gives the step that one plain process makes."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diorama.models.rae3d import RAE3D
from diorama.training import strategies
from diorama.training.adversarial import balanced
from diorama.training.stage import Run, Share, matrix_optimizers, step_generator
from diorama.training.strategies import processes
from diorama.training.trainer import Trainer

SIZE = dict(
    patch=8, tokens=4, dim=16, heads=2, neck_layers=1, decoder_layers=2, point_layers=2, point_taps=(0, 0, 1, 1),
    point_features=8, point_channels=(8, 8, 8, 8), ray_frequencies=2,
)  # fmt: skip


@dataclass(frozen=True)
class RoomRun(Run):
    muon_rate: float = 0.0
    realism: float = 0.1
    points: bool = True


class RoomStage:
    """A small RAE3D that learns random pictures, asked by all its methods, with a gradient at its output's weights."""

    def __init__(self, run):
        torch.manual_seed(run.seed)
        self.run, self.model = run, RAE3D(**SIZE)
        self.modules = {"rae3d": self.model}
        self.optimizers = {"images": matrix_optimizers(self.model, run, run.muon_rate)}

    def batch(self, step, share=Share()):  # noqa: B008
        generator = step_generator(self.run.seed, step, 0)
        shape = (self.run.batch, 2)
        return tuple(share(torch.randn(*shape, n, 8, 8, generator=generator)) for n in (3, 6))

    def phases(self, batch, generator):
        images, rays = batch
        latents = self.model.encode(images, rays, torch.ones(images.shape[:2], dtype=torch.bool))
        cache = self.model.cache(latents)
        made = self.model.decode_images(cache, rays)
        losses = {"image": (made - images).square().mean()}
        if self.run.realism:
            pictures, weight = lambda x: {"image": (x - images).square().mean()}, self.model.output.weight
            losses = balanced(made, weight, pictures, lambda x: x.mean(), self.run.realism)
        if self.run.points:
            losses["points"] = self.model.decode_points(cache, rays)[0].square().mean()
        yield "images", losses

    def validate(self):
        images, rays = self.batch(10**6)
        made = self.model.decode(self.model.encode(images, rays, torch.ones(images.shape[:2], dtype=torch.bool)), rays)
        return {"error": float((made.images - images).square().mean())}, torch.zeros(3, 2, 2)

    def save(self, folder):
        self.model.save_pretrained(folder)


def room_run(out, **changes):
    plain = dict(steps=4, batch=8, learning_rate=0.01, warmup=2, precision="32-true", device="cpu")
    often = dict(log_every=1, save_every=2, validate_every=4)
    return RoomRun(out=out, **plain | often | changes)


def curve(run):
    return [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]


def trained(run, until=None):
    trainer = Trainer(RoomStage(run), run)
    trainer.train(until)
    return trainer


def same_curves(one, other):
    """As close as sums in another order let them be."""
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5, abs=2e-6)


SHARED = """
import shutil, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_strategies import RoomStage, room_run
from torch.distributed.tensor import DTensor
from diorama.training import strategies
from diorama.training.trainer import Trainer

out, graphs = Path(sys.argv[2]), []
strategies.BACKEND = lambda graph, inputs: graphs.append(graph) or graph.forward
for name, until, settings in (
    ("sharded", 2, {}), ("sharded", 4, {}), ("from one", 4, {}), ("passes", 2, dict(accumulate=2, realism=0.0)),
    ("half", 2, dict(precision="bf16-mixed", points=False, checkpoint_activations=True)),
    ("compiled", 2, dict(compile=True)),
):
    run = room_run(out / name, strategy="fsdp", **settings)  # torchrun says how many processes
    trainer = Trainer(RoomStage(run), run)
    assert trainer.step == (0 if until == 2 else 2)
    trainer.train(until)
    parameters = dict(trainer.stage.model.named_parameters())
    whole = sorted(key for key, p in parameters.items() if not isinstance(p, DTensor))
    part = sum(p.numel() for p in trainer.parameters)
    (run.out / f"process {trainer.share.index} of {trainer.share.of}").write_text(repr((whole, part)))
    if name == "sharded" and until == 2 and trainer.share.index == 0:
        shutil.copytree(run.out, out / "to one")
    trainer.fabric.barrier()
made = len(graphs)
with torch.no_grad():
    trainer.stage.validate()
(run.out / f"graphs {trainer.share.index}").write_text(repr((made, len(graphs))))
trainer.__exit__(None)
"""


@pytest.mark.timeout(900)
def test_two_sharded_processes_train_as_one_and_read_each_others_checkpoints(tmp_path):
    """One start of two processes for all of it; losses within 2e-5 of a single process that shards nothing."""
    alone = room_run(tmp_path / "alone")
    stage = trained(alone).stage
    trained(room_run(tmp_path / "from one"), until=2)
    script = tmp_path / "run.py"
    script.write_text(SHARED)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*start, script, Path(__file__).parent, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("sharded", "from one"):
        run = room_run(tmp_path / name)
        same_curves(curve(run), curve(alone))
        files = [next(run.out.glob(f"process {index} of 2")).read_text() for index in (0, 1)]
        whole, part = zip(*(eval(text) for text in files), strict=True)
        assert whole[0] == whole[1] and "output.weight" in whole[0] and "queries" in whole[0]
        assert not any("blocks" in key or "neck" in key for key in whole[0])
        total = sum(p.numel() for p in stage.model.parameters())
        assert part[0] + part[1] - total == sum(dict(stage.model.named_parameters())[key].numel() for key in whole[0])
        steps = [path.name for path in (run.out / "checkpoint").iterdir()]
        assert steps == ["000000004"] and not (run.out / "checkpoint.pt").exists()
        model, expected = (load_file(x.out / "model/diffusion_pytorch_model.safetensors") for x in (run, alone))
        torch.testing.assert_close(model, expected, rtol=1e-3, atol=1e-4)
        assert json.loads((run.out / "model/config.json").read_text())["_class_name"] == "RAE3D"
    back = room_run(tmp_path / "to one")
    trained(back)
    same_curves(curve(back), curve(alone))
    assert (back.out / "checkpoint.pt").exists() and not (back.out / "checkpoint").exists()
    plain = room_run(tmp_path / "plain", realism=0.0)
    trained(plain, until=2)
    same_curves(curve(room_run(tmp_path / "passes")), curve(plain))
    half = room_run(tmp_path / "half alone", precision="bf16-mixed", points=False)
    trained(half, until=2)
    compiled = room_run(tmp_path / "compiled")
    same_curves(curve(compiled), curve(alone)[:2])
    for process in (0, 1):
        made, validated = eval((compiled.out / f"graphs {process}").read_text())
        assert 3 < made == validated  # one of them is the trial whether there is a compiler; validation adds none
    for mine, theirs in zip(curve(room_run(tmp_path / "half")), curve(half), strict=True):
        assert mine == pytest.approx(theirs, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"checkpoint_activations": True}], ids=str)
def test_passes_and_activations_computed_again_change_nothing_but_rounding(tmp_path, changes):
    plain, other = (room_run(tmp_path / name, realism=0.0, **more) for name, more in (("a", {}), ("b", changes)))
    one, two = trained(plain, until=2), trained(other, until=2)
    same_curves(curve(other), curve(plain))
    assert [*one.meter.counted.values()] == [*two.meter.counted.values()]  # the same work, however it is done


def test_every_pass_has_its_part_of_the_batch_and_its_own_noise():
    parts = [share for process in range(2) for share in Share(process, 2).passes(3)]
    rows = torch.arange(12)
    assert torch.equal(torch.cat([share(rows) for share in parts]).sort().values, rows)
    assert all(len(share(rows)) == 2 for share in parts)
    assert sorted(share.index for share in parts) == list(range(6))
    mine = torch.cat([share(rows) for share in Share(1, 2).passes(3)])
    assert set(mine.tolist()) == set(Share(1, 2)(rows).tolist())  # however many passes, a process has the same scenes


def test_without_a_compiler_it_says_so_and_trains(tmp_path, monkeypatch, capsys):
    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(strategies, "BACKEND", backend)
    run = room_run(tmp_path / "run", compile=True)
    trainer = Trainer(RoomStage(run), run)
    assert capsys.readouterr().out == "--compile: not possible here (no C++ compiler); goes on without\n"
    assert trainer.train_step()["loss"] > 0


def test_what_cannot_be_sharded_is_refused_before_any_process_starts(tmp_path):
    run = room_run(tmp_path / "run", strategy="fsdp", muon_rate=0.01)
    with pytest.raises(ValueError, match=r"^--strategy fsdp with Muon, which needs whole matrices: [^\n]+$"):
        Trainer(RoomStage(run), run)
    run = room_run(tmp_path / "run", compile=True, checkpoint_activations=True)
    stage = RoomStage(run)
    stage.modules = {"line": nn.Linear(2, 2)}
    message = r"^--compile --checkpoint-activations: line has no transformer blocks; accepted is [^\n]+$"
    with pytest.raises(ValueError, match=message):
        Trainer(stage, run)
    assert not run.out.exists()


def test_how_many_processes_share_a_batch(tmp_path, monkeypatch):
    run = room_run(tmp_path, devices=2, accumulate=2)
    assert processes(run) == (2, 1) and processes(replace(run, accumulate=4)) == (2, 1)
    with pytest.raises(ValueError, match=r"^a batch of 8 over 2 devices in 3 passes: accepted is a multiple of 6$"):
        processes(replace(run, accumulate=3))
    for name in ("MASTER_ADDR", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"^--nodes 2: nothing joins them; accepted is this command under torchrun"):
        processes(replace(run, nodes=2))
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    told = room_run(tmp_path)
    assert processes(told) == processes(replace(told, devices=2, nodes=2)) == (2, 2)
    with pytest.raises(ValueError, match=r"^--devices 4 --nodes 1 under torchrun with 2 processes on 2: accepted is"):
        processes(replace(told, devices=4))


def test_gradients_are_clipped_together():
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, 2.0)
    norm = strategies.clip_gradients(parameters, 1.0)
    assert float(norm) == pytest.approx(2 * 7**0.5)
    assert float(torch.cat([p.grad.flatten() for p in parameters[:2]]).norm()) == pytest.approx(1, rel=1e-4)
