"""Hypersim: cameras, distances along rays, and brightness without an upper end."""

import csv
from pathlib import Path

import numpy as np
import pytest
from tests.data.profiles import encodings as e

from diorama.data.readers.hypersim import PARAMETERS, HypersimSource, intrinsics, planar, read_hypersim, tone_mapped

UNIT = 0.0254  # metres to an asset unit


def uv_to_ray(matrix: np.ndarray) -> np.ndarray:
    """M_cam_from_uv of a pinhole: (u, v) to pixels, pixels to rays, y and z turned over."""
    pixels = np.array([[e.WIDTH / 2, 0, e.WIDTH / 2], [0, -e.HEIGHT / 2, e.HEIGHT / 2], [0, 0, 1]])
    return np.diag([1, -1, -1]) @ np.linalg.inv(matrix) @ pixels


def write(root: Path, scene: str = "ai_001_001", cameras: tuple[str, ...] = ("cam_00",)) -> Path:
    """Frames 3, 4 and 7 of a trajectory of which another was left out, as Hypersim does with people in them."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'diorama[data]'")
    folder = root / scene

    def array(path: Path, values: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["dataset"] = values

    flip, numbers = np.diag([1.0, -1, -1]), [3, 4, 7]
    rows, columns = np.mgrid[: e.HEIGHT, : e.WIDTH] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(e.INTRINSICS).T
    for camera in cameras:
        keys = folder / f"_detail/{camera}/camera_keyframe"
        poses = [*e.poses(), np.eye(4)]
        array(Path(f"{keys}_orientations.hdf5"), np.stack([pose[:3, :3] @ flip for pose in poses]))
        array(Path(f"{keys}_positions.hdf5"), np.stack([pose[:3, 3] / UNIT for pose in poses]))
        array(Path(f"{keys}_frame_indices.hdf5"), np.array([*numbers, 9]))
        for n, number in enumerate(numbers):
            final, geometry = (folder / f"images/scene_{camera}_{kind}_hdf5" for kind in ("final", "geometry"))
            colour = np.full((e.HEIGHT, e.WIDTH, 3), 5.0 + n, np.float16)
            colour[0, 0] = np.nan
            array(final / f"frame.{number:04d}.color.hdf5", colour)
            distance = e.depth(n) * np.linalg.norm(rays, axis=-1)
            distance[e.INVALID] = np.nan
            array(geometry / f"frame.{number:04d}.depth_meters.hdf5", distance.astype(np.float16))
            array(geometry / f"frame.{number:04d}.render_entity_id.hdf5", np.ones((e.HEIGHT, e.WIDTH), np.int32))
    (folder / "_detail/metadata_scene.csv").write_text(
        f"parameter_name,parameter_value\nmeters_per_asset_unit,{UNIT}\n"
    )
    values = {f"M_cam_from_uv_{i}{j}": uv_to_ray(e.INTRINSICS)[i, j] for i in range(3) for j in range(3)}
    values |= {"settings_output_img_height": f"{e.HEIGHT}.0", "settings_output_img_width": f"{e.WIDTH}.0"}
    with (root / PARAMETERS).open("w", newline="") as file:
        table = csv.DictWriter(file, ["scene_name", *values])
        table.writeheader()
        table.writerows([{"scene_name": "ai_000_000"}, {"scene_name": scene, **values}])
    return folder


def test_a_scene_comes_back_in_metres(tmp_path):
    scene = read_hypersim(write(tmp_path))
    assert (len(scene), scene.metric, scene.ordered, scene.depth_kind) == (3, True, True, "rendered")
    for n, (frame, pose) in enumerate(zip(scene.frames, e.poses(), strict=True)):
        np.testing.assert_allclose(frame.camera.camera_to_world[0], pose, atol=1e-12)
        np.testing.assert_allclose(frame.camera.intrinsics[0], e.INTRINSICS, atol=1e-9)
        depth = frame.depth().numpy()
        assert depth[e.INVALID] == 0
        np.testing.assert_allclose(depth.flatten()[1:], e.depth(n).flatten()[1:], rtol=6e-4)  # of half precision
        image = frame.image(10**6)
        assert (image[:, 0, 0] == 0).all() and abs(float(image[0, 1, 1]) - 0.8) < 1e-3
        assert max(frame.image(40).shape[1:]) <= e.WIDTH / 2


def test_trajectories_are_scenes_of_a_data_set(tmp_path):
    folder = write(tmp_path, cameras=("cam_00", "cam_02"))
    source = HypersimSource(tmp_path)
    assert [source[index].name for index in range(len(source))] == ["ai_001_001/cam_00", "ai_001_001/cam_02"]
    assert (len(read_hypersim(folder)), read_hypersim(folder).ordered) == (6, False)


def test_what_a_scene_lacks_is_named(tmp_path):
    folder = write(tmp_path)
    (folder / "_detail/metadata_scene.csv").write_text("parameter_name,parameter_value\n")
    with pytest.raises(ValueError, match="metadata_scene.csv: found no meters_per_asset_unit"):
        read_hypersim(folder)
    (folder / "_detail/metadata_scene.csv").write_text("parameter_name,parameter_value\nmeters_per_asset_unit,inf\n")
    with pytest.raises(ValueError, match="metadata_scene.csv: parameter_value is inf"):
        read_hypersim(folder)
    write(tmp_path)
    (tmp_path / PARAMETERS).unlink()
    with pytest.raises(ValueError, match="metadata_camera_parameters.csv: no such file; it comes with"):
        read_hypersim(folder)
    with pytest.raises(ValueError, match="found no scene of Hypersim"):
        HypersimSource(folder)


def test_poses_that_nothing_numbers_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'diorama[data]'")
    folder = write(tmp_path)
    for file in folder.glob("_detail/*/camera_keyframe_frame_indices.hdf5"):
        with h5py.File(file, "w") as changed:
            changed["dataset"] = np.array([3, 4])
    with pytest.raises(ValueError, match="frame_indices.hdf5: found 2 indices for 4 poses"):
        read_hypersim(folder)


def test_the_usual_camera_has_its_well_known_focal_length():
    """60 degrees across 1024 pixels."""
    half = np.tan(np.radians(30))
    matrix = intrinsics(np.diag([half, half * 0.75, -1.0]), 768, 1024, "here")
    np.testing.assert_allclose(matrix, [[886.81, 0, 512], [0, 886.81, 384], [0, 0, 1]], atol=5e-3)


@pytest.mark.parametrize("change", ["tilt", "skew", "singular", "mirror"])
def test_cameras_that_are_no_pinholes_are_refused(change):
    matrix = uv_to_ray(e.INTRINSICS)
    if change == "tilt":
        matrix[2, 1] += 0.2
    elif change == "skew":
        matrix[0, 1] += 0.2
    elif change == "singular":
        matrix[0] = 0
    else:
        matrix[0] *= -1
    with pytest.raises(ValueError, match="here: a .*camera.*accepted is a pinhole"):
        intrinsics(matrix, e.HEIGHT, e.WIDTH, "here")


def test_distances_on_a_sphere_are_no_plane():
    """z of a sphere around the camera falls off as the cosine of the angle from the axis."""
    matrix = np.array([[8.0, 0, 8], [0, 8, 6], [0, 0, 1]])
    depth = planar(np.full((12, 16), 2.0, np.float32), matrix)
    tangent = np.hypot((0.5 - 8) / 8, (0.5 - 6) / 8)
    np.testing.assert_allclose(depth[0, 0], 2 * np.cos(np.arctan(tangent)), rtol=1e-6)


def test_brightness_does_not_matter_and_invalid_pixels_do_not_count():
    random = np.random.default_rng(0)
    colour = random.gamma(1.0, 2.0, (40, 50, 3)).astype(np.float32)
    image = tone_mapped(colour)
    np.testing.assert_allclose(tone_mapped(colour * 1000), image, atol=1e-4)
    bright = image**2.2 @ [0.3, 0.59, 0.11]
    np.testing.assert_allclose(np.percentile(bright, 90), 0.8**2.2, rtol=0.05)  # the brightest are cut off
    valid = np.ones((40, 50), bool)
    valid[0], colour[0] = False, 1e6
    np.testing.assert_allclose(tone_mapped(colour, valid)[1:], tone_mapped(colour[1:]), atol=1e-6)
    assert (tone_mapped(np.zeros((3, 4, 3), np.float32)) == 0).all()
