"""Intrinsics of photos without any, to FOLDER/intrinsics.jsonl: intrinsics.py FOLDER [--by moge|prior|VGGT_FOLDER].

One line for each photo below FOLDER, with who said so: MoGe-2 where it is installed (`moge`), our VGGT with its
weights in a folder, or a field of view of 60 degrees along the longer side (`prior`). A killed run goes on where it
stopped; photos that cannot be decoded are told and left out.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diorama.data.images import read_image
from diorama.data.readers.imagenet import SIDECAR, photos_below
from diorama.geometry.cameras import Cameras

PRIOR = 60.0  # degrees, as diorama.open assumes

Estimate = Callable[[Float[Tensor, "3 height width"]], Float[Tensor, "3 3"]]  # an RGB photo to intrinsics in pixels


def prior(image: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 3"]:
    """A field of view of 60 degrees along the longer side."""
    return Cameras.from_fov(PRIOR, *image.shape[-2:]).intrinsics[0]


def moge() -> Estimate:
    """MoGe-2, from its own package, whose intrinsics are shares of the photo's sides."""
    from moge.model.v2 import MoGeModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MoGeModel.from_pretrained("Ruicheng/moge-2-vitl").to(device).eval()

    def estimate(image: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 3"]:
        shares = model.infer(image.to(device))["intrinsics"].cpu().float()
        return torch.diag(torch.tensor([image.shape[2], image.shape[1], 1.0])) @ shares

    return estimate


def vggt(folder: str) -> Estimate:
    """VGGT's camera head, for one photo at a time."""
    import diorama

    pipeline = diorama.load(folder)
    return lambda image: pipeline.cameras_of(image[None]).intrinsics[0]


def write(folder: Path, estimate: Estimate, by: str) -> int:
    """Append a line for each photo that has none, and say how many were written."""
    file = folder / SIDECAR
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if lines and not lines[-1].endswith("\n"):  # cut short when a run was killed
        file.write_text("".join(lines[:-1]))
        lines.pop()
    done, written = {json.loads(line)["file"] for line in lines}, 0
    with file.open("a") as out:
        for name in photos_below(folder):
            if name in done:
                continue
            try:
                image = read_image(folder / name)
            except ValueError as error:
                print(error, file=sys.stderr)
                continue
            matrix = estimate(image)
            numbers = {"fx": matrix[0, 0], "fy": matrix[1, 1], "cx": matrix[0, 2], "cy": matrix[1, 2]}
            row = {"file": name} | {key: round(float(value), 4) for key, value in numbers.items()}
            row |= {"height": image.shape[1], "width": image.shape[2], "by": by}
            out.write(json.dumps(row) + "\n")
            out.flush()
            written += 1
    return written


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by", default="prior")
    chosen = parser.parse_args(arguments)
    estimate = {"prior": lambda: prior, "moge": moge}.get(chosen.by, lambda: vggt(chosen.by))()
    by = chosen.by if chosen.by in ("prior", "moge") else "vggt"
    print(f"{write(chosen.folder, estimate, by)} photos written to {chosen.folder / SIDECAR}")


if __name__ == "__main__":
    main()
