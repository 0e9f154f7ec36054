"""`open` looks at what is there: photos, videos, captures and saved scenes, whole or broken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import diorama
from diorama.data.open import open, open_capture
from diorama.export.save import save
from diorama.export.video import write_video
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.scene import Condition, Provenance, Scene, Views


def photo(path: Path, height: int = 24, width: int = 32, shade: int = 128, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (shade, 0, 0)).save(path, **options)
    return path


def capture(folder: Path, count: int = 3, height: int = 24, width: int = 32, **changes: object) -> Path:
    """A nerfstudio capture whose image number i has the shade 10 * i and whose camera stands at x = i."""
    frames = []
    for i in range(count):
        photo(folder / f"images/{i}.png", height, width, 10 * i)
        pose = np.eye(4)
        pose[0, 3] = i
        frames.append({"file_path": f"./images/{i}.png", "transform_matrix": pose.tolist()})
    document = {"fl_x": 30.0, "w": 32, "h": 24, "frames": frames} | changes
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def refused(path: Path, kind: type[Exception] = ValueError) -> str:
    """The one line that `open` says."""
    with pytest.raises(kind) as error:
        open(path)
    assert len(str(error.value).splitlines()) == 1
    assert path.name in str(error.value)
    return str(error.value)


def test_it_is_the_public_one() -> None:
    assert diorama.open is open


def test_a_photo_gets_a_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 18
    plain, tagged = photo(tmp_path / "a.png", 32, 48), photo(tmp_path / "b.jpg", 32, 48, exif=exif)
    for path, given, expected in ((plain, None, 60), (tagged, None, 90), (tagged, 40.0, 40)):
        views = open(path, field_of_view=given)
        assert isinstance(views, Views)
        assert views.images.shape == (1, 3, 32, 48)
        assert views.cameras is not None
        assert views.cameras.fov.item() == pytest.approx(expected, abs=1e-4)
        assert torch.equal(views.cameras.camera_to_world, torch.eye(4)[None])
    with pytest.raises(ValueError, match="field of view 0"):
        open(plain, field_of_view=0.0)


def test_a_video_and_a_folder_of_photos_have_no_cameras(tmp_path: Path) -> None:
    write_video(torch.rand(6, 3, 256, 256), tmp_path / "a.mp4")
    video = open(tmp_path / "a.mp4", views=3)
    assert isinstance(video, Views)
    assert (len(video), video.cameras) == (3, None)
    for number in (10, 9, 1):
        photo(tmp_path / f"photos/{number}.png", shade=number)
    photos = open(str(tmp_path / "photos"))
    assert isinstance(photos, Views)
    assert (photos.images[:, 0, 0, 0] * 255).round().tolist() == [1, 9, 10]
    with pytest.raises(ValueError, match="from a video"):
        open(tmp_path / "photos", views=2)


def test_a_capture_keeps_its_order_and_skips_missing_images(tmp_path: Path) -> None:
    folder = capture(tmp_path / "room", 4)
    (folder / "images/2.png").unlink()
    for path in (folder, folder / "transforms.json"):
        views = open(path)
        assert isinstance(views, Views)
        assert views.cameras is not None
        assert views.cameras.centers[:, 0].tolist() == [0, 1, 3]
        assert (views.images[:, 0, 0, 0] * 255).round().tolist() == [0, 10, 30]
        assert views.cameras.camera_to_world.diagonal(dim1=-1, dim2=-2)[0].tolist() == [1, -1, -1, 1]


def test_a_capture_with_wanted_cameras_and_without_suffixes(tmp_path: Path) -> None:
    folder = capture(tmp_path / "room")
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    frames[0]["file_path"], frames[1]["file_path"] = None, "images/1"
    views = open(capture(folder, frames=frames))
    assert isinstance(views, Views)
    assert (views.images[:, 0, 0, 0] * 255).round().tolist() == [10, 20]


def test_a_capture_of_smaller_images_than_it_says(tmp_path: Path) -> None:
    views = open(capture(tmp_path / "room", height=12, width=16))
    assert isinstance(views, Views)
    assert views.cameras is not None
    assert views.cameras.intrinsics[0].tolist() == [[15, 0, 8], [0, 15, 6], [0, 0, 1]]


def test_a_capture_counts_pixels_as_they_lie_in_the_file(tmp_path: Path) -> None:
    folder = capture(tmp_path / "room", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(folder / "images/0.png", exif=exif)
    views = open(folder)
    assert isinstance(views, Views)
    assert views.images.shape == (1, 3, 24, 32)


def test_broken_captures(tmp_path: Path) -> None:
    assert "24x32 for images of 32x24" in refused(capture(tmp_path / "a", height=32, width=24))
    folder = capture(tmp_path / "b")
    photo(folder / "images/1.png", 30, 40)
    assert "1.png: 30x40 pixels but 0.png has 24x32" in refused_in(folder)
    shutil.rmtree(folder / "images")
    assert "none of its 3 frames" in refused(folder)
    for name in ("../b/images/0.png", "/etc/hostname", "images\\..\\..\\0.png"):
        frames = [{"file_path": name, "transform_matrix": np.eye(4).tolist()}]
        assert "accepted are files inside its folder" in refused(capture(tmp_path / "c", frames=frames))
    assert "no list of `frames`" in refused(capture(tmp_path / "d", frames={}))
    assert "not positive" in refused(capture(tmp_path / "e", fl_x=-1.0))


def refused_in(folder: Path) -> str:
    with pytest.raises(ValueError, match="accepted") as error:
        open(folder)
    return str(error.value)


def gen3r(folder: Path, cameras: int, names: tuple[str, ...], height: int = 560, width: int = 560) -> Path:
    extrinsics = np.tile(np.eye(4), (cameras, 1, 1))
    extrinsics[:, 0, 3] = -np.arange(cameras)
    intrinsics = np.tile([[500.0, 0, 280], [0, 500, 280], [0, 0, 1]], (cameras, 1, 1))
    for name in names:
        photo(folder / name, height, width)
    document = {"extrinsics": extrinsics.tolist(), "intrinsics": intrinsics.tolist()}
    (folder / "cameras.json").write_text(json.dumps(document))
    return folder


def test_gen3r_samples(tmp_path: Path) -> None:
    views = open(gen3r(tmp_path / "a", 49, ("last.png", "first.png")))
    assert isinstance(views, Views)
    assert views.cameras is not None
    assert views.cameras.centers[:, 0].tolist() == [0, 48]
    assert views.cameras.centers.dtype == views.images.dtype  # what computes with both needs one precision
    assert open_capture(tmp_path / "a").cameras.centers.dtype == torch.float64
    wide = open(gen3r(tmp_path / "b", 2, ("0.png", "1.png"), 280, 400))
    assert isinstance(wide, Views)
    assert wide.cameras is not None
    # Its intrinsics are those of the centre crop: half the size here, with 60 pixels cut from either side.
    assert wide.cameras.intrinsics[0].tolist() == [[250, 0, 200], [0, 250, 140], [0, 0, 1]]
    assert "49 cameras for 3 photos" in refused(gen3r(tmp_path / "c", 49, ("0.png", "1.png", "2.png")))


def test_what_is_nothing_of_ours(tmp_path: Path) -> None:
    assert "accepted is a photo" in refused(tmp_path / "missing", FileNotFoundError)
    (tmp_path / "folder").mkdir()
    assert "a folder of nothing" in refused(tmp_path / "folder")
    (tmp_path / "folder/sparse").mkdir()
    assert "a folder of sparse" in refused(tmp_path / "folder")
    (tmp_path / "path.json").write_text("{}")
    assert "a camera path" in refused(tmp_path / "path.json")
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    assert "8 bytes that are no image" in refused(tmp_path / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved scene with everything in it."""
    cameras = Cameras.from_fov(60.0, 16, 24, torch.eye(4).repeat(3, 1, 1))
    views = Views(
        torch.rand(3, 3, 16, 24), cameras, cameras.unproject(torch.rand(3, 16, 24) + 1), torch.rand(3, 16, 24)
    )
    scene = Scene(
        views, Condition(views[0], (0,), "a room"), torch.rand(4, 8), Similarity.identity(), Provenance("tiny")
    )
    return save(scene, tmp_path / "scene")


def change(folder: Path, **values: object) -> None:
    document = json.loads((folder / "scene.json").read_text())
    (folder / "scene.json").write_text(json.dumps(document | values))


def test_a_saved_scene_is_opened_by_its_folder_or_its_file(folder: Path) -> None:
    assert isinstance(open(folder), Scene)
    assert isinstance(open(folder / "scene.json"), Scene)
    assert isinstance(open(folder / "transforms.json"), Scene)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 2}, "version 2; accepted is 'diorama scene' version 1"),
        ({"format": "another"}, "'another' version 1"),
        ({"views": 0}, "`views` is 0"),
        ({"views": 10**9}, "`views` is 1000000000"),
        ({"views": 2}, "3 cameras of 16x24 for 2 images"),
        ({"views": "3"}, "`views` is a str; accepted is int"),
        ({"height": 17}, "3 cameras of 16x24 for 3 images of 17x24"),
        ({"height": 0}, "`height` is 0"),
        ({"holds": None}, "`holds` is a NoneType"),
        ({"holds": ["points"]}, "geometry.safetensors: found ['confidence', 'points']"),
        ({"cameras": []}, "`cameras` is a list"),
        ({"cameras": {}}, "`camera_to_world` is no list"),
        ({"condition": {}}, "`at` is missing"),
        ({"condition": {"at": [-1], "prompt": None, "label": None}}, "`at` is (-1,)"),
        ({"condition": {"at": ["../../x"], "prompt": None, "label": None}}, "`at` is"),
        ({"provenance": {"model": 3, "versions": {}}}, "`model` is a int"),
        ({"provenance": {"model": 3}}, "`versions` is missing"),
        ({"provenance": None}, "`provenance` is a NoneType"),
    ],
)
def test_a_changed_description_is_refused(folder: Path, values: dict[str, object], message: str) -> None:
    change(folder, **values)
    assert message in refused(folder)


def test_cameras_of_a_saved_scene_are_checked(folder: Path) -> None:
    cameras = json.loads((folder / "scene.json").read_text())["cameras"]
    change(folder, cameras=cameras | {"intrinsics": cameras["intrinsics"][:2]})
    assert "3 camera_to_world but 2 intrinsics" in refused(folder)
    cameras["camera_to_world"][1][0][0] = 2.0
    change(folder, cameras=cameras)
    assert "camera 1 is not a rigid" in refused(folder)


def test_missing_and_foreign_files(folder: Path) -> None:
    photo(folder / "images/00001.png", 16, 23)
    assert "00001.png: found 16x23 pixels; accepted is 16x24" in refused(folder)
    (folder / "images/00001.png").unlink()
    assert "00001.png: missing" in refused(folder, FileNotFoundError)


def test_links_do_not_lead_outside(folder: Path, tmp_path: Path) -> None:
    photo(tmp_path / "secret.png", 16, 24)
    (folder / "images/00001.png").unlink()
    (folder / "images/00001.png").symlink_to(tmp_path / "secret.png")
    assert "leads outside the scene folder" in refused(folder)
    (folder / "images/00001.png").unlink()
    shutil.copy(folder / "images/00000.png", folder / "images/00001.png")
    (folder / "latents.safetensors").rename(tmp_path / "latents.safetensors")
    (folder / "latents.safetensors").symlink_to(tmp_path / "latents.safetensors")
    assert "leads outside the scene folder" in refused(folder)


def test_corrupted_and_foreign_safetensors(folder: Path) -> None:
    path = folder / "latents.safetensors"
    whole = path.read_bytes()
    for data in (b"", b"hello", whole[:-5], b"\xff" * 64, b"PK\3\4" + whole):
        path.write_bytes(data)
        assert "not a whole safetensors file" in refused(folder)
    good = safetensors.torch.load(whole)
    foreign = {
        "found ['weight']": {"weight": torch.zeros(3)},
        "latents of torch.int64": good | {"latents": torch.zeros(4, 8, dtype=torch.int64)},
        "latents of 3 axes": good | {"latents": torch.zeros(4, 8, 1)},
        "rotation of torch.float32 and shape (2, 2)": good | {"rotation": torch.eye(2)},
    }
    for message, tensors in foreign.items():
        safetensors.torch.save_file(tensors, path)
        assert message in refused(folder)
    change(folder, holds=["points", "confidence", "rotation"])
    safetensors.torch.save_file({"rotation": torch.eye(3)}, path)
    assert "found ['rotation']; accepted is ['rotation', 'scale', 'translation']" in refused(folder)
    safetensors.torch.save_file(
        {"points": torch.zeros(3, 16, 24, 3), "confidence": torch.zeros(3)}, folder / "geometry.safetensors"
    )
    assert (
        "confidence of torch.float32 and shape (3,); accepted are floating-point numbers of shape (3, 16, 24)"
        in refused(folder)
    )


def test_a_capture_tells_the_cameras_of_absent_photos_too(tmp_path: Path) -> None:
    folder = capture(tmp_path / "room", 4)
    (folder / "images/2.png").unlink()
    found = open_capture(folder)
    assert found is not None
    assert (found.at, found.cameras.views) == ((0, 1, 3), 4)
    assert torch.equal(found.cameras[found.at].camera_to_world, found.views.cameras.camera_to_world)
    found = open_capture(gen3r(tmp_path / "path", 5, ("first.png", "last.png"), 560, 600))
    assert found is not None
    assert (found.at, found.cameras.views, found.cameras.width) == ((0, 4), 5, 600)
    assert open_capture(photo(tmp_path / "photos/a.png").parent) is None
