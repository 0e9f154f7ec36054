"""Benchmarks as records: which views of a scene are known, which are scored, at what size, out of which scenes."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

ASPECTS = (0.7, 1.8)  # width / height that 3DRAE trains on; wider and narrower pictures are cropped
Source = Literal["worlds", "folders", "index", "split"]


@dataclass(frozen=True)
class Setting:
    """One way to ask: what the method is told of a scene."""

    name: str
    known: tuple[int, ...] | None  # places among the scene's views, negative ones from the end; None: all views
    cameras: bool = True  # whether the wanted cameras are told; otherwise the method predicts them

    def places(self, views: int) -> tuple[int, ...]:
        """Places of the known ones among `views` views; ValueError where there are too few."""
        if self.known is None:
            return tuple(range(views))
        if any(not -views <= place < views for place in self.known):
            raise ValueError(f"{views} views, but the setting {self.name!r} knows the places {self.known}")
        return tuple(dict.fromkeys(place % views for place in self.known))


@dataclass(frozen=True)
class Size:
    """Size of the pictures that are scored: one for all (`height` and `width`), or an area of each scene's aspect.

    Pictures are resized until they cover it and then cropped around their centre.
    """

    height: int | None = None
    width: int | None = None
    pixels: int | None = None  # area, in place of height and width
    multiple: int = 1  # of which both sides are, where `pixels` is given

    def of(self, height: int, width: int) -> tuple[int, int]:
        """The size that pictures of `height` and `width` get."""
        if self.pixels is None:
            return self.height or height, self.width or width
        aspect = min(max(width / height, ASPECTS[0]), ASPECTS[1])
        sides = (self.pixels / aspect) ** 0.5, (self.pixels * aspect) ** 0.5
        # Down, so that the area stays within what the method was trained on.
        tall, wide = (max(1, int(side / self.multiple)) * self.multiple for side in sides)
        return tall, wide


@dataclass(frozen=True)
class Protocol:
    """A benchmark: what is asked and what is scored. Where a paper is silent, the comment says what was chosen."""

    name: str
    describes: str
    source: Source
    settings: tuple[Setting, ...]  # empty where an index or split file says which views are known
    views: int | None  # of a scene, evenly spaced over its frames with both ends; None: those that the file names
    size: Size
    path: int | None = None  # worlds: views of the whole path, of which the first `views` are taken; None: no more
    score_known: bool = False  # known views are shown but not scored, except where all are known
    scenes: int | None = None  # of the whole benchmark; None: all there are
    quick: int = 8  # scenes of the quick form
    steps: int | None = None  # of the sampler; None: the model's own
    guidance: float | None = None
    cloud_samples: int | None = 20_000  # of Gen3R's cloud metrics (farthest points); None compares all points
    hashes: dict[int, str] = field(default_factory=dict)  # number of scenes -> SHA-256 of what is scored against


def known_places(count: int, views: int) -> tuple[int, ...]:
    """Places of the known views along the path: evenly spaced with both ends; the first view alone."""
    return uniform(count, views) if count > 1 else (0,)


def uniform(count: int, frames: int) -> tuple[int, ...]:
    """`count` of `frames` frames, evenly spaced with both ends: round(linspace(0, frames - 1, count))."""
    return tuple(torch.linspace(0, frames - 1, count, dtype=torch.float64).round().int().tolist())


def _numbers(counts: tuple[int, ...], views: int) -> tuple[Setting, ...]:
    return tuple(Setting(f"{count} known", known_places(count, views)) for count in counts)


_TOKENS: dict[str, Any] = dict(
    settings=_numbers((1, 2, 6), 16),  # the main text says random, the appendix uniform: the appendix
    views=16,
    size=Size(pixels=75_500, multiple=14),  # not stated: the largest area trained at, at the scene's own aspect
    steps=50,
    guidance=2.0,
)

WORLDS = Protocol(
    name="worlds",
    describes="procedural test worlds, which the embedded models never saw; nothing to download",
    source="worlds",
    settings=_numbers((1, 2, 4), 16),
    views=16,
    size=Size(64, 64),
    scenes=64,  # 960 generated pictures from one known view, enough for a Fréchet distance of 64 features
    quick=16,
    cloud_samples=None,  # choosing farthest points would take longer than all the rest
    hashes={  # `benchmark.hash` of run.json
        16: "b6b7ced1375f749b2772ff9b1d6cf5566cf1293d196aaf2f21a4c16323600d7b",
        64: "e105fcb0b25fe7167ad289080614cb3f4289a29c2b3d34f5506d18ff06305a2b",
    },
)

WORLDS_CLIPS = Protocol(
    name="worlds-clips",
    describes="the same worlds as Gen3R's clips: the first 9 of 17 views at 112x112; first, both ends or all known",
    source="worlds",
    settings=(Setting("first", (0,)), Setting("first and last", (0, -1)), Setting("all, no cameras", None, False)),
    views=9,
    size=Size(112, 112),
    path=17,
    scenes=64,
    quick=16,
    cloud_samples=None,
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        WORLDS,
        WORLDS_CLIPS,
        Protocol(
            name="3drae",
            describes="3DRAE + 3DDiT section 5: 16 views of captured scenes; 1, 2 or 6 known",
            source="folders",
            **_TOKENS,
        ),
        Protocol(
            name="gen3r",
            describes="Gen3R section 4: 49 frames; the first, first and last, or all known; cameras told or predicted",
            source="folders",
            settings=(
                Setting("first", (0,)),
                Setting("first and last", (0, -1)),
                Setting("all", None),
                Setting("first, no cameras", (0,), cameras=False),
                Setting("first and last, no cameras", (0, -1), cameras=False),
                Setting("all, no cameras", None, cameras=False),  # the tables of reconstruction
            ),
            views=49,  # which 49 of a longer sequence is not stated: spread over all of it
            size=Size(560, 560),
            scenes=200,  # of each data set, drawn at random: which ones is not stated
            # Whether known frames count is not stated: they do not, a near-perfect frame would say nothing.
        ),
        Protocol(
            name="re10k",
            describes="pixelSplat's index files {scene: {context, target}}, also of ACID and DL3DV, at 256x256",
            source="index",
            settings=(),
            views=None,
            size=Size(256, 256),
        ),
        Protocol(
            name="seva",
            describes="Stable Virtual Camera's split files train_test_split_N.json beside each scene, at 576x576",
            source="split",
            settings=(),
            views=None,
            size=Size(576, 576),  # its V entries score an uncropped shape: not done here
        ),
        # 3DRAE shows these three as pictures only; the same questions are asked of them as of its tables' scenes.
        Protocol(name="tanks-and-temples", describes="Tanks and Temples, zero-shot", source="folders", **_TOKENS),
        Protocol(name="mip-nerf-360", describes="Mip-NeRF 360, zero-shot", source="folders", **_TOKENS),
        Protocol(name="dtu", describes="DTU, zero-shot", source="folders", **_TOKENS),
    )
}
