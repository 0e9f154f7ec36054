"""CO3Dv2 in its own layout: gzipped annotations, row-vector PyTorch3D cameras, float16 bits in 16-bit PNG."""

import gzip
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from diorama.data.readers.co3d import CO3DSource, read_co3d

EXAMPLES = int(os.environ.get("DIORAMA_FUZZ", "500"))  # 10000 at night
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

HEIGHT, WIDTH = 20, 12
POINT = np.array([0.3, -0.2, 4.0])


def viewpoint(number, kind="ndc_isotropic"):
    rotation = Rotation.from_euler("xyz", [5 * number, 20, -3], degrees=True).as_matrix()
    focal, principal = [2.5, 2.25], [0.125, -0.0625]
    return {
        "R": rotation.tolist(),
        "T": [0.1, 0.2 * number, 2.0],
        "focal_length": focal,
        "principal_point": principal,
        "intrinsics_format": kind,
    }


def projected(view, point):
    """Pixels of a point, as PyTorch3D defines them: row vectors, x left, y up, the shorter half side is 1."""
    x, y, z = point @ np.array(view["R"]) + np.array(view["T"])
    half = min(HEIGHT, WIDTH) / 2
    (fx, fy), (px, py) = view["focal_length"], view["principal_point"]
    return np.array([WIDTH / 2 - half * (fx * x / z + px), HEIGHT / 2 - half * (fy * y / z + py)])


def write(root, change=None, quality=(0.9, 0.3)):
    frames = []
    for sequence in ("110_1", "111_2"):
        for number in range(3):
            base = f"apple/{sequence}"
            names = {
                "image": f"{base}/images/frame{number + 1:06d}.jpg",
                "depth": f"{base}/depths/frame{number + 1:06d}.jpg.geometric.png",
                "mask": f"{base}/depth_masks/frame{number + 1:06d}.png",
            }
            for name in names.values():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT), (50 * number, 9, 9)).save(root / names["image"])
            depth = np.full((HEIGHT, WIDTH), 1.5, np.float16)
            depth[0, :4] = [0, np.nan, np.inf, -1]
            Image.fromarray(depth.view(np.uint16)).save(root / names["depth"])
            mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
            mask[5, 5] = 0
            Image.fromarray(mask).save(root / names["mask"])
            frames.append(
                {
                    "sequence_name": sequence,
                    "frame_number": number,
                    "frame_timestamp": number / 10,
                    "image": {"path": names["image"], "size": [HEIGHT, WIDTH]},
                    "depth": {"path": names["depth"], "scale_adjustment": 2.0, "mask_path": names["mask"]},
                    "viewpoint": viewpoint(number),
                }
            )
    frames = frames[::-1]  # their order is not promised
    if change is not None:
        change(frames)
    sequences = [
        {"sequence_name": name, "category": "apple", "viewpoint_quality_score": score}
        for name, score in zip(("110_1", "111_2"), quality, strict=True)
    ]
    for name, document in (("frame_annotations", frames), ("sequence_annotations", sequences)):
        with gzip.open(root / "apple" / f"{name}.jgz", "wt") as file:
            json.dump(document, file)
    return root / "apple"


def test_cameras_image_points_where_pytorch3d_does(tmp_path):
    scene = read_co3d(write(tmp_path) / "110_1")
    assert scene.name == "apple/110_1" and len(scene) == 3 and scene.depth_kind == "mvs" and not scene.metric
    for number, frame in enumerate(scene.frames):
        pixel, depth = frame.camera.project(torch.from_numpy(POINT)[None])
        expected = projected(viewpoint(number), POINT)
        np.testing.assert_allclose(pixel.reshape(2), expected, atol=1e-9)
        z = (POINT @ np.array(viewpoint(number)["R"]) + np.array(viewpoint(number)["T"]))[2]
        assert float(depth.reshape(())) == pytest.approx(z)
        assert abs(float(frame.image(10**6)[0].mean()) * 255 - 50 * number) < 4


def test_depth_is_float16_bits_times_its_scale_where_it_is_valid(tmp_path):
    depth = read_co3d(write(tmp_path) / "110_1").frames[0].depth()
    assert depth.dtype == torch.float32 and (depth[0, :4] == 0).all() and depth[5, 5] == 0
    assert (depth > 0).sum() == HEIGHT * WIDTH - 5 and float(depth.max()) == 3.0


def test_sequences_of_poor_cameras_are_left_out(tmp_path):
    folder = write(tmp_path)
    assert [scene.name for scene in CO3DSource(folder)] == ["apple/110_1"]
    assert len(CO3DSource(folder, min_quality=0.1)) == 2


def test_photos_that_are_not_there_are_counted(tmp_path):
    folder = write(tmp_path)
    (folder / "110_1/images/frame000002.jpg").unlink()
    scene = CO3DSource(folder)[0]
    assert len(scene) == 2 and scene.missing == 1


def test_the_older_format_of_intrinsics(tmp_path):
    def older(frames):
        for frame in frames:
            frame["viewpoint"]["intrinsics_format"] = "ndc_norm_image_bounds"

    matrix = CO3DSource(write(tmp_path, older))[0].frames[0].camera.intrinsics[0]
    np.testing.assert_allclose(matrix, [[15, 0, 5.25], [0, 22.5, 10.625], [0, 0, 1]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f["image"].update(path="apple/../../etc/passwd"), "passwd.*below apple/"),
        (lambda f: f["image"].update(path="/etc/passwd"), "passwd.*below apple/"),
        (lambda f: f["viewpoint"].update(T=[0, float("nan"), 0]), "non-finite"),
        (lambda f: f["viewpoint"].update(R=[[0, 0, 0]] * 3), "110_1, frame"),
        (lambda f: f["viewpoint"].update(intrinsics_format="metres"), "metres.*ndc_isotropic"),
        (lambda f: f.update(viewpoint=None), "no viewpoint"),
        (lambda f: f["image"].update(size="big"), "no viewpoint"),
        (lambda f: f["depth"].update(scale_adjustment="1"), "scale_adjustment"),
    ],
)
def test_annotations_that_cannot_be_are_named(tmp_path, change, words):
    folder = write(tmp_path, lambda frames: change(frames[-1]))
    with pytest.raises(ValueError, match=words) as caught:
        CO3DSource(folder)[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"{}"), gzip.compress(b"[1]"), gzip.compress(b"[{}]")[:-4]],
    ids=["empty", "plain", "object", "number", "cut"],  # what gzip writes holds the time, and would not name one test
)
def test_files_that_are_no_annotations_are_refused(tmp_path, content):
    folder = write(tmp_path)
    (folder / "frame_annotations.jgz").write_bytes(content)
    with pytest.raises(ValueError, match="annotations.jgz"):
        CO3DSource(folder)


def test_annotations_that_unpack_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diorama.data.readers.co3d.MAX_JSON", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        CO3DSource(write(tmp_path))


def one_line(error):
    assert "\n" not in str(error), str(error)


odd = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.just([1, 2, 3])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["path", "R"]), inner)),
    max_leaves=4,
)
places = st.sampled_from(
    [(), ("image",), ("depth",), ("viewpoint",)]
    + [("image", key) for key in ("path", "size")]
    + [("depth", key) for key in ("path", "scale_adjustment", "mask_path")]
    + [("viewpoint", key) for key in ("R", "T", "focal_length", "principal_point", "intrinsics_format")]
    + [("frame_number",), ("sequence_name",)]
)


def test_annotations_of_any_values(tmp_path):
    folder = write(tmp_path)
    file = folder / "frame_annotations.jgz"
    honest = json.loads(gzip.decompress(file.read_bytes()))

    @fuzzed
    @given(places, odd)
    def read(place, value):
        document = json.loads(json.dumps(honest))
        found = document[-1]
        for key in place[:-1]:
            found = found[key]
        if place:
            found[place[-1]] = value
        else:
            document[-1] = value
        file.write_bytes(gzip.compress(json.dumps(document).encode(), 1))
        try:
            for frame in CO3DSource(folder)[0].frames:
                frame.depth and frame.depth()
        except ValueError as error:
            one_line(error)

    read()
