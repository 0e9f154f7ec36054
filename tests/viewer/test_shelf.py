"""Where the studio writes: one folder, plain names, nothing replaced."""

import io
import zipfile
from pathlib import Path

import pytest

from diorama.data.open import open
from diorama.scene import Scene
from diorama.viewer.shelf import KINDS, Shelf, checked_name


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "scenes")


@pytest.mark.parametrize(
    "name", ["", "..", "../out", "/tmp/x", "a/b", "a\\b", "a.ply", ".hidden", "-rf", "a b", "a\nb", "ä", "a" * 64, "\0"]
)
def test_names_that_could_lead_elsewhere_are_refused(shelf: Shelf, scene: Scene, name: str, tmp_path: Path) -> None:
    for write in (lambda: shelf.save(scene, name), lambda: shelf.export(scene, name, "points (.ply)")):
        with pytest.raises(ValueError, match="name .*: accepted are") as refused:
            write()
        assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_saved_scene_opens_again_and_is_not_replaced(shelf: Shelf, scene: Scene) -> None:
    path = shelf.save(scene, " room ")
    assert path == shelf.folder / "room"
    found = open(path)
    assert isinstance(found, Scene) and len(found.views) == len(scene.views)
    with pytest.raises(FileExistsError, match="exists already"):
        shelf.save(scene, "room")
    assert shelf.free_name("room") == "room-2"
    assert shelf.free_name("hall") == "hall"
    shelf.save(scene, "room-2")
    assert shelf.free_name("room-2") == "room-3"


@pytest.mark.parametrize("kind", KINDS)
def test_every_export_is_written_below_the_folder_or_sent(
    shelf: Shelf, scene: Scene, kind: str, tmp_path: Path
) -> None:
    path = shelf.export(scene, "room", kind)
    assert path.parent == shelf.folder and path.exists()
    name, content = shelf.packed(scene, "room", kind)
    if path.is_dir():
        assert name == f"{path.name}.zip"
        names = {file.rstrip("/") for file in zipfile.ZipFile(io.BytesIO(content)).namelist()}
        assert {str(file.relative_to(shelf.folder)) for file in path.rglob("*")} <= names
    else:
        assert name == path.name and len(content) > 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["scenes"]
    with pytest.raises(FileExistsError):
        shelf.export(scene, "room", kind)


def test_other_kinds_and_a_file_for_a_folder_are_refused(shelf: Shelf, scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="export 'exe': accepted are points"):
        shelf.export(scene, "room", "exe")
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="found a file"):
        Shelf(tmp_path / "taken")
    assert checked_name("a_b-1") == "a_b-1"
