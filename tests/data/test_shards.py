"""Packed shards give back what went in, one frame at a time, and whatever is damaged costs no more than itself."""

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diorama.data import members, packing, shards
from diorama.data.cache import write_cache
from diorama.data.images import read_image
from diorama.data.members import decode_depth, encode_depth
from diorama.data.open import open as open_path
from diorama.data.open import open_scene, open_scenes, open_source
from diorama.data.packing import Plan, pack
from diorama.data.scenes import CapturedScene, SceneSource
from diorama.data.shards import INDEX, TABLE, ShardSource, verify
from diorama.export.save import save
from diorama.geometry.cameras import Cameras
from diorama.scene import Condition, Scene, Views

SCENES, VIEWS, HEIGHT, WIDTH = 3, 4, 48, 64


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rendered worlds of four views, one of them under the sky."""
    folder = tmp_path_factory.mktemp("worlds") / "rooms"
    write_cache(folder, [3, 5, 8], views=VIEWS, height=HEIGHT, width=WIDTH, samples=1)
    depth = np.load(folder / "depth.npy", mmap_mode="r+")
    depth[0, 0, :8] = 0  # as where a ray meets nothing
    depth.flush()
    return folder


@pytest.fixture(scope="module")
def packed(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those worlds, all in one shard."""
    folder = tmp_path_factory.mktemp("packed") / "rooms"
    assert pack(folder, Plan(str(worlds), licence="CC0")).scenes == SCENES
    return folder


def nerfstudio(folder: Path, frames: int = 3, ending: str = "jpg", size: tuple[int, int] = (48, 64)) -> Path:
    """A capture with depth and masks, in photos of noise; its poses are known."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for number in range(frames):
        pixels = random.integers(0, 255, (size[0] // 8, size[1] // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / f"{number}.{ending}")
        Image.fromarray(random.integers(0, 60000, (24, 32)).astype(np.uint16)).save(folder / f"d{number}.png")
        Image.fromarray(random.integers(0, 2, (24, 32), np.uint8) * 255).save(folder / f"m{number}.png")
        pose = np.eye(4)
        pose[:3, 3] = 1e5 + number / 3, np.pi, -1e-9
        row = {"file_path": f"{number}.{ending}", "depth_file_path": f"d{number}.png", "mask_path": f"m{number}.png"}
        rows.append(row | {"transform_matrix": pose.tolist()})
    told = {"fl_x": 50.1, "cx": 32, "cy": 24, "w": size[1], "h": size[0], "axes": "opencv", "frames": rows}
    (folder / "transforms.json").write_text(json.dumps(told))
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


def test_worlds_come_back_within_the_documented_rounding(worlds: Path, packed: Path) -> None:
    there, back = open_scenes(worlds), ShardSource(packed)
    assert isinstance(back, SceneSource)
    assert len(back) == len(there) == SCENES
    skies = 0
    for number in range(SCENES):
        first, second = there[number], back[number]
        told = ("name", "ordered", "metric", "depth_kind", "quantile", "captions", "missing")
        assert [getattr(first, key) for key in told] == [getattr(second, key) for key in told]
        for one, two in zip(first.frames, second.frames, strict=True):
            # JPEG of quality 95 without subsampling, and no other loss: as Pillow alone writes and reads it.
            pixels, held = (one.image(2**24) * 255).round().byte().permute(1, 2, 0).numpy(), io.BytesIO()
            Image.fromarray(pixels).save(held, "JPEG", quality=95, subsampling=0)
            written = (two.image(2**24) * 255).round().byte().permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(written, np.asarray(Image.open(held)))
            assert np.square(pixels / 255.0 - written / 255.0).mean() < 10**-3.6  # 36 dB, as the docs say
            assert one.camera is not None and two.camera is not None
            assert torch.equal(one.camera.camera_to_world, two.camera.camera_to_world)
            assert two.camera.camera_to_world.dtype == torch.float64
            torch.testing.assert_close(one.camera.intrinsics, two.camera.intrinsics, rtol=2**-24, atol=0)
            assert one.depth is not None and two.depth is not None
            depth, again = one.depth(), two.depth()
            sky = depth.isinf()
            skies += int(sky.sum())
            assert torch.equal(sky, again.isinf())
            span = float((depth[~sky].max() / depth[~sky].min()).log())
            assert float((again / depth - 1)[~sky].abs().max()) <= span / 65533 / 2 + 2e-6
    assert skies > 0


@settings(max_examples=50, deadline=None)
@given(low=st.floats(1e-3, 1e3), ratio=st.floats(1, 1e6), seed=st.integers(0, 99))
def test_depth_codes_have_a_constant_relative_step(low: float, ratio: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    depth = torch.from_numpy(low * ratio ** random.random((8, 9))).float()
    depth[0, :4] = torch.tensor([0.0, -1.0, float("nan"), float("inf")])
    codes, span = encode_depth(depth)
    back = torch.from_numpy(decode_depth(codes, span))
    assert back[0, :4].tolist() == [0, 0, 0, float("inf")]
    valid = back[1:].double() / depth[1:].double() - 1
    assert float(valid.abs().max()) <= (span[1] - span[0]) / 65533 / 2 + 2e-6


def test_depth_without_a_valid_pixel_or_with_one_value() -> None:
    for depth in (torch.zeros(2, 3), torch.full((2, 3), float("inf")), torch.full((2, 3), 2.5)):
        torch.testing.assert_close(torch.from_numpy(decode_depth(*encode_depth(depth))), depth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_photos_that_need_no_change_keep_their_bytes(tmp_path: Path, ending: str) -> None:
    capture = nerfstudio(tmp_path / "room", ending=ending)
    pack(tmp_path / "out", Plan(str(capture)))
    there, back = open_scenes(capture)[0], ShardSource(tmp_path / "out")[0]
    assert (back.name, back.metric, len(back)) == ("room", False, 3)
    for number, (one, two) in enumerate(zip(there.frames, back.frames, strict=True)):
        assert two.encoded is not None
        assert two.encoded() == (capture / f"{number}.{ending}").read_bytes()
        assert torch.equal(one.image(2**24), two.image(2**24))
        assert one.mask is not None and two.mask is not None and torch.equal(one.mask(), two.mask())
        assert one.camera is not None and two.camera is not None
        assert torch.equal(one.camera.camera_to_world, two.camera.camera_to_world)  # 1e5 away and all
        assert one.depth is not None and two.depth is not None
        torch.testing.assert_close(one.depth(), two.depth(), rtol=2e-4, atol=0)


def test_turned_photos_and_lenses_are_not_kept_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(pixels).save(folder / "a.jpg", exif=tags)
    pack(tmp_path / "out", Plan(str(folder), photos="png"))
    (frame,) = ShardSource(tmp_path / "out")[0].frames
    assert frame.camera is None
    assert torch.equal(frame.image(2**24), read_image(folder / "a.jpg"))


def test_larger_photos_are_reduced_with_their_cameras_depth_and_masks(tmp_path: Path) -> None:
    capture = nerfstudio(tmp_path / "room")
    pack(tmp_path / "out", Plan(str(capture), size=12, photos="png"))
    there, back = open_scenes(capture)[0].frames[0], ShardSource(tmp_path / "out")[0].frames[0]
    assert there.camera is not None and back.camera is not None
    assert torch.equal(back.camera.intrinsics, there.camera.resized(12, 16).intrinsics.float().double())
    expected = there.image(2**24).unflatten(1, (12, 4)).unflatten(3, (16, 4)).mean((2, 4))
    assert back.image(2**24).shape == (3, 12, 16)
    assert float((back.image(2**24) - expected).abs().mean()) < 0.05
    assert there.depth is not None and back.depth is not None and back.mask is not None and there.mask is not None
    torch.testing.assert_close(back.depth(), there.depth()[1::2, 1::2], rtol=2e-4, atol=0)
    assert torch.equal(back.mask(), there.mask()[1::2, 1::2])


def test_a_shard_is_an_ordinary_tar(packed: Path) -> None:
    with tarfile.open(packed / "train-000000.tar") as tar:
        names = tar.getnames()
        assert names[:2] == ["000000-world_3/000000.rgb.jpg", "000000-world_3/000000.depth.png"]
        assert len(names) == SCENES * (2 * VIEWS + 2)
        meta = json.loads(tar.extractfile("000001-world_5/meta.json").read())  # type: ignore[union-attr]
        cameras = np.load(tar.extractfile("000001-world_5/cameras.npz"))  # type: ignore[arg-type]
        assert (meta["licence"], meta["split"], meta["dataset"]) == ("CC0", "train", "rooms")
        assert {key: (cameras[key].dtype.str, cameras[key].shape) for key in cameras} == {
            "c2w": ("<f8", (VIEWS, 4, 4)),
            "K": ("<f4", (VIEWS, 3, 3)),
            "hw": ("<i4", (VIEWS, 2)),
            "time_us": ("<i8", (VIEWS,)),
            "pose_ok": ("|b1", (VIEWS,)),
            "depth_log_range": ("<f4", (VIEWS, 2)),
        }
    index = json.loads((packed / f"train-000000{INDEX}").read_text())
    assert [scene["key"] for scene in index["scenes"]] == ["000000-world_3", "000001-world_5", "000002-world_8"]


def test_one_frame_costs_one_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, asked = ShardSource(packed)[1], []
    read = os.pread
    monkeypatch.setattr(shards.os, "pread", lambda *args: asked.append(args[1:]) or read(*args))
    scene.frames[2].image(2**24)
    index = json.loads((packed / f"train-000000{INDEX}").read_text())
    offset, size, _ = index["scenes"][1]["members"]["000002.rgb.jpg"]
    assert asked == [(size, offset)]


def test_sources_and_scenes_travel_to_other_processes(packed: Path) -> None:
    source = ShardSource(packed)
    scene = source[0]
    image = scene.frames[0].image(2**24)
    again, there = pickle.loads(pickle.dumps((source, scene)))
    assert torch.equal(again[0].frames[0].image(2**24), image)
    assert torch.equal(there.frames[0].image(2**24), image)
    assert len(pickle.dumps(open_scenes(packed))) < 10**4


def test_what_opens_a_folder_opens_shards(packed: Path, tmp_path: Path) -> None:
    assert isinstance(open_source(packed), ShardSource)
    with pytest.raises(ValueError, match="packed shards of 3 scenes; accepted is one scene"):
        open_scene(packed)
    pack(tmp_path / "one", Plan(str(nerfstudio(tmp_path / "room"))))
    scene, views = open_scene(tmp_path / "one"), open_path(tmp_path / "one")
    assert isinstance(scene, CapturedScene) and scene.layout == "packed shards"
    assert views.images.shape == (3, 3, 48, 64)
    assert len(open_scenes(tmp_path / "one")) == 1


def test_splits_are_told_apart(worlds: Path, tmp_path: Path) -> None:
    room = nerfstudio(tmp_path / "room")
    pack(tmp_path / "out", Plan(str(room), split="test"))
    assert ShardSource(tmp_path / "out").split == "test"
    pack(tmp_path / "out", Plan(str(worlds), split="train"))
    assert len(ShardSource(tmp_path / "out")) == SCENES
    assert len(ShardSource(tmp_path / "out", "test")) == 1
    assert verify(tmp_path / "out") == []
    with pytest.raises(ValueError, match=r"no val\.scenes\.jsonl; accepted is one of test, train"):
        ShardSource(tmp_path / "out", "val")
    with pytest.raises(FileExistsError, match="exists already"):
        pack(tmp_path / "out", Plan(str(room), split="test"))
    with pytest.raises(ValueError, match="split '../a'"):
        pack(tmp_path / "out", Plan(str(room), split="../a"))


def test_what_cannot_be_decoded_is_left_out_and_told(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        nerfstudio(tmp_path / "rooms" / name)
    (tmp_path / "rooms/a/1.jpg").write_bytes(b"nothing")
    for number in range(3):
        (tmp_path / f"rooms/b/d{number}.png").write_bytes(b"nothing")
    done = pack(tmp_path / "out", Plan(str(tmp_path / "rooms")))
    assert (done.scenes, done.frames, len(done.left_out)) == (2, 5, 1)
    assert "b: none of its 3 frames can be decoded" in done.left_out[0]
    source = ShardSource(tmp_path / "out")
    assert [(scene.name, len(scene), scene.missing) for scene in (source[0], source[1])] == [("a", 2, 1), ("c", 3, 0)]
    for number in range(3):
        (tmp_path / f"rooms/c/d{number}.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no scene that can be packed"):
        pack(tmp_path / "none", Plan(str(tmp_path / "rooms/c")))
    assert not (tmp_path / "none").exists()


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_run_that_ended_anywhere_is_continued_to_the_same_bytes(worlds: Path, tmp_path: Path, monkeypatch) -> None:
    plan = Plan(str(worlds), megabytes=0)
    pack(tmp_path / "whole", plan)
    expected = bytes_below(tmp_path / "whole")
    assert len(expected) == 2 * SCENES + 1
    rename, number = Path.replace, 0
    while True:  # ended before the first file takes its place, before the second, ...
        left, out = number, tmp_path / f"out{number}"

        def ending(path: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", ending)
            try:
                pack(out, plan)
                break
            except KeyboardInterrupt:
                assert not (out / f"train{TABLE}").exists()
        pack(out, plan)
        assert bytes_below(out) == expected
        number += 1
    assert number == 1 + 4 * SCENES + 1


@pytest.mark.timeout(400)  # other processes import torch, which takes minutes on a machine that is busy
def test_a_killed_run_is_continued_by_several_processes(tmp_path: Path) -> None:
    for name in range(4):
        nerfstudio(tmp_path / f"rooms/{name}", size=(240, 320))
    plan = Plan(str(tmp_path / "rooms"), size=100)
    pack(tmp_path / "whole", plan)
    script = tmp_path / "program.py"
    script.write_text(
        "import sys; from diorama.data.packing import Plan, pack\n"
        f"if __name__ == '__main__': pack(sys.argv[1], {plan!r}, workers=2)"
    )
    work = tmp_path / "out/.packing-train"
    with subprocess.Popen([sys.executable, script, tmp_path / "out"], start_new_session=True) as process:
        end = time.monotonic() + 200
        while not list(work.glob("00*.json")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    pack(tmp_path / "out", plan)
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "whole")


def test_another_plan_does_not_continue(worlds: Path, tmp_path: Path, monkeypatch) -> None:
    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing._Shards, "finish", ends)
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path / "out", Plan(str(worlds)))
    with pytest.raises(ValueError, match="an earlier run had another size"):
        pack(tmp_path / "out", Plan(str(worlds), size=32))
    with pytest.raises(ValueError, match=r"no \*\.scenes\.jsonl"):
        verify(tmp_path / "out")


def spans(folder: Path) -> dict[str, tuple[int, int]]:
    """First byte of each scene in the tar, and where its last member ends."""
    index = json.loads((folder / f"train-000000{INDEX}").read_text())
    places = {scene["key"]: scene["members"].values() for scene in index["scenes"]}
    return {key: (min(p[0] for p in at) - 512, max(p[0] + p[1] for p in at)) for key, at in places.items()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_costs_the_scenes_it_touches_and_no_other(packed: Path, tmp_path: Path, data: st.DataObject) -> None:
    size = (packed / "train-000000.tar").stat().st_size
    cut = data.draw(st.integers(0, size - 1))
    broken = copied(packed, tmp_path / "broken")
    os.truncate(broken / "train-000000.tar", cut)
    lost = {key for key, (_, end) in spans(packed).items() if end > cut}
    found = verify(broken)
    assert found
    assert {damage.scene for damage in found} - {None} == lost
    source, whole = ShardSource(broken), ShardSource(packed)
    for number, key in enumerate(spans(packed)):
        if key in lost:
            continue
        for one, two in zip(whole[number].frames, source[number].frames, strict=True):
            assert one.encoded is not None and two.encoded is not None and one.encoded() == two.encoded()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_is_found_and_never_taken_for_pixels(packed: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((packed / "train-000000.tar").read_bytes())
    broken = copied(packed, tmp_path / "broken")
    key, (start, end) = data.draw(st.sampled_from(sorted(spans(packed).items())))
    place = data.draw(st.integers(start, end - 1))
    index = json.loads((packed / f"train-000000{INDEX}").read_text())
    inside = [
        (scene["key"], name)
        for scene in index["scenes"]
        for name, (offset, size, _) in scene["members"].items()
        if offset <= place < offset + size
    ]
    content[place] ^= data.draw(st.integers(1, 255))
    (broken / "train-000000.tar").write_bytes(content)
    if inside:
        assert [damage.scene for damage in verify(broken)] == [key]
        if inside[0][1].endswith("rgb.jpg"):
            frame = ShardSource(broken)[sorted(spans(packed)).index(key)].frames[int(inside[0][1][:6])]
            with pytest.raises(ValueError, match="its bytes are not those that were packed"):
                frame.image(2**24)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_index_is_reported_and_costs_the_scenes_it_told_of(
    packed: Path, tmp_path: Path, data: st.DataObject
) -> None:
    broken = copied(packed, tmp_path / "broken")
    cut = data.draw(st.integers(0, (packed / f"train-000000{INDEX}").stat().st_size - 1))
    os.truncate(broken / f"train-000000{INDEX}", cut)
    found = {damage.scene for damage in verify(broken)}
    rows = [json.loads(line) for line in (packed / f"train{TABLE}").read_text().splitlines()]
    assert found == {None} | {row["key"] for row in rows if sum(row["index"]) > cut}
    for number, row in enumerate(rows):
        if row["key"] not in found:
            assert len(ShardSource(broken)[number]) == VIEWS


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_table_is_reported(packed: Path, tmp_path: Path, data: st.DataObject) -> None:
    broken = copied(packed, tmp_path / "broken")
    os.truncate(broken / f"train{TABLE}", data.draw(st.integers(0, (packed / f"train{TABLE}").stat().st_size - 2)))
    assert verify(broken)


def changed(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the index's line of the first scene; the table is kept in step."""
    path, table = folder / f"train-000000{INDEX}", folder / f"train{TABLE}"
    lines, rows = path.read_text().splitlines(), [json.loads(line) for line in table.read_text().splitlines()]
    scene = json.loads(lines[1].rstrip(","))
    change(scene)
    lines[1] = json.dumps(scene) + ","
    path.write_text("\n".join(lines) + "\n")
    start = len(lines[0]) + 1
    for line, row in zip(lines[1:], rows, strict=False):
        row["index"] = [start, len(line.rstrip(","))]
        start += len(line) + 1
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))


PHOTO = "000000.rgb.jpg"
LIES: dict[str, tuple[Callable[[dict], object], str]] = {
    "offset beyond the file": (lambda s: s["members"][PHOTO].__setitem__(0, 2**40), "the file is cut off"),
    "size beyond all memory": (lambda s: s["members"][PHOTO].__setitem__(1, 2**50), "accepted are at most"),
    "negative offset": (lambda s: s["members"][PHOTO].__setitem__(0, -1), "accepted are offset, size and CRC-32"),
    "huge number": (lambda s: s["members"][PHOTO].__setitem__(0, 10**30), "accepted are offset, size and CRC-32"),
    "true as a size": (lambda s: s["members"][PHOTO].__setitem__(1, True), "accepted are offset, size and CRC-32"),
    "no list": (lambda s: s["members"].__setitem__(PHOTO, {}), "accepted are offset, size and CRC-32"),
    "absolute path": (lambda s: s["members"].__setitem__("/etc/passwd", [0, 1, 1]), "'/etc/passwd: "),
    "parent path": (lambda s: s["members"].__setitem__("../../a.png", [0, 1, 1]), "'../../a.png: "),
    "another scene's line": (lambda s: s.__setitem__("key", "other"), "tells of another scene"),
    "no members": (lambda s: s.__setitem__("members", []), "tells of another scene"),
    "no cameras": (lambda s: s["members"].pop("cameras.npz"), "tells of another scene"),
    "no photo": (lambda s: s["members"].pop(PHOTO), "no photo 0"),
    "a photo as cameras": (lambda s: s["members"].__setitem__("cameras.npz", s["members"][PHOTO]), "found "),
    "cameras as meta": (lambda s: s["members"].__setitem__("meta.json", s["members"]["cameras.npz"]), "not JSON"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused_in_one_line(packed: Path, tmp_path: Path, lie: str) -> None:
    change, message = LIES[lie]
    broken = copied(packed, tmp_path / "broken")
    changed(broken, change)
    with pytest.raises(ValueError, match=r"^\S+(train-000000|train\.)") as refused:
        ShardSource(broken)[0].frames[0].image(2**24)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert [damage.scene for damage in verify(broken) if damage.scene] == ["000000-world_3"]
    assert len(ShardSource(broken)[1]) == VIEWS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"[1, 2]", "found a JSON list"),
        (b"[" * 100_000, "not JSON"),
        (b'{"key": "../../a", "shard": "train-000000", "index": [0, 1], "n_frames": 1}', "accepted are a key"),
        (b'{"key": "a", "shard": "/etc/train-000000", "index": [0, 1], "n_frames": 1}', "accepted are a key"),
        (b'{"key": "a", "shard": "train-000000", "index": [0, -1], "n_frames": 1}', "accepted are a key"),
        (b'{"key": "a", "shard": "train-000000", "index": [0], "n_frames": 1}', "accepted are a key"),
        (b"\xff\xfe", "not JSON"),
    ],
    ids=["list", "nested", "parent key", "absolute shard", "negative", "short", "bytes"],
)
def test_a_table_that_lies_is_refused_in_one_line(packed: Path, tmp_path: Path, row: bytes, message: str) -> None:
    broken = copied(packed, tmp_path / "broken")
    (broken / f"train{TABLE}").write_bytes(row + b"\n")
    with pytest.raises(ValueError, match=r"train\.scenes\.jsonl: line 1") as refused:
        ShardSource(broken)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert verify(broken)[0].file.endswith(TABLE)


def test_a_giant_json_is_refused_before_it_is_read(packed: Path, tmp_path: Path) -> None:
    broken = copied(packed, tmp_path / "broken")
    os.truncate(broken / f"train{TABLE}", 2**30)
    with pytest.raises(ValueError, match="found 1073741824 bytes; accepted are at most"):
        ShardSource(broken)
    broken = copied(packed, tmp_path / "broken")
    os.truncate(broken / f"train-000000{INDEX}", 2**30)
    row = {"key": "000000-world_3", "shard": "train-000000", "index": [0, 2**30], "n_frames": 4}
    (broken / f"train{TABLE}").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="1073741824 bytes; accepted are at most"):
        ShardSource(broken)[0]
    assert verify(broken)


def test_tars_that_hold_something_else_are_reported(packed: Path, tmp_path: Path) -> None:
    """A link where a photo should be, another name, and bytes that no index tells of."""
    for change in ("link", "name"):
        broken = copied(packed, tmp_path / "broken")
        content = bytearray((broken / "train-000000.tar").read_bytes())
        told = tarfile.TarInfo("000000-world_3/000000.rgb.jpg" if change == "link" else "/etc/passwd")
        told.size = int(tarfile.TarInfo.frombuf(bytes(content[:512]), "ascii", "strict").size)
        if change == "link":
            told.type, told.linkname = tarfile.SYMTYPE, "/etc/passwd"
        content[:512] = told.tobuf(tarfile.USTAR_FORMAT)
        (broken / "train-000000.tar").write_bytes(content)
        (damage,) = verify(broken)
        assert damage.scene == "000000-world_3" and "should be" in damage.fault
    broken = copied(packed, tmp_path / "broken")
    lines = (broken / f"train{TABLE}").read_text().splitlines()
    (broken / f"train{TABLE}").write_text("\n".join(lines[1:]) + "\n")
    assert {damage.fault for damage in verify(broken)} == {
        "holds bytes that its index does not tell of",
        "tells of 3 scenes, the table of 2",
    }


def test_what_is_no_regular_file_is_refused(packed: Path, tmp_path: Path) -> None:
    broken = copied(packed, tmp_path / "broken")
    (broken / "train-000000.tar").unlink()
    with pytest.raises(ValueError, match="no such file"):
        ShardSource(broken)[0]
    os.mkfifo(broken / "train-000000.tar")  # opened, it would wait for ever
    with pytest.raises(ValueError, match="no regular file"):
        ShardSource(broken)[0]
    assert verify(broken)


def test_cameras_that_are_none_are_refused(packed: Path) -> None:
    good = members.Placed(None, (4, 4))
    assert [placed.camera for placed in members.decode_cameras(members.encode_cameras([good]), "x")] == [None]
    bad = replace(ShardSource(packed)[0].frames[0].camera, camera_to_world=torch.full((1, 4, 4), torch.nan).double())  # type: ignore[type-var]
    for data in (
        b"",
        b"PK\x03\x04",
        members.encode_cameras([members.Placed(bad, (4, 4))]),
        members.encode_cameras([members.Placed(None, (0, 4))]),
        members.encode_cameras([members.Placed(None, (4, 4), (0.0, 1e9))]),
    ):
        with pytest.raises(ValueError, match="^x: found .*; accepted is what `diorama data pack` wrote$"):
            members.decode_cameras(data, "x")


def test_a_saved_scene_is_packed(tmp_path: Path) -> None:
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 0.25
    cameras = Cameras.from_fov(60.0, 24, 32, poses)
    confidence = torch.ones(2, 24, 32)
    confidence[:, :4] = 0
    images = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    views = Views(images, cameras, cameras.unproject(torch.full((2, 24, 32), 3.0)), confidence)
    save(Scene(views, Condition(prompt="two walls")), tmp_path / "made")
    pack(tmp_path / "out", Plan(str(tmp_path / "made"), photos="png"))
    scene = ShardSource(tmp_path / "out")[0]
    assert (scene.name, scene.captions, scene.depth_kind) == ("made", ("two walls",), "dense")
    back = scene.views()
    assert back.cameras is not None and back.depth is not None and back.mask is not None
    assert torch.equal(back.cameras.camera_to_world, poses.double())
    torch.testing.assert_close(back.images, images, rtol=0, atol=0.5 / 255 + 1e-6)
    assert torch.equal(back.mask, confidence > 0)
    torch.testing.assert_close(back.depth[back.mask], torch.full((2 * 20 * 32,), 3.0).double(), rtol=2e-6, atol=0)


def test_a_folder_of_captures_is_a_source(tmp_path: Path) -> None:
    for name in ("10", "9"):
        nerfstudio(tmp_path / "rooms" / name)
    source = open_scenes(tmp_path / "rooms")
    assert [source[number].name for number in range(len(source))] == ["9", "10"]
    (tmp_path / "rooms/11").mkdir()
    with pytest.raises(ValueError, match=r"rooms/11: found no capture"):
        open_scenes(tmp_path / "rooms")[2]
    with pytest.raises(ValueError, match=r"11: found no folder; accepted is a photo"):
        open_scenes(tmp_path / "rooms/11")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_scenes(tmp_path / "nowhere")
