"""Whatever goes wrong while saving: the target is as it was and nothing lies beside it."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import diorama
from diorama.data.open import open
from diorama.export import folder as folder_writer
from diorama.export.save import check_target, save
from diorama.geometry.cameras import Cameras
from diorama.scene import Condition, Scene, Views

NAMES = ["room", "room.ply", "room.glb", "room.mp4", "room.html", "room.splat.ply", "room.PLY"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The operating system itself stops writing in the middle of a larger file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_it_is_the_public_one() -> None:
    assert diorama.save is save


@pytest.mark.parametrize("name", NAMES)
def test_saving_into_new_folders_and_overwriting(scene: Scene, tmp_path: Path, name: str) -> None:
    path = tmp_path / "new/deep" / name
    assert save(scene, str(path)) == path
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"{name}: exists already") as error:
        save(scene, path)
    assert len(str(error.value).splitlines()) == 1
    assert contents(tmp_path) == before
    darker = replace(scene, views=replace(scene.views, images=scene.views.images / 2))
    save(darker, path, overwrite=True)
    assert contents(tmp_path) != before
    assert contents(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_nothing(scene: Scene, tmp_path: Path, name: str, existing: bool) -> None:
    if existing:
        save(scene, tmp_path / name)
    before = contents(tmp_path)
    path = tmp_path / name if existing else tmp_path / "new" / name
    with no_file_above(1000), pytest.raises(OSError, match="nothing was written") as error:
        save(scene, path, overwrite=True)
    assert error.value.errno == errno.EFBIG
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert contents(tmp_path) == before
    assert existing or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "step", ["write_ply", "write_video", "_write_depth", "_write_tensors", "nerfstudio", "preview"]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug"), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("existing", [False, True])
def test_an_end_in_the_middle_leaves_nothing(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException, existing: bool
) -> None:
    if existing:
        save(scene, tmp_path / "room")
    before = contents(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(folder_writer, step, fail)
    with pytest.raises(type(error)):
        save(scene, tmp_path / "room", overwrite=True)
    assert contents(tmp_path) == before
    assert existing or list(tmp_path.iterdir()) == []


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(scene, tmp_path / "room")
    before = contents(tmp_path)
    rename = os.replace

    def fail_once(source: Path, target: Path) -> None:
        if target == tmp_path / "room" and source.suffix == ".part":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="nothing was written"):
        save(scene, tmp_path / "room", overwrite=True)
    assert contents(tmp_path) == before


KILLED = """
import os, signal, sys, torch
from diorama.export import folder
from diorama.export.save import save
from diorama.scene import Condition, Scene, Views
folder.write_video = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
save(Scene(Views(torch.rand(2, 3, 16, 16)), Condition()), sys.argv[1])
"""


def test_a_killed_run_leaves_no_scene(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "room")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "room").exists()
    assert all(path.name.startswith(".room.") and path.suffix == ".part" for path in tmp_path.iterdir())


def test_a_folder_that_is_no_scene_is_never_replaced(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"precious")
    for path in (tmp_path / "photos", tmp_path):
        with pytest.raises(FileExistsError, match="no saved scene"):
            save(scene, path, overwrite=True)
    assert contents(tmp_path) == {"photos/holiday.jpg": b"precious"}


def test_a_file_does_not_replace_a_scene_nor_a_scene_a_file(scene: Scene, tmp_path: Path) -> None:
    save(scene, tmp_path / "room").rename(tmp_path / "room.ply")
    (tmp_path / "notes").write_text("precious")
    before = contents(tmp_path)
    for name in ("room.ply", "notes"):
        with pytest.raises(FileExistsError, match="not overwritten by a"):
            save(scene, tmp_path / name, overwrite=True)
    assert contents(tmp_path) == before


def test_a_file_as_parent(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="nothing was written") as error:
        save(scene, tmp_path / "file/room")
    assert len(str(error.value).splitlines()) == 1
    assert contents(tmp_path) == {"file": b"precious"}


def test_unknown_suffixes_are_refused_before_any_work(scene: Scene, tmp_path: Path) -> None:
    for name in ("room.obj", "room.v2", "room.ply.gz"):
        with pytest.raises(ValueError, match=r"accepted are .ply, .glb, .splat.ply, .mp4, .html, or none for a folder"):
            check_target(tmp_path / name)
        with pytest.raises(ValueError, match="found the suffix"):
            save(scene, tmp_path / name)
    check_target(tmp_path / "room")


def test_scenes_that_could_not_be_opened_again_are_refused(scene: Scene, tmp_path: Path) -> None:
    views, cameras = scene.views, scene.views.cameras
    assert cameras is not None
    assert views.points is not None
    scaled = replace(cameras, camera_to_world=cameras.camera_to_world * 2)
    mismatched = Views(views.images)
    object.__setattr__(mismatched, "points", views.points[:, :8])  # past the types, which only tests check
    wrong = {
        "view 3 height width": Views(views.images[None]),
        "8 px a side or more": Views(torch.rand(1, 3, 7, 32)),
        "not finite": Views(views.images * torch.nan),
        "points of shape": mismatched,
        "camera 0 is not a rigid": replace(views, cameras=scaled),
    }
    for message, bad in wrong.items():
        for known in (False, True):
            condition = Condition(bad, tuple(range(len(bad)))) if known else Condition()
            with pytest.raises(ValueError, match=message) as error:
                save(Scene(views if known else bad, condition), tmp_path / "room")
            assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_gradients_and_other_types_do_not_matter(scene: Scene, tmp_path: Path) -> None:
    assert scene.views.cameras is not None
    views = replace(
        scene.views, images=scene.views.images.requires_grad_(), cameras=scene.views.cameras.to(torch.float64)
    )
    found = open(save(replace(scene, views=views), tmp_path / "room"))
    assert isinstance(found, Scene)
    assert found.views.cameras is not None
    assert found.views.cameras.camera_to_world.dtype == torch.float32
    assert isinstance(found.views.cameras, Cameras)
