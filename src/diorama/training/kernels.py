"""Convolutional autoencoders that begin to learn at once: their first weights, and Muon for their kernels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diorama.training.stage import Run

FIRST_LOG_VARIANCE = -4.0


def first_weights(model: nn.Module, last: nn.Conv2d | nn.Conv3d, share: float = 0.1) -> None:
    """First weights of an autoencoder with a `quant_conv`, of which latents tell inputs apart from the start.

    Convolutions keep the size of what they read, the `last` one only a share of it. Torch's own first weights shrink
    it, so that the posterior's first noise, of unit variance, drowns it for thousands of steps.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    moments: Any = model.quant_conv
    with torch.no_grad():
        weight, bias = (x.chunk(2)[1] for x in (moments.weight, moments.bias))  # of the logarithmic variances
        weight *= 0.1
        bias.fill_(FIRST_LOG_VARIANCE)
        last.weight *= share


class KernelMuon(torch.optim.Muon):
    """Muon of convolutions: a kernel is the matrix from all that it reads to its outputs."""

    def __init__(self, kernels: list[nn.Parameter], **how: Any) -> None:
        super().__init__([kernel.detach().flatten(1) for kernel in kernels], **how)  # takes matrices only
        self.param_groups[0]["params"] = kernels

    def _init_group(self, group: Any, *lists: list[Tensor]) -> bool:
        found = super()._init_group(group, *lists)
        for each in lists:  # views: what is written into them is written into the kernels
            each[:] = [x.flatten(1) for x in each]
        return found


def kernel_optimizers(module: nn.Module, run: Run, muon_rate: float) -> list[Optimizer]:
    """Muon for convolutions and AdamW for the rest; AdamW for all where `muon_rate` is 0."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    kernels = [p for p in parameters if muon_rate and p.ndim >= 4 and min(p.shape[0], p[0].numel()) > 1]
    rest = [p for p in parameters if not any(p is kernel for kernel in kernels)]
    optimizers: list[Optimizer] = [torch.optim.AdamW(rest, run.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)]
    if kernels:
        optimizers.append(KernelMuon(kernels, lr=muon_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return optimizers
