"""What the denoiser reads, by what each number of it must mean; tests/parity compares with the published code."""

from types import SimpleNamespace

import pytest
import torch
from tests.miniature import images

from diorama.pipelines.gen3r_conditions import (
    appearance_latents,
    clip_frames,
    clip_of,
    control_of,
    frame_of_view,
    image_prompt,
    in_bytes,
    known_latents,
    known_mask,
    latent_statistics,
    packed,
)

MEAN, STD = [0.5, -1.0], [2.0, 0.25]


class Posterior:
    """A video VAE whose posterior is the clip's first two colours, with a deviation of 3."""

    dtype = torch.float32
    config = SimpleNamespace(latents_mean=MEAN, latents_std=STD)

    def encode(self, clip):
        mean = clip[:, :2]
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, logvar=torch.full_like(mean, 9.0).log()))


@pytest.mark.parametrize("views", range(1, 51))
def test_every_view_has_its_frame(views):
    frames, places = clip_frames(views), frame_of_view(views)
    assert len(frames) % 4 == 1 and 0 <= len(frames) - views <= 3
    assert frames == sorted(frames) and (frames[0], frames[-1]) == (0, views - 1)
    assert [frames[place] for place in places] == list(range(views))
    assert (places[0], places[-1]) == (0 if views > 1 else len(frames) - 1, len(frames) - 1)


def test_whole_clips_repeat_nothing():
    assert clip_frames(49) == frame_of_view(49) == list(range(49))


def test_four_frames_stand_side_by_side():
    values = torch.arange(2 * 9 * 3).reshape(2, 9, 3).float()
    found = packed(values)
    assert found.shape == (2, 12, 3)
    for latent in range(3):
        for channel in range(3):
            for sub in range(4):
                frame = max(0, 4 * latent - 3 + sub)
                assert torch.equal(found[:, 4 * channel + sub, latent], values[:, frame, channel])


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0], [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]),
        ([0, 8], [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]),
        ([5], [[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        (list(range(9)), [[1, 1, 1]] * 4),
        ([], [[0, 0, 0]] * 4),
    ],
)
def test_the_mask_of_known_frames(places, expected):
    assert known_mask([places], 9)[0].tolist() == expected


def test_unknown_frames_are_black():
    photos = images(2, 16, 24)
    clip = clip_of([photos, photos.flip(0)], [[4, 1], [0, 2]], 5)
    assert clip.shape == (2, 3, 5, 16, 24)
    assert torch.equal(clip[0, :, 4], 2 * photos[0] - 1) and torch.equal(clip[0, :, 1], 2 * photos[1] - 1)
    assert torch.equal(clip[1, :, 0], 2 * photos[1] - 1) and torch.equal(clip[1, :, 2], 2 * photos[0] - 1)
    assert (clip[0, :, [0, 2, 3]] == -1).all() and (clip[1, :, [1, 3, 4]] == -1).all()


def test_the_geometry_half_tells_nothing():
    found = known_latents(torch.randn(1, 16, 3, 4, 6), known_mask([[0, 8]], 9))
    assert found.shape == (1, 20, 3, 4, 12)
    assert not found[..., 6:].any() and found[:, :16, ..., :6].all()


def test_both_halves_have_the_same_cameras():
    found = control_of(torch.randn(1, 5, 6, 8, 8))
    assert found.shape == (1, 24, 2, 8, 16) and torch.equal(found[..., :8], found[..., 8:])


def test_latents_are_the_posteriors_mode():
    clip = torch.randn(1, 3, 2, 4, 4)
    found = appearance_latents(Posterior(), clip)
    for channel in range(2):
        torch.testing.assert_close(found[:, channel], (clip[:, channel] - MEAN[channel]) / STD[channel])
    mean, std = latent_statistics(Posterior(), clip)
    torch.testing.assert_close(found * std + mean, clip[:, :2])


def test_drawn_latents_have_the_raw_deviation():
    """As published: not divided by the latents' own, by which it is too large or too small."""
    clip = torch.zeros(2, 3, 1, 200, 200)
    drawn = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    found = appearance_latents(Posterior(), clip, drawn) - appearance_latents(Posterior(), clip)
    assert found.std((2, 3, 4)).flatten().tolist() == pytest.approx([3.0] * 4, rel=0.02)
    assert not torch.equal(found[0], found[1])
    alone = appearance_latents(Posterior(), clip[1:], [torch.Generator().manual_seed(2)])
    assert torch.equal(alone + 0.0, appearance_latents(Posterior(), clip[1:]) + found[1:])


def test_photos_for_clip():
    grey = torch.full((1, 3, 30, 50), 0.5)
    found = image_prompt(grey, 14)
    expected = [
        (0.5 - mean) / std for mean, std in zip((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758), strict=True)
    ]
    assert found.shape == (1, 3, 14, 14)
    assert found.mean((0, 2, 3)).tolist() == pytest.approx(expected, abs=1e-3)
    assert float(in_bytes(torch.tensor([0.999 / 255]))) == 0 and float(in_bytes(torch.tensor([1.0]))) == 1
    assert torch.equal(image_prompt(grey, 14, through_bytes=True), image_prompt(in_bytes(grey), 14))
