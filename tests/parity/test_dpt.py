"""DPTHead behind VGGT's backbone: the published numbers tell its two options apart from the plain head."""

import pytest
import torch

from diorama.models.checkpoints import convert
from diorama.models.vggt import VGGT
from diorama.nn.dpt import uv_embedding

from .golden import load, weights

GRID, SIZE = (5, 7), (70, 98)


@pytest.fixture(scope="module")
def golden():
    return load("vggt_tiny")


@pytest.fixture
def model(golden):
    state = weights(golden.config["weights"]["entries"], golden.config["prefix"])
    arguments, ours = convert("vggt", state, golden.config["constructor"])
    model = VGGT(**arguments).eval()
    model.load_state_dict(ours)
    return model


def depth(model, images):
    layers = [layer[0, :, -GRID[0] * GRID[1] :] for layer in model.encode(images)]
    return model.readout.depth(layers, GRID, SIZE).movedim(1, -1)[None, ..., :1].exp()


@torch.no_grad()
@pytest.mark.parametrize("part", ["skip", "places"])
def test_the_reference_tells_the_skip_and_the_places_apart(golden, model, part):
    images = golden.inputs["images"]
    golden.check(depth=depth(model, images))
    if part == "skip":
        for module in model.readout.depth.fuse.modules():
            module.vggt = False
    else:
        model.readout.depth.vggt = False
    with pytest.raises(AssertionError, match=r"^depth: error"):
        golden.check(depth=depth(model, images))


def test_places_are_waves_of_the_cell_centres():
    """Of a 2 x 4 grid on an image twice as wide as high: x at -3/4, -1/4, 1/4, 3/4 of half its width."""
    found = uv_embedding(8, (2, 4), (10, 20))
    wide, high = 2 / 5**0.5, 1 / 5**0.5
    x, y = wide * torch.tensor([-0.75, -0.25, 0.25, 0.75]), high * torch.tensor([-0.5, 0.5])
    assert found.shape == (8, 2, 4)
    for start, place in ((0, x.expand(2, 4)), (4, y[:, None].expand(2, 4))):
        for index, frequency in enumerate((1, 0.1)):
            torch.testing.assert_close(found[start + index], (frequency * place).sin())
            torch.testing.assert_close(found[start + 2 + index], (frequency * place).cos())
