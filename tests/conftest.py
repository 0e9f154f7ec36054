"""What every test shares: types checked at run time, one thread, no network."""

import os
from pathlib import Path

import jaxtyping
import pytest
import torch

# Installed before anything of ours is imported: it rewrites modules while they load.
jaxtyping.install_import_hook("diorama", "beartype.beartype")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start; this process is told below
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where torch finds no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved 3DRAE + 3DDiT of random weights, for 32x32 pixels in three steps."""
    from .miniature import observed_memory, pipeline

    folder = tmp_path_factory.mktemp("models") / "miniature"
    pipeline(memory=observed_memory()).save_pretrained(folder)
    return folder
