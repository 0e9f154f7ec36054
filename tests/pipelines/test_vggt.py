"""VGGT as a pipeline: photos of any size to cameras, depth and points; every layout of its weights; each refusal."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tests import published_vggt
from tests.miniature import images, lively, path

import diorama
from diorama.models.vggt import SIZES, VGGT
from diorama.pipelines.base import load
from diorama.pipelines.vggt import LICENCE, VGGTPipeline, fitted, holds_vggt, is_vggt, located
from diorama.scene import Condition, Scene, Shot, Views

GRID = 4  # patches a side that the random model was "trained" at


@pytest.fixture(scope="module")
def vggt():
    return VGGTPipeline(lively(VGGT(**SIZES["tiny"] | {"encoder_grid": GRID})), licence="CC0-1.0")


@pytest.fixture(scope="module")
def photos():
    return images(3, 90, 120)


@pytest.fixture(scope="module")
def scene(vggt, photos):
    return vggt.reconstruct(Views(photos))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return published_vggt.write(tmp_path_factory.mktemp("VGGT") / "1B")


def test_a_part_of_gen3r_looks_at_photos_as_large_as_that_was_trained_with(tmp_path, monkeypatch):
    """Its own encoder would take 518 pixels."""
    index = {"_class_name": "Gen3RPipeline", "title": "small", "licence": "CC0-1.0", "pixels": 42 * 42}
    (tmp_path / "small").mkdir()
    (tmp_path / "small/model_index.json").write_text(json.dumps(index))
    VGGT(**SIZES["tiny"]).save_pretrained(tmp_path / "small/vggt")
    found = VGGTPipeline.load_folder(tmp_path / "small")
    assert found.size_of(300, 400) == (28, 42)
    assert (found.config.title, found.config.licence) == ("VGGT of small", "CC0-1.0")
    found.save_pretrained(tmp_path / "again")
    assert VGGTPipeline.load_folder(tmp_path / "again").size_of(300, 400) == (28, 42)
    index["pixels"] = 560 * 560  # more than its encoder's own
    (tmp_path / "small/model_index.json").write_text(json.dumps(index))
    assert VGGTPipeline.load_folder(tmp_path / "small").size_of(300, 400) == (392, 518)


def test_whose_vggt_is_taken_where_none_is_named(tmp_path, published, monkeypatch):
    """In turn: what was downloaded alone, what was downloaded with Gen3R, and if that is meant what is embedded."""
    cache, weights = tmp_path / "cache", tmp_path / "weights"
    monkeypatch.setenv("DIORAMA_CACHE", str(cache))
    monkeypatch.setattr("diorama.pipelines.base.WEIGHTS", weights)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    for home in (weights / "small", cache / "gen3r"):
        shutil.copytree(published, home / "vggt")
    (weights / "small/model_index.json").write_text('{"_class_name": "Gen3RPipeline"}')
    (cache / "gen3r/geo_adapter").mkdir()
    assert located() == located(embedded=True) == located("gen3r") == cache / "gen3r"
    assert located("small") == weights / "small"
    (cache / "gen3r/vggt/.model.safetensors.part").touch()  # was not fetched to the end
    assert located(embedded=True) == weights / "small"
    assert "holds no VGGT" in refusal(located)
    shutil.copytree(published, cache / "vggt")
    assert located() == located(embedded=True) == cache / "vggt"


def refusal(call, *arguments, **options):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        call(*arguments, **options)
    return str(error.value)


def test_photos_become_a_scene(scene, photos):
    views, known = scene.views, scene.condition.views
    assert views.images.shape == (3, 3, 42, 56)  # the longer side as in training, whole patches
    assert known.images.shape == photos.shape and torch.equal(known.images, photos)
    assert scene.condition.at == (0, 1, 2) and scene.provenance.seed is None
    assert (scene.provenance.model, scene.provenance.licence) == ("VGGT", "CC0-1.0")
    views.cameras.checked()
    torch.testing.assert_close(known.cameras.intrinsics, views.cameras.resized(90, 120).intrinsics)
    torch.testing.assert_close(views.cameras.camera_to_world[0], torch.eye(4), atol=1e-6, rtol=0)
    assert views.mask.all() and (views.depth > 0).all()


def test_points_lie_on_their_pixels_rays_at_the_depth_that_the_model_says(vggt, scene, photos):
    with torch.no_grad():
        output = vggt.vggt(fitted(photos, 42, 56)[None])
    views = scene.views
    torch.testing.assert_close(views.depth, output.depth[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(views.confidence, output.depth_confidence[0], rtol=1e-4, atol=1e-4)
    # The same geometry, seen from the first camera: relative poses are the model's own.
    own, moved = output.cameras.apart()[0], views.cameras
    for one, other in ((0, 1), (1, 2)):
        expected = own.world_to_camera[one] @ own.camera_to_world[other]
        found = moved.world_to_camera[one] @ moved.camera_to_world[other]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    origins, directions = moved.to(torch.float64).rays()
    away = torch.linalg.cross(views.points.double() - origins, directions).norm(dim=-1)
    assert away.max() < 1e-6 * views.points.abs().max()  # random cameras stand far from what they see


def test_points_of_the_head_keep_their_depth_and_move_onto_the_rays(vggt, photos):
    found = vggt.reconstruct(Views(photos), points="head")
    with torch.no_grad():
        output = vggt.vggt(fitted(photos, 42, 56)[None])
    own = output.cameras.apart()[0]
    depth = own.project(output.points[0])[1]
    valid = found.views.mask
    clear = (depth - 1e-4).abs() > 1e-3  # of rounding
    assert torch.equal(valid[clear], depth[clear] > 1e-4) and valid.any()
    torch.testing.assert_close(found.views.depth[valid], depth[valid], rtol=1e-3, atol=1e-3)
    assert found.provenance.settings["points"] == "head"
    assert refusal(vggt.reconstruct, Views(photos), points="mesh") == "points 'mesh': accepted are 'depth' and 'head'"


def test_photos_are_resized_as_the_published_code_resizes_them():
    pixels = (images(1, 90, 121)[0] * 255).byte()
    expected = Image.fromarray(pixels.movedim(0, -1).numpy()).resize((56, 42), Image.Resampling.BICUBIC)
    found = fitted(pixels[None].float() / 255, 42, 56)[0]
    assert (found * 255 - torch.from_numpy(np.array(expected)).movedim(-1, 0)).abs().max() <= 2


@pytest.mark.parametrize(
    ("height", "width", "size"), [(90, 120, (42, 56)), (120, 90, (56, 42)), (8, 64, (14, 56)), (56, 56, (56, 56))]
)
def test_sizes_are_whole_patches_and_photos_are_seen_whole(vggt, height, width, size):
    assert vggt.size_of(height, width) == size
    cameras = vggt.cameras_of(images(1, height, width))
    assert (cameras.height, cameras.width) == (height, width)
    assert cameras.intrinsics[0, :2, 2].tolist() == pytest.approx([width / 2, height / 2], rel=1e-5)


def test_a_size_may_be_asked_for(vggt, photos):
    assert vggt.size_near(30, 47) == (28, 42)
    made = vggt.reconstruct(Views(photos), size=(28, 42))
    assert made.views.images.shape[-2:] == (28, 42)
    found = refusal(vggt.reconstruct, Views(photos), size=(28, 40))
    assert found == "image size 28x40: both sides must be multiples of 14"


def test_cameras_that_photos_have_are_not_read(vggt, scene, photos):
    again = vggt.reconstruct(Views(photos, path(3, 90, 120)))
    assert torch.equal(again.views.cameras.camera_to_world, scene.views.cameras.camera_to_world)


def test_what_is_not_finite_or_behind_its_camera_is_no_surface(vggt, photos, monkeypatch):
    seen = vggt._seen
    before = {points: vggt.reconstruct(Views(photos), points=points).views.mask for points in ("depth", "head")}
    view, row, column = before["head"].nonzero()[-1].tolist()

    def broken(*arguments):
        cameras, output = seen(*arguments)
        output.depth[0, 1, 2, 3] = torch.inf
        pose = output.cameras.camera_to_world[0, view]
        output.points[0, view, row, column] = pose[:3, 3] - pose[:3, 2]
        return cameras, output

    monkeypatch.setattr(vggt, "_seen", broken)
    for points, place in (("depth", [1, 2, 3]), ("head", [view, row, column])):
        views = vggt.reconstruct(Views(photos), points=points).views
        assert views.points.isfinite().all()
        assert (views.mask != before[points]).nonzero().tolist() == [place]


def test_a_scene_is_saved_and_opened(scene, tmp_path):
    again = diorama.open(diorama.save(scene, tmp_path / "scene"))
    assert isinstance(again, Scene)
    assert torch.equal(again.views.points, scene.views.points) and again.condition.at == (0, 1, 2)


def test_other_views_are_refused_in_one_line(vggt, scene, photos):
    cameras, nothing = path(3, 90, 120), Condition()
    assert "shows the photos that it is given" in refusal(vggt.reconstruct, Views(photos), cameras)
    says = "VGGT makes no views but the photos' own: accepted is 'diorama reconstruct' with photos"
    assert refusal(vggt.generate, nothing, cameras) == says
    assert refusal(vggt.prepared, nothing, Shot(3, 56, 56)) == says
    assert refusal(vggt.render, scene, cameras) == says
    assert "accepted is (views, 3, height, width)" in refusal(vggt.reconstruct, Views(photos[None]))


def test_a_saved_pipeline_is_the_same_one(vggt, scene, photos, tmp_path):
    vggt.save_pretrained(tmp_path / "saved")
    for again in (load(tmp_path / "saved", "cpu"), VGGTPipeline.load_folder(tmp_path / "saved")):
        assert isinstance(again, VGGTPipeline) and again.config.licence == "CC0-1.0"
        made = again.reconstruct(Views(photos))
        assert torch.equal(made.views.points, scene.views.points)
    assert is_vggt(tmp_path / "saved") and holds_vggt(tmp_path / "saved")
    weights = tmp_path / "saved/vggt/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "not a readable safetensors file" in refusal(load, tmp_path / "saved", "cpu")


@pytest.mark.parametrize("layout", ["published", "pt", "both", "nested", "bare"])
def test_every_layout_holds_the_same_model(published, layout, tmp_path):
    first = VGGTPipeline.load_folder(published)
    folder = published
    if layout == "pt":
        folder = published_vggt.write(tmp_path, "model.pt")
    if layout == "both":
        folder = published_vggt.write(published_vggt.write(tmp_path, "model.pt"))
    if layout == "nested":  # as Gen3R publishes it
        folder = published_vggt.write(tmp_path / "vggt").parent
        (tmp_path / "model_index.json").write_text('{"_class_name": "Gen3RPipeline", "vggt": [null, null]}')
    if layout == "bare":
        folder = tmp_path
        first.vggt.save_pretrained(tmp_path)
    found = VGGTPipeline.load_folder(folder)
    assert holds_vggt(folder) and is_vggt(folder) == (layout in ("published", "pt", "both"))
    assert found.config.licence == LICENCE and found.vggt.dtype == torch.float32
    one, other = first.vggt.state_dict(), found.vggt.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not any(parameter.is_meta for parameter in found.vggt.parameters())


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: other\nlicense_name: vggt-aup\n---\n", "vggt-aup"),
        ("---\nlicense: cc-by-nc-4.0\n---\n", LICENCE),
        ("# no front matter\nlicense: mit\n", LICENCE),
        ("", LICENCE),
    ],
)
def test_the_card_tells_the_licence(card, licence, tmp_path):
    assert VGGTPipeline.load_folder(published_vggt.write(tmp_path, card=card)).config.licence == licence


def test_the_file_tells_the_licence_where_there_is_no_card(tmp_path):
    for name, licence in (("model.pt", LICENCE), ("vggt_1B_commercial.pt", "vggt-aup-license")):
        folder = published_vggt.write(tmp_path / name, name, card="")
        assert VGGTPipeline.load_folder(folder).config.licence == load(folder, "cpu").config.licence == licence


def test_half_precision_is_read_in_single(tmp_path):
    state = {name: tensor.bfloat16() for name, tensor in published_vggt.state().items()}
    assert VGGTPipeline.load_folder(published_vggt.write(tmp_path, **state)).vggt.dtype == torch.float32


@pytest.mark.parametrize("name", published_vggt.NAMES)
def test_weights_that_are_wrong_are_refused_in_one_line(name, tmp_path):
    token = "aggregator.camera_token"
    for changes, says in (
        ({token: None}, f"vggt: 1 weights missing, first '{token}'"),
        ({"more.weight": torch.ones(2)}, "vggt: 1 weights unknown, first 'more.weight'"),
        ({token: torch.ones(2)}, f"vggt: weight '{token}' of shape (2,), expected (1, 2, 1, 64)"),
        ({token: torch.ones(1, 2, 1, 64, dtype=torch.int32)}, f"vggt: weight '{token}' of int32, accepted are"),
    ):
        folder = published_vggt.write(tmp_path, name, **changes)
        assert refusal(VGGTPipeline.load_folder, folder).startswith(says)
    file = published_vggt.write(tmp_path, name) / name
    file.write_bytes(file.read_bytes()[:-5000])
    assert refusal(VGGTPipeline.load_folder, tmp_path).startswith(f"{file}: not a readable ")
    published_vggt.write(tmp_path, name)
    (tmp_path / "config.json").write_text("[]")
    assert "config.json: not a JSON object" in refusal(VGGTPipeline.load_folder, tmp_path)
    file.unlink()
    assert "found no model.safetensors, no model.pt, no vggt_1B_commercial.pt" in refusal(
        VGGTPipeline.load_folder, tmp_path
    )


def test_where_it_is_looked_for(tmp_path, monkeypatch, published):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    says = refusal(located)
    assert says.startswith(f"{tmp_path}/vggt: holds no VGGT (config.json with model.safetensors or model.pt")
    assert "'diorama download vggt' fetches facebook/VGGT-1B" in says
    says = refusal(located, "nowhere")
    assert says.startswith("nowhere: holds no VGGT") and "'diorama download vggt --out nowhere'" in says
    assert located(published) == located(published / "model.safetensors") == published
    assert is_vggt(published / "model.safetensors") and not is_vggt(published / "config.json")
    cached = str(published / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, name: cached if "safe" in name else None)
    assert located() == published
    assert published_vggt.write(tmp_path / "vggt") == located()
