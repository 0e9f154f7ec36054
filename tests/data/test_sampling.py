"""What a step shows: shapes, frames, the paper's mixture."""

import math

import pytest
import torch

from diorama.data.sampling import MIXTURE, Dynamic, Fixed, choose_frames, shares

# Table 7 of arXiv 2604.11331, typed from the paper a second time.
TABLE_7 = """
CO3D 27K 2.6M 7.1; WildRGBD 19K 6.8M 5.1; ARKitScenes 3.4K 0.9M 13.2; ScanNet 1.2K 1.9M 6.3; ScanNet++ 855 0.7M 3.4;
Taskonomy 537 4.6M 4.2; HM3D 899 9.5M 4.7; Hypersim 767 74K 5.0; RE10K 66K 8.9M 17.3; Waymo 798 0.8M 6.3;
Mapillary 74 27K 0.6; Virtual_KITTI 50 21K 0.7; MVS-Synth 120 12K 0.6; DL3DV 6K 2.2M 8.4; BlendedMVG 501 115K 5.3;
MegaDepth 213 123K 0.6; TartanAir 369 307K 3.9; ImageNet 1.3M 1.3M 8.4
"""
NUMBERS = {"": 1, "K": 1_000, "M": 1_000_000}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(sampling: Dynamic, steps: int = 3000, devices: int = 1):
    return [sampling.shape(generator(step), devices) for step in range(steps)]


def number(text: str) -> int:
    digits = text.rstrip("KM")
    return round(float(digits) * NUMBERS[text[len(digits) :]])


def test_every_row_of_the_papers_table_7():
    rows = [row.split() for row in TABLE_7.split(";")]
    expected = [(name.replace("_", " "), number(scenes), number(frames), float(w)) for name, scenes, frames, w in rows]
    assert [(part.name, part.scenes, part.frames, part.weight) for part in MIXTURE] == expected
    assert len(MIXTURE) == 18 and sum(part.weight for part in MIXTURE) == pytest.approx(101.1)


def test_the_mixture_is_made_to_sum_to_one():
    every = shares(tuple(part.name for part in MIXTURE), 18)
    assert sum(every) == pytest.approx(1)
    assert every[8] == pytest.approx(17.3 / 101.1)
    assert shares(("re10k", "Virtual KITTI", "2"), 3) == pytest.approx([17.3 / 20, 0.7 / 20, 2 / 20])
    assert shares((), 4) == [0.25] * 4


@pytest.mark.parametrize(
    ("weights", "sources", "message"),
    [
        (("1",), 2, r"--weights: found 1 for 2 of --data"),
        (("1", "RE10"), 2, r"--weights RE10: accepted are positive numbers and CO3D, .*ImageNet"),
        (("0", "1"), 2, r"--weights 0: accepted are positive"),
        (("1", "nan"), 2, r"--weights nan: accepted are positive"),
        (("inf", "1"), 2, r"--weights inf: accepted are positive"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused_in_one_line(weights, sources, message):
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        shares(weights, sources)


def test_shapes_stay_in_the_papers_ranges_and_fill_them():
    shapes = drawn(Dynamic())
    pixels = torch.tensor([shape.height * shape.width for shape in shapes], dtype=torch.float64)
    aspects = torch.tensor([shape.width / shape.height for shape in shapes], dtype=torch.float64)
    assert all(side % 14 == 0 for shape in shapes for side in (shape.height, shape.width))
    assert pixels.min() >= 37_000 and pixels.max() <= 75_500
    assert aspects.min() >= 0.7 and aspects.max() <= 1.8
    # Uniform pixels and uniform logarithms of the aspect, but for the grid: compared by their quarters.
    for values, low, high in ((pixels, 37_000, 75_500), (aspects.log(), math.log(0.7), math.log(1.8))):
        quarters = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        expected = low + (high - low) * torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        assert ((quarters - expected).abs() < 0.04 * (high - low)).all()
    correlation = torch.corrcoef(torch.stack([pixels, aspects]))[0, 1]
    assert abs(float(correlation)) < 0.06


def test_views_are_as_many_as_the_paper_says():
    shapes = drawn(Dynamic(targets=100))
    totals = torch.tensor([shape.views for shape in shapes])
    assert totals.unique().tolist() == list(range(6, 19))
    counts = totals.bincount()[6:]
    assert (counts - 3000 / 13).abs().max() < 4.5 * (3000 / 13) ** 0.5
    assert sum(shape.known == 1 for shape in shapes) / 3000 == pytest.approx(0.1, abs=0.02)
    of_ten = [shape.known for shape in shapes if shape.views == 10]
    assert set(of_ten) == {1, *range(2, 9)}  # two at least are left to be predicted
    capped = drawn(Dynamic(targets=4), 500)
    assert {shape.targets for shape in capped} == {2, 3, 4}
    assert {(shape.known, shape.targets) for shape in drawn(Dynamic(targets=0), 500)} == {(v, 0) for v in range(6, 19)}


@pytest.mark.parametrize("targets", [0, 4, 6])
@pytest.mark.parametrize(("tokens", "budget"), [(256, 20_000), (1024, 60_000), (1024, 17_000)])
def test_the_budget_of_tokens_is_kept_and_used(tokens, budget, targets):
    sampling = Dynamic(tokens=tokens, budget=budget, targets=targets)
    for shape in drawn(sampling, 400):
        patches = shape.height // 14 * (shape.width // 14)
        # The encoder reads every known view's patches and the latents; each target is read beside the latents.
        one = shape.known * patches + tokens + shape.targets * (patches + tokens)
        assert shape.scenes >= 1 and shape.scenes * one <= budget < (shape.scenes + 1) * one


def test_more_devices_have_more_scenes_of_the_same_shape():
    one, four = drawn(Dynamic(), 50), drawn(Dynamic(), 50, devices=4)
    assert four == [shape._replace(scenes=4 * shape.scenes) for shape in one]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(budget=11_000), r"a budget of 11000 tokens: one scene takes up to \d+; accepted is that or more"),
        (dict(pixels=(100, 150)), r"100 to 150 pixels of aspect 0.7 to 1.8: no sides in multiples of 14"),
        (dict(views=(2, 5)), r"2 to 5 views: accepted is a range that begins at 4"),
        (dict(views=(9, 8)), r"9 to 8 views: accepted is a range"),
    ],
)
def test_samplings_that_cannot_be_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        Dynamic(**changes)


def test_the_smallest_budget_is_named():
    with pytest.raises(ValueError, match="one scene takes up to") as refused:
        Dynamic(budget=1)
    least = int(str(refused.value).split("up to ")[1].split(";")[0])
    assert min(shape.scenes for shape in drawn(Dynamic(budget=least), 2000)) == 1
    with pytest.raises(ValueError, match="one scene"):
        Dynamic(budget=least - 1)


def test_fixed_shapes_differ_in_known_views_alone():
    sampling = Fixed(28, 42, scenes=6, known=(2, 3), targets=2)
    shapes = {sampling.shape(generator(step), 2) for step in range(20)}
    assert shapes == {(28, 42, 2, 2, 6), (28, 42, 3, 2, 6)} and sampling.most == 5


def line(count: int) -> torch.Tensor:
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, 0, 3] = torch.arange(count)
    return poses


def test_frames_are_a_stretch_with_one_stride():
    strides, ends, first_sorted = set(), set(), 0
    for seed in range(600):
        at = choose_frames(line(40), 4, 2, generator(seed))
        steps = set(torch.tensor(sorted(at)).diff().tolist())
        assert len(set(at)) == 6 and len(steps) == 1 and min(at) >= 0 and max(at) < 40
        strides |= steps
        ends |= {min(at), max(at)}
        first_sorted += at[:4] == sorted(at[:4])
    assert strides == set(range(1, 8)) and ends >= {0, 39}
    # Half keep time's order, and of the others one in 4! has it by chance.
    assert first_sorted / 600 == pytest.approx(0.5 + 0.5 / 24, abs=0.06)


def test_any_view_may_be_the_first_and_any_may_be_predicted():
    first, targets = torch.zeros(8), torch.zeros(8)
    for seed in range(1600):
        at = choose_frames(line(8), 4, 4, generator(seed))
        first[at[0]] += 1
        targets[at[4:]] += 1
    assert (targets / 1600 - 0.5).abs().max() < 0.06
    assert first.min() > 0.05 * 1600 / 2  # each of eight is first in an eighth of the unordered half


def test_a_window_bounds_the_stretch():
    spans = {max(at) - min(at) for at in (choose_frames(line(500), 3, 2, generator(s), window=30) for s in range(300))}
    assert spans == {4 * stride for stride in range(1, 8)}
    assert max(choose_frames(line(5), 3, 2, generator(), window=2)) == 4  # a window smaller than the views is theirs


def test_photos_in_no_order_are_chosen_near_each_other():
    """Two rooms whose photos alternate: a stretch of file names would mix them."""
    poses = line(40)
    poses[::2, 0, 3] += 1000
    for seed in range(50):
        at = choose_frames(poses, 3, 3, generator(seed), ordered=False, window=18)
        assert len(set(at)) == 6 and len({place % 2 for place in at}) == 1


def test_cameras_in_one_place_are_near_where_they_look_alike():
    poses = line(12)
    poses[:, 0, 3] = 0
    for place in range(12):
        angle = torch.tensor(math.pi * (place % 6) / 6 + 0.01 * (place // 6))
        poses[place, :3, 2] = torch.stack([angle.sin(), torch.zeros(()), angle.cos()])
    for seed in range(20):
        at = choose_frames(poses, 1, 1, generator(seed), ordered=False, window=2)
        assert abs(at[0] - at[1]) == 6


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="5 frames where 6 are wanted"):
        choose_frames(line(5), 4, 2, generator())
