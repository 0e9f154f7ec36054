"""Gen3R behind the one interface: known frames, cameras and text to video and geometry side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diorama.flow import guided
from diorama.geometry.cameras import Cameras
from diorama.models.gen3r_transformer import Gen3RTransformer
from diorama.models.geometry_adapter import GeometryAdapter, unpack_tokens
from diorama.models.vggt import VGGT, VGGTOutput
from diorama.pipelines.base import Context, size_in_units
from diorama.pipelines.gen3r_conditions import (
    Known,
    appearance_latents,
    clip_frames,
    clip_of,
    frame_of_view,
    image_prompt,
    known_latents,
    known_mask,
    latent_statistics,
    options,
)
from diorama.pipelines.gen3r_files import read_parts
from diorama.pipelines.gen3r_reconstruction import CHUNK, check_way, rebuilt
from diorama.pipelines.gen3r_world import (
    control_for,
    control_frame,
    in_shot,
    of_clip,
    photos_for,
    placed,
    scale_of_scene,
)
from diorama.pipelines.prompts import PromptCache, PromptedPipeline
from diorama.pipelines.sampling import GEN3R_SPEEDS
from diorama.scene import Condition, Scene, Shot, Views

UNIT = 112  # pixels: whole patches of VGGT (14) that are whole patches of the denoiser (16) too
SEEN = 8  # known views that VGGT looks at, at most, to tell the scale


class Gen3RPipeline(PromptedPipeline):
    """Video latents and geometry latents of one clip are denoised together; known frames fix part of the video.

    Cameras may be given, as `Cameras`, or left to the model, as a `Shot`. `parity` does as the published code does:
    posteriors are drawn with a raw deviation, the sampler's state is rounded to the denoiser's precision, photos for
    CLIP are cut to bytes and points stand half a pixel beside their rays.
    """

    by_block = ("transformer", "text_encoder")
    speeds = GEN3R_SPEEDS
    transformer: Gen3RTransformer
    vae: AutoencoderKLWan
    adapter: GeometryAdapter
    vggt: VGGT
    scheduler: FlowMatchEulerDiscreteScheduler

    def __init__(
        self,
        *,
        transformer: Gen3RTransformer,
        vae: AutoencoderKLWan,
        adapter: GeometryAdapter,
        vggt: VGGT,
        text_encoder: Any,
        tokenizer: Any,
        image_encoder: Any,
        scheduler: FlowMatchEulerDiscreteScheduler,
        title: str = "Gen3R",
        licence: str = "unknown",
        pixels: int = 313_600,
        views: int = 49,
        steps: int = 50,
        guidance: float = 5.0,
        negative_prompt: str = "bad detailed",
        parity: bool = False,
    ) -> None:
        """`pixels` and `views`: area and length of the clips that it was trained with."""
        super().__init__()
        self.prompts = PromptCache()
        models = dict(transformer=transformer, vae=vae, adapter=adapter, vggt=vggt, image_encoder=image_encoder)
        self.register_modules(**models, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(
            title=title, licence=licence, pixels=pixels, views=views, steps=steps, guidance=guidance,
            negative_prompt=negative_prompt, parity=parity,
        )  # fmt: skip
        for model in (*models.values(), text_encoder):
            if model is not None:
                model.eval().requires_grad_(False)

    def options(self, **asked: Any) -> dict[str, Any]:
        """Gen3R's own settings: see `gen3r_conditions.options`."""
        return options(**{"negative_prompt": self.config.negative_prompt, "title": self.config.title} | asked)

    def size_near(self, height: int | float, width: int | float) -> tuple[int, int]:
        """Multiples of 112 pixels, about the area trained at."""
        return size_in_units(height, width, UNIT, self.config.pixels)

    def prepared(self, condition: Condition, wanted: Cameras | Shot) -> tuple[Condition, Cameras | Shot]:
        """The request at a size of this model's own, once everything about it is known to be usable."""
        if condition.label is not None:
            raise ValueError(f"{self.config.title} was trained without classes: leave the label out")
        if condition.views is None:
            raise ValueError(f"{self.config.title} starts from photos: give at least one known view")
        if isinstance(wanted, Shot):
            condition = in_shot(condition, wanted)
            return condition, Shot(wanted.views, *self.size_near(wanted.height, wanted.width))
        path = wanted.path()
        return condition.along(path), path.fitted(*self.size_near(path.height, path.width))

    def encode(self, conditions: Sequence[Condition], wanted: Sequence[Any]) -> Context:
        """Latents of the known frames, cameras, text and the first known photo; translations as they are given."""
        return self._encode(conditions, wanted, self.read([c.prompt or "" for c in conditions]))

    def null(self, conditions: Sequence[Condition], wanted: Sequence[Any]) -> Context | None:
        """The same frames and cameras with the negative prompt."""
        negative = self.config.negative_prompt
        if all((condition.prompt or "") == negative for condition in conditions):
            return None
        return self.encode([replace(condition, prompt=negative) for condition in conditions], wanted)

    def branches(
        self, conditions: Sequence[Condition], wanted: Sequence[Any], seeds: Sequence[int], settings: Mapping[str, Any]
    ) -> tuple[Context, Context | None]:
        """Both at once: all text first, after which its encoder may go; the branches share everything else."""
        positive, negative = [c.prompt or "" for c in conditions], settings["negative_prompt"]
        alone = settings["guidance"] == 1 or set(positive) == {negative}
        texts = self.read(positive if alone else [*positive, negative])
        self.vae.use_tiling = settings["tiling"]
        context = self._encode(conditions, wanted, texts[: len(positive)], seeds, settings)
        if alone:
            return context, None
        text = texts[-1].to(context.known.text).expand(len(positive), -1, -1)
        return context, context._replace(known=context.known._replace(text=text))

    def _encode(
        self,
        conditions: Sequence[Condition],
        wanted: Sequence[Any],
        texts: Sequence[Tensor],
        seeds: Sequence[int] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> Context:
        images = [photos_for(c, path) for c, path in zip(conditions, wanted, strict=True)]
        prompt = torch.stack([photos[c.at.index(min(c.at))] for photos, c in zip(images, conditions, strict=True)])
        kind, place = self.transformer.dtype, self.place
        with self.visiting(self.image_encoder):
            image = self._image_tokens(prompt)
        appearance, mask = self._appearance(images, conditions, wanted[0].views, seeds)
        asked = 1.0 if settings is None else settings["scale"]
        scales = [self._scale(*request, asked) for request in zip(conditions, wanted, images, strict=True)]
        frames = [
            control_frame(path.to(torch.float64), scale) if isinstance(path, Cameras) else None
            for path, scale in zip(wanted, scales, strict=True)
        ]
        control = [control_for(*request, place).to(kind) for request in zip(wanted, frames, strict=True)]
        text = pad_sequence([text.to(place, kind) for text in texts], batch_first=True)
        known = Known(known_latents(appearance, mask).to(kind), torch.cat(control), text, image.to(kind))
        return Context(known, list(zip(conditions, wanted, strict=True)), frames, settings=settings)

    def _image_tokens(self, photos: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch token dim"]:
        """CLIP's states before its last block."""
        model = self.image_encoder
        small = image_prompt(photos.to(self.place), model.config.image_size, through_bytes=self.config.parity)
        return model(small.to(model.dtype), output_hidden_states=True).hidden_states[-2]

    def _appearance(
        self, images: Sequence[Tensor], conditions: Sequence[Condition], views: int, seeds: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Latents of the clips in which only known frames are shown, one clip after the other, and their mask."""
        frames = clip_frames(views)
        places, shown = [], []
        for photos, condition in zip(images, conditions, strict=True):
            whole = len(condition.at) == views  # only then repeated frames are known too, as trained
            places.append(list(range(len(frames))) if whole else [frame_of_view(views)[at] for at in condition.at])
            shown.append(photos[[condition.at.index(view) for view in frames]] if whole else photos)
        clip = clip_of(shown, places, len(frames))
        drawn = [torch.Generator().manual_seed(seed) for seed in seeds] if self.config.parity else []
        with self.visiting(self.vae):
            rows = enumerate(clip.split(1))
            latents = [appearance_latents(self.vae, x.to(self.place), drawn[i : i + 1]) for i, x in rows]
        return torch.cat(latents), known_mask(places, len(frames))

    def _scale(self, condition: Condition, wanted: Any, images: Tensor, asked: float | None) -> float:
        """How long one unit of the wanted path's world is for the model; VGGT looks only where the path moves."""
        if asked is not None or isinstance(wanted, Shot) or float(wanted.extent) == 0:
            return 1.0 if asked is None else asked
        known = condition.views
        assert known is not None
        chosen = torch.linspace(0, len(known) - 1, min(len(known), SEEN)).round().long()
        return scale_of_scene(known[chosen], self.seen(images[chosen][None]))

    def noise(self, wanted: Sequence[Any], seeds: Sequence[int]) -> Float[Tensor, "batch channel frame height both"]:
        """Gaussian latents of both halves; each request's come from its own seed on the CPU."""
        path, channels = wanted[0], self.transformer.config.out_channels
        shape = (channels, (len(clip_frames(path.views)) + 3) // 4, path.height // 8, path.width // 4)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(self.place, self._state_dtype)

    @property
    def _state_dtype(self) -> torch.dtype:
        return self.transformer.dtype if self.config.parity else torch.float32

    def schedule(self, steps: int, device: torch.device) -> None:
        """The scheduler's stock times, as published: their tail is shifted twice."""
        self.scheduler.set_timesteps(steps, device=device)

    def sampled(
        self, latents: Tensor, context: Context, null: Context | None, settings: Mapping[str, Any], *rest: Any
    ) -> Tensor:
        """Latents from noise, with the denoiser on the device, which may leave out what hardly changes."""
        threshold = settings.get("step_cache", 0.0)
        with self.visiting(self.transformer):
            if threshold:
                self.transformer.enable_cache(FirstBlockCacheConfig(threshold))
            try:
                return super().sampled(latents, context, null, settings, *rest)
            finally:
                if threshold:
                    self.transformer.disable_cache()

    def velocity(self, latents: Tensor, t: float, context: Context, null: Context | None, scale: float) -> Tensor:
        """Velocity at time t; the branches run one after the other, which takes as long and half the memory."""
        with self.transformer.cache_context("known"):
            conditional = self.denoise(latents, t, context.known)
        if null is None:
            return conditional
        with self.transformer.cache_context("null"):
            return guided(conditional, self.denoise(latents, t, null.known), scale)

    def denoise(self, latents: Tensor, t: float | Float[Tensor, " batch"], known: Known) -> Tensor:
        """The transformer's velocity, in single precision unless parity is asked for; in training each has its time."""
        model = self.transformer
        inputs = torch.cat([latents.to(known.latents), known.latents], 1)
        times = torch.as_tensor(1000 * t, dtype=torch.float32, device=latents.device).expand(len(latents))
        return model(inputs, times, known.text, known.image, control=known.control).sample.to(self._state_dtype)

    def decode(self, latents: Tensor, context: Context) -> tuple[list[Views], Tensor]:
        """Video by the VAE, geometry by the adapter and VGGT's heads; one scene after the other."""
        settings = context.settings or self.options()
        self.vae.use_tiling = settings["tiling"]
        made = []
        for row, request in enumerate(context.wanted):
            video, shape = latents[row : row + 1].float().chunk(2, -1)
            images, output = self.video(video), self.geometry(shape)
            made.append(of_clip(images, output, request, context.frames[row], settings, self.config.parity))
        return made, latents.float()

    def video(self, latents: Float[Tensor, "1 channel latent_frame h w"]) -> Float[Tensor, "frame 3 height width"]:
        """Frames in [0, 1] of normalised appearance latents."""
        mean, std = latent_statistics(self.vae, latents)
        with self.visiting(self.vae):
            clip = self.vae.decode((latents * std + mean).to(self.vae.dtype), return_dict=False)[0]
        return (clip[0].transpose(0, 1).float() / 2 + 0.5).clamp(0, 1).cpu()  # type: ignore[index]

    def geometry(self, latents: Float[Tensor, "1 channel latent_frame h w"]) -> VGGTOutput:
        """What VGGT's heads say of normalised geometry latents; VGGT itself is not asked."""
        with self.visiting(self.adapter):
            tokens = self.adapter.decode(latents.to(self.adapter.dtype), chunk=CHUNK)
        with self.visiting(self.vggt.readout):
            found = self.vggt.decode(unpack_tokens(tokens), 8 * latents.shape[3], 8 * latents.shape[4])
        return VGGTOutput(found.cameras.to("cpu"), *(value.cpu() for value in found[1:]))

    def seen(self, clip: Float[Tensor, "1 frame 3 height width"]) -> VGGTOutput:
        """What VGGT says of pictures themselves."""
        with self.visiting(self.vggt):
            found = self.vggt(clip.to(self.place, self.vggt.dtype))
        return VGGTOutput(found.cameras.to("cpu"), *(value.cpu() for value in found[1:]))

    @torch.no_grad()
    def reconstruct(
        self,
        views: Views | Sequence[Views],
        wanted: Any = None,
        *,
        by: str = "diffusion",
        prompt: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        **more: Any,
    ) -> Any:
        """A scene from views of which all are known, with or without their cameras (table 3 tells the ways apart).

        `by`: "diffusion", the model's all-frames task; "vae", pictures and VGGT's tokens through their autoencoders and
        back, which `steps=0` means too; "vggt", the pictures themselves with what VGGT says of them. `wanted` is a path
        through the views, by default their own; `more` is as in `generate`. A sequence of views gives a list of scenes.
        """
        items = [views] if isinstance(views, Views) else list(views)
        paths = list(wanted) if isinstance(wanted, Sequence) else [wanted] * len(items)
        if len(paths) != len(items):
            raise ValueError(f"{len(items)} sets of views but {len(paths)} camera paths: accepted is one each")
        requests = [placed(item, path) for item, path in zip(items, paths, strict=True)]
        by = "vae" if steps == 0 and by == "diffusion" else by
        check_way(by, steps)
        if by != "diffusion":
            scenes = [rebuilt(self, *self.prepared(*request), self.options(**more), by) for request in requests]
        else:
            told = [replace(condition, prompt=prompt) for condition, _ in requests]
            scenes = self.generate(told, [path for _, path in requests], seed=seed, steps=steps, **more)
        return scenes[0] if isinstance(views, Views) else scenes

    def render(self, scene: Scene, cameras: Cameras) -> Views:
        """Always ValueError: the cameras of a Gen3R scene are fixed when it is generated."""
        raise ValueError(f"{self.config.title} cannot show a scene from other cameras: generate it along the new path")

    @classmethod
    def load_folder(cls, folder: Path, dtype: torch.dtype | None = None, offload: str = "stages") -> "Gen3RPipeline":
        """Load the published folder or a saved one, strictly; ValueError, in one line, for what does not fit.

        Weights go straight to `dtype`, by default half precision where there is a CUDA device; the text encoder stays
        on disk until a prompt is new. `offload`: see `StagedPipeline`.
        """
        if dtype is None:
            dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        parts, source, identity = read_parts(folder, dtype)
        try:
            made = cls(**parts, text_encoder=None).offloaded(offload)
        except TypeError as error:
            raise ValueError(f"{folder}: not a {cls.__name__} ({str(error).splitlines()[0]})") from None
        made.text_source, made.prompts = source, PromptCache(identity)
        return made
