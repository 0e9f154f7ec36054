"""A real browser for tests, driven over its own debugging pipe, so that nothing but a browser is needed.

That is Debian's package `chromium`, or any Chromium or Chrome named by CHROME. Tests that want one wear `NEEDED`.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell", "chrome")
CHROME = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
NEEDED = pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome on this machine")
FLAGS = (
    "--headless=new --no-sandbox --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --remote-debugging-pipe"
)
PLAIN = "--disable-gpu"
WEBGL = "--use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist"


class Page:
    """One tab, spoken to in the DevTools protocol: messages are JSON ended by a null byte."""

    def __init__(self, write: int, read: int):
        self.write, self.read, self.rest, self.number, self.session = write, read, b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command; what happens meanwhile goes to `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def message(self) -> dict[str, Any]:
        """The next thing that the browser says."""
        while b"\0" not in self.rest:
            received = os.read(self.read, 2**20)
            assert received, "the browser has gone"
            self.rest += received
        first, self.rest = self.rest.split(b"\0", 1)
        return json.loads(first)

    def open(self, file: Path, width: int, *, scheme: str = "light") -> None:
        """Load a file from disk at a width in CSS pixels and wait until it is whole."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """One stroke of a key."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if kind == "keyDown" and text else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """Errors, warnings and refused things since the page was opened."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"])[:500] for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Whatever was asked for since then, but the page itself and what it carries."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in sent if params.get("type") != "Document"]
        return [url for url in urls if not url.startswith("data:")]


@contextmanager
def tab(profile: Path, *, webgl: bool = False) -> Iterator[Page]:
    """A tab of a browser of its own, which ends with the block."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    assert min(to_read, from_write) > 4, "moving one would close another"
    # The browser listens on descriptor 3 and answers on 4.
    move = f"import os, sys; os.dup2({to_read}, 3); os.dup2({from_write}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    flags = [*FLAGS.split(), *(WEBGL if webgl else PLAIN).split(), f"--user-data-dir={profile}"]
    with subprocess.Popen(
        [sys.executable, "-I", "-c", move, str(CHROME), *flags, "about:blank"],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as browser:
        os.close(to_read)
        os.close(from_write)
        try:
            yield Page(to_write, from_read)
        finally:
            os.close(to_write)  # with its pipe closed the browser leaves
            try:
                browser.wait(20)
            except subprocess.TimeoutExpired:
                browser.kill()
            os.close(from_read)
