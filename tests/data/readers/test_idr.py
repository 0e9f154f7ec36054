"""IDR's projection matrices: cameras made of known parts, multiplied, and taken apart again."""

from pathlib import Path

import numpy as np
import pytest
from tests.data.profiles import encodings as e

from diorama.data.readers.idr import decomposed, read_idr


def write(folder: Path, scale: float = 300.0) -> tuple[Path, np.ndarray]:
    """Photos, masks and cameras in millimetres, with the similarity that fits the object into a sphere."""
    sphere = np.diag([scale, scale, scale, 1.0])
    sphere[:3, 3] = [20, -30, 600]
    matrices = {}
    for n, pose in enumerate(e.poses()):
        lens = np.eye(4)
        lens[:3, :3] = e.integer_centers()
        metric = pose.copy()
        metric[:3, 3] = sphere[:3, :3] @ pose[:3, 3] + sphere[:3, 3]
        matrices[f"world_mat_{n}"] = (lens @ np.linalg.inv(metric)).astype(np.float32)
        matrices[f"scale_mat_{n}"] = sphere.astype(np.float32)
        e.photo(folder / f"image/{n:06d}.png", n)
        e.png(folder / f"mask/{n:03d}.png", np.full((e.HEIGHT, e.WIDTH), 255 * (n > 0), np.uint8))
    e.npz(folder / "cameras.npz", **matrices)
    return folder, sphere


def test_cameras_stand_around_the_unit_sphere(tmp_path):
    scene = read_idr(write(tmp_path)[0])
    assert (scene.ordered, scene.metric) == (False, False)
    for n, (frame, pose) in enumerate(zip(scene.frames, e.poses(), strict=True)):
        np.testing.assert_allclose(frame.camera.camera_to_world[0], pose, atol=2e-5)
        np.testing.assert_allclose(frame.camera.intrinsics[0], e.INTRINSICS, atol=2e-4)
        assert frame.mask().all() == (n > 0)


@pytest.mark.parametrize("factor", [1, -1, 7.5])
def test_a_projection_is_known_up_to_a_factor(factor):
    pose = e.poses()[1]
    projection = factor * e.integer_centers() @ np.linalg.inv(pose)[:3]
    found, matrix = decomposed(projection)
    np.testing.assert_allclose(found, pose, atol=1e-12)
    np.testing.assert_allclose(matrix, e.INTRINSICS, atol=1e-10)


@pytest.mark.parametrize("damage", ["zero", "nan", "shape", "skew", "fewer", "text"])
def test_archives_that_are_none_are_refused_in_one_line(tmp_path, damage):
    folder, _ = write(tmp_path)
    with np.load(folder / "cameras.npz") as archive:
        arrays = dict(archive)
    changes = {"zero": np.zeros((4, 4)), "nan": np.full((4, 4), np.nan), "shape": np.eye(3)}
    skewed = arrays["world_mat_1"].copy()
    skewed[0] += 0.3 * skewed[1]
    arrays["world_mat_1"] = (changes | {"skew": skewed}).get(damage, arrays["world_mat_1"])
    if damage == "fewer":
        del arrays["world_mat_2"]
    np.savez(folder / "cameras.npz", **arrays)
    if damage == "text":
        (folder / "cameras.npz").write_text("no archive")
    with pytest.raises(ValueError, match="cameras.npz: .*accepted") as caught:
        read_idr(folder)
    assert "\n" not in str(caught.value)
