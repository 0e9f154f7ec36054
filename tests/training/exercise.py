"""What every stage of training has to stand."""

import hashlib
from dataclasses import replace

import torch

from diorama.training.trainer import Trainer, step_generator

SHORT = dict(steps=3, batch=2, warmup=0, learning_rate=1e-3, precision="32-true", device="cpu", log_every=1)


def total(stage, batch):
    """The loss of a batch, with the same noise every time; and the names of its parts."""
    ((_, found),) = stage.phases(batch, step_generator(0, 0, 1))
    return float(sum(value.detach() for value in found.values())), set(found)


def one_step_lowers(stage):
    """The loss on a step's own batch before and after that step; gives the loss before it and its parts."""
    batch = stage.batch(0)
    before, parts = total(stage, batch)
    Trainer(stage, stage.config).train_step()
    assert total(stage, batch)[0] < before
    return before, parts


def digest(*modules):
    """A hash of all that modules hold."""
    found = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            found.update(name.encode() + value.cpu().numpy().tobytes())
    return found.hexdigest()


def resumes(make, config, tmp_path):
    """Train at once, and stopped after a step and begun again: the same weights in the end. Gives the whole run's."""
    whole, stopped = (replace(config, out=tmp_path / name) for name in ("whole", "stopped"))
    stage = make(whole)
    Trainer(stage, whole).train()
    Trainer(make(stopped), stopped).train(until=1)
    second = make(stopped)
    trainer = Trainer(second, stopped)
    assert trainer.step == 1
    trainer.train()
    for one, other in zip(stage.modules.values(), second.modules.values(), strict=True):
        for (name, first), again in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(first, again), name
    logs = [(run.out / "log.jsonl").read_text() for run in (whole, stopped)]
    assert logs[0] == logs[1]
    return stage
