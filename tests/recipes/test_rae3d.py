"""The recipe of the paper's autoencoders: every line of it is a command, and in small it runs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from tests.miniature import lively

from diorama.cli.requests import CONFIG
from diorama.data.sampling import MIXTURE, shares
from diorama.models.rae3d import RAE3D, SIZES
from diorama.training.rae3d import Config

FILE = Path(__file__).parents[2] / "recipes" / "rae3d.sh"
ROWS = {  # encoder and latent tokens (paper, tables 2 and 3)
    "table2-imgonly": ("patches", 1024),
    "table2-da3": ("da3", 1024),
    "table2-siglip2": ("siglip2", 1024),
    "table2-dinov2": ("dinov2", 1024),
    "table3-tok256": ("dinov2", 256),
    "table3-tok512": ("dinov2", 512),
    "table3-tok1024": ("dinov2", 1024),
}


def recipe(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {"PATH": path, "OMP_NUM_THREADS": "1", "RUNS": "runs", "DATA": "data", "DEVICES": "8"} | variables
    return subprocess.run(
        [str(FILE), *words], cwd=cwd, env=os.environ | given, capture_output=True, text=True, timeout=900
    )


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_papers_tables_is_a_line_that_the_command_takes(row: str, tmp_path: Path) -> None:
    encoder, tokens = ROWS[row]
    (line,) = (shlex.split(line) for line in recipe(row, "--show", cwd=tmp_path).stdout.splitlines())
    assert line[:3] == ["diorama", "train", "rae3d"]
    config = tyro.cli(Config, args=line[3:], config=CONFIG)
    assert config.out == Path(f"runs/rae3d-{encoder}-{tokens}") and config.encoder == encoder
    assert SIZES[config.size]["tokens"] == tokens and SIZES[config.size]["patch"] == 14
    # Table 5 of the paper.
    assert (config.steps, config.learning_rate, config.warmup, config.clip) == (120_000, 2e-4, 8000, 1.0)
    assert (config.lpips_weight, config.adversarial_weight, config.point_weight) == (1.0, 0.75, 1.0)
    assert (config.discriminator_start, config.adversarial_start) == (50_000, 60_000)
    assert (config.noise, config.masking, config.known_targets) == (0.8, "paper", 0)
    assert config.dynamic and (config.pixels, config.aspects) == ((37_000, 75_500), (0.7, 1.8))
    assert config.sample_views == (6, 18)
    # Table 7: all 18 sets, a folder and a weight each, in the same order.
    assert isinstance(config.data, tuple) and config.weights == tuple(part.name for part in MIXTURE)
    plain = [part.name.lower().replace(" ", "").replace("-", "").replace("+", "p") for part in MIXTURE]
    short = {"virtualkitti": "vkitti"}
    assert [folder.name for folder in config.data] == [short.get(name, name) for name in plain]
    assert sum(shares(config.weights, len(config.data))) == pytest.approx(1)


def test_another_row_is_refused_with_those_there_are(tmp_path: Path) -> None:
    result = recipe("table9", cwd=tmp_path)
    assert result.returncode == 2 and all(f" {row} " in result.stderr for row in ROWS)


@pytest.mark.timeout(900)  # three commands, each of which starts torch
def test_the_line_runs_in_small(tmp_path: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = dict(num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14, mlp_ratio=1)
    published = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(hidden_size=SIZES["tiny"]["dim"], **sizes))
    lively(published).save_pretrained(tmp_path / "cache/dinov2")
    result = recipe("table3-tok256", "--smoke", cwd=tmp_path, DIORAMA_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr
    model = RAE3D.from_pretrained(tmp_path / "runs/smoke/rae3d-dinov2-256/model")
    assert model.encoder == "dinov2" and model.config.attention == "mutual"
