import pytest
from tests.miniature import DIT, MEMORY, RAE

from diorama.data.cache import write_cache
from diorama.models import dit3d, observed_memory, rae3d

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


@pytest.fixture(autouse=True)
def miniature_size(monkeypatch):
    """A row of the tables of sizes that trains at once."""
    monkeypatch.setitem(rae3d.SIZES, "miniature", RAE)
    monkeypatch.setitem(observed_memory.SIZES, "miniature", MEMORY)
    monkeypatch.setitem(dit3d.SIZES, "miniature", DIT)
