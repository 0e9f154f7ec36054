"""What Gen3R's denoiser reads beside the noise, as tensors: written once, for sampling and for training.

Clips have 4k + 1 frames. Everything of one number a frame is packed like the video VAE's time: the first frame counts
four times, then four frames make one latent frame (Gen3R, arXiv 2601.04090).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

OPTIONS = ("negative_prompt", "scale", "points", "cameras", "tiling", "step_cache")
PACK = 4  # frames a latent frame
CHOICES = {"points": ("depth", "head"), "cameras": ("wanted", "predicted")}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Known(NamedTuple):
    """The conditions of a batch, as the transformer's arguments take them."""

    latents: Float[Tensor, "batch channel frame height width"]  # of the known frames, and their mask, over both halves
    control: Float[Tensor, "batch camera frame pixels_high pixels_wide"]  # zeros where cameras are free
    text: Float[Tensor, "batch token text_dim"]
    image: Float[Tensor, "batch patch image_dim"]


def options(
    *,
    title: str,
    negative_prompt: str,
    scale: float | None = None,
    points: str = "depth",
    cameras: str = "wanted",
    tiling: bool = False,
    step_cache: float = 0.0,
    **unknown: Any,
) -> dict[str, Any]:
    """Gen3R's own settings, complete and checked; ValueError, in one line, for what is none.

    `scale`: what translations are multiplied with before the model sees them (1 = as published); by default they are
    brought to the scene's scale, which VGGT tells from the known views. `points`: by the depth head or the point head.
    `cameras`: points and views at the cameras that were wanted, or at those that the model predicts. `tiling`: the
    video VAE works on overlapping tiles, which needs less memory and may leave seams. `step_cache`: where the
    denoiser's first block changes by less than this share since the step before, the others' answer is kept
    (0 = never; 0.05 is careful).
    """
    if unknown:
        raise ValueError(f"{title} knows no {', '.join(unknown)}: accepted are {', '.join(OPTIONS)}")
    for name, value in (("points", points), ("cameras", cameras)):
        if value not in CHOICES[name]:
            raise ValueError(f"{name} {value!r}: accepted are {', '.join(CHOICES[name])}")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale {scale}: accepted is more than 0")
    if not 0 <= step_cache < 1:
        raise ValueError(f"step_cache {step_cache}: accepted is 0 up to, not including, 1")
    return dict(zip(OPTIONS, (negative_prompt, scale, points, cameras, tiling, step_cache), strict=True))


def clip_frames(views: int) -> list[int]:
    """Which view each frame of the clip shows: as many frames as views, up to the next 4k + 1.

    What is too much is spread evenly as repeated views, so that first and last view are the clip's first and last.
    """
    frames = views + (1 - views) % PACK
    return [round(place * (views - 1) / max(frames - 1, 1)) for place in range(frames)]


def frame_of_view(views: int) -> list[int]:
    """The frame of the clip that is each view: the first that shows it, but for the last view the last one."""
    shown = clip_frames(views)
    return [*(shown.index(view) for view in range(views - 1)), len(shown) - 1]


def packed(values: Float[Tensor, "batch frame channel *size"]) -> Float[Tensor, "batch packed latent_frame *size"]:
    """Four frames side by side as channels, with the index 4 * channel + frame within the four."""
    whole = torch.cat([values[:, :1].expand(-1, PACK - 1, *values.shape[2:]), values], 1)
    return whole.unflatten(1, (-1, PACK)).movedim((1, 2), (3, 2)).flatten(1, 2)


def clip_of(
    images: Sequence[Float[Tensor, "_ 3 height width"]], places: Sequence[Sequence[int]], frames: int
) -> Float[Tensor, "batch 3 frame height width"]:
    """The clips that the video VAE reads, in [-1, 1]: known frames in their places, all others black."""
    clip = images[0].new_zeros(len(images), frames, *images[0].shape[1:])
    for row, (shown, at) in enumerate(zip(images, places, strict=True)):
        clip[row, list(at)] = shown
    return 2 * clip.transpose(1, 2) - 1


def known_mask(places: Sequence[Sequence[int]], frames: int) -> Float[Tensor, "batch 4 latent_frame"]:
    """1 where a frame is known, four channels a latent frame."""
    mask = torch.zeros(len(places), frames, 1)
    for row, at in enumerate(places):
        mask[row, list(at)] = 1
    return packed(mask)


def known_latents(
    appearance: Float[Tensor, "batch channel latent_frame height width"], mask: Float[Tensor, "batch 4 latent_frame"]
) -> Float[Tensor, "batch channel_mask latent_frame height both"]:
    """Condition latents and mask over both halves; the geometry half is zero, as published, whatever is known."""
    mask = mask.to(appearance)[..., None, None].expand(-1, -1, -1, *appearance.shape[3:])
    left = torch.cat([appearance, mask], 1)
    return torch.cat([left, torch.zeros_like(left)], -1)


def control_of(
    plucker: Float[Tensor, "batch frame 6 height width"],
) -> Float[Tensor, "batch 24 latent_frame height both"]:
    """Cameras in the first one's frame as channels, the same for both halves; zeros leave them free."""
    channels = packed(plucker)
    return torch.cat([channels, channels], -1)


def image_prompt(
    images: Float[Tensor, "batch 3 height width"], side: int, *, through_bytes: bool = False
) -> Float[Tensor, "batch 3 side side"]:
    """Photos in [0, 1] as CLIP reads them: squeezed to a square, without antialiasing.

    The published code truncates to bytes first (`through_bytes`).
    """
    images = in_bytes(images) if through_bytes else images
    small = F.interpolate(images, (side, side), mode="bicubic", align_corners=False)
    mean, std = (small.new_tensor(numbers)[:, None, None] for numbers in (CLIP_MEAN, CLIP_STD))
    return (small - mean) / std


def in_bytes(images: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Images in [0, 1] with the values that are left of them in 8 bits, rounded down."""
    return (images * 255).to(torch.uint8).to(images.dtype) / 255


def appearance_latents(
    vae: Any, clip: Float[Tensor, "batch 3 frame height width"], generators: Sequence[torch.Generator] = ()
) -> Float[Tensor, "batch channel latent_frame height_8 width_8"]:
    """Normalised latents of clips in [-1, 1]: the posterior's mode.

    With one generator a clip they are drawn as published, where the raw deviation is added to the normalised mean:
    noise that is too large by the latents' own deviation.
    """
    posterior = vae.encode(clip.to(vae.dtype)).latent_dist
    mean, std = latent_statistics(vae, clip)
    latents = (posterior.mean.to(clip) - mean) / std
    if generators:
        noise = [torch.randn(latents.shape[1:], generator=generator) for generator in generators]
        latents = latents + torch.exp(0.5 * posterior.logvar.to(clip)) * torch.stack(noise).to(clip)
    return latents


def appearance_moments(vae: Any, clip: Float[Tensor, "batch 3 frame height width"]) -> tuple[Tensor, Tensor]:
    """Mean of the posterior of clips in [-1, 1], normalised, and the logarithm of its variance, raw as published."""
    posterior = vae.encode(clip.to(vae.dtype)).latent_dist
    mean, std = latent_statistics(vae, clip)
    return (posterior.mean.to(clip) - mean) / std, posterior.logvar.to(clip)


def latent_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each of the video VAE's channels, shaped for latents."""
    both = like.new_tensor([vae.config.latents_mean, vae.config.latents_std])[..., None, None, None]
    return both[0], both[1]
