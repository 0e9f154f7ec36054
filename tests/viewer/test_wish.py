"""What a visitor asks for, as known views and wanted cameras."""

import pytest
import torch
from tests import miniature

from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import orbit
from diorama.pipelines.tokens import TokenPipeline
from diorama.viewer.photos import Photo
from diorama.viewer.poses import pose_of
from diorama.viewer.wish import KEYFRAMES, PRESETS, Wish, amount_of


def photo(height: int = 48, width: int = 64) -> Photo:
    return Photo("room.jpg", miniature.images(1, height, width)[0], None)


def test_a_preset_is_the_trajectory_of_that_name_from_the_photos_camera() -> None:
    wish = Wish((photo(),), path="orbit", amount=30.0, views=5, fov=50.0)
    expected = orbit(Cameras.from_fov(50.0, 48, 64), 5, 30.0)
    assert torch.equal(wish.cameras.camera_to_world, expected.camera_to_world)
    assert torch.equal(wish.cameras.intrinsics, expected.intrinsics)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_default_that_it_accepts(preset: str) -> None:
    amount = amount_of(preset)
    assert Wish(path=preset, amount=None if amount is None else amount[1], views=3).cameras.views == 3
    assert (amount is None) == (preset == "static")


def test_keyframes_are_passed_in_order_after_the_start_with_the_photos_lens() -> None:
    flown = miniature.path(2)
    wish = Wish((photo(),), path=KEYFRAMES, keyframes=tuple(pose_of(flown[i]) for i in (0, 1)), views=9)
    cameras = wish.cameras
    assert torch.equal(cameras.camera_to_world[0], torch.eye(4))
    torch.testing.assert_close(cameras.camera_to_world[[4, 8]], flown.camera_to_world, atol=1e-5, rtol=0)
    assert torch.equal(cameras.intrinsics, wish.start.intrinsics.expand(9, 3, 3))


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(views=129), "views 129: accepted are 1 to 128"),
        (Wish(steps=0), "steps 0: accepted"),
        (Wish(seed=-1), "seed -1: accepted"),
        (Wish(fov=float("nan")), "field of view nan: accepted"),
        (Wish(prompt="a" * 2001), "letters of the prompt 2001: accepted"),
    ],
    ids=["views", "steps", "seed", "fov", "prompt"],
)
def test_what_a_browser_sends_beyond_its_own_limits_is_refused(wish: Wish, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wish.checked()


def test_paths_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="no keyframes"):
        _ = Wish(path=KEYFRAMES).cameras
    with pytest.raises(ValueError, match="path '/etc': accepted are orbit"):
        _ = Wish(path="/etc").cameras


def test_a_request_knows_the_first_photo_and_has_the_models_size(pipeline: TokenPipeline) -> None:
    condition, wanted = Wish((photo(), photo()), views=4).request(pipeline)
    assert condition.at == (0,)
    assert condition.views is not None and condition.views.images.shape == (1, 3, 48, 64)
    assert isinstance(wanted, Cameras) and wanted.views == 4
    assert wanted.height * wanted.width <= 2 * pipeline.config.pixels
    scene = pipeline.generate(condition, wanted, steps=1)
    assert scene.views.images.shape[0] == 4


def test_a_request_without_photos_knows_nothing(pipeline: TokenPipeline) -> None:
    condition, wanted = Wish(views=2).request(pipeline)
    assert condition.views is None and wanted.views == 2


def test_what_a_model_does_not_take_is_said_before_any_work(pipeline: TokenPipeline) -> None:
    with pytest.raises(ValueError, match="without text"):
        Wish(prompt="a room").request(pipeline)
    with pytest.raises(ValueError, match="cannot predict"):
        Wish((photo(),), path="free").request(pipeline)
    with pytest.raises(ValueError, match="no photos"):
        Wish(path="free").request(pipeline)
    with pytest.raises(ValueError, match="64x48, 48x64 pixels.*one size"):
        Wish((photo(), photo(64, 48)), path="free").request(pipeline)
