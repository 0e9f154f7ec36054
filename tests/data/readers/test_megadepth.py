"""MegaDepth: intrinsics of straightened photos, worked out from the bent ones'."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tests.data.profiles import encodings as e

from diorama.data.lenses import Lens
from diorama.data.readers.megadepth import MegaDepthSource, read_megadepth, straight_size, straightened


def lens(k: float, cx: float = 33.0) -> Lens:
    return Lens.of_colmap("SIMPLE_RADIAL", (50.0, cx, 22.0, k), 48, 64)


def inside(bent: Lens, height: int, width: int) -> bool:
    """Whether all pixels of a straight photo of this size and focal length look into the bent one, by half a pixel."""
    centre = np.array([bent.cx / 64 * width, bent.cy / 48 * height])
    rows, columns = np.mgrid[:height, :width] + 0.5
    found = bent.bent((np.stack([columns, rows], -1) - centre) / bent.fx) * bent.fx + [bent.cx, bent.cy]
    return bool((found > -0.5).all() and (found < [64.5, 48.5]).all())


@pytest.mark.parametrize("k", [-0.12, 0.0, 0.15])
@pytest.mark.parametrize("cx", [32.0, 35.5])
def test_the_straight_photo_has_no_empty_pixels_and_is_not_smaller_than_it_need_be(k, cx):
    bent = lens(k, cx)
    height, width = straight_size(bent)
    matrix = straightened(bent, (height, width))
    np.testing.assert_allclose(matrix, [[50, 0, cx / 64 * width], [0, 50, 22 / 48 * height], [0, 0, 1]])
    assert inside(bent, height, width)
    if k <= 0:  # else its corners, where a pincushion is narrow, lie farther in than the bent photo's
        assert not inside(bent, height, width + 5) and not inside(bent, height + 5, width)
    assert (k == 0) == ((height, width) == (48, 64)) and (k < 0) == (width > 64) and (k > 0) == (height < 48)


def test_a_photo_scaled_afterwards_has_scaled_intrinsics():
    once = straightened(lens(0.0), (48, 64))
    np.testing.assert_allclose(straightened(lens(0.0), (24, 32))[:2], once[:2] / 2)
    assert straightened(lens(0.0), (48, 60)) is None


def write(root: Path, apart: bool = True) -> Path:
    """Two photos and one that was not straightened, their model beside the data or within it."""
    dense, scene = root / "MegaDepth_v1/0001/dense0", root / ("MegaDepth_v1_SfM/0001" if apart else "MegaDepth_v1/0001")
    model = scene / "sparse/manhattan/0"
    e.lines(model / "cameras.txt", [[1, "SIMPLE_RADIAL", e.WIDTH, e.HEIGHT, 14.0, 8.25, 6.5, 0.0]], "# Camera list")
    rows = []
    for n, pose in enumerate(e.poses()):
        inverse = np.linalg.inv(pose)
        x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat().tolist()
        rows += [[n + 1, w, x, y, z, *e.floats(inverse[:3, 3]), 1, f"{n}_o.jpg"], [1.5, 2.5, -1]]
        if n < 2:
            e.photo(dense / f"imgs/{n}_o.jpg", n)
    e.lines(model / "images.txt", rows, "# Image list")
    return dense


@pytest.mark.parametrize("apart", [True, False])
def test_photos_have_the_cameras_of_their_model(tmp_path, apart):
    scene = read_megadepth(write(tmp_path, apart))
    assert (scene.name, len(scene), scene.missing, scene.ordered) == ("0001/dense0", 2, 1, False)
    for frame, pose in zip(scene.frames, e.poses(), strict=False):
        np.testing.assert_allclose(frame.camera.camera_to_world[0], pose, atol=1e-9)
        np.testing.assert_allclose(frame.camera.intrinsics[0], [[14, 0, 8.25], [0, 14, 6.5], [0, 0, 1]], atol=1e-9)
        assert frame.depth is None
    assert [scene.name for scene in (MegaDepthSource(tmp_path / "MegaDepth_v1")[0],)] == ["0001/dense0"]
    assert len(MegaDepthSource(tmp_path)) == 1


def test_depth_leaves_out_what_only_orders(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'diorama[data]'")
    folder = write(tmp_path)
    (folder / "depths").mkdir()
    values = e.depth(0)
    values[e.INVALID], values[e.SKY] = 0, -3
    with h5py.File(folder / "depths/0_o.h5", "w") as file:
        file["depth"] = values
    depth = read_megadepth(folder).frames[0].depth().numpy()
    assert depth[e.INVALID] == depth[e.SKY] == 0
    np.testing.assert_array_equal(depth.flatten()[2:], e.depth(0).flatten()[2:])


def test_what_is_no_model_is_refused(tmp_path):
    folder = write(tmp_path)
    with pytest.raises(ValueError, match="no cameras for it; accepted is MegaDepth_v1_SfM/"):
        read_megadepth(folder / "imgs")
    (tmp_path / "MegaDepth_v1_SfM/0001/sparse/manhattan/0/cameras.txt").write_text("1 FOV 16 12 1 2 3 4\n")
    with pytest.raises(ValueError, match="cameras.txt: camera 1: found the camera model FOV"):
        read_megadepth(folder)
