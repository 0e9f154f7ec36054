"""Other people's programs: methods that answer through a folder, and VBench's scores. All optional."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diorama.data.images import image_size, read_image
from diorama.evaluation.methods import Failure, Lazy
from diorama.export.depth import png
from diorama.export.folder import cameras_record, nerfstudio
from diorama.export.ply import bytes_of
from diorama.geometry.cameras import Cameras
from diorama.scene import Condition, Provenance, Scene, Shot, Views

FOLDER = "{folder}"
VBENCH = ("subject_consistency", "background_consistency", "aesthetic_quality", "imaging_quality", "motion_smoothness")


@dataclass
class Outside:
    """A method that is any command: it is started once, with the folder of all requests in place of `{folder}`.

    Each scene is a nerfstudio dataset of which only the known images are there, with request.json beside it. The
    command leaves answer/images/00003.png for each wanted view, and answer/depth/00003.npy (z-depth) if it has depth.
    """

    command: str
    folder: Path  # of the requests and answers; what it held before is removed
    name: str = ""
    licence: str = "unknown"
    settings: dict[str, Any] = field(init=False)
    batch: int | None = None

    def __post_init__(self) -> None:
        try:
            self.words = shlex.split(self.command)
        except ValueError:  # a quotation mark that stays open
            self.words = []
        if not self.words or shutil.which(self.words[0]) is None:
            raise ValueError(f"method {self.command!r}: no such program; accepted is a command with {FOLDER} in it")
        scripts = [Path(word).stem for word in self.words if FOLDER not in word]
        self.name = self.name or scripts[-1]
        self.settings = {"command": self.command}

    def generate(
        self, requests: Sequence[Condition], cameras: Sequence[Cameras | Shot], seeds: Sequence[int]
    ) -> Sequence[Scene | Failure]:
        """The scenes that the command answered with; what is missing or broken is a failure of that scene alone."""
        shutil.rmtree(self.folder, ignore_errors=True)
        scenes = [self.folder / f"{number:05d}" for number in range(len(requests))]
        for scene, request, wanted, seed in zip(scenes, requests, cameras, seeds, strict=True):
            write_request(scene, request, wanted, seed)
        said = self._run(self.folder.resolve())
        return Lazy(len(scenes), lambda row: self._answer(scenes[row], requests[row], cameras[row], said))

    def _run(self, folder: Path) -> str:
        """What the command said last if it failed; what it writes is kept in log.txt."""
        words = [word.replace(FOLDER, str(folder)) for word in self.words]
        with (folder / "log.txt").open("w+") as log:
            code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
            log.seek(0)
            lines = [line.strip() for line in log if line.strip()]
        return f"the command ended with {code}: {(lines or ['it said nothing'])[-1][:200]}" if code else ""

    def _answer(self, scene: Path, request: Condition, path: Cameras | Shot, said: str) -> Scene | Failure:
        try:
            views = read_answer(scene, request, path)
        except (ValueError, OSError) as error:
            return Failure(said or " ".join(str(error).split()).replace(f"{scene}/", ""))
        return Scene(views, request, provenance=Provenance(self.name, self.licence, settings=self.settings))


def write_request(folder: Path, request: Condition, wanted: Cameras | Shot, seed: int) -> None:
    """One scene's question: the known images, transforms.json of all wanted cameras, request.json with all of it."""
    (folder / "images").mkdir(parents=True)
    known = [] if request.views is None else zip(request.at, bytes_of(request.views.images), strict=True)
    for place, image in known:
        (folder / f"images/{place:05d}.png").write_bytes(png(image.movedim(0, -1).contiguous().numpy()))
    views = wanted.views
    document = {
        "views": views,
        "height": wanted.height,
        "width": wanted.width,
        "known": {str(place): f"images/{place:05d}.png" for place in request.at},
        "wanted": {str(place): f"answer/images/{place:05d}.png" for place in range(views) if place not in request.at},
        "prompt": request.prompt,
        "seed": seed,
        "cameras": None if isinstance(wanted, Shot) else cameras_record(wanted),
    }
    if not isinstance(wanted, Shot):
        blank = Views(torch.zeros(views, 3, wanted.height, wanted.width), wanted)
        (folder / "transforms.json").write_text(json.dumps(nerfstudio(blank, None), indent=1) + "\n")
    (folder / "request.json").write_text(json.dumps(document, indent=1) + "\n")


def read_answer(folder: Path, request: Condition, wanted: Cameras | Shot) -> Views:
    """The views of one scene's answer; known ones that it left out are the known images. ValueError or OSError else."""
    known = {} if request.views is None else dict(zip(request.at, request.views.images, strict=True))
    files = [folder / f"answer/images/{place:05d}.png" for place in range(wanted.views)]
    missing = [file for place, file in enumerate(files) if place not in known and not file.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: missing ({len(missing)} of {len(files) - len(known)} wanted views are)")
    there = [file for file in files if file.is_file()]
    height, width = image_size(there[0]) if there else (wanted.height, wanted.width)
    images = []
    for place, file in enumerate(files):
        image = read_image(file, upright=False) if file.is_file() else known[place]
        if file.is_file() and image.shape[-2:] != (height, width):
            raise ValueError(f"{file}: {image.shape[-1]}x{image.shape[-2]} pixels but others have {width}x{height}")
        images.append(Views(image[None]).resized(height, width).images[0])
    cameras = None if isinstance(wanted, Shot) else wanted.resized(height, width)
    return _with_depth(Views(torch.stack(images), cameras), folder / "answer/depth")


def _with_depth(views: Views, folder: Path) -> Views:
    """The same with the points of answer/depth, if there is one file for each view."""
    files = [folder / f"{place:05d}.npy" for place in range(len(views))]
    if views.cameras is None or not all(file.is_file() for file in files):
        return views
    depths = [np.load(file, allow_pickle=False) for file in files]
    for file, depth in zip(files, depths, strict=True):
        if depth.shape != tuple(views.images.shape[-2:]) or depth.dtype.kind != "f":
            raise ValueError(f"{file}: {depth.dtype} of shape {depth.shape}; accepted are floats of the image's size")
    depth = torch.from_numpy(np.stack(depths)).float()
    valid = depth.isfinite() & (depth > 0)
    points = views.cameras.unproject(torch.where(valid, depth, 1.0))
    return replace(views, points=points, confidence=valid.float())


def vbench_scores(program: Path, videos: Path, out: Path) -> dict[str, dict[str, float]]:
    """VBench's scores of each video of a folder by its stem, under `vbench_DIMENSION`; `program` is its command.

    It runs in an environment of its own, once for each dimension, as its command line has it. ValueError in one line
    where it fails.
    """
    found: dict[str, dict[str, float]] = {}
    for dimension in VBENCH:
        each = _vbench_dimension(program, videos.resolve(), (out / dimension).resolve(), dimension)
        for row in each:
            score = float(row["video_results"])
            # Imaging quality comes in percent for single videos, in shares for all together.
            score = score / 100 if dimension == "imaging_quality" else score
            found.setdefault(Path(row["video_path"]).stem, {})[f"vbench_{dimension}"] = score
    return found


def _vbench_dimension(program: Path, videos: Path, out: Path, dimension: str) -> list[dict[str, Any]]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    words = [str(program), "evaluate", "--videos_path", str(videos), "--output_path", str(out)]
    words += ["--dimension", dimension, "--mode", "custom_input"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ValueError(f"--vbench {program}: cannot be started ({error.strerror})") from None
    files = sorted(out.glob("*eval_results.json"))
    try:
        return json.loads(files[-1].read_text())[dimension][1]
    except (IndexError, KeyError, ValueError, TypeError):
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["it said nothing"]
        raise ValueError(
            f"--vbench {program}: no {dimension}, ended with {done.returncode}: {lines[-1][:200]}"
        ) from None
