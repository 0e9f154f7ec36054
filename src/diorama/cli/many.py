"""`diorama generate --manifest`: many scenes with one load of the model, by one process or many, killed or not."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from diorama.cli.manifest import Entry, read_manifest
from diorama.cli.parts import check_model
from diorama.cli.progress import Progress
from diorama.cli.requests import check, counted, fitted
from diorama.cli.workers import WorkerFlags
from diorama.runner.work import FULL, Do, Failed, batched, reason

if TYPE_CHECKING:
    from diorama.cli.generate import Arguments
    from diorama.pipelines.base import ScenePipeline
    from diorama.scene import Scene

RUN, LOCK = "run.json", ".lock"
PIXELS_AT_ONCE = 2**20  # of all wanted views that are sampled together
ENDS = 2**20  # bytes of a file of weights that are read, at each end, to tell it from others


@dataclass(frozen=True)
class ManifestFlags(WorkerFlags):
    """Many scenes at once."""

    manifest: Annotated[Path | None, arg(metavar="FILE.jsonl", help_behavior_hint="")] = None
    """A request in each line (docs/scale.md); flags say what lines do not. --out is then a folder, and what is there
    already is not made again."""
    batch: Annotated[int | None, arg(help_behavior_hint="(default: by their pixels)")] = None
    """Requests of one shape that are sampled together."""

    def check(self) -> None:
        """ValueError for what means nothing, or nothing without a manifest."""
        check("--batch", self.batch, self.batch is None or self.batch >= 1, "1 or more")
        for flag, value in (("--batch", self.batch), ("--ray", self.ray)):
            if value is not None and self.manifest is None:
                raise ValueError(f"{flag} {value}: only for many scenes; leave it out, or give --manifest")
        super().check()


@dataclass(frozen=True)
class Making:
    """The scenes of entries, each written when it is made; pickled to where that is done."""

    model: str
    manifest: Path  # absolute, as is the next: elsewhere another folder is the present one
    out: Path
    loading: dict[str, Any]
    sampling: dict[str, Any]

    def open(self, device: str) -> Do:
        """Load the model."""
        from diorama.pipelines.base import load

        return partial(self.made, load(self.model, device, **self.loading))

    def made(self, pipeline: "ScenePipeline", entries: Sequence[Entry]) -> list[float | Failed]:
        """Write the scenes of entries with the same steps and guidance: seconds of each, or why there is none."""
        began, found, ready = time.monotonic(), dict[str, float | Failed](), []
        for entry in entries:
            if (self.out / entry.out).exists():  # by a worker that died before it could say so
                found[entry.out] = 0.0
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # what is said of each photo
                    request = entry.request(self.manifest.parent)
                    ready.append((entry, request, *fitted(pipeline, request, entry.size, entry.prompt)))
            except (ValueError, OSError) as error:
                found[entry.out] = Failed(reason(error).removeprefix("--"))
        if ready:
            some, requests, conditions, wanted = (list(column) for column in zip(*ready, strict=True))
            how: dict[str, Any] = {"steps": some[0].steps, "guidance": some[0].guidance, **self.sampling}
            scenes = pipeline.generate(conditions, wanted, seed=[entry.seed for entry in some], **how)
            seconds = (time.monotonic() - began) / len(some)
            for entry, request, scene in zip(some, requests, scenes, strict=True):
                more = {"trajectory": entry.trajectory or "default", **request.origin}
                found[entry.out] = self.written(entry, scene, more) or seconds
        return [found[entry.out] for entry in entries]

    def written(self, entry: Entry, scene: "Scene", more: dict[str, Any]) -> Failed | None:
        """Write a scene, whole or not at all; why not, where that is the scene's fault and not the disk's."""
        from diorama.export.save import save

        made = scene.provenance
        try:
            told = replace(made, settings={**made.settings, **more})
            save(replace(scene, provenance=told), self.out / entry.out)
        except FileExistsError:  # a worker out of reach was faster
            return None
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            return Failed(reason(error))
        return None


def run(options: "Arguments") -> int:
    """Make what is missing of a manifest's scenes; 1 where some could not be made."""
    flags, asked, manifest = options.model, options.requests, options.requests.manifest
    assert manifest is not None
    for flag, value in (("--cameras", options.photo.cameras), ("--poses", options.photo.poses)):
        check(flag, value, value is None, "none beside --manifest, whose lines tell their own")
    if options.photo.photos or options.output.overwrite:
        what = str(options.photo.photos[0]) if options.photo.photos else "--overwrite"
        raise ValueError(f"{what} beside --manifest: its lines name the photos, and what is made is not made again")
    check_model(flags.model, flags.device if asked.ray is None else "auto", options.parts, scaled=True)
    entries = read_manifest(manifest, _defaults(options))
    work = _work(options, manifest.absolute())
    size = asked.batch or _together(work, entries)
    from diorama.runner.spread import spread, telling

    began, failed = time.monotonic(), []
    with spread(flags.device, asked.ray, asked.workers) as who, contextlib.ExitStack() as stack:
        with who.first():
            if who.leads:
                stack.enter_context(begun(work, entries))
            todo = [entry for entry in entries if not (work.out / entry.out).exists()]
        batches = batched(todo, size, lambda entry: entry.shape(work.manifest.parent))
        progress = stack.enter_context(Progress(f"{len(entries)} scenes"))
        tell = telling(progress if who.leads else None, len(entries) - len(todo), len(entries))

        def kept(batch: Sequence[Entry], results: Sequence[float | Failed]) -> None:
            for entry, result in zip(batch, results, strict=True):
                if not isinstance(result, Failed) and not (work.out / entry.out).exists():
                    result = Failed("written elsewhere; accepted for --out is a folder that all workers share")
                if isinstance(result, Failed):
                    failed.append((entry, result.reason))
            tell(len(batch))

        who.run(work, batches, kept)
        failures = sorted((f for part in who.together(failed) for f in part), key=lambda pair: pair[0].line)
        stack.close()
        if who.leads:
            there, seconds = len(entries) - len(todo), time.monotonic() - began
            counts = f"{len(todo) - len(failures)} made in {seconds:.1f} s, {there} were there"
            print(f"{work.out}: {len(entries) - len(failures)} of {len(entries)} scenes ({counts})")
            for entry, why in failures:
                print(f"diorama: {manifest}, line {entry.line} ({entry.out}): {why}", file=sys.stderr)
    return 1 if failures else 0


def _defaults(options: "Arguments") -> Entry:
    """What lines that do not say otherwise ask for."""
    path, flags = counted(options.path, options.model.model), options.model
    return Entry(
        line=0, out="", fov=options.photo.fov, trajectory=path.trajectory, views=path.count, size=path.size,
        prompt=flags.prompt, seed=flags.seed, steps=flags.steps, guidance=flags.guidance,
    )  # fmt: skip


def _work(options: "Arguments", manifest: Path) -> Making:
    """What is done to each entry."""
    name, out = options.model.model, options.output.out or Path(manifest.stem)
    model = str(Path(name).absolute()) if Path(name).exists() else name
    loading = {"compile": options.model.compile, **options.parts.loading}
    return Making(model, manifest, out.absolute(), loading, {"speed": options.model.speed, **options.parts.sampling})


def _together(work: Making, entries: Sequence[Entry]) -> int:
    """How many requests are sampled at once: as many as have so many pixels, and one for what goes by the batch."""
    from diorama.pipelines.base import find_model

    index = find_model(work.model)[1] / "model_index.json"
    pixels = json.loads(index.read_text()).get("pixels") if index.is_file() else None
    if not isinstance(pixels, int) or work.sampling.get("step_cache"):  # which skips a step for all of a batch, or none
        return 1
    return max(1, PIXELS_AT_ONCE // (max(entry.views for entry in entries) * pixels))


@contextmanager
def begun(work: Making, entries: Sequence[Entry]) -> Iterator[None]:
    """The folder of results in this block, for this run alone; nothing that is half-written is in it before and after.

    ValueError where it is another's, or holds a scene of that name that another request or model made.
    """
    out, common = work.out, {"model": identity(work.model), "loading": {k: str(v) for k, v in work.loading.items()}}
    common |= {"sampling": work.sampling}
    check_place(out)
    earlier = _recorded(out / RUN)
    digests = {entry.out: entry.digest(common) for entry in entries}
    for entry in entries:
        if os.path.lexists(out / entry.out) and earlier.get(entry.out) != digests[entry.out]:
            found = f"{out / entry.out} was made by another request or model"
            raise ValueError(f"{work.manifest}, line {entry.line}: {found}; accepted is a new name or a new --out")
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _sweep(out)
        draft = out / f".{RUN}.part"
        # Before any scene, so that a scene that is there is known to be of this request.
        draft.write_text(json.dumps({"model": work.model, "requests": earlier | digests}, indent=1) + "\n")
        os.replace(draft, out / RUN)
        try:
            yield
        finally:
            _sweep(out)


def check_place(out: Path) -> None:
    """ValueError where results cannot go, before anything is loaded or rendered."""
    if os.path.lexists(out) and not (out / RUN).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: something else; accepted is a new folder or an unfinished run")
    parent = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{out}: {parent} is no folder that can be written to")


def identity(model: str) -> str:
    """SHA-256 of a model's files: of the large ones, their sizes and both ends."""
    from diorama.pipelines.base import find_model

    folder, digest = find_model(model)[1], hashlib.sha256()
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else [folder]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(ENDS))
            stream.seek(max(0, size - ENDS))
            digest.update(stream.read(ENDS))
    return digest.hexdigest()


def _recorded(file: Path) -> dict[str, str]:
    """Digest of each request that an earlier run began."""
    if not file.is_file():
        return {}
    try:
        requests = json.loads(file.read_text())["requests"]
        return {str(name): str(digest) for name, digest in requests.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file}: not what 'diorama generate --manifest' wrote; accepted is a new folder") from None


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """ValueError while another run writes into that folder; the system frees it when a run is killed."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another run writes there; accepted is another --out, or to wait") from None
        yield


def _sweep(out: Path) -> None:
    """Remove what killed processes were writing."""
    for left in (*out.glob(".*.part"), *out.glob(".*.part.old")):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
