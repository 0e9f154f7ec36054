import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from diorama.training.clips import ClipData, Clips, places
from diorama.training.trainer import Share, step_generator

FRAMES, SIDE = 7, 16
NOWHERE = Path("nowhere")


def how(**told):
    return ClipData(out=NOWHERE, data=NOWHERE, validation=NOWHERE, **told)


@pytest.fixture
def capture(tmp_path):
    """A nerfstudio capture whose frames are grey, each brighter than the last, with two captions."""
    frames = []
    for number in range(FRAMES):
        Image.new("RGB", (SIDE, SIDE), (30 * number,) * 3).save(tmp_path / f"{number}.png")
        pose = torch.eye(4)
        pose[0, 3] = number
        frames.append({"file_path": f"{number}.png", "transform_matrix": pose.tolist()})
    lens = {"fl_x": SIDE, "fl_y": SIDE, "cx": SIDE / 2, "cy": SIDE / 2, "w": SIDE, "h": SIDE}
    (tmp_path / "transforms.json").write_text(json.dumps(lens | {"frames": frames}))
    (tmp_path / "captions.txt").write_text("a room\n\nanother room\n")
    return tmp_path


@pytest.mark.parametrize(
    ("length", "frames", "stride", "chance", "expected"),
    [
        (9, 5, 2, 0.99, [0, 2, 4, 6, 8]),
        (9, 5, 1, 0.99, [4, 5, 6, 7, 8]),
        (9, 5, 1, 0.0, [0, 1, 2, 3, 4]),
        (7, 5, 2, 0.0, [0, 1, 2, 3, 4]),
        (3, 5, 2, 0.5, [0, 1, 2, 2, 2]),
        (4, 1, 2, 0.5, [2]),
    ],
)
def test_frames_of_a_clip(length, frames, stride, chance, expected):
    assert places(length, frames, stride, chance) == expected


def test_clips_of_a_capture_are_its_frames_in_their_order(capture):
    clips = Clips(capture, (SIDE, SIDE), unit=8)
    assert (len(clips), clips.length(0), clips.captions(0)) == (1, FRAMES, ("a room", "another room"))
    seen = set()
    for step in range(4):
        clip = clips.drawn(how(strides=(1, 2)), 2, 5, step_generator(0, step, 0))
        shown = (clip.views.images[:, :, 0, 0, 0] * 255 / 30).round().int()
        assert all(int(change) == 1 for change in shown.diff(dim=1).flatten())  # for twice as many there is no room
        seen |= set(shown[:, 0].tolist())
        apart = clip.views.cameras.centers[:, -1] - clip.views.cameras.centers[:, 0]
        assert apart.norm(dim=-1).tolist() == pytest.approx([4, 4])
    assert seen == {0, 1, 2}
    assert clips.first(how(), 3, 4).views.images[0, :, 0, 0, 0].mul(255 / 30).round().tolist() == [0, 2, 4, 6]
    assert clips.first(how(strides=(1,)), 3, 4).views.images[0, :, 0, 0, 0].mul(255 / 30).round().tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_few_places_to_begin_at_are_spread_over_the_scene(capture):
    clips = Clips(capture, (SIDE, SIDE), unit=8)
    for starts, expected in ((1, {0}), (2, {0, 3}), (3, {0, 2, 4})):
        clip = clips.drawn(how(strides=(1,), starts=starts), 40, 2, step_generator(0, 0, 0))
        assert set((clip.views.images[:, 0, 0, 0, 0] * 255 / 30).round().int().tolist()) == expected


def test_shares_make_up_the_batch(worlds):
    clips = Clips(worlds["data"], (1, 1), unit=8)
    whole, *parts = (
        clips.drawn(how(strides=(1,)), 4, 5, step_generator(0, 5, 0), share)
        for share in (Share(), Share(0, 2), Share(1, 2))
    )
    images = torch.stack([part.views.images for part in parts], 1).flatten(0, 1)
    assert torch.equal(images, whole.views.images) and whole.scenes[1] == parts[1].scenes[0]
    assert clips.name(2) == "world 2" and math.prod(whole.views.images.shape) == 4 * 5 * 3 * SIDE**2


def test_images_of_another_size_are_refused_in_one_line(capture, worlds):
    with pytest.raises(ValueError, match=r"^[^\n]*: images of 16x20; accepted are multiples of 8, by --image-size$"):
        Clips(capture, (16, 20), unit=8)
    with pytest.raises(ValueError, match=r"^[^\n]*train: images of 16x16; accepted are multiples of 112, rendered so"):
        Clips(worlds["data"], (112, 112), unit=112)
