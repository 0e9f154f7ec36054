"""Scenes whose views arrive a few at a time: each is encoded once, beside what was encoded before."""

import torch
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.nn.attention import KeysValues
from diorama.pipelines.decoding import decode_views, in_frames, kept
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition, Scene, Views


class GrowingScene:
    """A scene reconstructed from views of which more may come, at a cost for each that earlier ones hardly add to.

    The first views fix the frame: the first camera's, with the farthest of them and of `reach` at distance 1. In that
    frame the latents are those that `reconstruct` gives of all views at once: exactly where the autoencoder's neck is
    "one_way", nearly where it is "hub" (`RAE3D.extend`). Cameras farther away than `reach` are farther than the model
    was trained on. ValueError for a neck of "full".
    """

    def __init__(self, pipeline: TokenPipeline, reach: Cameras | None = None) -> None:
        if pipeline.autoencoder.neck.attention == "full":
            found = f"{pipeline.config.title}: neck_attention 'full' encodes all views at once"
            raise ValueError(f"{found}; accepted are models trained with --neck-attention hub or one_way")
        self.pipeline, self.reach = pipeline, None if reach is None else reach.path()
        self.frame: Similarity | None = None
        self.size = (0, 0)
        self.known = 0
        self._read: list[KeysValues] | None = None
        self._observed: list[Views] = []

    @torch.no_grad()
    def add(self, views: Views, wanted: Cameras | None = None) -> Scene:
        """The scene as all views so far show it, decoded from `wanted` cameras, by default those of these views.

        Views come to the size of the first. ValueError for views without cameras.
        """
        if views.cameras is None:
            raise ValueError("views without cameras: adding them to a scene needs to know where they are seen from")
        pipeline, autoencoder, posed = self.pipeline, self.pipeline.autoencoder, views.cameras.path()
        if self.frame is None:
            around = posed if self.reach is None else posed.joined(self.reach)
            self.frame = around.to(torch.float64).normalized()[1]
            self.size = pipeline.size_near(*views.images.shape[-2:])
        read = posed.fitted(*self.size)
        local = in_frames([read], [self.frame]).to(pipeline.device)
        images = Views(views.images.cpu().float(), posed).images_for(read)
        seen = images[None].to(pipeline.device, autoencoder.dtype)
        visible = torch.ones(1, len(views), dtype=torch.bool, device=pipeline.device)
        latents, self._read = autoencoder.extend(self._read, seen, local.plucker(), visible)
        self.known += len(views)
        if pipeline.memory is not None:
            self._observed.append(kept(images, read))
        return self._scene(latents, views if wanted is None else None, pipeline.fitted((wanted or read).path()))

    def _scene(self, latents: Tensor, shown: Views | None, path: Cameras) -> Scene:
        assert self.frame is not None
        models = self.pipeline.autoencoder, self.pipeline.memory
        observed = self.observed
        return Scene(
            views=decode_views(models, latents, [path], [self.frame], [observed])[0],
            condition=Condition() if shown is None else Condition(shown, tuple(range(len(shown)))),
            latents=latents[0].cpu(),
            latent_frame=self.frame,
            provenance=self.pipeline.provenance(None, {"known_views": self.known}),
            observed=observed,
        )

    @property
    def observed(self) -> Views | None:
        """All views so far, as a scene keeps them for the pipeline's memory; None where it has none."""
        if not self._observed:
            return None
        cameras = self._observed[0].cameras
        for views in self._observed[1:]:
            cameras = cameras.joined(views.cameras)  # type: ignore[union-attr, arg-type]
        return Views(torch.cat([views.images for views in self._observed]), cameras)
