"""What Gen3R's denoiser is told, against the published pipeline with a stand-in video VAE."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from diorama.pipelines.gen3r_conditions import (
    appearance_latents,
    clip_frames,
    clip_of,
    control_of,
    image_prompt,
    in_bytes,
    known_latents,
    known_mask,
)

from .golden import load

FRAMES, COLUMNS = 9, [0, 6, 7, 13]  # left and right end of both halves
PLACES = {"1view": [0], "2view": [0, FRAMES - 1], "allview": list(range(FRAMES))}


class StandIn:
    """Pooled colours: the first frame alone, then means of four frames."""

    dtype = torch.float32
    config = SimpleNamespace(latents_mean=[0.0] * 16, latents_std=[1.0] * 16)

    def encode(self, clip):
        pooled = F.avg_pool3d(clip, (1, 8, 8))
        pooled = torch.cat([pooled[:, :, :1], F.avg_pool3d(pooled[:, :, 1:], (4, 1, 1))], 2)
        channels = torch.arange(16)
        mean = pooled[:, channels % 3] * (1 + 0.1 * channels)[:, None, None, None]
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))


@pytest.fixture(scope="module")
def golden():
    return load("pipeline_packing")


@pytest.mark.parametrize("task", PLACES)
def test_known_frames(golden, task):
    images, places = golden.inputs["images"][0], [PLACES[task]]
    clip = clip_of([images[PLACES[task]]], places, FRAMES)
    found = known_latents(appearance_latents(StandIn(), clip), known_mask(places, FRAMES))
    mask = found[:, 16:]
    assert torch.equal(mask, mask[..., :1, :].expand_as(mask))
    names = {"vae_input": clip, "cond_latents": found[:, :16], "mask": mask[..., :1, COLUMNS]}
    golden.check(**{f"{task}_{name}": value for name, value in names.items()})


def test_cameras(golden):
    golden.check(y_camera=control_of(golden.inputs["plucker"]))


@pytest.mark.parametrize("task", PLACES)
def test_the_photo_for_clip_is_cut_to_bytes(golden, task):
    photo = golden.inputs["images"][0, 0]
    golden.check(**{f"{task}_clip_image": (in_bytes(photo)[:, None] - 0.5) / 0.5})
    exact, cut = (image_prompt(photo[None], 56, through_bytes=quirk) for quirk in (False, True))
    torch.testing.assert_close(cut, image_prompt(in_bytes(photo)[None], 56))
    assert not torch.equal(exact, cut)


def test_whole_clips_show_every_view_once():
    assert clip_frames(FRAMES) == list(range(FRAMES))
