"""Where the studio keeps scenes: one folder, in which a visitor chooses names and nothing else."""

import re
import shutil
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from diorama.export.formats import export
from diorama.export.save import save
from diorama.scene import Scene

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
FILES = {  # what a visitor reads -> how the file's name ends
    "points (.ply)": ".ply",
    "points (.glb)": ".glb",
    "splats (.splat.ply)": ".splat.ply",
    "video (.mp4)": ".mp4",
    "web page (.html)": ".html",
}
FOLDERS = {"COLMAP": "colmap", "nerfstudio": "nerfstudio", "depth maps": "depth"}  # -> format of `diorama export`
KINDS = (*FILES, *FOLDERS)


class Shelf:
    """Writes scenes and their exports into one folder, which is made when something comes."""

    def __init__(self, folder: str | Path) -> None:
        """ValueError where the path is no folder."""
        self.folder, self._turn = Path(folder), threading.Lock()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: found a file; accepted is a folder, which may be new")

    def save(self, scene: Scene, name: str) -> Path:
        """Write the scene's folder; ValueError or FileExistsError, in one line, for a name that cannot be used."""
        with self._turn:
            return save(scene, self.folder / checked_name(name))

    def export(self, scene: Scene, name: str, kind: str) -> Path:
        """Write one of `KINDS`; as `save`."""
        with self._turn:
            return _written(scene, self.folder, checked_name(name), kind)

    def packed(self, scene: Scene, name: str, kind: str) -> tuple[str, bytes]:
        """One of `KINDS` as a file's name and bytes, for a visitor's own disk; folders as a zip. Nothing stays here."""
        with TemporaryDirectory(prefix="diorama-") as folder:
            path = _written(scene, Path(folder), checked_name(name), kind)
            if path.is_dir():
                path = Path(shutil.make_archive(str(path), "zip", folder, path.name))
            return path.name, path.read_bytes()

    def free_name(self, name: str) -> str:
        """This name, or the next one with a number that nothing of this folder is called."""
        taken = {path.name.partition(".")[0] for path in self.folder.glob("*")} if self.folder.is_dir() else set()
        base = re.sub(r"-\d+$", "", name)
        return name if name not in taken else next(n for i in range(2, 10**6) if (n := f"{base}-{i}") not in taken)


def checked_name(name: str) -> str:
    """The name, without spaces around it; ValueError unless it is one plain word that no system reads as a path."""
    name = name.strip()
    if not NAME.fullmatch(name):
        raise ValueError(f"name {name[:60]!r}: accepted are 1 to 63 letters a-z, digits, - and _, the first no sign")
    return name


def _written(scene: Scene, folder: Path, name: str, kind: str) -> Path:
    if kind in FILES:
        return save(scene, folder / f"{name}{FILES[kind]}")
    if kind not in FOLDERS:
        raise ValueError(f"export {kind[:60]!r}: accepted are {', '.join(KINDS)}")
    path = folder / f"{name}-{FOLDERS[kind]}"
    export(scene, path, [FOLDERS[kind]])
    return path
