"""`diorama convert SRC DST`: published weights to our own layout, smaller and quicker to load."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from diorama.cli.progress import Progress
from diorama.cli.requests import CONFIG

if TYPE_CHECKING:
    import torch

KEPT = ("LICENSE*", "README*")  # go along: weights keep their terms


@dataclass(frozen=True)
class Arguments:
    """What is converted, and to what."""

    source: Annotated[Positional[Path], arg(metavar="SRC")]
    """A folder of published weights: Gen3R's (see 'diorama download gen3r') or VGGT's."""
    target: Annotated[Positional[Path], arg(metavar="DST")]
    """The new folder; every command takes it as --model."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the weights; VGGT's heads and the denoiser's norms stay in float32."""


def run(arguments: list[str]) -> int:
    """Write the new folder, whole or not at all."""
    options = tyro.cli(
        Arguments,
        args=arguments,
        prog="diorama convert",
        description="Published weights in diffusers folders of our own: half the size, no tower that nothing reads.",
        config=CONFIG,
    )
    from diorama.export.atomic import check_free, replacement

    if not options.source.is_dir():
        raise ValueError(f"{options.source}: no folder; accepted is one of published weights")
    check_free(options.target, overwrite=False)
    import torch

    from diorama.models.published import is_gen3r
    from diorama.pipelines.vggt import is_vggt

    if is_gen3r(options.source):
        write = _write_gen3r
    elif is_vggt(options.source) and not (options.source / "model_index.json").is_file():
        write = _write_vggt
    else:
        found = "ours already" if (options.source / "model_index.json").is_file() else "no weights that we know"
        raise ValueError(f"{options.source}: {found}; accepted are Gen3R and VGGT as they were published")
    with replacement(options.target) as folder, Progress("converting") as progress:
        folder.mkdir()
        write(options.source, folder, getattr(torch, options.dtype), progress)
        for file in (file for pattern in KEPT for file in sorted(options.source.glob(pattern))):
            shutil.copy(file, folder)
    before, after = (_gigabytes(home) for home in (options.source, options.target))
    print(
        f"{options.target}: {after:.2f} GB in {options.dtype}, from {before:.2f} GB; use it as --model {options.target}"
    )
    return 0


def _gigabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


def _write_gen3r(source: Path, folder: Path, dtype: "torch.dtype", progress: Progress) -> None:
    """One part after the other, so that the largest is all that memory has to hold."""
    from diorama.models.published import GEN3R, GEN3R_MORE, check_gen3r, read_gen3r
    from diorama.pipelines.gen3r import Gen3RPipeline
    from diorama.pipelines.gen3r_files import PUBLISHED

    check_gen3r(source)
    parts: dict[str, Any] = {}
    names = (*GEN3R_MORE, *GEN3R)
    for done, name in enumerate(names):
        progress(done, len(names))
        parts |= read_gen3r(source, dtype=dtype, only=[name])
        parts[name].save_pretrained(folder / name)
        if name in GEN3R:
            parts[name].to("meta")
    Gen3RPipeline(**parts, **PUBLISHED).save_config(folder)  # type: ignore[arg-type]
    progress(len(names), len(names))


def _write_vggt(source: Path, folder: Path, dtype: "torch.dtype", progress: Progress) -> None:
    from diorama.pipelines.vggt import VGGTPipeline

    pipeline = VGGTPipeline.load_folder(source)
    pipeline.vggt.to(dtype)  # type: ignore[arg-type]
    pipeline.save_pretrained(folder)
