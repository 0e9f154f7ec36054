"""How fast do 6 to 18 random frames of a random scene come from packed shards, from folders, and from webdataset?

python benchmarks/data.py                  # some minutes on two cores, 1 GB in a temporary folder

Four views of procedural worlds are rendered. Shifted and with noise of their own they make `--distinct` photos, JPEG
beside 16-bit depth; the scenes, in nerfstudio's layout, have copies of those, each in another order. The folders are
packed, which keeps the JPEGs byte for byte, and webdataset streams the very tar files of the shards: a scene is whole
once its last frame has come, and then frames are chosen. All decode colour and depth with the same functions, in one
process, from files that the machine has in memory; they take turns. A second is one of this process's processor time,
which a busy machine disturbs less; `wall` has the ratios by the clock on the wall.
"""

import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import write_numbers
from PIL import Image

from diorama.data.images import Encoded
from diorama.data.members import decode_depth_file, decode_image
from diorama.data.open import open_scenes
from diorama.data.packing import Plan, pack
from diorama.data.scenes import CapturedScene, Frame, SceneSource
from diorama.data.worlds import render, world


@dataclass(frozen=True)
class Config:
    """What is measured."""

    scenes: int = 8
    frames: int = 100  # of each scene
    distinct: int = 100  # photos that are encoded; scenes share them
    height: int = 480
    width: int = 640
    draws: int = 16  # scenes drawn from each
    least: int = 6  # frames of a draw
    most: int = 18
    out: Path = Path(__file__).parent / "results" / "data.json"


def write_captures(folder: Path, config: Config) -> None:
    """Folders of photos, depth and transforms.json."""
    views = [_rendered(seed, config) for seed in (1, 2, 3, 5)]
    numbers = np.random.default_rng(0)
    encoded = folder / "encoded"
    encoded.mkdir(parents=True)
    for number in range(config.distinct):
        image, depth = views[number % len(views)]
        shift = int(numbers.integers(config.width))
        noisy = np.roll(image, shift, 1) + numbers.normal(0, 2, image.shape).astype(np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(encoded / f"{number}.jpg", quality=95, subsampling=0)
        Image.fromarray(np.roll(depth, shift, 1)).save(encoded / f"{number}.png", compress_level=1)
    for scene in range(config.scenes):
        place = folder / "scenes" / f"{scene:03d}"
        place.mkdir(parents=True)
        rows = []
        for frame in range(config.frames):
            number = (frame + 7 * scene) % config.distinct
            for ending in ("jpg", "png"):
                (place / f"{frame:03d}.{ending}").write_bytes((encoded / f"{number}.{ending}").read_bytes())
            pose = np.eye(4)
            pose[0, 3] = 0.05 * frame
            row = {"file_path": f"{frame:03d}.jpg", "depth_file_path": f"{frame:03d}.png"}
            rows.append(row | {"transform_matrix": pose.tolist()})
        told = {"fl_x": 500, "cx": config.width / 2, "cy": config.height / 2, "w": config.width, "h": config.height}
        (place / "transforms.json").write_text(json.dumps(told | {"frames": rows}))


def _rendered(seed: int, config: Config) -> tuple[np.ndarray, np.ndarray]:
    place = world(seed)
    views = render(place, place.path(1, config.height, config.width), samples=1)
    assert views.depth is not None and views.mask is not None
    millimetres = (views.depth[0] * 1000).where(views.mask[0], 0).clamp(0, 65535).round().numpy().astype(np.uint16)
    return (views.images[0] * 255).permute(1, 2, 0).numpy(), millimetres


def drawn(source: SceneSource, choose: Callable[[int], list[int]], numbers: random.Random) -> Iterator[int]:
    """Frames of a random scene, decoded, again and again; how many each time."""
    while True:
        scene = source[numbers.randrange(len(source))]
        chosen = choose(len(scene))
        for place in chosen:
            _decoded(scene.frames[place])
        yield len(chosen)


def _decoded(frame: Frame) -> None:
    frame.image(2**24)
    assert frame.depth is not None
    frame.depth()


class Open:
    """A source whose scenes are opened once."""

    def __init__(self, source: SceneSource) -> None:
        self.name, self._scenes = source.name, [source[number] for number in range(len(source))]

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> CapturedScene:
        return self._scenes[index]


def streamed(tars: Sequence[Path], choose: Callable[[int], list[int]], everything: bool) -> Iterator[int]:
    """The same from webdataset: every frame of a scene decoded as it comes, or those alone that are chosen then."""
    import webdataset

    def decode(sample: dict) -> dict:
        if "rgb.jpg" in sample:
            decode_image(lambda: Encoded(sample["rgb.jpg"], "photo"), 2**24)
            decode_depth_file(lambda: Encoded(sample["depth.png"], "depth"), (-1.0, 4.0))
        return sample

    urls = [str(tar) for tar in tars]
    while True:
        samples = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        stream = samples.map(decode) if everything else samples
        for _, group in itertools.groupby(stream, lambda sample: sample["__key__"].partition("/")[0]):
            frames = [sample for sample in group if "rgb.jpg" in sample]
            chosen = choose(len(frames))
            if not everything:
                for place in chosen:
                    decode(frames[place])
            yield len(chosen)


def measure(ways: dict[str, Iterator[int]], draws: int) -> tuple[dict[str, float], dict[str, float]]:
    """Frames per second of each, in turns, by processor time and by the wall's, after one draw that is not counted."""
    clocks = (time.process_time, time.perf_counter)
    frames, seconds = dict.fromkeys(ways, 0), {name: np.zeros(2) for name in ways}
    for turn in range(draws + 1):
        for name, way in ways.items():
            start = np.array([clock() for clock in clocks])
            count = next(way)
            if turn:
                seconds[name] += np.array([clock() for clock in clocks]) - start
                frames[name] += count
    return tuple({name: frames[name] / float(seconds[name][clock]) for name in ways} for clock in (0, 1))  # type: ignore[return-value]


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """How many times the frames of others come from shards."""
    found = {f"packed / {name}": rates["packed"] / rates[name] for name in rates if name.startswith(("web", "folders"))}
    kept = [f"{name}, scenes kept open" for name in ("packed", "folders")]
    del found[f"packed / {kept[1]}"]
    found["packed / folders, both kept open"] = rates[kept[0]] / rates[kept[1]]
    return {name: round(ratio, 2) for name, ratio in found.items()}


def main(config: Config) -> None:
    """Write the data, measure, print a table and keep the numbers."""
    try:
        installed = version("webdataset")
    except PackageNotFoundError as error:
        raise SystemExit("webdataset is not installed, and is compared with: pip install webdataset") from error
    torch.set_num_threads(1)
    numbers = random.Random(0)

    def choose(count: int) -> list[int]:
        return numbers.sample(range(count), numbers.randint(config.least, config.most))

    with tempfile.TemporaryDirectory() as folder:
        captures, shards = Path(folder) / "scenes", Path(folder) / "shards"
        write_captures(Path(folder), config)
        start = time.process_time()
        pack(shards, Plan(str(captures), megabytes=200))
        packing = config.scenes * config.frames / (time.process_time() - start)
        tars = sorted(shards.glob("*.tar"))
        packed, folders = open_scenes(shards), open_scenes(captures)
        ways = {
            "packed": drawn(packed, choose, numbers),
            "folders": drawn(folders, choose, numbers),
            "packed, scenes kept open": drawn(Open(packed), choose, numbers),
            "folders, scenes kept open": drawn(Open(folders), choose, numbers),
            "webdataset": streamed(tars, choose, True),
            "webdataset, chosen before decoding": streamed(tars, choose, False),
        }
        rates, wall = measure(ways, config.draws)
        megabytes = sum(tar.stat().st_size for tar in tars) / 1e6
    found = {f"frames per second: {name}": round(rate, 1) for name, rate in rates.items()} | ratios(rates)
    found |= {"packing, frames per second": round(packing, 1), "shards, megabytes": round(megabytes, 1)}
    for name, value in found.items():
        print(f"{name:<56} {value:8.2f}")
    settings = {**asdict(config), "out": config.out.name, "webdataset": installed, "shards": len(tars)}
    write_numbers(config.out, found, settings, "cpu", wall=ratios(wall))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
