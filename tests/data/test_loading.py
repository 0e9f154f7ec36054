"""Batches of worlds and of captures: what they hold, what they skip, and that a step's number decides all of it."""

import json
import logging
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.captures import capture

from diorama.data import loading
from diorama.data.cache import WorldsCache, write_cache
from diorama.data.loading import Batches, CaptureBatches, HeldOut, WorldsBatches
from diorama.data.open import open_scenes
from diorama.data.packing import Plan, pack
from diorama.data.readers.imagenet import SIDECAR
from diorama.data.sampling import Dynamic, Fixed
from diorama.data.scenes import CapturedScene, Frame
from diorama.data.sources import NoCameras
from diorama.geometry.cameras import Cameras

VIEWS, HEIGHT, WIDTH = 8, 32, 32
SMALL = Dynamic(patch=8, tokens=6, budget=300, pixels=(300, 1000), views=(4, 6), targets=2)


def generators(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step)


@pytest.fixture(autouse=True)
def nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test asks for is decoded, but where reading ahead is what it is about."""
    monkeypatch.setattr(loading, "AHEAD", 0)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    return write_cache(folder, range(3), views=VIEWS, height=HEIGHT, width=WIDTH, samples=1)


@pytest.fixture
def captures(worlds: Path, tmp_path: Path) -> Path:
    """Three captures, the last of which has no depth."""
    cache = WorldsCache(worlds)
    for scene in range(3):
        capture(tmp_path / f"captures/{scene}", cache, scene, depth=scene < 2)
    return tmp_path / "captures"


def of(folder: Path, sampling=SMALL, **options) -> CaptureBatches:
    return CaptureBatches([open_scenes(folder)], [1.0], sampling, generators, **options)


def same(one: loading.Batch, other: loading.Batch) -> bool:
    tensors = [
        (batch.views.images, batch.views.points, batch.views.confidence, batch.views.cameras.camera_to_world,
         batch.views.cameras.intrinsics, batch.metric, batch.complete)
        for batch in (one, other)
    ]  # fmt: skip
    equal = all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))
    return equal and one.names == other.names and one.known == other.known


def test_worlds_and_captures_speak_one_protocol(worlds, captures):
    fixed = WorldsBatches(WorldsCache(worlds), 2, (2,), 1, generators)
    assert isinstance(fixed, Batches) and isinstance(of(captures), Batches)
    batch = fixed.batch(0)
    assert batch.views.images.shape == (2, 3, 3, HEIGHT, WIDTH) and batch.complete.all() and fixed.counts() == {}


def test_every_device_has_the_same_shape_and_shares_make_up_the_whole(captures):
    each = [of(captures) for _ in range(2)]
    for step in range(3):
        parts = [batches.batch(step, (index, 2)) for index, batches in enumerate(each)]
        assert len({(part.views.images.shape, part.known) for part in parts}) == 1
        shape = each[0].shape(step, 2)
        scenes, views, _, height, width = parts[0].views.images.shape
        assert (2 * scenes, views, height, width) == (shape.scenes, shape.views, shape.height, shape.width)
        patches = height // 8 * (width // 8)
        assert scenes * (shape.known * patches + 6 + shape.targets * (patches + 6)) <= 300
    fixed = partial(of, captures, Fixed(24, 16, scenes=4, known=(2, 3), targets=1))
    whole, parts = fixed().batch(4), [fixed().batch(4, (index, 2)) for index in range(2)]
    for name in ("images", "points", "confidence"):
        joined = torch.stack([getattr(part.views, name) for part in parts], 1).flatten(0, 1)
        assert torch.equal(joined, getattr(whole.views, name))
    assert tuple(name for row in zip(*(part.names for part in parts), strict=True) for name in row) == whole.names


def test_a_batch_belongs_to_its_step_and_nothing_else(captures, monkeypatch):
    monkeypatch.setattr(loading, "AHEAD", 2)
    straight, resumed = of(captures, mirror=True, threads=3), of(captures, mirror=True, threads=1)
    curve = [straight.batch(step) for step in range(5)]
    assert same(resumed.batch(3), curve[3]) and same(resumed.batch(4), curve[4])
    assert same(resumed.batch(1), curve[1])  # and back
    assert not torch.equal(curve[0].views.images[0, 0], curve[1].views.images[0, 0])
    straight.close()
    resumed.close()


def test_what_is_read_ahead_is_bounded_and_ends(captures, monkeypatch):
    monkeypatch.setattr(loading, "AHEAD", 2)
    batches, others = of(captures, Fixed(16, 16, scenes=2, known=(2,), targets=1)), set(threading.enumerate())
    for step in (0, 1, 7, 8, 2):
        batches.batch(step)
        assert {key[0] for key in batches._begun} == {step + 1, step + 2}
    assert set(threading.enumerate()) - others
    batches.close()
    assert not set(threading.enumerate()) - others and not batches._begun


def test_a_world_saved_as_a_folder_keeps_its_rays_pixels_and_depth(worlds, tmp_path):
    """Read back uncut, in the first camera's frame: kilometres from the origin single precision must do as well."""
    cache = WorldsCache(worlds)
    folder = capture(tmp_path / "capture", cache, 1, far=5000.0)
    batch = of(folder, Fixed(HEIGHT, WIDTH, scenes=3, known=(VIEWS,), targets=0)).batch(0)
    for row in range(3):
        cameras = batch.views.cameras.apart()[row]
        truth = cache.batch(torch.tensor([1]), torch.arange(VIEWS)[None])
        # Which views they are is told by their pixels, which a PNG keeps.
        order = [
            next(view for view in range(VIEWS) if torch.equal(image, truth.images[0, view]))
            for image in batch.views.images[row]
        ]
        assert sorted(order) == list(range(VIEWS))
        views = truth[order]
        expected = views.cameras.apart()[0]
        relative = expected.relative_to(expected.camera_to_world[0])
        torch.testing.assert_close(cameras.plucker(), relative.plucker(), atol=2e-5, rtol=0)
        mask = views.mask[0]
        assert torch.equal(batch.views.confidence[row] > 0, mask)
        depth = batch.views.apart()[row].depth
        torch.testing.assert_close(depth[mask], views.apart()[0].depth[mask], rtol=1e-4, atol=1e-4)


def ramp(height: int, width: int, camera, number: int) -> Frame:
    """A photo whose red and green say where each pixel was."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.stack([x / width, y / height, torch.full_like(x, number / 10)])
    return Frame(f"photo {number}", lambda most: image, camera, lambda: torch.full((height, width), 2.0))


class Ramps:
    """A source of one scene of six wide photos."""

    name = "ramps"

    def __init__(self, height: int = 40, width: int = 96, **told) -> None:
        poses = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
        poses[:, 0, 3] = torch.arange(6)
        cameras = Cameras.from_fov(70.0, height, width, poses)
        self.cameras = cameras
        self.scene = CapturedScene("scene", tuple(ramp(height, width, cameras[i], i) for i in range(6)), **told)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> CapturedScene:
        return self.scene


def test_a_crop_keeps_the_ray_of_every_pixel():
    """A pixel's colour tells where it was in the photo, and its camera where it looks: both must agree."""
    # Twice as large as what is wanted: other factors shift a filtered ramp by a part of a pixel.
    source, lefts = Ramps(48, 96), set()
    batches = CaptureBatches([source], [1.0], Fixed(24, 24, scenes=8, known=(2,), targets=1), generators)
    for step in range(3):
        views = batches.batch(step).views
        for images, cameras in zip(views.images, views.cameras.apart(), strict=True):
            u, v = images[:, 0] * 96, images[:, 1] * 48
            focal = source.cameras.intrinsics[0, 0, 0]
            local = torch.stack([(u - 48) / focal, (v - 24) / focal, torch.ones_like(u)], -1)
            expected = local / local.norm(dim=-1, keepdim=True)  # cameras are not turned, and the world is the first's
            inner = (slice(None), slice(1, -1), slice(1, -1))  # at borders, antialiasing sees one side alone
            torch.testing.assert_close(cameras.rays()[1][inner], expected[inner].float(), atol=1e-5, rtol=0)
            lefts.add(round(float(u[0].min()), 2))
            assert len({round(float(view.min()), 2) for view in u}) == 1  # one place for all views of a sample
        depth = views.depth
        torch.testing.assert_close(depth, torch.full_like(depth, 2.0))
    assert len(lefts) > 10 and max(lefts) - min(lefts) > 20  # anywhere along the photo
    batches.close()


def test_a_corrupt_photo_is_skipped_counted_and_reported(captures, caplog):
    shutil.rmtree(captures / "1")
    shutil.rmtree(captures / "2")
    whole = of(captures, Fixed(32, 32, scenes=4, known=(3,), targets=2))
    before = [whole.batch(step) for step in range(3)]
    whole.close()  # which still reads ahead
    (captures / "0/images/4.png").write_bytes(b"no photo")
    damaged = captures / "0/images/6.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    batches = of(captures, Fixed(32, 32, scenes=4, known=(3,), targets=2))
    with caplog.at_level(logging.WARNING):
        after = [batches.batch(step) for step in range(3)]
    assert batches.counts() == {"bad_frames": 2} and whole.counts() == {}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and all("\n" not in line for line in told)
    assert sorted(line.partition("images/")[2].partition(".png")[0] for line in told) == ["4", "6"]
    good = torch.tensor(np.stack([np.array(Image.open(captures / f"0/images/{i}.png")) for i in (0, 1, 2, 3, 5, 7)]))
    good = good.movedim(-1, 1).float() / 255
    for old, new in zip(before, after, strict=True):
        assert old.views.images.shape == new.views.images.shape
        for row in new.views.images:  # five different ones that can be read
            found = [next(i for i, image in enumerate(good) if torch.equal(image, view)) for view in row]
            assert len(set(found)) == 5
    again = of(captures, Fixed(32, 32, scenes=4, known=(3,), targets=2))
    assert same(again.batch(2), after[2])


def test_a_capture_of_bad_photos_alone_gives_its_place_to_another(captures):
    for photo in (captures / "1/images").glob("*.png"):
        photo.write_bytes(photo.read_bytes()[:100])
    (captures / "2/transforms.json").write_text("{")
    batches = of(captures, Fixed(16, 16, scenes=9, known=(2,), targets=1))
    assert set(batches.batch(0).names) == {"0"}
    counts = batches.counts()
    assert counts["bad_scenes"] == 2 and counts["bad_frames"] >= 4
    source = open_scenes(captures)
    for scene in (0, 1):
        (captures / f"{scene}/transforms.json").write_text("{")
    with pytest.raises(ValueError, match=r"^captures: none of its first 3 scenes can be opened; the last: [^\n]*$"):
        CaptureBatches([source], [1.0], Fixed(16, 16, scenes=9, known=(2,), targets=1), generators)


def test_without_depth_there_is_no_confidence(captures):
    batches = of(captures, Fixed(16, 16, scenes=12, known=(2,), targets=1))
    batch = batches.batch(0)
    assert set(batch.names) == {"0", "1", "2"} and not batch.complete.any() and not batch.metric.any()
    for row, name in enumerate(batch.names):
        assert bool(batch.views.mask[row].any()) == (name != "2")
    assert batch.views.points.isfinite().all()


def test_depth_beyond_the_scenes_quantile_is_not_learnt_from():
    slope = torch.arange(1.0, 1 + 24 * 24).reshape(24, 24)
    source = Ramps(24, 24, quantile=0.75)
    frames = tuple(Frame(f.name, f.image, f.camera, lambda: slope) for f in source.scene.frames)
    source.scene = CapturedScene("scene", frames, quantile=0.75)
    views = CaptureBatches([source], [1.0], Fixed(24, 24, 1, known=(2,), targets=1), generators).batch(0).views
    assert torch.equal(views.confidence[0, 0] > 0, slope <= 1 + 0.75 * (24 * 24 - 1))


def test_an_unposed_capture_is_refused_in_one_line(captures, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(captures / "0/images", photos)
    with pytest.raises(NoCameras, match=r"^[^\n]*photos[^\n]*nothing tells the cameras of; accepted are [^\n]*$"):
        of(photos)
    # Among others as well, where it is met later.
    (captures / "3").mkdir()
    shutil.copy(captures / "0/images/0.png", captures / "3")
    with pytest.raises(NoCameras, match=r"^[^\n]*3[^\n]*nothing tells the cameras of[^\n]*$"):
        of(captures)


def test_scenes_of_too_few_frames_are_refused_or_passed_over(captures):
    for scene in (0, 1):
        document = json.loads((captures / f"{scene}/transforms.json").read_text())
        document["frames"] = document["frames"][:4]
        (captures / f"{scene}/transforms.json").write_text(json.dumps(document))
    batches = of(captures, Fixed(16, 16, scenes=9, known=(4,), targets=2))
    assert set(batches.batch(0).names) == {"2"} and batches.counts() == {"short_scenes": 2}
    shutil.rmtree(captures / "2")
    with pytest.raises(ValueError, match=r"^captures: found scenes of at most 4 frames where a step takes 6; [^\n]*$"):
        of(captures, Fixed(16, 16, scenes=9, known=(4,), targets=2))


def test_known_views_come_last_again_where_asked():
    sampling = Fixed(16, 16, scenes=3, known=(2,), targets=2)
    views = CaptureBatches([Ramps()], [1.0], sampling, generators, known_targets=1).batch(0).views
    assert torch.equal(views.images[:, 3], views.images[:, 0]) and views.images.shape[1] == 4
    assert not torch.equal(views.images[:, 2], views.images[:, 0])


@pytest.fixture
def singles(tmp_path: Path) -> Path:
    """Four photos with a list of their intrinsics, as ImageNet is read."""
    folder, rows = tmp_path / "singles", []
    for number in range(4):
        file = f"n{number}/photo.png"
        (folder / file).parent.mkdir(parents=True)
        Image.new("RGB", (40, 30), (60 * number, 0, 99)).save(folder / file)
        rows.append({"file": file, "fx": 35, "fy": 35, "cx": 20, "cy": 15, "height": 30, "width": 40})
    (folder / SIDECAR).write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_single_images_supervise_themselves(singles):
    batches = of(singles, SMALL)
    for step in range(4):
        batch = batches.batch(step)
        assert batch.known == 1 and batch.views.images.shape[1] == 2
        assert torch.equal(batch.views.images[:, 0], batch.views.images[:, 1])
        assert torch.equal(batch.views.cameras.plucker()[:, 0], batch.views.cameras.plucker()[:, 1])
        assert not batch.views.mask.any()
    assert all(name.endswith("photo.png") for name in batch.names)
    alone = of(singles, Fixed(16, 24, scenes=2, known=(6,), targets=0)).batch(0)
    assert alone.known == 1 and alone.views.images.shape == (2, 1, 3, 16, 24)


def test_sources_are_drawn_by_their_shares_whatever_their_size(captures, singles):
    """Two captures, one capture and four single images: scenes of each are as many as its weight says."""
    one = captures / "2"
    shutil.copytree(one, captures.parent / "alone/0")
    shutil.rmtree(one)
    sources = [open_scenes(folder) for folder in (captures, captures.parent / "alone", singles)]
    batches = CaptureBatches(sources, [0.5, 0.2, 0.3], Fixed(8, 8, scenes=40, known=(1,), targets=1), generators)
    single = [batches._drawn(step, 1)[1] for step in range(1000)]
    assert sum(single) / 1000 == pytest.approx(0.3, abs=0.05)
    names, steps = [], [step for step in range(40) if not single[step]][:8]
    for step in steps:
        _, kind, generator = batches._drawn(step, 1)
        places = torch.multinomial(batches._weights[kind], 400, replacement=True, generator=generator)
        names += places.tolist()
    assert set(names) == {0, 1} and names.count(0) / len(names) == pytest.approx(5 / 7, abs=0.03)
    assert {shape.views for shape in (batches.shape(step) for step in range(40))} == {2}
    batch = batches.batch(steps[0])
    shares = [batch.names.count(name) / 40 for name in ("0", "1")]
    assert sum(shares) == 1 and set(batch.names) == {"0", "1"}  # both folders call a capture 0
    batches.close()


def test_worlds_and_captures_mix(worlds, captures):
    sources = [open_scenes(folder) for folder in (worlds, captures)]
    batches = CaptureBatches(sources, [0.5, 0.5], Fixed(24, 16, scenes=12, known=(2,), targets=1), generators)
    batch = batches.batch(0)
    rendered = torch.tensor([name.startswith("world") for name in batch.names])
    assert rendered.any() and not rendered.all()
    assert torch.equal(batch.complete, rendered) and torch.equal(batch.metric, rendered)
    batches.close()


def test_held_out_views_are_asked_for_as_worlds_are(worlds, captures):
    held = HeldOut(open_scenes(captures), 16, 24, views=4, scenes=2)
    assert len(held) == 2 and held.views == 4
    batch = held.batch(torch.tensor([1, 0]), torch.tensor([[0, 3], [1, 2]]))
    assert batch.images.shape == (2, 2, 3, 16, 24)
    cache = WorldsCache(worlds)
    expected = cache.batch(torch.tensor([1, 0]), torch.tensor([[0, 7], [2, 5]])).cameras  # evenly spread over eight
    for found, true in zip(batch.cameras.apart(), expected.apart(), strict=True):
        relative = true.relative_to(true.camera_to_world[0])
        torch.testing.assert_close(found.camera_to_world, relative.camera_to_world, atol=1e-5, rtol=0)
    document = json.loads((captures / "0/transforms.json").read_text())
    (captures / "0/transforms.json").write_text(json.dumps(document | {"frames": document["frames"][:7]}))
    held = HeldOut(open_scenes(captures), 16, 24, views=20)
    assert (held.views, len(held)) == (VIEWS, 2)  # as many as there are, and no scene of fewer
    for scene, left in ((1, 1), (2, 0)):
        (captures / f"{scene}/images/5.png").write_bytes(b"no photo")
        if left:
            assert len(HeldOut(open_scenes(captures), 16, 24)) == left
    with pytest.raises(ValueError, match=r"^captures: 3 scenes, each with photos that cannot be read; [^\n]*$"):
        HeldOut(open_scenes(captures), 16, 24)


def test_an_unfinished_cache_of_worlds_is_refused(worlds, tmp_path):
    folder = tmp_path / "unfinished"
    shutil.copytree(worlds, folder)
    (folder / "meta.json").unlink()
    with pytest.raises(ValueError, match=r"unfinished: found no meta.json"):
        open_scenes(folder)


def test_packed_captures_give_the_batches_of_their_folder(captures, tmp_path):
    """Photos are packed as they are, poses in double, intrinsics in single precision, depth to 0.014 percent."""
    pack(tmp_path / "packed", Plan(str(captures)))
    folder, packed = (of(path).batch(3) for path in (captures, tmp_path / "packed"))
    assert torch.equal(packed.views.images, folder.views.images) and packed.known == folder.known
    assert torch.equal(packed.views.confidence, folder.views.confidence)
    torch.testing.assert_close(packed.views.cameras.plucker(), folder.views.cameras.plucker(), atol=1e-5, rtol=0)
    mask = folder.views.mask
    torch.testing.assert_close(packed.views.depth[mask], folder.views.depth[mask], rtol=3e-4, atol=1e-4)
