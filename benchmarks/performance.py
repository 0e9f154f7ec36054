"""Write docs/performance.md, and the plots in it, from the numbers in benchmarks/results.

python benchmarks/performance.py            # after any benchmark was run again
python benchmarks/performance.py --check    # says what would change, and fails if anything would
"""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from plots import Panel, drawn

HERE = Path(__file__).parent
OPEN = "**open**"
TABLES = (
    "limits",
    "speed",
    "sampling",
    "distill",
    "neck",
    "gen3r",
    "growth",
    "training",
    "data",
    "worlds",
    "viewer",
    "export",
    "manifest",
)
AXES = {  # of growth.json, with what stands below each
    "views": "views", "resolution": "pixels of a side", "tokens": "latent tokens", "steps": "steps",
    "frames": "frames of a clip",
}  # fmt: skip
LONG = 40  # rows of a table; what has more is read in the file


class Claim(NamedTuple):
    """What is to be reached: a number of a file, and its bound."""

    what: str
    file: str
    number: str
    bound: float
    least: bool = False  # the number is to be at least the bound, not at most


GPU = "limits-cuda"
COMMANDS = {GPU: "python benchmarks/limits.py --device cuda --out benchmarks/results/limits-cuda.json"}
CLAIMS = (
    Claim(
        "H200: 16 views of 252x252 by DiT3D-XL, 1024 tokens, 50 guided steps, seconds", GPU, "generate, seconds", 0.4
    ),
    Claim("H200: the same with `fast`, seconds", GPU, "generate, fast, seconds", 0.12),
    Claim("H200: decoding many views at once, views/s", GPU, "decode, batched, views/s", 1500, True),
    Claim("H200: decoding one view at a time, views/s", GPU, "decode, one at a time, views/s", 100, True),
    Claim("H200: a step of Gen3R, over one of stock Wan", GPU, "Gen3R step, ratio to stock", 1.05),
    Claim("H200: the same with its step cache", GPU, "Gen3R step, cached, ratio to stock", 0.6),
    Claim("CPU, tiny sizes: a step of Gen3R, over one of stock Wan", "limits", "Gen3R step, ratio to stock", 1.05),
    Claim("CPU: `balanced`, times as fast as `quality`", "sampling", "balanced: process_times_faster", 1.8, True),
    Claim("CPU: `fast`, times as fast as `quality`", "sampling", "fast: process_times_faster", 5, True),
    Claim("encoding by the hub, 16 to 128 views: exponent of operations", "neck", "hub_exponent_of_operations", 1.05),
    Claim("CPU: encoding by the hub, 16 to 128 views: exponent of time", "neck", "hub_exponent_of_seconds", 1.1),
    Claim(
        "CPU: decoding after 16 to 128 views, longest over shortest", "neck", "hub_decode_seconds_most_over_least", 1.1
    ),
    Claim("200 requests, workers killed: largest error of latents", "manifest", "largest_difference_of_latents", 1e-4),
)


@dataclass(frozen=True)
class Options:
    """Where from and where to."""

    results: Path = HERE / "results"
    out: Path = HERE.parent / "docs" / "performance.md"
    check: bool = False
    """Write nothing."""


def page(results: Path) -> dict[str, str]:
    """The page and its plots by file name, from the results that are there."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    plots = growth(found.get("growth"))
    parts = [INTRODUCTION, *claims(found)]
    if plots:
        parts += ["## How cost grows\n", told("growth", found["growth"])]
        parts += [f"![cost by {AXES[axis]}](performance-{axis}.svg)\n" for axis in AXES if axis in plots]
    for name in TABLES:
        for stem in (name, f"{name}-cuda"):
            if stem in found or stem == name:
                parts.append(table(stem, found.get(stem)))
    files = {f"performance-{axis}.svg": plot for axis, plot in plots.items()}
    return {"performance.md": "\n".join(parts), **files}


INTRODUCTION = """# Performance

Written by `python benchmarks/performance.py` from [benchmarks/results](../benchmarks/results), each table beside the
command and the machine that gave it: change a number by running its command again. "Load" is how many programs wanted a
core at the end; where that is more than there are cores, times by the wall are too long, and ratios are what to look
at. What nobody has measured yet is marked **open**.

## Compiled, and in half precision

`diorama generate|render|reconstruct --compile`, or `diorama.load(model, compile=True)`, compiles the denoiser and,
for 3DRAE, the decoder with torch.compile when they first meet a shape: minutes on a CPU, which only many scenes pay
back. On CUDA each shape of 3DRAE + 3DDiT becomes one CUDA graph; Gen3R's denoiser is compiled block by block. Shapes
are static: views are decoded by 1, 2, 4, 8 and multiples of 8, so that few are enough. How long compiling took is
said with the other times, and `pipeline.compilation.seconds` holds it. What was compiled stays in
`~/.cache/diorama/compiled` (or where `DIORAMA_CACHE` or `TORCHINDUCTOR_CACHE_DIR` say) for later processes; as it is
run, a folder that others can write to is refused. Where compiling fails, one line says why and all goes on without.

`--dtype bf16`, or `load(model, dtype=torch.bfloat16)`, puts weights into half precision; rays, latents between the
models, their statistics and the sampler's state stay in float32. Presets of speed: [sampling.md](sampling.md).
"""


def claims(found: dict[str, Any]) -> list[str]:
    """The table of what is to be reached."""
    rows = ["## What it is to reach\n", "| what | bound | measured | by |", "| --- | --- | --- | --- |"]
    for claim in CLAIMS:
        value = found.get(claim.file, {}).get("numbers", {}).get(claim.number)
        held = value is not None and (value >= claim.bound if claim.least else value <= claim.bound)
        shown = OPEN if value is None else f"{number(value)}, {'reached' if held else 'missed'}"
        bound = f"at {'least' if claim.least else 'most'} {claim.bound:g}"
        rows.append(f"| {claim.what} | {bound} | {shown} | `{command(claim.file, found.get(claim.file))}` |")
    return [*rows, ""]


def command(stem: str, result: dict[str, Any] | None) -> str:
    """What gave a result, or will give it."""
    return (result or {}).get("command") or COMMANDS.get(stem, f"python benchmarks/{stem}.py")


def told(stem: str, result: dict[str, Any] | None) -> str:
    """The command, and the machine it ran on."""
    machine = (result or {}).get("machine", {})
    parts = [machine.get("gpu"), machine.get("cpu"), f"{machine['cores']} cores" if "cores" in machine else None]
    parts += [f"load {machine['load']:.0f}" if "load" in machine else None]
    parts += [f"torch {machine['torch']}" if "torch" in machine else None]
    where = ", ".join(part for part in parts if part)
    return f"`{command(stem, result)}`" + (f": {where}." if where else f": {OPEN}.") + "\n"


def question(stem: str) -> str:
    """The first sentence of the script's own words."""
    script = HERE / f"{stem.removesuffix('-cuda')}.py"
    if not script.is_file():
        return stem
    words = ast.get_docstring(ast.parse(script.read_text())) or stem
    return words.partition("?")[0].replace("\n", " ") + ("?" if "?" in words else "")


def table(stem: str, result: dict[str, Any] | None) -> str:
    """One benchmark: its question, its command and its numbers."""
    parts = [f"## {question(stem)}\n", told(stem, result)]
    numbers = {
        key: value for key, value in (result or {}).get("numbers", {}).items() if isinstance(value, (int, float))
    }
    if len(numbers) > LONG:
        parts.append(f"[{len(numbers)} numbers](../benchmarks/results/{stem}.json)\n")
    elif numbers:
        parts += ["| | |", "| --- | --- |", *(f"| {name} | {number(value)} |" for name, value in numbers.items()), ""]
    return "\n".join(parts)


def growth(result: dict[str, Any] | None) -> dict[str, str]:
    """A plot for each axis along which cost was taken: operations on the left, seconds on the right."""
    plots = {}
    for axis, lines in (result or {}).get("curves", {}).items():
        counted = {name: list(zip(line["places"], line["teraflops"], strict=True)) for name, line in lines.items()}
        timed = {name: list(zip(line["timed"], line["seconds"], strict=True)) for name, line in lines.items()}
        sizes = "the paper's sizes" if (result or {})["settings"]["paper"] else "tiny sizes"
        plots[axis] = drawn(
            [Panel("teraflops, the paper's sizes", AXES[axis], counted), Panel(f"seconds, {sizes}", AXES[axis], timed)]
        )
    return plots


def number(value: float) -> str:
    """Three digits, and all of a whole number."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def main(options: Options) -> None:
    """Write the page, or say what would change."""
    stale = []
    for name, text in page(options.results).items():
        path = options.out.with_name(name) if name != "performance.md" else options.out
        if not path.is_file() or path.read_text() != text:
            stale.append(path.name)
            if not options.check:
                path.write_text(text)
    print(f"{'differs' if options.check else 'written'}: {', '.join(stale) or 'nothing'}")
    if stale and options.check:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
