import pytest
from tests import published_gen3r
from tests.miniature import pipeline


@pytest.fixture(scope="package")
def model():
    return pipeline()


@pytest.fixture(scope="package")
def gen3r_folder(tmp_path_factory):
    """Gen3R's published layout in miniature."""
    return published_gen3r.write(tmp_path_factory.mktemp("published") / "gen3r")


@pytest.fixture(scope="package")
def gen3r_home(tmp_path_factory):
    """Where prompts are kept while Gen3R is under test, in place of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("DIORAMA_CACHE", str(home))
        yield home


@pytest.fixture(scope="package")
def gen3r(gen3r_folder, gen3r_home):
    """The miniature, trained at 112x112 as far as it knows."""
    from diorama.pipelines.base import load

    made = load(gen3r_folder, "cpu")
    made.register_to_config(pixels=112 * 112, steps=2)
    return made
