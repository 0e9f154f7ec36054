import pytest
from tests import published_gen3r
from tests.miniature import DIT, MEMORY, RAE
from tests.miniature import rae3d as miniature_rae3d

from diorama.data.cache import write_cache
from diorama.models import dit3d, observed_memory, rae3d
from diorama.training.dit3d import Config

VIEWS, SIDE = 6, 16


@pytest.fixture(scope="package")
def worlds(tmp_path_factory):
    """Folders of a few rendered worlds, for training and for validation."""
    folder = tmp_path_factory.mktemp("worlds")
    made = dict(views=VIEWS, height=SIDE, width=SIDE, samples=1)
    return {
        "data": write_cache(folder / "train", range(4), **made),
        "validation": write_cache(folder / "validation", range(4, 6), **made),
    }


@pytest.fixture(scope="package")
def clips(tmp_path_factory):
    """Folders of worlds of a size that VGGT and a video VAE both divide."""
    folder, made = tmp_path_factory.mktemp("clips"), dict(views=5, height=112, width=112, samples=1)
    return {
        "data": write_cache(folder / "train", range(2), **made),
        "validation": write_cache(folder / "validation", [4], **made),
    }


@pytest.fixture(scope="package")
def published_gen3r_folder(tmp_path_factory):
    """Gen3R's published layout in miniature."""
    return published_gen3r.write(tmp_path_factory.mktemp("published") / "gen3r")


@pytest.fixture(autouse=True)
def miniature_size(monkeypatch):
    """A row of the tables of sizes that trains at once."""
    monkeypatch.setitem(rae3d.SIZES, "miniature", RAE)
    monkeypatch.setitem(observed_memory.SIZES, "miniature", MEMORY)
    monkeypatch.setitem(dit3d.SIZES, "miniature", DIT)


@pytest.fixture
def dit3d_config(worlds, tmp_path):
    """A short run of DiT3D on a random autoencoder."""
    miniature_rae3d().save_pretrained(tmp_path / "autoencoder")
    return Config(
        out=tmp_path / "run", **worlds, autoencoder=tmp_path / "autoencoder", size="miniature", steps=4, batch=8,
        learning_rate=1e-3, warmup=0, precision="32-true", device="cpu", encoder_views=4, visible=(1, 2), samples=3,
    )  # fmt: skip
