"""How fast is the live view, from a hand that moves the camera to the picture in the window?

    python benchmarks/viewer.py                # about a minute; wants Chromium, and two cores that nobody else uses

A scene of the embedded model is opened in a headless Chromium whose window has the shape of its views. A mouse drags
the camera. Every live picture gets a number, as black and white squares along its lower edge, and the page is asked
when a picture of which number went to its canvas: shown is what the frame after that shows. The browser draws its
canvas without a graphics card on the same cores; with one, everything is faster.
"""

import base64
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from machine import write_numbers

from diorama.geometry.cameras import Cameras
from diorama.geometry.trajectories import orbit
from diorama.pipelines.base import load
from diorama.scene import Condition, Scene, Views
from diorama.viewer.detail import LEVELS
from diorama.viewer.server import Viewer, view

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.chromium import Page, tab

BITS, BLOCK = 8, 4  # of a picture's number, and pixels of each bit's square: together half of 64
# Runs before the page does: notes when the mouse moved and when which picture was drawn, in milliseconds since 1970.
NOTES = """(() => {
const clock = () => performance.timeOrigin + performance.now(), bits = document.createElement("canvas");
bits.width = bits.height = %(side)d;
const paper = bits.getContext("2d", { willReadFrequently: true });
window.shown = []; window.hand = [];
addEventListener("pointermove", () => hand.push(clock()), true);
for (const name of ["texImage2D", "texSubImage2D"]) {
  const draw = WebGL2RenderingContext.prototype[name];
  WebGL2RenderingContext.prototype[name] = function (...given) {
    const made = draw.apply(this, given), image = given[given.length - 1];
    const size = image ? [image.naturalWidth || image.width, image.naturalHeight || image.height] : [];
    if (size[0] >= %(block)d * %(bits)d && size[0] <= %(side)d && Math.abs(size[0] - size[1]) <= 8) {
      try { paper.drawImage(image, 0, 0); } catch { return made; }
      let number = 0;
      for (let bit = 0; bit < %(bits)d; bit++)
        if (paper.getImageData((bit + 0.5) * %(block)d, size[1] - 2, 1, 1).data[0] > 127) number += 2 ** bit;
      requestAnimationFrame(() => shown.push([number, clock()]));
    }
    return made;
  };
}
})()"""


@dataclass(frozen=True)
class Config:
    """What is measured."""

    model: str = "tiny"
    seconds: float = 8.0  # of moving without a rest
    moves: int = 24  # single ones, each after a rest of 0.1 to 1.2 seconds
    threads: int = 1  # of the decoder: the browser needs the other core
    out: Path = Path(__file__).parent / "results" / "viewer.json"


@dataclass
class Ledger:
    """When each numbered picture's camera came, at which level it was drawn, and how long that took."""

    came: dict[tuple, float] = field(default_factory=dict)  # pose -> milliseconds since 1970
    drawn: dict[int, tuple[float, int, float]] = field(default_factory=dict)  # number -> camera came, level, ms
    count: int = 0


def watched(viewer: Viewer) -> Ledger:
    """Numbers the live pictures of the one visitor from now on."""
    (visit,) = viewer.visits.values()
    live, ledger, here = visit.live, Ledger(), threading.local()
    look, draw, show = live.look, live.draw, live.show

    def looked(pose: Any) -> None:
        ledger.came.setdefault(pose, 1000 * time.time())
        look(pose)

    def drew(pose: Any, limit: float) -> Any:
        here.pose = pose
        return draw(pose, limit)

    def numbered(picture: Any, level: Any, seconds: float) -> None:
        ledger.count = (ledger.count + 1) % 2**BITS
        image = picture.image.clone()
        for bit in range(BITS):
            image[:, -BLOCK:, bit * BLOCK : (bit + 1) * BLOCK] = float(ledger.count >> bit & 1)
        came = ledger.came.get(here.pose, 0.0)
        ledger.drawn[ledger.count] = (came, LEVELS.index(level), 1000 * seconds)
        show(picture._replace(image=image), level, seconds)

    live.look, live.draw, live.show = looked, drew, numbered
    return ledger


def until(true: Callable[[], Any], seconds: float = 100) -> Any:
    """What it gives once that is something; RuntimeError if that takes too long."""
    end = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > end:
            raise RuntimeError("the viewer did not answer in time")
        time.sleep(0.02)
    return found


def made(config: Config) -> tuple[Any, Scene]:
    """The model, and a scene that it made of one picture of soft waves: what is seen does not change the time."""
    pipeline = load(config.model, "cpu")
    side = int(pipeline.config["pixels"] ** 0.5)
    camera = Cameras.from_fov(60.0, side, side)
    photo = Views(0.5 + 0.4 * (4 * camera.directions()).sin().movedim(-1, 1), camera)
    return pipeline, pipeline.generate(Condition(photo, (0,)), orbit(camera, 16), steps=4)


def measured(page: Page, viewer: Viewer, config: Config, side: int) -> dict[str, float]:
    """Drags the camera in the page and gives the numbers."""
    page.call("Emulation.setDeviceMetricsOverride", width=640, height=640, deviceScaleFactor=1, mobile=False)
    notes = NOTES % {"side": side, "bits": BITS, "block": BLOCK}
    page.call("Page.addScriptToEvaluateOnNewDocument", source=notes)
    page.call("Page.navigate", url=viewer.url)
    until(lambda: viewer.visits and " ms" in page.run("document.body ? document.body.innerText : ''"))
    ledger, here = watched(viewer), [160.0, 320.0]

    def mouse(kind: str, right: float = 0.0) -> None:
        here[0] += right
        page.call("Input.dispatchMouseEvent", type=kind, x=here[0], y=here[1], button="left", buttons=1, clickCount=1)

    def drag(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            mouse("mouseMoved", 3 if int(end - time.monotonic()) % 2 else -3)
            time.sleep(0.03)

    mouse("mousePressed")
    drag(3)  # until the viewer knows how fast it is
    page.run("shown.length = 0")
    began = time.monotonic()
    drag(config.seconds)
    seconds = time.monotonic() - began
    moving = [(number, when) for number, when in page.run("shown") if number in ledger.drawn]
    ages = [when - ledger.drawn[number][0] for number, when in moving]
    levels = [ledger.drawn[number][1] for number, _ in moving]
    costs = [ledger.drawn[number][2] for number, _ in moving]
    generator, waits = random.Random(0), []
    for _ in range(config.moves):
        time.sleep(generator.uniform(0.1, 1.2))
        page.run("shown.length = 0; hand.length = 0")
        mouse("mouseMoved", 6 if len(waits) % 2 else -6)
        (start,) = until(lambda: page.run("hand.slice(0, 1)"))

        def answer(start: float = start) -> float:
            found = [when for number, when in page.run("shown") if ledger.drawn.get(number, (0.0,))[0] > start]
            return found[0] - start if found else 0.0

        waits.append(until(answer))
    mouse("mouseReleased")
    return {
        "pictures_per_second": len(moving) / seconds,
        "native_share": sum(LEVELS[level].density >= 1 for level in levels) / max(1, len(levels)),
        "decoding_ms": statistics.median(costs),
        "age_ms": statistics.median(ages),
        "move_to_picture_ms": statistics.median(waits),
        "move_to_picture_ms_90": statistics.quantiles(waits, n=10)[-1],
    }


def alone(viewer: Viewer) -> dict[str, float]:
    """Milliseconds of processor time that a picture of each level takes by itself, whatever else the machine does."""
    decoder, pose, found = viewer.stage.decoder, viewer.stage.poses[1], {}
    assert decoder is not None
    for name, level in zip(("coarse", "swift", "plain", "blended"), LEVELS, strict=True):
        cameras, times = decoder.cameras(pose, level), []
        for _ in range(6):
            began = time.thread_time()
            decoder.picture(cameras, level)
            times.append(1000 * (time.thread_time() - began))
        found[f"{name}_processor_ms"] = statistics.median(times[1:])
    return found


def main(config: Config) -> None:
    """Measure, print and write the results."""
    torch.set_num_threads(config.threads)
    pipeline, scene = made(config)
    side = scene.views.images.shape[-1]
    load_before = os.getloadavg()[0]
    viewer = view(scene, model=pipeline, port=0, wait=False)
    processor = alone(viewer)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tab(Path(profile), webgl=True) as page:
        numbers = measured(page, viewer, config, side) | processor
        if folder := os.environ.get("DIORAMA_SCREENSHOTS"):
            Path(folder, "live.png").write_bytes(base64.b64decode(page.call("Page.captureScreenshot")["data"]))
    with suppress(Exception):
        viewer.stop()
    for name, value in numbers.items():
        print(f"{name:22} {value:8.2f}")
    print(f"{'load before':22} {load_before:8.2f}")
    settings = {key: str(value) for key, value in vars(config).items() if key != "out"} | {"side": side}
    rounded = {name: round(value, 2) for name, value in numbers.items()}
    write_numbers(config.out, rounded, settings, "cpu", load={"before": load_before, "after": os.getloadavg()[0]})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
