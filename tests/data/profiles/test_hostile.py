"""Camera files, depth maps and profiles that no honest program wrote: one line of error, and bounded memory."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diorama.data.readers.depths import DEPTH_FORMATS, read_depth
from diorama.data.readers.frames import FramesSource, intrinsics_matrix, pose_matrix, read_frames
from diorama.data.readers.profiles import Intrinsics, Pattern, Pose, Stored, load_profile, parse_profile, profiles
from diorama.data.readers.stored import read_stored

from . import encodings as e
from .layouts import LAYOUTS

EXAMPLES = int(os.environ.get("DIORAMA_FUZZ", "500"))  # 10000 at night
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MINIMAL = 'title = "t"\nimages = "{frame}.png"\n[pose]\nfile = "{frame}.txt"\nread = "text"\n[intrinsics]\nvalues = 1\n'


def one_line(error):
    assert "\n" not in str(error) and len(str(error)) < 1000, str(error)


def tolerant(function, *arguments):
    """Only ValueError and OSError may leave a reader, and those on one line."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        one_line(error)
        return None


words = st.sampled_from(
    ["0", "1", "-1", "nan", "inf", "1e400", "extrinsic", "intrinsic", "{", "[", '"pose"', "\n", ",", "#"]
)
junk = st.one_of(st.binary(max_size=200), st.lists(words, max_size=40).map(lambda found: " ".join(found).encode()))


@pytest.mark.parametrize("kind", ["npz", "stack", "text", "named", "rows", "log", "mvsnet", "json"])
def test_camera_files_of_any_bytes(kind, tmp_path):
    path, stored = tmp_path / "file", Stored("file", kind, ("pose",), names="names", first=0)

    @fuzzed
    @given(junk, st.integers(0, 3), st.booleans())
    def read(data, skip, matched):
        path.write_bytes(data)
        more = {"match": ("frame",), "skip": skip} if matched else {"skip": skip}
        values = tolerant(read_stored, tmp_path, Stored(**{**vars(stored), **more}), [{"frame": "0"}, {"frame": "7"}])
        for found in values or []:
            if found is not None:
                tolerant(pose_matrix, found, Pose())
                tolerant(intrinsics_matrix, found, Intrinsics(), (10, 20))
                tolerant(intrinsics_matrix, found, Intrinsics(form=("w", "h")), (0, 0))

    read()


@pytest.mark.parametrize("stored", DEPTH_FORMATS)
def test_depth_maps_of_any_bytes(stored, tmp_path):
    path = tmp_path / "depth"
    writers = {"png": e.png, "png float16": e.png, "npy": e.npy, "pfm": e.pfm, "exr": e.exr}
    whole = path.with_suffix(".png" if stored.startswith("png") else ".npy")
    writers[stored](whole, e.depth(0).astype(np.uint16) if stored.startswith("png") else e.depth(0))
    honest = whole.read_bytes()

    @fuzzed
    @given(st.one_of(junk, st.tuples(st.integers(0, len(honest) - 1), st.binary(min_size=1, max_size=4))))
    def read(change):
        place, data = change if isinstance(change, tuple) else (None, change)
        path.write_bytes(data if place is None else honest[:place] + data + honest[place + len(data) :])
        found = tolerant(read_depth, path, stored)
        assert found is None or (found.ndim == 2 and found.dtype == np.float32)

    read()


@fuzzed
@given(st.text(max_size=60), st.text(max_size=30))
def test_patterns_of_any_text(pattern, name):
    made = tolerant(Pattern, pattern, "here")
    if made is not None:
        assert ".." not in pattern.split("/") and not pattern.startswith("/")
        made.expression.fullmatch(name)


values = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["npz", "{frame}", "x/*"])
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() or c in "{}/*_." else "_" for c in value) + '"'
    return repr(value)


TABLES = st.sampled_from(["", "pose.", "intrinsics.", "depth.", "lens."])
KEYS = [
    "title",
    "images",
    "scenes",
    "file",
    "read",
    "key",
    "form",
    "axes",
    "values",
    "size",
    "scale",
    "first",
    "match",
    "skip",
    "centers",
    "cut",
    "sequence",
    "metric",
    "direction",
    "names",
    "percentile",
    "far",
    "sky_from",
    "drop",
    "without",
    "quantile",
    "swap_world_xy",
    "scale_file",
    "odd",
]


def test_profiles_of_any_values(tmp_path):
    for number in range(2):
        e.photo(tmp_path / f"{number}.png", number)
        e.lines(tmp_path / f"{number}.txt", np.eye(4).tolist())
    honest = {"title": '"t"', "images": '"{frame}.png"', "pose.file": '"{frame}.txt"', "pose.read": '"text"'}
    honest |= {
        "intrinsics.values": "1",
        "intrinsics.form": '"f/w"',
        "depth.file": '"{frame}.png"',
        "depth.read": '"png"',
    }
    parsed = []

    @fuzzed
    @given(TABLES, st.sampled_from(sorted(KEYS)), values)
    def read(table, key, value):
        changed = honest | {table + key: toml(value)}
        profile = tolerant(parse_profile, "".join(f"{k} = {v}\n" for k, v in changed.items()), "profile.toml")
        if profile is not None:
            parsed.append(tolerant(read_frames, tmp_path, profile))

    read()
    assert any(parsed)


@fuzzed
@given(st.text(max_size=200))
def test_profiles_of_any_text(content):
    tolerant(parse_profile, content, "profile.toml")
    tolerant(parse_profile, MINIMAL + content, "profile.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL.replace("{frame}.png", "../{frame}.png"), "pattern '../"),
        (MINIMAL.replace("{frame}.txt", "/etc/{frame}.txt"), "pattern '/etc"),
        (MINIMAL.replace("{frame}.png", "{frame+1:4}.png"), "images counts from another number"),
        (MINIMAL.replace("{frame}.txt", "{other}.txt"), "names 'other'"),
        (MINIMAL.replace('read = "text"', 'read = "pickle"'), "pose: read is 'pickle'.*npz"),
        (MINIMAL.replace('read = "text"', 'reed = "text"'), "the key 'reed' in pose"),
        (MINIMAL.replace('read = "text"', ""), "without a key"),
        (MINIMAL.replace("values = 1", ""), "no intrinsics.file"),
        ('scenes = ["../*"]\n' + MINIMAL, "leads outside"),
        ("metric = 1\n" + MINIMAL, "metric is 1; accepted is a bool"),
        ("quantile = nan\n" + MINIMAL, "quantile is nan"),
        ("images = 3", "no 'title'|no 'pose'|images"),
        ("= 3", "no TOML"),
    ],
)
def test_profiles_that_cannot_be_say_where(text, words):
    with pytest.raises(ValueError, match=f"mine.toml: .*({words})") as caught:
        parse_profile(text, "mine.toml")
    one_line(caught.value)


def test_a_profile_by_its_name_or_its_file(tmp_path):
    (tmp_path / "mine.toml").write_text(MINIMAL)
    assert load_profile(tmp_path / "mine.toml").name == "mine"
    assert load_profile("cut3r_scannet") is profiles()["cut3r_scannet"]
    with pytest.raises(ValueError, match="scanet: no such profile.*cut3r_scannet"):
        load_profile("scanet")


def test_an_archive_that_promises_more_than_it_holds(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 4, 4)})
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr("pose.npy", file.getvalue() + bytes(128))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pose.npy", bytes(2**26 + 1))
    for name, words in (("lies.npz", "no array of"), ("bomb.npz", "more than")):
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            read_stored(tmp_path, Stored(name, "npz", ("pose",)), [{"frame": "0"}])
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
        tracemalloc.stop()


def test_pickled_arrays_are_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", pose=np.array({"a": 1}, dtype=object))
    with pytest.raises(ValueError, match="a.npz.*no array of object"):
        read_stored(tmp_path, Stored("a.npz", "npz", ("pose",)), [{"frame": "0"}])


def test_a_depth_map_that_promises_more_than_it_holds(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    (tmp_path / "a.npy").write_bytes(file.getvalue() + bytes(64))
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 4), np.float32))
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object))
    for name in ("a", "b", "c"):
        with pytest.raises(ValueError, match=f"{name}.npy: found .*accepted is a npy depth map"):
            read_depth(tmp_path / f"{name}.npy", "npy")


def test_a_text_larger_than_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("diorama.data.readers.stored.MAX_BYTES", 1000)
    (tmp_path / "a.txt").write_text("0 " * 1000)
    for kind in ("text", "rows", "log", "mvsnet", "json"):
        with pytest.raises(ValueError, match="a.txt: found more than 1000 bytes"):
            read_stored(tmp_path, Stored("a.txt", kind, ("pose",), first=0), [{"frame": "0"}])


@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_one_bad_depth_map_costs_its_frame_only(tmp_path, damage):
    folder = LAYOUTS["cut3r_scannet"](tmp_path)
    file = folder / "depth/00001.png"
    file.unlink() if damage == "absent" else file.write_bytes(file.read_bytes()[:60])
    frames = read_frames(folder, load_profile("cut3r_scannet")).frames
    assert (frames[0].depth() > 0).any() and (frames[2].depth() > 0).any()
    if damage == "absent":
        assert frames[1].depth is None
    else:
        with pytest.raises(ValueError, match="00001.png: found .*png depth map"):
            frames[1].depth()


def test_frames_without_cameras_are_counted_and_none_at_all_is_an_error(tmp_path):
    folder, profile = LAYOUTS["cut3r_scannet"](tmp_path), load_profile("cut3r_scannet")
    (folder / "cam/00001.npz").unlink()
    assert read_frames(folder, profile).missing == 1
    for file in (folder / "cam").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="3 photos but no camera for any.*cam/{frame}.npz"):
        read_frames(folder, profile)
    with pytest.raises(ValueError, match="no scene of ScanNet as CUT3R"):
        FramesSource(tmp_path / "scans_train", profile)
