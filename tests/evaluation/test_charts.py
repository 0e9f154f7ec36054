"""Pictures of the report: strips that stay inside their folder, and drawings against what they draw."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diorama.evaluation.charts import MAX_PIXELS, SIDE, binned, plan, scatter, strip, ticks


def picture(found) -> Image.Image:
    """The image inside a data URI."""
    return Image.open(BytesIO(base64.b64decode(found.uri.split(",")[1])))


def test_a_strip_is_the_picture_of_the_file(tmp_path):
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 64:] = (200, 40, 90)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = strip(tmp_path, "a.png")
    assert (found.width, found.height, found.reason) == (128, 64, "")
    assert np.abs(np.asarray(picture(found)).astype(int) - pixels).max() <= 6
    assert found == strip(tmp_path, "a.png"), "two readings differ"


def test_a_large_strip_is_reduced_and_keeps_its_shape(tmp_path):
    Image.new("RGB", (6400, 1600), "teal").save(tmp_path / "large.png")
    found = strip(tmp_path, "large.png")
    assert found.width * found.height <= MAX_PIXELS
    assert found.width / found.height == pytest.approx(4, rel=0.01)
    assert picture(found).size == (found.width, found.height)


@pytest.mark.parametrize("name", ["../secret.png", "strips/../../secret.png", "link.png", "{absolute}"])
def test_nothing_outside_the_folder_is_read(tmp_path, name):
    folder, secret = tmp_path / "run", tmp_path / "secret.png"
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(secret)
    (folder / "link.png").symlink_to(secret)
    found = strip(folder, name.format(absolute=secret))
    assert (found.uri, "outside" in found.reason) == ("", True)


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_strip_that_cannot_be_read_has_a_reason(tmp_path, content):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    found = strip(tmp_path, "a.png")
    assert (found.uri, found.reason) == ("", "The strip is missing or cannot be read.")
    assert strip(tmp_path, "a" * 5000).uri == strip(tmp_path, ".").uri == strip(tmp_path, None).uri == ""


def test_a_plan_keeps_shape_and_scale():
    """Drawn distances are proportional to those on the ground; height above it is left out; forward is up."""
    path = [[0.0, 5.0, 0.0], [3.0, -1.0, 0.0], [3.0, 0.0, 4.0]]
    drawn = plan([path, path[:2]], [0, 2, 9])
    a, b, c = map(np.array, drawn["lines"][0]["dots"])
    assert np.linalg.norm(b - a) / np.linalg.norm(c - b) == pytest.approx(3 / 4, rel=1e-3)
    assert b[0] > a[0] and c[1] < b[1]
    assert drawn["lines"][1]["dots"] == drawn["lines"][0]["dots"][:2]
    assert drawn["known"] == [drawn["lines"][0]["dots"][place] for place in (0, 2)]
    assert drawn["extent"] == 4.0


@pytest.mark.parametrize("path", [[], [[1.0, 1.0, 1.0]] * 3, [[0.0, float("nan"), 0.0]], [[1e300, 0, 0], [0, 0, 1]]])
def test_a_plan_of_a_still_or_broken_path_stays_in_its_box(path):
    drawn = plan([path], [0])
    dots = drawn["lines"][0]["dots"]
    assert all(0 <= value <= SIDE for dot in dots for value in dot)
    assert "nan" not in drawn["lines"][0]["d"]


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_few_even_and_cover_the_range(low, span):
    found = ticks(low, low + span)
    steps = np.diff(found)
    assert 2 <= len(found) <= 7
    assert found[0] <= low + 1e-6 * max(1, abs(low)) and found[-1] >= low + span - 1e-6 * max(1, abs(low))
    assert steps == pytest.approx(np.full_like(steps, steps[0]), rel=1e-3)


def test_bins_hold_the_mean_of_their_points():
    points = [(0.05, 1.0), (0.05, 2.0), (0.05, 6.0), (0.95, 8.0), (0.95, 8.0), (0.95, 11.0), (0.5, 100.0)]
    assert binned(points, 1.0) == [(0.0625, 3.0), (0.9375, 9.0)]
    assert binned([], 1.0) == []


def test_a_scatter_draws_every_point_where_it_is():
    rng = np.random.default_rng(0)
    points = [(float(a), float(b)) for a, b in zip(rng.uniform(0, 2, 50), rng.uniform(-3, 9, 50), strict=True)]
    drawn = scatter([points, []])
    dots = np.array(re.findall(r"M([\d.-]+) ([\d.-]+)h0", drawn["series"][0]["dots"]), float)
    assert dots.shape == (50, 2)
    # Straight lines from value to place, rightwards and upwards, fitted by least squares.
    for column, sign in ((0, 1), (1, -1)):
        values = np.array(points)[:, column]
        slope, offset = np.polyfit(values, dots[:, column], 1)
        assert np.sign(slope) == sign
        assert np.abs(slope * values + offset - dots[:, column]).max() <= 0.06
    left, top, right, bottom = drawn["box"][2:]
    assert ((dots >= (left, top)) & (dots <= (right, bottom))).all()
    assert drawn["series"][1] == {"dots": "", "line": "", "means": [], "count": 0}
