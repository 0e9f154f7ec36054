"""A small Gen3R that comes with the package is used like any embedded model; here in miniature, with random weights."""

import shutil
from pathlib import Path

import pytest
import torch
from tests import published_gen3r

import diorama
from diorama.export.video import write_video
from diorama.pipelines.base import load
from diorama.scene import Views

from .conftest import Command

NAME, CLIP = "tiny-gen3r", 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of embedded models, with one in half precision as recipes/tiny_gen3r.py writes it."""
    home = tmp_path_factory.mktemp("package")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIORAMA_CACHE", str(home / "cache"))
        made = load(published_gen3r.write(home / "published"), "cpu", dtype=torch.float16, offload="none")
        sizes = dict(pixels=112 * 112, views=CLIP, steps=1, guidance=1.5, negative_prompt="")
        made.register_to_config(title=NAME, licence="Apache-2.0", **sizes)
        made.save_pretrained(home / "weights" / NAME)
    return home / "weights"


@pytest.fixture
def embedded(command: Command, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("diorama.pipelines.base.WEIGHTS", weights)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    command.model = NAME
    return command


@pytest.fixture
def film(tmp_path: Path) -> Path:
    write_video(torch.rand(9, 3, 48, 64, generator=torch.Generator().manual_seed(0)), tmp_path / "film.mp4")
    return Path("film.mp4")


def test_a_photo_becomes_a_clip_as_long_and_as_large_as_it_was_trained_with(embedded: Command, photo) -> None:
    said = embedded.done("generate", photo(height=45, width=80), "--prompt", "a red room")
    made = diorama.open("scene")
    assert made.views.images.shape == (CLIP, 3, 112, 112) and "weights: Apache-2.0" in said
    assert (made.provenance.model, made.provenance.settings["steps"]) == (NAME, 1)
    assert made.provenance.settings["guidance"] == 1.5 and made.condition.at == (0,)
    # The scene says by itself which model this is.
    result = embedded("render", "scene", "--out", "again")
    assert result.code == 2 and "generate it along the new path" in result.err and not Path("again").exists()
    assert embedded("generate", "photo.png", "--model", NAME, "--views", 2, "--out", "two").code == 0
    assert len(diorama.open("two").views) == 2


def test_a_video_is_reconstructed_in_each_of_three_ways(embedded: Command, film: Path) -> None:
    made = {}
    for by in ("diffusion", "vae", "vggt"):
        said = embedded.done("reconstruct", film, "--by", by, "--out", by)
        made[by] = diorama.open(by)
        assert made[by].views.images.shape == (CLIP, 3, 112, 112) and ("sampling" in said) == (by == "diffusion")
        assert made[by].provenance.model == NAME and made[by].condition.at == (0, 1, 2, 3, 4)
    assert made["diffusion"].provenance.settings.get("by", "diffusion") == "diffusion"
    frames = made["vggt"].condition.views.images
    middle = slice((frames.shape[-1] - frames.shape[-2]) // 2, (frames.shape[-1] + frames.shape[-2]) // 2)
    photos = Views(frames[..., middle]).resized(112, 112).images
    errors = {by: float((scene.views.images - photos).abs().mean()) for by, scene in made.items()}
    assert errors["vggt"] < 0.5 * min(errors["vae"], errors["diffusion"])
    assert not torch.allclose(made["vae"].views.depth, made["vggt"].views.depth)


def test_ways_that_contradict_other_flags(embedded: Command, film: Path, tiny_pipeline_folder: Path) -> None:
    def refused(*words: str | Path | float, model: str | Path = NAME) -> str:
        return embedded.refused("reconstruct", film, *words, "--model", model)

    for by, flag, value in (
        ("vae", "--steps", 3), ("vae", "--seed", 1), ("vggt", "--guidance", 2.0), ("vggt", "--prompt", "a room"),
    ):  # fmt: skip
        said = refused("--by", by, flag, value)
        assert said == f"{flag} {value}: --by {by} leaves diffusion out; leave {flag} out"
    assert refused("--by", "vggt", "--tiling") == "--tiling: --by vggt leaves diffusion out; leave --tiling out"
    said = refused("--by", "diffusion", "--steps", 0)
    assert said == "--steps 0: --by diffusion takes 1 or more; --by vae leaves it out"
    assert "only Gen3R takes this here" in refused("--by", "vae", model=tiny_pipeline_folder)


def test_poses_by_the_vggt_in_it_where_nothing_was_downloaded(
    embedded: Command, photo, tiny_pipeline_folder: Path
) -> None:
    photos, rest = [photo(f"{i}.png", seed=i) for i in range(2)], ("--views", 2, "--model", tiny_pipeline_folder)
    for number, poses in enumerate(("vggt", f"vggt:{NAME}")):
        result = embedded("reconstruct", *photos, "--poses", poses, *rest, "--out", f"{number}")
        assert result.code == 0 and f"cameras of 2 photos by vggt of {NAME} (Apache-2.0)" in result.out, result.err
    assert diorama.open("0").provenance.settings["poses"] == f"vggt of {NAME} (Apache-2.0)"
    # What --model vggt means is the published one.
    assert "holds no VGGT" in embedded.refused("reconstruct", *photos, "--model", "vggt")
    shutil.copytree(published_gen3r.write(Path("published")), "cache/gen3r")
    result = embedded("reconstruct", *photos, "--poses", "vggt", *rest, "--out", "downloaded")
    assert "cameras of 2 photos by vggt (CC-BY-NC-4.0)" in result.out, result.err
