"""What finds cameras: VGGT from a folder; COLMAP through a stand-in and, where it is installed, pycolmap itself."""

import sys
import types
from pathlib import Path

import pytest
import torch
from tests import published_vggt
from tests.miniature import images

from diorama.evaluation.estimators import ColmapPoses, PoseEstimator, VGGTPoses, find_estimator
from diorama.evaluation.poses import pose_errors
from diorama.pipelines.vggt import VGGTPipeline
from diorama.scene import Views

from .scenery import plane


@pytest.fixture(scope="module")
def views() -> Views:
    return plane(4, 16, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_vggt.write(tmp_path_factory.mktemp("VGGT"))


def test_vggt_gives_every_image_a_camera_of_its_size(folder: Path) -> None:
    estimator = find_estimator(f"vggt:{folder}")
    assert isinstance(estimator, VGGTPoses) and isinstance(estimator, PoseEstimator)
    shown = images(3, 40, 30)
    found = estimator(shown)
    expected = VGGTPipeline.load_folder(folder).reconstruct(Views(shown)).condition.views.cameras
    assert (found.views, found.height, found.width) == (3, 40, 30)
    assert torch.equal(found.camera_to_world, expected.camera_to_world)
    assert torch.equal(found.intrinsics, expected.intrinsics)


def test_its_name_tells_its_weights_apart(folder: Path, tmp_path: Path) -> None:
    name = find_estimator(f"vggt:{folder}").name
    assert name == VGGTPoses(folder).name and name.startswith("vggt ") and len(name) == 17
    other = published_vggt.write(tmp_path, **{"aggregator.camera_token": torch.ones(1, 2, 1, 64)})
    assert VGGTPoses(other).name != name


def test_without_a_folder_it_is_looked_for_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    monkeypatch.setattr("diorama.pipelines.base.WEIGHTS", tmp_path / "none")  # which comes last
    with pytest.raises(ValueError, match=rf"^{tmp_path}/vggt: holds no VGGT .*diorama download vggt[^\n]*$"):
        find_estimator("vggt")
    (tmp_path / "vggt").symlink_to(folder)
    assert isinstance(find_estimator("vggt"), VGGTPoses)


@pytest.mark.parametrize("text", ["", "none", "vggt:", "dust3r", "colmap:here"])
def test_other_names_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^--poses {text}: accepted are colmap, vggt, or vggt:FOLDER$"):
        find_estimator(text)


class Colmap(types.ModuleType):
    """A pycolmap that finds the true cameras of as many images as it is told to, with the functions' own signatures."""

    def __init__(self, views: Views, found: int, *, method: bool = True) -> None:
        super().__init__("pycolmap")
        self.CameraMode = types.SimpleNamespace(SINGLE="single")
        self.logging = types.SimpleNamespace(minloglevel=0)
        self.ImageReaderOptions = lambda camera_model: types.SimpleNamespace(camera_model=camera_model)
        self.views, self.found, self.method, self.seed = views, found, method, None

    def set_random_seed(self, seed: int) -> None:
        self.seed = seed

    def extract_features(self, database_path: str, image_path: str, image_names=(), *, camera_mode, reader_options):
        assert (camera_mode, reader_options.camera_model, self.logging.minloglevel) == ("single", "SIMPLE_PINHOLE", 2)
        assert len(list(Path(image_path).glob("*.png"))) == len(self.views)
        Path(database_path).touch()

    def match_exhaustive(self, database_path: str) -> None:
        assert Path(database_path).exists() and self.seed == 0
        if self.found == 0:
            raise RuntimeError("no matches")

    def incremental_mapping(self, database_path: str, image_path: str, output_path: str) -> dict:
        assert Path(output_path).is_dir()
        poses = self.views.cameras.world_to_camera.double().numpy()
        lens = types.SimpleNamespace(calibration_matrix=lambda: self.views.cameras.intrinsics[0].numpy())

        def image(number: int):
            pose = types.SimpleNamespace(matrix=lambda: poses[number, :3])
            told = (lambda: pose) if self.method else pose
            there = dict(name=f"{number:05d}.png", camera_id=1, has_pose=number < self.found, cam_from_world=told)
            return types.SimpleNamespace(**there)

        every = {number + 1: image(number) for number in reversed(range(len(self.views)))}
        return {0: types.SimpleNamespace(images=every, cameras={1: lens})}


@pytest.mark.parametrize("method", [True, False], ids=["since 3.12", "before"])
def test_colmap_gives_the_cameras_in_order_or_none(views: Views, monkeypatch: pytest.MonkeyPatch, method: bool) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", Colmap(views, 4, method=method))
    estimator = find_estimator("colmap")
    assert isinstance(estimator, ColmapPoses) and isinstance(estimator, PoseEstimator)
    found = estimator(views.images)
    assert pose_errors(found, views.cameras, "rot_avg").ate_r < 1e-3
    torch.testing.assert_close(found.intrinsics, views.cameras.intrinsics)
    for count in (3, 0):  # one image could not be placed; nothing could
        monkeypatch.setitem(sys.modules, "pycolmap", Colmap(views, count))
        assert ColmapPoses()(views.images) is None


def test_pycolmap_itself_finds_nothing_in_blank_pictures() -> None:
    """Every call of the estimator reaches the package under its own name and arguments."""
    pycolmap = pytest.importorskip("pycolmap")
    assert ColmapPoses()(torch.zeros(3, 3, 64, 64)) is None
    assert {"has_pose", "cam_from_world", "camera_id", "name"} <= set(dir(pycolmap.Image))
    assert hasattr(pycolmap.Camera, "calibration_matrix") and hasattr(pycolmap.Rigid3d, "matrix")


def test_pycolmap_itself_finds_the_cameras_of_a_textured_scene() -> None:
    """A slanted wall and a step before it, both of noise at many scales: no plane alone, which would be ambiguous."""
    pytest.importorskip("pycolmap")
    truth = textured(5, 240)
    found = ColmapPoses()(truth.images)
    assert found is not None
    errors = pose_errors(found, truth.cameras, "rot_avg")
    assert errors.ate_r < 0.02 and errors.ate_t < 0.05


def textured(count: int, side: int) -> Views:
    """Views of two walls at different depths, painted by noise that is fixed to the walls."""
    cameras = plane(count, side, side).cameras
    origins, directions = cameras.rays()
    reach = torch.full(directions.shape[:-1], torch.inf)
    image = torch.zeros(*directions.shape[:-1], 3)
    generator = torch.Generator().manual_seed(0)
    for depth, high in ((4.5, torch.inf), (3.0, 0.0)):  # the nearer wall fills the upper half
        distance = (depth - origins[..., 2]) / directions[..., 2]
        points = origins + distance[..., None] * directions
        colour = torch.zeros_like(image)
        for octave in range(2, 6):
            size = 8 * 2**octave
            texture = torch.rand(1, 3, size, size, generator=generator)
            where = (points[..., :2] / 6).flatten(0, 1)[None]
            sampled = torch.nn.functional.grid_sample(texture, where, padding_mode="reflection", align_corners=False)
            colour += sampled[0].movedim(0, -1).reshape(colour.shape) / 4
        seen = (distance > 0) & (distance < reach) & (points[..., 1] < high)
        reach = torch.where(seen, distance, reach)
        image = torch.where(seen[..., None], colour, image)
    return Views(image.movedim(-1, 1).clamp(0, 1), cameras)
