"""COLMAP models read back by a reader written from COLMAP's page on its format, and by pycolmap where it is."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diorama.data.worlds import render, world
from diorama.export.colmap import write_colmap
from diorama.export.world import World
from diorama.geometry.alignment import umeyama
from diorama.scene import Scene, Views


class Reader:
    """Numbers one after another from a little-endian file."""

    def __init__(self, path: Path) -> None:
        self.data, self.place = path.read_bytes(), 0

    def __call__(self, kind: str) -> Any:
        values = struct.unpack_from("<" + kind, self.data, self.place)
        self.place += struct.calcsize("<" + kind)
        return values if len(values) > 1 else values[0]

    def word(self) -> str:
        end = self.data.index(b"\0", self.place)
        word, self.place = self.data[self.place : end].decode(), end + 1
        return word


def binary(folder: Path) -> tuple[dict, dict, dict]:
    """Cameras (model, size, params), images (pose, camera, name, points2D) and points (xyz, rgb, error, track)."""
    read = Reader(folder / "cameras.bin")
    cameras = {read("I"): (read("i"), *read("QQ"), read("4d")) for _ in range(read("Q"))}
    assert read.place == len(read.data)
    read = Reader(folder / "images.bin")
    images = {}
    for _ in range(read("Q")):
        number, pose, camera, name = read("I"), read("7d"), read("I"), read.word()
        images[number] = (pose, camera, name, [read("ddq") for _ in range(read("Q"))])
    assert read.place == len(read.data)
    read = Reader(folder / "points3D.bin")
    points = {}
    for _ in range(read("Q")):
        number, xyz, rgb, error = read("Q"), read("3d"), read("3B"), read("d")
        points[number] = (xyz, rgb, error, [read("II") for _ in range(read("Q"))])
    assert read.place == len(read.data)
    return cameras, images, points


def text(folder: Path) -> tuple[dict, dict, dict]:
    """The same from the text files."""
    lines = {
        name: [line for line in (folder / f"{name}.txt").read_text().split("\n")[:-1] if not line.startswith("#")]
        for name in ("cameras", "images", "points3D")
    }
    cameras, images, points = {}, {}, {}
    for line in lines["cameras"]:
        number, model, width, height, *values = line.split()
        assert model == "PINHOLE"
        cameras[int(number)] = (1, int(width), int(height), tuple(map(float, values)))
    for head, seen in zip(lines["images"][::2], lines["images"][1::2], strict=True):
        number, *pose, camera, name = head.split()
        flat = seen.split()
        triples = zip(map(float, flat[::3]), map(float, flat[1::3]), map(int, flat[2::3]), strict=True)
        images[int(number)] = (tuple(map(float, pose)), int(camera), name, list(triples))
    for line in lines["points3D"]:
        number, *rest = line.split()
        track = list(map(int, rest[7:]))
        pairs = list(zip(track[::2], track[1::2], strict=True))
        points[int(number)] = (tuple(map(float, rest[:3])), tuple(map(int, rest[3:6])), float(rest[6]), pairs)
    return cameras, images, points


def rotation(w: float, x: float, y: float, z: float) -> np.ndarray:
    """COLMAP's quaternion as a matrix."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@pytest.mark.parametrize("read", [binary, text])
def test_a_reader_gets_cameras_and_tracks_that_reproject(stage: Scene, tmp_path: Path, read) -> None:
    write_colmap(stage.views, tmp_path / "model", text=read is text)
    cameras, images, points = read(tmp_path / "model/sparse/0")
    mine = stage.views.cameras
    assert mine is not None
    assert len(cameras) == 1, "views that share their intrinsics share a camera"
    assert cameras[1][:3] == (1, 64, 48)
    assert np.allclose(cameras[1][3], mine.intrinsics[0].double().numpy()[(0, 1, 0, 1), (0, 1, 2, 2)])
    assert list(images) == [1, 2, 3, 4]
    assert len(points) > 2000
    errors = []
    for number, (pose, camera, name, seen) in images.items():
        matrix = np.linalg.inv(mine.camera_to_world[number - 1].double().numpy())
        assert np.abs(rotation(*pose[:4]) - matrix[:3, :3]).max() < 1e-6
        assert np.abs(np.array(pose[4:]) - matrix[:3, 3]).max() < 1e-6
        with Image.open(tmp_path / "model/images" / name) as image:
            assert image.size == (64, 48)
        fx, fy, cx, cy = cameras[camera][3]
        for index, (x, y, point) in enumerate(seen):
            assert (number, index) in points[point][3]
            local = rotation(*pose[:4]) @ points[point][0] + pose[4:]
            errors.append(np.hypot(fx * local[0] / local[2] + cx - x, fy * local[1] / local[2] + cy - y))
    assert max(errors) < 0.01
    assert min(len(point[3]) for point in points.values()) >= 2
    assert sum(len(point[3]) for point in points.values()) == len(errors)


def test_text_and_binary_say_the_same(stage: Scene, tmp_path: Path) -> None:
    write_colmap(stage.views, tmp_path / "a", most=300)
    write_colmap(stage.views, tmp_path / "b", most=300, text=True, world=World("metre", 2.0, "-y"))
    for ours, theirs in zip(binary(tmp_path / "a/sparse/0"), text(tmp_path / "b/sparse/0"), strict=True):
        assert ours.keys() == theirs.keys()
    points = [read(tmp_path / name / "sparse/0")[2] for name, read in (("a", binary), ("b", text))]
    for number, (xyz, rgb, error, track) in points[0].items():
        other = points[1][number]
        assert np.allclose(xyz, other[0], rtol=1e-6)
        assert (rgb, track) == (other[1], other[3])
        assert error == pytest.approx(other[2], abs=1e-4)
    for name in ("cameras", "images", "points3D"):
        assert (tmp_path / f"b/sparse/0/{name}.txt").read_text().startswith("# unit metre\n# scale 2.0\n# up -y\n")


def test_different_lenses_stay_different(stage: Scene, tmp_path: Path) -> None:
    cameras = stage.views.cameras
    assert cameras is not None
    intrinsics = cameras.intrinsics.clone()
    intrinsics[2, 0, 0] *= 1.25
    depth = stage.views.depth
    assert depth is not None
    changed = replace(cameras, intrinsics=intrinsics)
    views = replace(stage.views, cameras=changed, points=changed.unproject(depth))
    write_colmap(views, tmp_path / "a")
    found, images, _ = binary(tmp_path / "a/sparse/0")
    assert len(found) == 2
    assert [found[images[n][1]][3][0] for n in (1, 2, 3, 4)] == pytest.approx(intrinsics[:, 0, 0].tolist())


def test_what_it_refuses(stage: Scene, scene: Scene, tmp_path: Path) -> None:
    cameras = stage.views.cameras
    assert cameras is not None
    with pytest.raises(ValueError, match="none of 1 views sees a point of another within 1 pixels"):
        write_colmap(stage.views[0], tmp_path / "a")
    skewed = cameras.intrinsics.clone()
    skewed[0, 0, 1] = 0.5
    with pytest.raises(ValueError, match="a camera has skew"):
        write_colmap(replace(stage.views, cameras=replace(cameras, intrinsics=skewed)), tmp_path / "a")
    with pytest.raises(ValueError, match="no cameras"):
        write_colmap(Views(stage.views.images), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pycolmap() -> Any:
    """The reader that is not ours, where there is a build of it."""
    pytest.importorskip("pycolmap")
    import pycolmap

    return pycolmap


def distances(model: Any) -> np.ndarray:
    """Pixels between every observation of a pycolmap model and its point as pycolmap projects it."""
    found = []
    for point in model.points3D.values():
        for element in point.track.elements:
            image = model.images[element.image_id]
            pixel = image.project_point(point.xyz)
            found.append(np.linalg.norm(image.points2D[element.point2D_idx].xy - pixel))
    return np.array(found)


@pytest.mark.parametrize("as_text", [False, True])
def test_pycolmap_reads_and_adjusts_it(pycolmap: Any, stage: Scene, tmp_path: Path, as_text: bool) -> None:
    cameras, depth = stage.views.cameras, stage.views.depth
    assert cameras is not None and depth is not None
    noise = torch.randn(depth.shape, generator=torch.Generator().manual_seed(1))
    views = replace(stage.views, points=cameras.unproject(depth * (1 + 0.01 * noise)))
    tracks = write_colmap(views, tmp_path / "a", text=as_text)
    model = pycolmap.Reconstruction(str(tmp_path / "a/sparse/0"))
    assert model.num_points3D() == len(tracks.points)
    assert model.num_reg_images() == 4
    assert len(found := distances(model)) == len(tracks.view)
    assert found.max() < 0.5 + 1e-3
    assert model.compute_mean_reprojection_error() == pytest.approx(tracks.errors.mean(), abs=0.05)
    pycolmap.bundle_adjustment(model)
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < 0.5


@pytest.mark.parametrize("kind", ["room", "outdoor", "objects"])
def test_bundle_adjustment_of_a_world_finds_its_cameras_again(pycolmap: Any, tmp_path: Path, kind: str) -> None:
    """From points two per cent beside their places: the tracks alone lead the cameras back to where they were."""
    place = world(7, kind=kind)
    cameras = place.path(6, 48, 64)
    tracks = write_colmap(render(place, cameras, samples=1), tmp_path / "a", most=4000)
    assert len(tracks.points) > 300
    model = pycolmap.Reconstruction(str(tmp_path / "a/sparse/0"))
    assert distances(model).max() < 0.5 + 1e-3, "what was written reprojects"
    generator = np.random.default_rng(0)
    for point in model.points3D.values():
        point.xyz = point.xyz + 0.02 * float(tracks.points.std()) * generator.standard_normal(3)
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() > 1
    pycolmap.bundle_adjustment(model)
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < 0.5
    found = torch.from_numpy(np.stack([model.images[n].projection_center() for n in range(1, 7)]))
    true = cameras.centers.double()
    error = (umeyama(found, true).apply(found) - true).norm(dim=-1).max() / cameras.extent
    assert error < 0.02
