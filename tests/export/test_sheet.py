"""A contact sheet shows every photo and every camera."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diorama.export.sheet import PANEL, THUMBNAIL, contact_sheet, write_sheet
from diorama.geometry.cameras import Cameras


def cameras(count: int) -> Cameras:
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, 0, 3] = torch.arange(count)
    return Cameras.from_fov(60.0, 24, 32, poses)


def test_photos_and_cameras(tmp_path: Path) -> None:
    images = [torch.full((3, 24, 32), shade) for shade in (0.2, 0.4, 0.6, 0.8)]
    sheet = contact_sheet(images, cameras(4))
    assert sheet.size == (2 * PANEL, THUMBNAIL + 8 + PANEL)
    pixels = np.asarray(sheet)
    for number, shade in enumerate((51, 102, 153, 204)):
        assert (pixels[10, 10 + number * (THUMBNAIL + 4)] == shade).all()
    write_sheet(sheet, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as written:
        assert written.size == sheet.size
    with pytest.raises(FileExistsError):
        write_sheet(sheet, tmp_path / "a.png")
    assert contact_sheet(images, None).size[1] == THUMBNAIL + 8


def test_the_first_camera_is_blue_the_last_red_and_the_path_as_long_as_it_is() -> None:
    above = np.asarray(contact_sheet([torch.zeros(3, 24, 32)], cameras(5)))[THUMBNAIL + 8 :, :PANEL].astype(int)
    red, blue = (np.argwhere((above == colour).all(-1)) for colour in ((250, 60, 30), (30, 60, 250)))
    assert len(red) and len(blue)
    # Five cameras one apart, whose frusta are all alike: the ends are four fifths or more of the drawing apart.
    assert abs(red[:, 1].mean() - blue[:, 1].mean()) > 0.6 * PANEL


def test_cameras_in_one_place() -> None:
    pose = torch.eye(4).repeat(3, 1, 1)
    assert contact_sheet([torch.zeros(3, 24, 32)], Cameras.from_fov(60.0, 24, 32, pose)).size[0] == 2 * PANEL
