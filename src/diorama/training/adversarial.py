"""The adversarial phase: true and made pictures told apart, and what that is worth to the maker (3DRAE section 3.1)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diorama.models.discriminator import Discriminator, load_trunk
from diorama.training.losses import gradient_ratio, hinge_loss

REACH = 0.125  # share of a side by which augmentation moves a picture


class Adversary:
    """A discriminator in training: `heads` learn, the trunk they look through is frozen and in no checkpoint."""

    def __init__(self, trunk: str) -> None:
        self.trunk = load_trunk(trunk)
        self.heads = Discriminator(self.trunk.channels)  # type: ignore[arg-type]

    def unlikeliness(
        self, images: Float[Tensor, "image 3 height width"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """The maker's loss, the mean logit's negative; the heads get no gradient and stay as they are."""
        self.heads.eval().requires_grad_(False)
        logits = self._logits(images, generator)
        self.heads.train().requires_grad_(True)
        return -logits.mean()

    def confusion(
        self,
        true: Float[Tensor, "image 3 height width"],
        made: Float[Tensor, "image 3 height width"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The discriminator's own loss; both are seen as 8-bit files would show them, augmented independently."""
        made = made.detach().clamp(0, 1).mul(255).round() / 255
        return hinge_loss(*self._logits(torch.cat([true, made]), generator).chunk(2))

    def _logits(self, images: Tensor, generator: torch.Generator) -> Float[Tensor, "image logit"]:
        self.trunk.to(images.device)  # not one of the stage's modules, so the loop leaves it where it is
        return self.heads(self.trunk(augmented(cropped(images.float(), self.trunk.side, generator), generator)))


def cropped(
    images: Float[Tensor, "image 3 height width"], side: int, generator: torch.Generator
) -> Float[Tensor, "image 3 size size"]:
    """A square from anywhere, at most `side` large: resizing to the trunk's square then keeps the aspect."""
    size = min(side, *images.shape[-2:])
    top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def augmented(
    images: Float[Tensor, "image 3 height width"], generator: torch.Generator
) -> Float[Tensor, "image 3 height width"]:
    """RGB in [0, 1], each moved and recoloured at random, differentiably (DiffAug as RAE sets it, without cut-outs).

    Moved by up to an eighth of a side over grey; brightness +-0.25, saturation x 0 to 2, contrast x 0.5 to 1.5.
    """
    draws = torch.rand(5, len(images), 1, 1, 1, generator=generator).to(images.device)
    with torch.autocast(images.device.type, enabled=False):  # half precision cannot name pixels
        sides = torch.tensor([images.shape[-1], images.shape[-2]], device=images.device)
        reach = (REACH * sides).round()
        pixels = ((2 * reach + 1) * draws[:2, :, 0, 0, 0].T).floor() - reach
        where = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
        where[:, :, 2] = 2 * pixels / sides
        grid = F.affine_grid(where, list(images.shape), align_corners=False)
        x = F.grid_sample(2 * images - 1, grid, mode="nearest", align_corners=False)
        x = x + draws[2] - 0.5
        grey = x.mean(1, keepdim=True)
        x = grey + 2 * draws[3] * (x - grey)
        mean = x.mean((1, 2, 3), keepdim=True)
        return (mean + (0.5 + draws[4]) * (x - mean) + 1) / 2


def balanced(
    images: Float[Tensor, "*batch 3 height width"],
    output: nn.Parameter,
    reconstruction: Callable[[Tensor], dict[str, Tensor]],
    realism: Callable[[Tensor], Tensor],
    weight: float,
) -> dict[str, Float[Tensor, ""]]:
    """Losses of images, with an adversarial one as strong as the others are at the last layer's weights, `output`.

    The perceptual nets are gone through backwards once, not once more for the ratio: both gradients are taken at the
    images, and the `adversarial` loss carries their sum on into the model, the others only their values.
    """
    shown = images.detach().requires_grad_()
    losses = reconstruction(shown)
    adversarial = realism(shown)
    gradients = [torch.autograd.grad(loss, shown)[0] for loss in (torch.stack([*losses.values()]).sum(), adversarial)]
    at_output = [torch.autograd.grad(images, output, gradient, retain_graph=True)[0] for gradient in gradients]
    scale = weight * gradient_ratio(*mean_over_processes(torch.stack(at_output)))
    carrier = (images * (gradients[0] + scale * gradients[1])).sum()
    values = {name: loss.detach() for name, loss in losses.items()}
    return values | {"adversarial": scale * adversarial.detach() + (carrier - carrier.detach())}


def mean_over_processes(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The mean of what all training processes have here: the ratio of the whole batch is everyone's."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    torch.distributed.all_reduce(x)
    return x / torch.distributed.get_world_size()
