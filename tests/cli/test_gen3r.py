"""Gen3R's published layout, in miniature, on the command line."""

import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
import tyro
from safetensors.torch import load_file, save_file
from tests import published_gen3r, published_vggt

import diorama
from diorama.cli.parts import PartsFlags
from diorama.cli.requests import CONFIG
from diorama.export.video import write_video

from .conftest import Command, tree

FAULTS = {
    "transformer": "misshapen",
    "wan_vae": "unknown",
    "geo_adapter": "cut off",
    "vggt": "whole numbers",
    "text_encoder": "missing",
    "clip_image_encoder": "no folder",
}
SMALL = ("--size", 112, "--steps", 1)


@pytest.fixture(scope="module")
def gen3r_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_gen3r.write(tmp_path_factory.mktemp("published") / "gen3r")


@pytest.fixture
def gen3r(command: Command, gen3r_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "cache"))
    command.model = gen3r_folder
    return command


@pytest.fixture
def film(tmp_path: Path) -> Path:
    write_video(torch.rand(7, 3, 48, 64, generator=torch.Generator().manual_seed(0)), tmp_path / "film.mp4")
    return Path("film.mp4")


def test_a_photo_becomes_a_scene_that_is_saved_and_reconstructed(gen3r: Command, photo) -> None:
    flags = ("--size", 112, "--views", 5, "--steps", 2)
    said = gen3r.done("generate", photo(), "--trajectory", "truck:0.2", "--prompt", "a red room", *flags)
    made = diorama.open("scene")
    assert said.count("non-commercial") == 1 and made.views.images.shape == (5, 3, 112, 112)
    assert (made.condition.prompt, made.provenance.settings["steps"]) == ("a red room", 2)
    assert made.provenance.settings["negative_prompt"] == "bad detailed" and made.latents.shape == (16, 2, 14, 28)
    assert (made.views.confidence > 0).any() and Path("scene/points.ply").stat().st_size > 10_000
    # A saved scene's images and transforms.json are a capture like any other.
    Path("capture").mkdir()
    shutil.copytree("scene/images", "capture/images")
    shutil.copy("scene/transforms.json", "capture")
    gen3r.done("reconstruct", "capture", *SMALL, "--out", "all")
    again = diorama.open("all")
    assert again.condition.at == (0, 1, 2, 3, 4) and again.provenance.seed == 0
    assert torch.allclose(again.views.cameras.camera_to_world, made.views.cameras.camera_to_world, atol=1e-5)


def test_what_is_asked_of_its_parts(gen3r: Command, photo) -> None:
    own = ("--negative-prompt", "grey", "--step-cache", 0.05, "--tiling", "--scale", 2, "--points", "head")
    gen3r.done("generate", photo(), "--views", 2, *SMALL, *own, "--dtype", "bf16", "--offload", "stages")
    made = diorama.open("scene")
    settings = made.provenance.settings
    assert [settings[name] for name in ("negative_prompt", "step_cache", "tiling", "scale", "points")] == [
        "grey", 0.05, True, 2.0, "head",
    ]  # fmt: skip
    gen3r.done("generate", "photo.png", "--views", 2, *SMALL, *own, "--out", "exact")
    exact = diorama.open("exact")
    assert not torch.equal(exact.latents, made.latents)  # which bf16 is not


def test_free_cameras_are_found_by_the_model(gen3r: Command, photo) -> None:
    photos = [photo(f"box/{number}.png", seed=number) for number in range(2)]
    gen3r.done("generate", *photos, "--trajectory", "free", "--views", 4, *SMALL, "--guidance", 1)
    made = diorama.open("scene")
    assert made.condition.at == (0, 3) and made.condition.views.cameras is None
    assert made.condition.views.images.shape == (2, 3, 48, 64) and made.views.images.shape == (4, 3, 112, 112)
    assert made.provenance.settings["trajectory"] == "free"
    assert torch.allclose(made.views.cameras.camera_to_world[0], torch.eye(4), atol=1e-5)
    assert float(made.views.cameras.extent) > 0 and (made.views.confidence > 0).any()
    model = ("--model", gen3r.model, "--trajectory", "free")
    assert "--trajectory free: no photos given" in gen3r.refused("generate", *model)
    assert "--views 1: 2 photos are known" in gen3r.refused("generate", "box", *model, "--views", 1)
    assert "leave --fov out" in gen3r.refused("generate", "box", *model, "--fov", 50)
    assert "cannot predict them" in gen3r.refused("generate", "box/0.png", "--model", "tiny", *model[2:])


def test_all_frames_of_a_video(gen3r: Command, film: Path, tmp_path: Path) -> None:
    """Cameras predicted, and by VGGT; --steps 0 shows the autoencoders alone."""
    said = gen3r.done("reconstruct", film, "--views", 5, *SMALL, "--prompt", "noise", "--seed", 3, "--out", "a")
    made = diorama.open("a")
    assert made.condition.at == (0, 1, 2, 3, 4) and made.condition.views.cameras is None
    assert (made.provenance.seed, made.condition.prompt, made.provenance.settings["trajectory"]) == (3, "noise", "free")
    assert said.count("non-commercial") == 1 and "sampling" in said
    poses = f"vggt:{published_vggt.write(tmp_path / 'vggt')}"
    flags = ("--views", 3, "--size", 112, "--steps", 0)
    said = gen3r.done("reconstruct", film, "--poses", poses, *flags, "--out", "b")
    made = diorama.open("b")
    assert said.count("cameras of 3 photos by vggt (CC-BY-NC-4.0)") == 1 and "sampling" not in said
    assert made.provenance.settings["steps"] == 0 and made.provenance.seed is None
    known = made.condition.views.cameras
    assert torch.equal(known.camera_to_world, made.views.cameras.camera_to_world)


def test_more_photos_than_views_are_thinned_out(gen3r: Command, photo) -> None:
    frames = []
    for i in range(5):
        photo(f"room/{i}.png", seed=i)
        pose = torch.eye(4)
        pose[0, 3] = i
        frames.append({"file_path": f"{i}.png", "transform_matrix": pose.tolist()})
    Path("room/transforms.json").write_text(json.dumps({"fl_x": 60.0, "w": 64, "h": 48, "frames": frames}))
    said = gen3r.done("reconstruct", "room", "--views", 3, "--size", 112, "--steps", 0)
    assert "3 of 5 photos are taken, evenly spaced; --views 5 takes all" in said
    made = diorama.open("reconstruction")
    assert made.views.cameras.centers[:, 0].tolist() == pytest.approx([0, 2, 4], abs=1e-5)


def test_the_name_means_what_was_downloaded(gen3r: Command, photo, tmp_path: Path) -> None:
    words = ("generate", photo(), "--views", 1, *SMALL, "--guidance", 1)
    said = gen3r.refused(*words, "--model", "gen3r")
    assert said == (
        f"model 'gen3r': {tmp_path}/cache/gen3r is not there; 'diorama download gen3r' fetches it, on its terms"
    )
    home = shutil.copytree(gen3r.model, "cache/gen3r")
    part = Path(home, "vggt/.model.safetensors.part")
    part.touch()
    assert "was not fetched to the end; 'diorama download gen3r' continues" in gen3r.refused(*words, "--model", "gen3r")
    part.unlink()
    assert gen3r(*words, "--model", "gen3r").code == 0
    assert diorama.open("scene").provenance.model == "Gen3R"


def test_the_commands_of_the_docs_have_these_flags() -> None:
    text = (Path(__file__).parents[2] / "docs/models.md").read_text()
    lines = re.search(r"<!-- published-weights -->\n```bash\n(.+?)```", text, re.DOTALL)[1].splitlines()
    assert len(lines) > 10
    for line in lines:
        program, verb, *words = shlex.split(line, comments=True)
        assert program == "diorama"
        tyro.cli(import_module(f"diorama.cli.{verb}").Arguments, args=words, config=CONFIG)
    flags = re.findall(r"^\| `--([a-z-]+)", text, re.MULTILINE)
    assert {name.replace("-", "_") for name in flags} == {*vars(PartsFlags()), "trajectory"}


def test_what_it_refuses(gen3r: Command, photo) -> None:
    model, name = ("--model", gen3r.model), photo()

    def refused(*words: str | Path | float) -> str:
        return gen3r.refused(*words, *model)

    assert "give at least one known view" in refused("generate")
    for flag, value in (("--step-cache", 2.0), ("--scale", 0.0)):
        assert f"{flag} {value}: accepted is" in refused("generate", name, flag, value, "--size", 112)
    assert "'diorama generate' makes others" in refused("reconstruct", name, "--trajectory", "orbit")
    assert "--steps -1: accepted is 0 or more" in refused("reconstruct", name, "--steps", -1)
    for flag, value in (("--prompt", "a room"), ("--guidance", 2.0), ("--seed", 1), ("--step-cache", 0.1)):
        said = refused("reconstruct", name, "--steps", 0, flag, value)
        assert said == f"{flag} {value}: --steps 0 leaves diffusion out; leave {flag} out"


def test_what_other_models_refuse(gen3r: Command, photo, tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    name, vggt = photo(), published_vggt.write(tmp_path / "vggt")
    own = ("--step-cache", 0.1), ("--offload", "blocks"), ("--tiling",), ("--negative-prompt", "x"), ("--scale", 1.0)
    for flags in own:
        for verb in ("generate", "reconstruct"):
            said = gen3r.refused(verb, name, *flags, "--model", tiny_pipeline_folder)
            assert said.startswith(" ".join(map(str, flags))) and "only Gen3R takes this here" in said
        assert f"leave {flags[0]} out" in gen3r.refused("reconstruct", name, *flags, "--model", vggt)
    for flags in (("--dtype", "bf16"), ("--compile",)):
        assert f"leave {flags[0]} out" in gen3r.refused("reconstruct", name, *flags, "--model", vggt)
    for flags in (("--steps", 2), ("--seed", 0), ("--prompt", "x"), ("--guidance", 1.0)):
        for model in (tiny_pipeline_folder, vggt):
            assert f"leave {flags[0]} out" in gen3r.refused("reconstruct", name, *flags, "--model", model)


@pytest.mark.parametrize(("part", "fault"), FAULTS.items())
def test_wrong_weights_are_one_line(gen3r: Command, photo, part: str, fault: str) -> None:
    """Each fault in one part; tests/models/test_published.py tries all in all."""
    folder, name = Path(shutil.copytree(gen3r.model, "broken")), photo()
    file = sorted((folder / part).glob("*.safetensors"))[0]
    good = load_file(file)
    first = next(key for key, tensor in sorted(good.items()) if tensor.ndim > 1 and "textual" not in key)
    wrong = {
        "missing": {key: tensor for key, tensor in good.items() if key != first},
        "unknown": good | {"surplus.weight": torch.zeros(2)},
        "misshapen": good | {first: good[first][:-1].contiguous()},
        "whole numbers": good | {first: good[first].long()},
    }
    if fault == "no folder":
        shutil.rmtree(folder / part)
    elif fault == "cut off":
        file.write_bytes(file.read_bytes()[:-64])
    else:
        save_file(wrong[fault], file)
    verb = "reconstruct" if part == "vggt" else "generate"
    said = gen3r.refused(verb, name, "--size", 112, "--steps", 1, "--model", folder)
    assert str(folder) in said and (part in said or "umt5" in said)
    assert "cache" not in tree()
