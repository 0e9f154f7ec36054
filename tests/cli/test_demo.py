"""`diorama demo`: one command, one scene."""

from pathlib import Path

import torch

import diorama
from diorama.cli.demo import made_up_room

from .conftest import Command


def test_it_makes_a_scene_and_says_what_next(command: Command) -> None:
    said = command.done("demo")
    made = diorama.open("demo")
    assert (len(made.views), made.condition.at) == (16, (0,))
    assert made.condition.views.images.shape == (1, 3, 128, 128)
    assert made.views.images.shape[-2:] == (32, 32)  # what the model was trained at
    for words in ("demo: 16 views", "sampling", "decoding", "demo/video.mp4", "diorama render demo"):
        assert words in said
    assert "demo-2: 16 views" in command.done("demo")
    commands = [line.split("    ")[0].split()[1:] for line in said.splitlines() if line.startswith("  diorama render")]
    assert command(*commands[0]).code == 0  # what it proposes works


def test_a_photo_of_ones_own(command: Command, photo) -> None:
    command.done("demo", photo(), "--out", "mine.mp4", "--seed", 3)
    assert Path("mine.mp4").stat().st_size
    assert "mine.mp4: exists already" in command.refused("demo", "photo.png", "--out", "mine.mp4")
    assert "gone.jpg: no such file" in command.refused("demo", "gone.jpg")


def test_the_made_up_room_is_a_photo_of_something() -> None:
    room = made_up_room()
    assert room.points is None
    assert torch.equal(room.images, made_up_room().images)
    assert room.images.std() > 0.05
