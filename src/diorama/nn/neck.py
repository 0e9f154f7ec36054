"""The neck: blocks in which a set of latents reads any number of views."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diorama.nn.attention import KeysValues
from diorama.nn.blocks import Block

ATTENTIONS = ("full", "hub", "one_way")
TOKENS_AT_ONCE = 8192  # of views, gone through together where no gradient has to keep them all


class Neck(nn.ModuleList):
    """Blocks that latents and views share; latents read everything, `attention` says what a view's tokens read.

    "full": all tokens (3DRAE section 3.1), which costs the square of the views. "hub": the latents and their own view,
    so that views meet in the latents alone. "one_way": their own view, which makes a view independent of all others.
    Both cost the views' number. The weights are the same in all three.
    """

    def __init__(self, dim: int, heads: int, layers: int, attention: str = "full") -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f"neck_attention {attention!r}: accepted are {', '.join(map(repr, ATTENTIONS))}")
        super().__init__(Block(dim, heads, depth=depth) for depth in range(layers))
        self.attention = attention

    def forward(
        self, latents: Float[Tensor, "batch latent dim"], views: Float[Tensor, "batch view token dim"]
    ) -> Float[Tensor, "batch latent dim"]:
        """The latents after they have read the views."""
        if self.attention != "full":
            return self.read(latents, views)[0]
        count, tokens = latents.shape[1], torch.cat([latents, views.flatten(1, 2)], 1)
        *blocks, last = self
        for block in blocks:
            tokens = block(tokens)[0]
        # Nobody reads the views after the last block.
        return last(tokens[:, :count], last.keys_values(tokens[:, count:]))[0]  # type: ignore[operator]

    def read(
        self,
        latents: Float[Tensor, "batch latent dim"],
        views: Float[Tensor, "batch view token dim"],
        before: Sequence[KeysValues] | None = None,
        *,
        keep: bool = False,
    ) -> tuple[Float[Tensor, "batch latent dim"], list[KeysValues]]:
        """The latents after they have read these views and those read `before`, and what later views need to be told.

        That is every view's keys and values at every block, or nothing where they are not to be kept. ValueError for
        "full".
        """
        if self.attention == "full":
            found = "neck_attention 'full', in which earlier views read further ones"
            raise ValueError(f"{found}: accepted here are 'hub' and 'one_way'")
        kept, last = [], len(self) - 1
        for layer, block in enumerate(self):
            views, known = self._views(block, latents, views, last=layer == last)  # type: ignore[arg-type]
            if before is not None:
                known = KeysValues(*(torch.cat(pair, 2) for pair in zip(before[layer], known, strict=True)))
            latents = block(latents, known)[0]
            if keep:
                kept.append(known)
        return latents, kept

    def _views(
        self,
        block: Block,
        latents: Float[Tensor, "batch latent dim"],
        views: Float[Tensor, "batch view token dim"],
        *,
        last: bool,
    ) -> tuple[Float[Tensor, "batch view token dim"], KeysValues]:
        """A block of every view alone, or beside the latents, and all views' keys and values as one sequence."""
        batch, count, size, _ = views.shape
        hub = block.keys_values(latents) if self.attention == "hub" and not last else None
        at_once = count if torch.is_grad_enabled() else max(1, TOKENS_AT_ONCE // (batch * size))
        after, keys, values = [], [], []
        for part in views.split(at_once, 1):
            rows, x = part.shape[:2], part.flatten(0, 1)
            if last:
                own = block.keys_values(x)
            else:
                x, own = block(x, None if hub is None else hub.repeated(rows[1]))
                after.append(x.unflatten(0, rows))
            keys.append(own.keys.unflatten(0, rows).transpose(1, 2))
            values.append(own.values.unflatten(0, rows).transpose(1, 2))
        known = KeysValues(*(torch.cat(parts, 2).flatten(2, 3) for parts in (keys, values)))
        return torch.cat(after, 1) if after else views, known
