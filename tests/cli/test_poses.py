"""Photos without cameras: VGGT finds them for every model, or makes the scene itself."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import published_vggt

import diorama
from diorama.cli.photos import PhotoFlags, unposed
from diorama.export.video import write_video
from diorama.pipelines.vggt import VGGTPipeline

from .conftest import Command


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return published_vggt.write(tmp_path_factory.mktemp("VGGT") / "1B")


@pytest.fixture
def photos(photo) -> list[Path]:
    return [photo(f"{number}.png", seed=number) for number in range(3)]


def predicted(weights: Path, views) -> torch.Tensor:
    return VGGTPipeline.load_folder(weights).cameras_of(views.images)


@pytest.mark.parametrize("verb", ["generate", "reconstruct"])
def test_photos_without_cameras_get_those_that_vggt_finds(
    command: Command, photos: list[Path], weights: Path, verb: str
) -> None:
    said = command.done(verb, *photos, "--poses", f"vggt:{weights}", "--views", 5, "--out", "made")
    assert "cameras of 3 photos by vggt (CC-BY-NC-4.0)" in said
    made = diorama.open("made")
    assert made.condition.at == (0, 2, 4) and made.provenance.settings["poses"] == "vggt (CC-BY-NC-4.0)"
    known = made.condition.views
    assert known.images.shape == (3, 3, 48, 64)  # their own pixels and cameras of their own size
    expected = predicted(weights, known)
    torch.testing.assert_close(known.cameras.camera_to_world, expected.camera_to_world, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(known.cameras.intrinsics, expected.intrinsics, atol=1e-3, rtol=1e-4)
    assert str(weights) not in Path("made/scene.json").read_text()


def test_they_are_used_as_a_file_of_cameras_would_be(command: Command, photos: list[Path], weights: Path) -> None:
    command.done("generate", *photos, "--poses", f"vggt:{weights}", "--views", 3, "--out", "found")
    found = diorama.open("found")
    known = found.condition.views.cameras
    frames = [
        {"fl_x": m[0][0], "fl_y": m[1][1], "cx": m[0][2], "cy": m[1][2], "transform_matrix": pose}
        for m, pose in zip(
            known.intrinsics.tolist(),
            (known.camera_to_world * torch.tensor([1.0, -1, -1, 1])).tolist(),
            strict=True,
        )
    ]
    Path("told.json").write_text(json.dumps({"w": 64, "h": 48, "frames": frames}))
    command.done("generate", *photos, "--cameras", "told.json", "--views", 3, "--out", "told")
    told = diorama.open("told")
    torch.testing.assert_close(told.views.images, found.views.images, atol=2 / 255, rtol=0)
    torch.testing.assert_close(
        told.views.cameras.camera_to_world, found.views.cameras.camera_to_world, atol=1e-5, rtol=1e-5
    )


def test_one_photo_gets_its_lens_and_any_path(command: Command, photos: list[Path], weights: Path) -> None:
    flags = ("--poses", f"vggt:{weights}", "--trajectory", "dolly:0.5", "--views", 4, "--out", "made")
    command.done("generate", photos[0], *flags)
    made = diorama.open("made")
    assert made.condition.at == (0,) and len(made.views) == 4
    expected = predicted(weights, made.condition.views)
    assert float(made.condition.views.cameras.fov[0]) == pytest.approx(float(expected.fov[0]), rel=1e-4)
    assert float(expected.fov[0]) != pytest.approx(60, abs=0.5)  # which would be guessed


def test_what_poses_refuses(command: Command, photos: list[Path], weights: Path, scene: Path) -> None:
    poses = ("--poses", f"vggt:{weights}")

    def refused(*words: str | Path | int) -> list[str]:
        return [command.refused(verb, *words) for verb in ("generate", "reconstruct")]

    for said in refused(*photos, *poses, "--cameras", "cameras.json"):
        assert (
            said
            == f"--cameras cameras.json: --poses vggt:{weights} finds the cameras of photos without any; leave one out"
        )
    for posed in (scene, scene / "transforms.json"):
        for said in refused(posed, *poses):
            assert said.startswith("made: transforms.json tells the cameras") and "accepted are photos alone" in said
    assert "leave --fov out" in refused(*photos, *poses, "--fov", 50)[0]
    assert all("nowhere: holds no VGGT" in said for said in refused(*photos, "--poses", "vggt:nowhere"))
    assert all("diorama download vggt --out nowhere" in s for s in refused(photos[0], "--poses", "vggt:nowhere"))
    assert "accepted are colmap, vggt, or vggt:FOLDER" in refused(*photos, "--poses", "dust3r")[0]
    assert "no photos given" in refused(*poses)[0]
    assert "neither an embedded model" in refused(*photos, *poses, "--model", "gone")[0]
    assert "--views 2: 3 photos are known" in refused(*photos, *poses, "--views", 2)[0]
    assert "accepted is --cameras FILE" in refused(*photos)[0] and "--poses vggt" in refused(*photos)[0]


def test_without_a_folder_the_cache_is_looked_in(
    command: Command, photos: list[Path], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIORAMA_CACHE", str(Path("cache").absolute()))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("diorama.pipelines.base.WEIGHTS", Path("none"))  # which comes last
    for words in ((*photos, "--poses", "vggt", "--model", command.model), (*photos, "--model", "vggt")):
        said = command.refused("reconstruct", *words)
        assert "cache/vggt: holds no VGGT" in said and "diorama download vggt" in said
    shutil.copytree(weights, "cache/vggt")
    command.done("reconstruct", *photos, "--poses", "vggt", "--views", 3)
    assert command("reconstruct", *photos, "--model", "vggt", "--out", "by").code == 0


def test_vggt_alone_makes_a_scene_of_any_photos(command: Command, photos: list[Path], weights: Path) -> None:
    result = command("reconstruct", *photos, "--model", weights, "--out", "made")
    assert result.code == 0, result.err
    assert "made: 3 views of 42x56 pixels from 3 photos" in result.out and "weights: CC-BY-NC-4.0" in result.out
    made = diorama.open("made")
    assert made.condition.at == (0, 1, 2) and made.condition.views.images.shape == (3, 3, 48, 64)
    expected = VGGTPipeline.load_folder(weights).reconstruct(made.condition.views)
    torch.testing.assert_close(made.views.depth, expected.views.depth, rtol=1e-2, atol=1e-3)
    for out, model in (("cloud.ply", weights), ("cloud.glb", weights / "model.safetensors")):
        assert command("reconstruct", *photos, "--model", model, "--out", out).code == 0
    small = command("reconstruct", *photos, "--model", weights, "--size", 30, "--out", "small")
    assert "30x22 pixels" not in small.out and "22x30 pixels become 28x28, which this model can make" in small.out


def test_photos_of_several_sizes_a_folder_and_a_video(command: Command, photo, weights: Path) -> None:
    files = [photo("box/a.png", 48, 64), photo("box/b.png", 64, 48), photo("box/c.png", 96, 128)]
    for words in (files, ["box"]):
        result = command("reconstruct", *words, "--model", weights, "--out", "made", "--overwrite")
        assert result.code == 0 and "photos of 3 sizes are cropped and reduced to" in result.out, result.err
        made = diorama.open("made")
        assert len(made.views) == 3 and made.condition.views.images.shape[-2:] != (48, 64)
    frames = torch.rand(9, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    write_video(frames, Path("film.mp4"))
    result = command("reconstruct", "film.mp4", "--model", weights, "--views", 4, "--out", "film")
    assert result.code == 0, result.err
    assert len(diorama.open("film").views) == 4


def test_photos_of_several_sizes_show_their_middle_in_one_shape(tmp_path: Path, photo) -> None:
    """Of a wide and an upright photo the square in the middle; the mark in the middle of each stays there."""
    from PIL import Image

    files = []
    for number, (height, width) in enumerate(((60, 80), (160, 120))):
        pixels = np.zeros((height, width, 3), np.uint8)
        tall, wide = height // 10, width // 10
        pixels[(height - tall) // 2 : (height + tall) // 2, (width - wide) // 2 : (width + wide) // 2] = 255
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(files[-1])
    views = unposed(PhotoFlags(tuple(files)), 16, "VGGT")
    assert views.images.shape == (2, 3, 60, 60) and views.cameras is None
    rows = torch.arange(60) + 0.5
    for image in views.images[:, 0]:
        assert float((image.sum(1) * rows).sum() / image.sum()) == pytest.approx(30, abs=0.1)
        assert float((image.sum(0) * rows).sum() / image.sum()) == pytest.approx(30, abs=0.1)
    assert math.isclose(float(views.images[0].sum()), float(views.images[1].sum()), rel_tol=0.6)


def test_what_vggt_alone_refuses(command: Command, photos: list[Path], weights: Path, scene: Path) -> None:
    def refused(*words: str | Path | int) -> str:
        return command.refused("reconstruct", *words, "--model", weights)

    assert "--trajectory orbit: VGGT shows the photos" in refused(*photos, "--trajectory", "orbit")
    assert "--poses vggt: VGGT shows the photos" in refused(*photos, "--poses", "vggt")
    assert "--cameras c.json: VGGT finds the cameras" in refused(*photos, "--cameras", "c.json")
    assert "transforms.json tells the cameras, which VGGT would find" in refused(scene)
    assert refused() == "reconstruct needs photos; 'diorama generate' makes scenes from none"
    assert "--size big" in refused(*photos, "--size", "big")
    assert "no such image file" in refused("gone.png")
    says = f"--model {weights}: VGGT makes no views but the photos' own; 'diorama reconstruct' takes it"
    assert command.refused("generate", *photos, "--model", weights) == says
    assert "VGGT makes no views but the photos' own" in command.refused(
        "render", scene, "--model", weights, "--out", "x"
    )


def test_a_saved_vggt_does_the_same(command: Command, photos: list[Path], weights: Path) -> None:
    VGGTPipeline.load_folder(weights).save_pretrained("ours")
    for number, folder in enumerate((weights, "ours")):
        assert command("reconstruct", *photos, "--model", folder, "--out", f"{number}").code == 0
    one, other = (diorama.open(name).views for name in "01")
    assert torch.equal(one.points, other.points) and torch.equal(one.confidence, other.confidence)
    command.done("generate", photos[0], "--poses", "vggt:ours", "--views", 2)
