"""A scene of a small random model, and that model."""

from dataclasses import replace

import pytest
import torch
from tests import miniature

from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Scene, Views


@pytest.fixture(scope="session")
def pipeline() -> TokenPipeline:
    """With a memory, whose known views a live view looks at too."""
    return miniature.pipeline(memory=miniature.observed_memory())


@pytest.fixture(scope="session")
def scene(pipeline: TokenPipeline) -> Scene:
    """Five views away from the origin, two of them known, in a world whose scale is not the latents'."""
    path = miniature.path(5)
    path = replace(path, camera_to_world=path.camera_to_world.clone())
    path.camera_to_world[:, :3, 3] *= 3
    known = Views(miniature.images(2), path[[0, 3]])
    return pipeline.reconstruct(known, path)


@pytest.fixture
def forgetful(pipeline: TokenPipeline) -> TokenPipeline:
    """The same without the memory."""
    return pipeline.forgetful()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
