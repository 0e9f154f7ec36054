"""Mean and deviation of latents over any number of samples: exact, in one pass, over all processes."""

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-3  # deviation at least: a number that is the same in all samples would become infinite


class Statistics:
    """Count, mean and squared deviations of what was added, in double precision on the CPU (Welford; Chan et al.)."""

    def __init__(self, *shape: int) -> None:
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros(shape, dtype=torch.float64)

    def add(self, samples: Float[Tensor, "sample *rest"]) -> None:
        """Take samples in. Off the CPU single precision sums up each call's, around its own mean."""
        if not len(samples):
            return
        samples = samples.double() if samples.device.type == "cpu" else samples.float()
        mean = samples.mean(0)
        squares = (samples - mean).square().sum(0)
        mean, squares = mean.cpu().double(), squares.cpu().double()
        total = self.count + len(samples)
        apart = mean - self.mean
        self.squares += squares + apart.square() * (self.count * len(samples) / total)
        self.mean += apart * (len(samples) / total)
        self.count = total

    def reduced(self) -> "Statistics":
        """The same over the samples of all processes of the group, if there is one; every process asks for it."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        every = Statistics(*self.mean.shape)
        sums = _summed(torch.cat([self.mean.flatten() * self.count, self.mean.new_tensor([self.count])]))
        every.count = round(float(sums[-1]))
        every.mean = (sums[:-1] / max(1, every.count)).reshape(self.mean.shape)
        # Around the mean of all, in a second message: sums of squares themselves would lose what they differ by.
        every.squares = _summed(self.squares + self.count * (self.mean - every.mean).square())
        return every

    @property
    def std(self) -> Float[Tensor, "*rest"]:
        """Unbiased deviation, at least `FLOOR`; 1 for fewer than two samples, which have none."""
        if self.count < 2:
            return torch.ones_like(self.mean)
        return (self.squares / (self.count - 1)).sqrt().clamp(min=FLOOR)


def _summed(values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The sum over all processes, wherever the group's messages must lie."""
    where = torch.device("cuda") if torch.distributed.get_backend() == "nccl" else values.device
    sent = values.to(where, copy=True)
    torch.distributed.all_reduce(sent)
    return sent.to(values.device)
