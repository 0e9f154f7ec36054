"""Omnidata's layout, against the formula of its own code."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tests.data.profiles import encodings as e

from diorama.data.readers.omnidata import OmnidataSource, read_omnidata

SIDE, FIELD = 16, 1.2
ANGLES = [(1.3, 0.1, -2.0), (1.7, -0.2, 0.4), (1.5, 0.05, 2.9)]
PLACES = [(1.0, -2.0, 1.5), (0.25, 3.0, 1.25), (-4.0, 0.5, 2.0)]
VIEWS = [(10, 0), (2, 1), (2, 0)]  # point, view


def write(root: Path, building: str = "airport", info: str = "point_info") -> Path:
    """Three views of two points, in the folders of their domains."""
    for number, (point, view) in enumerate(VIEWS):
        name = f"taskonomy/{building}/point_{point}_view_{view}_domain_"
        e.photo(root / "rgb" / f"{name}rgb.png", number)
        codes = np.full((SIDE, SIDE), 512 * (number + 1))
        codes[0, 0] = 65535
        e.png(root / "depth_zbuffer" / f"{name}depth_zbuffer.png", codes)
        camera = {"camera_location": PLACES[number], "camera_rotation_final": ANGLES[number]}
        camera |= {"field_of_view_rads": FIELD, "resolution": SIDE, "building": building}
        file = root / "point_info" / f"{name}{info}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(camera))
    return root / "rgb/taskonomy" / building


@pytest.mark.parametrize("info", ["point_info", "fixatedpose"])
def test_poses_agree_with_omnidatas_own_formula(tmp_path, info):
    """Its code gives PyTorch3D's world-to-camera, in a world whose axes are -x, z, y of the scan's."""
    scene = read_omnidata(write(tmp_path, info=info))
    world = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]])
    for number, frame in zip((2, 1, 0), scene.frames, strict=True):  # by point, then by view
        x, y, z = ANGLES[number]
        turn = Rotation.from_euler("XZY", [x - np.pi / 2, -y, -z]).as_matrix()
        expected = (np.diag([-1, -1, 1]) @ turn @ world).T  # x left and y up become x right and y down
        pose = frame.camera.camera_to_world[0]
        np.testing.assert_allclose(pose[:3, :3], expected, atol=1e-12)
        np.testing.assert_allclose(pose[:3, 3], PLACES[number])
        np.testing.assert_allclose(frame.camera.fov, np.degrees(FIELD))
        depth = frame.depth()
        assert depth[0, 0] == 0 and (depth.flatten()[1:] == number + 1).all()


def test_buildings_are_scenes_and_views_without_cameras_are_counted(tmp_path):
    for building in ("beechwood", "airport"):
        write(tmp_path, building)
    source = OmnidataSource(tmp_path, "taskonomy")
    assert [source[index].name for index in range(len(source))] == ["taskonomy/airport", "taskonomy/beechwood"]
    info = tmp_path / "point_info/taskonomy/airport/point_2_view_0_domain_point_info.json"
    info.unlink()
    assert (len(source[0]), source[0].missing, source[0].ordered) == (2, 1, False)
    with pytest.raises(ValueError, match="hm3d: found no building"):
        OmnidataSource(tmp_path, "hm3d")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("camera_location", [1, 2]),
        ("camera_rotation_final", [0, 0, "nan"]),
        ("camera_rotation_final", [0, {}, 0]),
        ("field_of_view_rads", 3.2),
        ("field_of_view_rads", None),
        ("resolution", 0),
        ("resolution", "512"),
    ],
)
def test_cameras_that_cannot_be_are_named(tmp_path, key, value):
    folder = write(tmp_path)
    file = tmp_path / "point_info/taskonomy/airport/point_2_view_0_domain_point_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=f"point_info.json: {key} is .*accepted") as caught:
        read_omnidata(folder)
    assert "\n" not in str(caught.value)
