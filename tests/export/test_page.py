"""The page as data: what is in it, how large it is, and that it asks nobody for anything."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from diorama.export.page import write_page
from diorama.export.world import World
from diorama.scene import Scene, Views


def written(scene: Scene, path: Path, **choices: object) -> dict:
    write_page(scene, path, **choices)
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"))[1]
    return json.loads(text)


def positions(data: dict) -> np.ndarray:
    codes = np.frombuffer(base64.b64decode(data["positions"]), "<u2").reshape(-1, 3)
    return data["low"] + codes / 65535 * np.array(data["extent"])


def test_points_colours_and_cameras_are_the_scenes(stage: Scene, tmp_path: Path) -> None:
    data = written(stage, tmp_path / "a.html")
    points = positions(data) * [1, -1, -1]
    assert data["count"] == data["all"] == len(points) == 4 * 48 * 64
    expected = stage.views.points.reshape(-1, 3).numpy()
    assert np.abs(np.sort(points, 0) - np.sort(expected, 0)).max() < 1e-3
    assert len(data["frames"]) == len(data["poses"]) == 4
    # The first camera projects a share of the points into its own image, exactly as the page's shader does.
    pose, (fx, fy, cx, cy) = np.array(data["poses"][0]).reshape(3, 4), data["lenses"][0]
    local = (positions(data) - pose[:, 3]) @ pose[:, :3]
    u, v = fx * local[:, 0] / local[:, 2] + cx, fy * local[:, 1] / local[:, 2] + cy
    assert ((u > 0) & (u < 1) & (v > 0) & (v < 1) & (local[:, 2] > 0)).mean() > 0.8
    assert data["spacing"] == pytest.approx(4 / stage.views.cameras.intrinsics[0, 0, 0].item(), rel=0.1)


def test_it_keeps_to_its_size_with_an_even_sample(stage: Scene, tmp_path: Path) -> None:
    views = stage.views.resized(480, 640)
    data = written(replace(stage, views=views), tmp_path / "a.html", megabytes=1.0)
    assert 0.9e6 < (tmp_path / "a.html").stat().st_size <= 1.0e6
    assert data["count"] < data["all"] == 4 * 480 * 640
    depth = -positions(data)[:, 2]
    assert (depth < 3).mean() == pytest.approx((views.points[..., 2] < 3).float().mean().item(), abs=0.01)
    with pytest.raises(ValueError, match="0.05 megabytes hold no scene"):
        write_page(stage, tmp_path / "b.html", megabytes=0.05)


def test_long_paths_are_thinned_out(stage: Scene, tmp_path: Path) -> None:
    views = stage.views[[0, 1, 2, 3] * 40]
    data = written(replace(stage, views=views), tmp_path / "a.html", megabytes=0.3)
    assert 10 < len(data["frames"]) == len(data["poses"]) <= 120
    assert (tmp_path / "a.html").stat().st_size <= 0.3e6


def test_confidence_is_a_rank(scene: Scene, tmp_path: Path) -> None:
    data = written(scene, tmp_path / "a.html")
    paint = np.frombuffer(base64.b64decode(data["colours"]), "u1").reshape(-1, 4)
    counts = np.bincount(paint[:, 3] // 64)
    assert (np.abs(counts / len(paint) - 0.25) < 0.02).all()
    assert len(paint) == int((scene.views.confidence > 0).sum())


class Links(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_a_hostile_prompt_is_words_and_nothing_is_fetched(stage: Scene, tmp_path: Path) -> None:
    written(stage, tmp_path / "a.html", world=World("<i>", 2.0, "-y"))
    page = (tmp_path / "a.html").read_text("utf-8")
    links = Links()
    links.feed(page)
    assert links.found == []
    assert links.tags.count("script") == 2
    assert not {"b", "i", "link", "iframe"} & set(links.tags)
    assert "http" not in page.replace("http-equiv", "")
    assert "CC0-1.0" in page


def test_scenes_without_points_or_cameras(stage: Scene, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no points to export"):
        write_page(replace(stage, views=Views(stage.views.images)), tmp_path / "a.html")
    with pytest.raises(ValueError, match="no valid points"):
        write_page(replace(stage, views=replace(stage.views, confidence=torch.zeros(4, 48, 64))), tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []
    data = written(replace(stage, views=replace(stage.views, cameras=None)), tmp_path / "a.html")
    assert data["poses"] == []
    assert data["spacing"] > 0
