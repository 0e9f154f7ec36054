"""Worlds rendered once to memory-mapped arrays, which training then reads without waiting."""

import json
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diorama.data.raycast import FAR
from diorama.data.worlds import SPLITS, WORLDS_VERSION, render, world
from diorama.geometry.cameras import Cameras
from diorama.scene import Views

PLAN, FINISHED = "plan.json", "meta.json"
PART = 16  # scenes that one piece of work renders


def write_cache(
    folder: str | Path,
    seeds: Iterable[int],
    *,
    views: int = 12,
    height: int = 64,
    width: int = 64,
    samples: int = 4,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render the worlds of `seeds` into `folder` and return it; a killed run continues where it stopped.

    `meta.json` is written last. Raises ValueError for no seeds, repeated seeds, or a folder begun with other settings.
    """
    folder, seeds = Path(folder), [int(s) for s in seeds]
    if not seeds or len(set(seeds)) != len(seeds):
        found = f"{len(seeds)} seeds, {len(set(seeds))} of them different"
        raise ValueError(f"{folder}: found {found}; accepted are one or more, each once")
    plan = {
        "version": WORLDS_VERSION,
        "views": views,
        "height": height,
        "width": width,
        "samples": samples,
        "seeds": seeds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _begin(folder, plan)
    parts = range(0, len(seeds), PART)
    todo = [start for start in parts if not _done(folder, start).exists()]
    arguments = [(str(folder), plan, start) for start in todo]
    finished = len(parts) - len(todo)
    if workers > 1 and todo:
        with deaf_to_interrupts():  # workers inherit it: the keyboard interrupts this process alone, which ends them
            pool = multiprocessing.get_context("spawn").Pool(workers)
        with pool:
            for _ in pool.imap_unordered(_render_part, arguments):
                finished += 1
                if progress:
                    progress(min(finished * PART, len(seeds)), len(seeds))
    else:
        for argument in arguments:
            _render_part(argument)
            finished += 1
            if progress:
                progress(min(finished * PART, len(seeds)), len(seeds))
    _finish(folder, plan)
    return folder


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin(folder: Path, plan: dict) -> None:
    """Lay out the files, or check that an earlier run laid out the same."""
    file = folder / PLAN
    if file.exists():
        found = json.loads(file.read_text())
        odd = [name for name in plan if found.get(name) != plan[name]]
        if odd:
            raise ValueError(f"{file}: an earlier run had another {odd[0]}; accepted is the same, or a new folder")
        return
    shape = (len(plan["seeds"]), plan["views"], plan["height"], plan["width"])
    for name, kind, size in (("images", np.uint8, (*shape, 3)), ("depth", np.float16, shape)):
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=size).flush()
    (folder / "parts").mkdir(exist_ok=True)
    draft = folder / f"{PLAN}.draft"
    draft.write_text(json.dumps(plan))
    draft.rename(file)


def _done(folder: Path, start: int) -> Path:
    return folder / "parts" / f"{start:08d}.npz"


def _render_part(argument: tuple[str, dict, int]) -> None:
    """Render PART scenes into the shared arrays; their cameras, written last, say that they are there."""
    folder, plan, start = Path(argument[0]), argument[1], argument[2]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    images, depths = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("images", "depth"))
    poses, intrinsics, words = [], [], []
    for row, seed in enumerate(plan["seeds"][start : start + PART], start):
        place = world(seed)
        cameras = place.path(plan["views"], plan["height"], plan["width"])
        views = render(place, cameras, samples=plan["samples"])
        assert views.depth is not None and views.mask is not None
        images[row] = (views.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        depths[row] = views.depth.where(views.mask, 0.0).numpy()
        poses.append(cameras.camera_to_world.numpy())
        intrinsics.append(cameras.intrinsics.numpy())
        words.append(json.dumps({"caption": place.caption, "attributes": place.attributes}))
    images.flush()
    depths.flush()
    draft = _done(folder, start).with_suffix(".draft.npz")
    np.savez(draft, camera_to_world=np.stack(poses), intrinsics=np.stack(intrinsics), words=np.array(words))
    draft.rename(_done(folder, start))
    torch.set_num_threads(before)


def _finish(folder: Path, plan: dict) -> None:
    """Join what the parts hold and write the marker that the cache is whole."""
    if (folder / FINISHED).exists():
        return
    parts = [np.load(_done(folder, start)) for start in range(0, len(plan["seeds"]), PART)]
    joined = {name: np.concatenate([p[name] for p in parts]) for name in ("camera_to_world", "intrinsics", "words")}
    words = [json.loads(str(w)) for w in joined.pop("words")]
    np.savez(folder / "cameras.npz", allow_pickle=False, **joined)
    meta = plan | {
        name + "s" if name == "caption" else name: [w[name] for w in words] for name in ("caption", "attributes")
    }
    draft = folder / f"{FINISHED}.draft"
    draft.write_text(json.dumps(meta))
    draft.rename(folder / FINISHED)


class WorldsCache:
    """Rendered worlds on disk; raises ValueError if the cache is not whole, of another version, or holds test seeds."""

    def __init__(self, folder: str | Path, *, allow_test: bool = False) -> None:
        folder = Path(folder)
        if not (folder / FINISHED).exists():
            raise ValueError(f"{folder}: found no {FINISHED}, so no finished cache; run write_cache to its end")
        self.meta = json.loads((folder / FINISHED).read_text())
        if self.meta["version"] != WORLDS_VERSION:
            raise ValueError(
                f"{folder}: found worlds of version {self.meta['version']}, accepted is version {WORLDS_VERSION}"
            )
        tests = [seed for seed in self.meta["seeds"] if seed in SPLITS["test"]]
        if tests and not allow_test:
            raise ValueError(
                f"{folder}: found {len(tests)} test seeds such as {tests[0]}; accepted are other splits, "
                "or allow_test=True to measure"
            )
        self.views, self.height, self.width = self.meta["views"], self.meta["height"], self.meta["width"]
        self.seeds: list[int] = self.meta["seeds"]
        self.captions: list[str] = self.meta["captions"]
        self.attributes: list[dict] = self.meta["attributes"]
        self.images, self.depth = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "depth"))
        with np.load(folder / "cameras.npz") as cameras:
            self.camera_to_world = torch.from_numpy(cameras["camera_to_world"])
            self.intrinsics = torch.from_numpy(cameras["intrinsics"])

    def __len__(self) -> int:
        return len(self.seeds)

    def batch(self, scenes: Int[Tensor, " batch"], views: Int[Tensor, "batch view"]) -> Views:
        """Chosen views of chosen scenes; sky has confidence 0 and points FAR metres away."""
        rows, columns = scenes[:, None].numpy(), views.numpy()
        images = torch.from_numpy(self.images[rows, columns]).permute(0, 1, 4, 2, 3).float() / 255
        depth = torch.from_numpy(self.depth[rows, columns].astype(np.float32))
        cameras = Cameras(
            self.camera_to_world[scenes[:, None], views],
            self.intrinsics[scenes[:, None], views],
            self.height,
            self.width,
        )
        valid = depth > 0
        origins, directions = cameras.rays()
        points = torch.where(valid[..., None], cameras.unproject(depth), origins + FAR * directions)
        return Views(images, cameras, points, valid.float())
