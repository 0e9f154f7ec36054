"""Models small enough for any test, with weights large enough that everything inside them matters."""

import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diorama.geometry.cameras import Cameras
from diorama.models.dit3d import DiT3D
from diorama.models.observed_memory import ObservedMemory
from diorama.models.rae3d import RAE3D
from diorama.pipelines.tokens import TokenPipeline

PATCH, TOKENS, DIM, SIDE = 8, 6, 32, 32
RAE = dict(
    patch=PATCH, tokens=TOKENS, dim=DIM, heads=4, neck_layers=2, decoder_layers=2, point_layers=2,
    point_taps=(0, 0, 1, 1), point_features=8, point_channels=(8, 8, 8, 8), ray_frequencies=2,
)  # fmt: skip
MEMORY = dict(
    widths=(8, 8), channels=(4, 4), hidden=(8, 8), layers=(1, 1), hypotheses=(5, 3), reach=(0.9, 0.12), blend=8
)
DIT = dict(dim=DIM, layers=2, heads=4, head_dim=48, head_layers=2, head_heads=4)


def lively(module, seed=0):
    """The module with random matrices that keep a signal's size; a fresh model's are near 0 or 0 and hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(math.prod(parameter.shape[1:])))
            else:
                parameter.add_(0.1 * noise)
    return module.eval()


def rae3d(seed=0, **changes):
    return _made(RAE3D, RAE | changes, seed)


def dit3d(seed=0, **changes):
    return _made(DiT3D, dict(tokens=TOKENS, channels=DIM) | DIT | changes, seed)


def observed_memory(seed=0, **changes):
    return _made(ObservedMemory, MEMORY | changes, seed)


def _made(kind, arguments, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of what is random and no parameter, such as the time's frequencies
        return lively(kind(**arguments), seed)


def pipeline(**changes):
    """A whole pipeline; its latent statistics are none that a mistake could ignore."""
    autoencoder = rae3d()
    generator = torch.Generator().manual_seed(9)
    autoencoder.latent_mean.copy_(torch.randn(TOKENS, DIM, generator=generator))
    autoencoder.latent_std.copy_(0.5 + torch.rand(TOKENS, DIM, generator=generator))
    made = TokenPipeline(
        autoencoder,
        dit3d(1),
        FlowMatchEulerDiscreteScheduler(shift=1.5),
        **dict(title="miniature", licence="CC0-1.0", pixels=SIDE * SIDE, encoder_views=16, steps=3, guidance=2.0)
        | changes,
    )
    made.set_progress_bar_config(disable=True)
    return made


def path(views=3, height=SIDE, width=SIDE, seed=0, batch=()):
    """Cameras around a place away from the world's origin, all of them different."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.randn(*batch, views, 3, generator=generator)
    poses = torch.eye(4).repeat(*batch, views, 1, 1)
    cross = torch.linalg.cross(axis[..., None, :].expand(*axis.shape[:-1], 3, 3), torch.eye(3).expand(*axis.shape, 3))
    poses[..., :3, :3] = torch.linalg.matrix_exp(0.3 * cross.mT)
    poses[..., :3, 3] = torch.randn(*batch, views, 3, generator=generator) + torch.tensor([2.0, -1.0, 3.0])
    return Cameras.from_fov(60.0, height, width, poses)


def images(views=1, height=SIDE, width=SIDE, seed=0, batch=()):
    return torch.rand(*batch, views, 3, height, width, generator=torch.Generator().manual_seed(seed))
