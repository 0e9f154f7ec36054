"""Published weights fetched: what there is, under which terms, and every file until its hash is right."""

import hashlib
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

HUB = "https://huggingface.co"  # or where the environment's HF_ENDPOINT points to: a mirror
ATTEMPTS, PAUSE, PATIENCE = 4, 1.0, 30.0  # of a file without progress, seconds between them, seconds of silence
PIECE = 2**20  # bytes
BROKEN = (  # a connection that ends, hangs or never comes; what the disk says is none of these
    urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError,
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """Weights of one name: where they are, which files are read, on which terms they may be used."""

    repository: str
    licence: str
    files: tuple[str, ...]  # patterns


PARTS = (
    "text_encoder",
    "transformer",
    "clip_image_encoder",
    "geo_adapter",
    "wan_vae",
    "vggt",
    "tokenizer",
    "scheduler",
)
TERMS = ("README.md", "LICENSE*")
DOWNLOADS = {
    "gen3r": Published(
        "JaceyH919/Gen3R",
        "no commercial use (VGGT's weights are CC-BY-NC-4.0; Gen3R's code is MIT, Wan2.1 is Apache-2.0)",
        ("model_index.json", *TERMS, *(f"{part}/*" for part in PARTS)),
    ),
    "vggt": Published(
        "facebook/VGGT-1B", "no commercial use (CC-BY-NC-4.0)", ("config.json", "model.safetensors", *TERMS)
    ),
}


@dataclass(frozen=True)
class File:
    """One file as its publisher describes it."""

    name: str  # path with /
    size: int  # bytes
    digest: str  # hexadecimal; SHA-256, or Git's SHA-1 of a small file

    def is_whole(self, path: Path) -> bool:
        """Whether `path` holds this file to the last bit."""
        return path.is_file() and path.stat().st_size == self.size and self._digest_of(path) == self.digest

    def _digest_of(self, path: Path) -> str:
        with path.open("rb") as opened:
            if len(self.digest) == 64:
                return hashlib.file_digest(opened, "sha256").hexdigest()
            git = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            return hashlib.file_digest(opened, lambda: git).hexdigest()


@dataclass(frozen=True)
class Listing:
    """The files of a name at one revision."""

    published: Published
    hub: str
    revision: str
    stated: str | None  # the licence that the publisher's page names
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)

    def url(self, file: File) -> str:
        """Where a file is read."""
        return f"{self.hub}/{self.published.repository}/resolve/{self.revision}/{quote(file.name)}"


def listing(name: str) -> Listing:
    """What is published under a name of DOWNLOADS now; ValueError for other names, OSError where no answer comes."""
    if name not in DOWNLOADS:
        raise ValueError(f"{name!r}: nothing to download by that name; accepted are {', '.join(DOWNLOADS)}")
    published, hub = DOWNLOADS[name], (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    url = f"{hub}/api/models/{published.repository}/revision/main?blobs=true"
    try:
        with _opened(url) as answer:
            told = json.load(answer)
        files = tuple(_files(told["siblings"], published.files))
        licence = (told.get("cardData") or {}).get("license")
        found = Listing(published, hub, str(told["sha"]), licence, files)
    except BROKEN as error:
        raise OSError(f"{url}: {_reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{url}: no list of files with sizes and hashes came; is HF_ENDPOINT a mirror?") from None
    if not files:
        raise ValueError(f"{url}: lists none of {', '.join(published.files)}")
    return found


def unfinished(listing: Listing, folder: Path, report: Callable[[int], None] = lambda count: None) -> list[File]:
    """The files that are not in `folder`, whole to the last bit; `report` is told of bytes looked at."""
    found = []
    for file in listing.files:
        if not file.is_whole(folder / file.name):
            found.append(file)
        report(file.size)
    return found


def remaining(files: Iterable[File], folder: Path) -> int:
    """Bytes that `fetch` would bring, beside what a stopped run has left."""
    return sum(max(file.size - _length(_part(folder / file.name)), 0) for file in files)


def fetch(
    listing: Listing, files: Iterable[File], folder: Path, report: Callable[[int], None] = lambda count: None
) -> None:
    """Bring files of a listing into `folder`; `report` is told of bytes as they arrive.

    What is left of a stopped run is continued, in `.NAME.part` beside the file's place. OSError where the connection
    fails again and again, ValueError where a hash is wrong; both leave what is whole and can be run again.
    """
    for file in files:
        target = folder / file.name
        part = _part(target)
        part.parent.mkdir(parents=True, exist_ok=True)
        _complete(listing.url(file), part, file.size, report)
        if not file.is_whole(part):
            part.unlink()
            raise ValueError(
                f"{target}: what came is not what was published (its hash is wrong); run the command again"
            )
        os.replace(part, target)


def _files(siblings: list[dict[str, Any]], patterns: tuple[str, ...]) -> Iterator[File]:
    for told in siblings:
        name = str(told["rfilename"])
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ValueError(name)  # a list that writes outside its folder is no list
        stored = told.get("lfs") or {}
        yield File(name, int(stored.get("size", told["size"])), str(stored.get("sha256") or told["blobId"]))


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _complete(url: str, part: Path, size: int, report: Callable[[int], None]) -> None:
    """Append to `part` what it lacks; a connection that ends is opened again."""
    if _length(part) > size:  # of another revision
        part.unlink()
    part.touch()
    have, failures = _length(part), 0
    while have < size:
        error: BaseException | None = None
        try:
            _append(url, part, have, report)
        except BROKEN as found:
            error = found
        before, have = have, _length(part)
        failures = failures + 1 if have <= before else 0
        refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
        if have < size and (refused or failures == ATTEMPTS):
            raise OSError(f"{url}: {_reason(error)}; run the command again, it goes on where it stopped") from None
        if have < size and failures:
            time.sleep(PAUSE)


def _append(url: str, part: Path, start: int, report: Callable[[int], None]) -> None:
    with _opened(url, {"Range": f"bytes={start}-"} if start else {}) as answer:
        continued = answer.status == 206  # else the whole file comes, whatever was asked for
        with part.open("ab" if continued and start else "wb") as file:
            if start and not continued:
                report(-start)
            while piece := answer.read(PIECE):
                file.write(piece)
                report(len(piece))


def _opened(url: str, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "diorama", **(headers or {})})
    return urllib.request.urlopen(request, timeout=PATIENCE)


def _reason(error: BaseException | None) -> str:
    if isinstance(error, urllib.error.HTTPError):
        asked = " (it asks for an account: fetch the files in a browser)" if error.code in (401, 403) else ""
        return f"the server answers {error.code} {error.reason}{asked}"
    return f"no connection ({getattr(error, 'reason', None) or error or 'it ends early'})"
