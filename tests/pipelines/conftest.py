import pytest
from tests.miniature import pipeline


@pytest.fixture(scope="package")
def model():
    return pipeline()
