"""RealEstate10K: camera text beside frames, and pixelSplat's chunks, read without unpickling anything but tensors."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from diorama.data.readers.re10k import ChunkSource, ClipSource, _chunk, read_re10k

EXAMPLES = int(os.environ.get("DIORAMA_FUZZ", "500"))  # 10000 at night
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

HEIGHT, WIDTH, FRAMES = 18, 32, 4
FOCAL, CENTRE = (0.9, 1.6), (0.5, 0.5)


def poses():
    found = []
    for number in range(FRAMES):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("y", 7 * number, degrees=True).as_matrix()
        pose[:3, 3] = [0.5 * number, 0, -0.25]
        found.append(pose)
    return found


def row(pose):
    return [*FOCAL, *CENTRE, 0.0, 0.0, *np.linalg.inv(pose)[:3].reshape(-1).tolist()]


def jpeg(number):
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (40 * number, 90, 10)).save(file, "JPEG")
    return file.getvalue()


def stamp(number):
    return 9_966_633 + 100_100 * number  # the number of digits grows on the way


def write_text(root):
    (root / "clip").mkdir(parents=True)
    lines = ["https://www.youtube.com/watch?v=abcdefghijk"]
    for number, pose in enumerate(poses()):
        lines.append(" ".join(map(repr, [stamp(number), *row(pose)])))
        (root / "clip" / f"{stamp(number)}.jpg").write_bytes(jpeg(number))
    (root / "clip.txt").write_text("\n".join(lines) + "\n")
    return root / "clip.txt"


def clip(key):
    return {
        "key": key,
        "url": "https://www.youtube.com/watch?v=abcdefghijk",
        "timestamps": torch.tensor([stamp(number) for number in range(FRAMES)]),
        "cameras": torch.tensor([row(pose) for pose in poses()], dtype=torch.float32),
        "images": [torch.frombuffer(bytearray(jpeg(number)), dtype=torch.uint8) for number in range(FRAMES)],
    }


def write_chunks(root):
    for number, keys in enumerate((["b", "c"], ["a"])):
        torch.save([clip(key) for key in keys], root / f"{number:06d}.torch")
    (root / "index.json").write_text(json.dumps({"b": "000000.torch", "c": "000000.torch", "a": "000001.torch"}))
    return root


def check(scene, tolerance):
    assert len(scene) == FRAMES and scene.ordered and not scene.metric and scene.depth_kind == "none"
    for number, (frame, pose) in enumerate(zip(scene.frames, poses(), strict=True)):
        np.testing.assert_allclose(frame.camera.camera_to_world[0], pose, atol=tolerance)
        expected = [[0.9 * WIDTH, 0, WIDTH / 2], [0, 1.6 * HEIGHT, HEIGHT / 2], [0, 0, 1]]
        np.testing.assert_allclose(frame.camera.intrinsics[0], expected, rtol=1e-6)
        image = frame.image(10**6)
        assert image.shape == (3, HEIGHT, WIDTH) and abs(float(image[0].mean()) * 255 - 40 * number) < 4


def test_a_text_with_its_frames(tmp_path):
    check(read_re10k(write_text(tmp_path)), 1e-12)


def test_frames_of_lost_videos_are_counted(tmp_path):
    text = write_text(tmp_path)
    (tmp_path / "clip" / f"{stamp(2)}.jpg").unlink()
    scene = read_re10k(text)
    assert len(scene) == FRAMES - 1 and scene.missing == 1
    with pytest.raises(ValueError, match="none of its 4 frames"):
        read_re10k(text, tmp_path / "elsewhere")


def test_a_folder_of_texts(tmp_path):
    write_text(tmp_path / "train")
    (tmp_path / "train" / "lost.txt").write_text("https://www.youtube.com/watch?v=lost\n")
    source = ClipSource(tmp_path / "train")
    assert len(source) == 1 and source[0].name == "clip"
    with pytest.raises(ValueError, match="found no <clip>.txt"):
        ClipSource(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 2 3", "line 3 is '1 2 3'"),
        ("x" + " 0" * 18, "line 3"),
        ("5 nan" + " 0" * 17, "line 3"),
        ("5" + " 0" * 19, "line 3"),
    ],
)
def test_lines_that_are_no_cameras_are_named(tmp_path, line, words):
    text = write_text(tmp_path)
    lines = text.read_text().splitlines()
    text.write_text("\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(ValueError, match=words):
        read_re10k(text)


def test_a_camera_that_cannot_be_is_named(tmp_path):
    text = write_text(tmp_path)
    lines = text.read_text().splitlines()
    lines[1] = f"{stamp(0)}" + " 0" * 18
    text.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"clip.txt: {stamp(0)}: camera 0"):
        read_re10k(text)


@pytest.mark.parametrize("indexed", [True, False])
def test_chunks_are_found_with_and_without_their_index(tmp_path, indexed):
    write_chunks(tmp_path)
    if not indexed:
        (tmp_path / "index.json").unlink()
    source = ChunkSource(tmp_path)
    assert [scene.name for scene in source] == ["a", "b", "c"]
    for scene in source:
        check(scene, 1e-6)


class Bomb:
    def __reduce__(self):
        return (open, ("/tmp/never", "w"))


def test_nothing_in_a_chunk_is_called(tmp_path):
    write_chunks(tmp_path)
    torch.save([{"key": "a", "images": Bomb()}], tmp_path / "000001.torch")
    with pytest.raises(ValueError, match="000001.torch: found no chunk") as caught:
        ChunkSource(tmp_path)[0]
    assert "\n" not in str(caught.value)
    (tmp_path / "000001.torch").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="found no chunk"):
        ChunkSource(tmp_path)[0]


@pytest.mark.parametrize("change", [{"cameras": torch.zeros(4, 17)}, {"images": []}, {"images": [torch.zeros(3)] * 4}])
def test_clips_that_do_not_fit_together_are_named(tmp_path, change):
    torch.save([clip("a") | change], tmp_path / "000000.torch")
    with pytest.raises(ValueError, match="000000.torch: 'a'"):
        ChunkSource(tmp_path)[0]


def test_a_photo_that_is_none_is_named_by_its_clip(tmp_path):
    broken = clip("a")
    broken["images"][1] = torch.zeros(100, dtype=torch.uint8)
    torch.save([broken], tmp_path / "000000.torch")
    scene = ChunkSource(tmp_path)[0]
    with pytest.raises(ValueError, match="000000.torch: 'a', frame 1: found 100 bytes"):
        scene.frames[1].image(10**6)


def test_a_chunk_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    write_chunks(tmp_path)
    plain = tmp_path / "000001.torch"
    with zipfile.ZipFile(plain) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match="unpacks to more"):
        ChunkSource(tmp_path)[0]


@pytest.mark.parametrize("length", [0, 10, 1000, -1])
def test_a_chunk_cut_short_is_refused(tmp_path, length):
    write_chunks(tmp_path)
    whole = (tmp_path / "000001.torch").read_bytes()
    (tmp_path / "000001.torch").write_bytes(whole[:length])
    with pytest.raises(ValueError, match="found no chunk"):
        ChunkSource(tmp_path)[0]


@pytest.mark.parametrize("index", ["[]", "{}", '{"a": "../000001.torch"}', '{"a": "/etc/passwd"}', '{"a": 3}', "no"])
def test_an_index_leads_nowhere_else(tmp_path, index):
    write_chunks(tmp_path)
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(ValueError, match="index.json"):
        ChunkSource(tmp_path)


def test_an_index_that_promises_too_much_is_told(tmp_path):
    write_chunks(tmp_path)
    (tmp_path / "index.json").write_text('{"z": "000001.torch"}')
    with pytest.raises(ValueError, match="found no clip 'z'"):
        ChunkSource(tmp_path)[0]


def one_line(error):
    assert "\n" not in str(error), str(error)


def test_texts_of_any_words(tmp_path):
    text = write_text(tmp_path)
    honest = text.read_bytes()

    @fuzzed
    @given(
        st.integers(0, len(honest)),
        st.integers(0, 30),
        st.one_of(st.binary(max_size=20), st.sampled_from([b"nan", b"-"])),
    )
    def read(place, cut, data):
        text.write_bytes(honest[:place] + data + honest[place + cut :])
        try:
            read_re10k(text)
        except ValueError as error:
            one_line(error)

    read()


def test_chunks_of_any_bytes(tmp_path):
    path = tmp_path / "000000.torch"
    torch.save([clip("a")], path)
    honest = path.read_bytes()

    @fuzzed
    @given(st.integers(0, len(honest)), st.integers(0, 8), st.binary(max_size=8), st.integers(0, 3))
    def read(place, cut, data, shorter):
        damaged = honest[:place] + data + honest[place + cut :]
        path.unlink()  # a mapped file is not written over
        path.write_bytes(damaged[: len(damaged) // 2] if shorter == 0 else damaged)
        _chunk.cache_clear()
        try:
            for frame in ChunkSource(tmp_path)[0].frames:
                frame.image(10**6)
        except ValueError as error:
            one_line(error)

    read()
