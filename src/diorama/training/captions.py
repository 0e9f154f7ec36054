"""What is said of a scene: its files' own lines, else what a user's captioner says once."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from diorama.training.clips import Clips

Captioner = Callable[[Float[Tensor, "view 3 height width"]], str]
LINES = "captions.jsonl"


class Captions:
    """Captions of a source's scenes. What a captioner says is kept in a file of the run, so that resuming is exact."""

    def __init__(self, clips: Clips, captioner: str, folder: Path) -> None:
        self.clips, self.file = clips, folder / LINES
        self.captioner = named(captioner) if captioner else None
        self.said: dict[str, str] = {}
        if self.file.exists():
            lines = self.file.read_text().splitlines()
            self.said = dict(json.loads(line) for line in lines if line.endswith("]"))  # a crash may cut the last one

    def of(self, scene: int, chance: float, images: Float[Tensor, "view 3 height width"]) -> str:
        """One of a scene's captions, by a `chance` in [0, 1); nothing where nobody says any."""
        lines = self.clips.captions(scene)
        if lines:
            return lines[int(chance * len(lines))]
        if self.captioner is None:
            return ""
        name = self.clips.name(scene)
        if name not in self.said:
            self.said[name] = " ".join(str(self.captioner(images)).split())
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:
                file.write(json.dumps([name, self.said[name]]) + "\n")
        return self.said[name]


def named(place: str) -> Captioner:
    """The function at `module:function`; ValueError, in one line, where there is none."""
    module, _, function = place.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--captioner {place}: {reason}; accepted is module:function, of images to text") from None
    if not callable(found):
        raise ValueError(f"--captioner {place}: not a function; accepted is one of images to text")
    return found  # type: ignore[return-value]
