"""A saved folder read back by us, by the rules of nerfstudio, and by other libraries."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from diorama.data import saved
from diorama.data.cameras import read_cameras
from diorama.data.open import open
from diorama.export import folder as writer
from diorama.export.save import save
from diorama.scene import Condition, Scene, Views


def reopened(scene: Scene, path: Path) -> Scene:
    found = open(save(scene, path))
    assert isinstance(found, Scene)
    return found


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def same_views(found: Views, expected: Views) -> None:
    assert (found.images - expected.images).abs().max() <= 0.5 / 255 + 1e-6
    assert (found.cameras is None) == (expected.cameras is None)
    if found.cameras is not None and expected.cameras is not None:
        assert torch.equal(found.cameras.camera_to_world, expected.cameras.camera_to_world)
        assert torch.equal(found.cameras.intrinsics, expected.cameras.intrinsics)
    for name in ("points", "confidence"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_everything_comes_back(scene: Scene, tmp_path: Path) -> None:
    found = reopened(scene, tmp_path / "room")
    same_views(found.views, scene.views)
    assert scene.condition.views is not None
    assert found.condition.views is not None
    same_views(found.condition.views, scene.condition.views)
    assert found.condition.at == (0, 2)
    assert (found.condition.prompt, found.condition.label) == (scene.condition.prompt, 3)
    assert found.provenance == scene.provenance
    assert torch.equal(found.latents, scene.latents)
    assert found.latent_frame is not None
    assert scene.latent_frame is not None
    for name in ("rotation", "translation", "scale"):
        assert torch.equal(getattr(found.latent_frame, name), getattr(scene.latent_frame, name))


def test_a_second_round_trip_changes_nothing(scene: Scene, tmp_path: Path) -> None:
    first = reopened(scene, tmp_path / "a")  # its images have 8 bits from here on
    save(reopened(first, tmp_path / "b"), tmp_path / "c")
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "b", tmp_path / "c")
    ]
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []


def test_a_scene_of_images_alone(scene: Scene, tmp_path: Path) -> None:
    bare = Scene(Views(scene.views.images), Condition(prompt="nothing known"))
    found = reopened(bare, tmp_path / "room")
    same_views(found.views, bare.views)
    assert (found.latents, found.latent_frame, found.condition.views) == (None, None, None)
    assert {path.name for path in (tmp_path / "room").iterdir()} == {"images", "video.mp4", "preview.png", "scene.json"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_other_types_and_shapes(scene: Scene, tmp_path: Path, dtype: torch.dtype) -> None:
    latents = torch.randn(16, 2, 4, 8).to(dtype)
    found = reopened(replace(scene, latents=latents, latent_frame=None), tmp_path / "room")
    assert found.latents is not None
    assert found.latents.dtype == dtype
    assert torch.equal(found.latents, latents)


def test_known_geometry_comes_back(scene: Scene, tmp_path: Path) -> None:
    condition = Condition(scene.views[[2, 1]], (2, 1))
    found = reopened(replace(scene, condition=condition), tmp_path / "room")
    assert condition.views is not None
    assert found.condition.views is not None
    same_views(found.condition.views, condition.views)
    assert found.condition.at == (2, 1)


def test_nerfstudio_reads_it(scene: Scene, tmp_path: Path) -> None:
    """Its rules, applied with numpy alone, put the depth's points where points.ply has them."""
    folder = save(scene, tmp_path / "room")
    document = json.loads((folder / "transforms.json").read_text())
    unit = json.loads((folder / "scene.json").read_text())["depth_unit"]
    assert document["camera_model"] == "PINHOLE"
    cloud = trimesh.load(folder / document["ply_file_path"])
    assert isinstance(cloud, trimesh.PointCloud)
    points = []
    for frame in document["frames"]:
        depth = pixels(folder / frame["depth_file_path"])
        assert pixels(folder / frame["file_path"]).shape == (frame["h"], frame["w"], 3)
        assert depth.shape == (frame["h"], frame["w"])
        assert depth.dtype == np.uint16
        rows, columns = np.nonzero(depth)
        right = (columns + 0.5 - frame["cx"]) / frame["fl_x"]
        up = -(rows + 0.5 - frame["cy"]) / frame["fl_y"]
        local = np.stack([right, up, -np.ones_like(right)], -1) * depth[rows, columns, None] * unit
        pose = np.array(frame["transform_matrix"])
        points.append(local @ pose[:3, :3].T + pose[:3, 3])
    assert np.abs(np.concatenate(points) - cloud.vertices).max() < 0.001
    # And our own reader of foreign folders agrees with what scene.json says.
    foreign, own = read_cameras(folder / "transforms.json"), read_cameras(folder / "scene.json")
    assert torch.equal(foreign.camera_to_world, own.camera_to_world)
    assert torch.equal(foreign.intrinsics, own.intrinsics)


def test_other_libraries_read_it(scene: Scene, tmp_path: Path) -> None:
    folder = save(scene, tmp_path / "room")
    photo = pixels(folder / "known/00002.png")
    assert scene.condition.views is not None
    expected = (scene.condition.views.images[1].movedim(0, -1) * 255).round().numpy()
    assert np.array_equal(photo, expected)
    assert scene.views.depth is not None
    for view in range(3):
        assert np.array_equal(np.load(folder / f"depth/{view:05d}.npy"), scene.views.depth[view].numpy())
    assert pixels(folder / "preview.png").shape == (2 * (128 + 6) + 6, 3 * (192 + 6) + 6, 3)


def test_reader_and_writer_speak_of_one_format() -> None:
    assert (saved.FORMAT, saved.VERSION) == (writer.FORMAT, writer.VERSION)


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_settings_that_json_cannot_hold(scene: Scene, tmp_path: Path, value: object) -> None:
    provenance = replace(scene.provenance, settings={"value": value})
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        save(replace(scene, provenance=provenance), tmp_path / "room")
    assert list(tmp_path.iterdir()) == []
