# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium by the Chrome DevTools protocol: a page is opened, asked and photographed.

python tests/browser.py http://127.0.0.1:8300/ page.png --seconds 30 --size 1000x760
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--force-color-profile=srgb", "--remote-debugging-port=0")
START_S = 30


class Browser:
    """One Chromium with a profile of its own; a context manager."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={self.folder.name}", "about:blank"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                        text=True)
        self.loop = asyncio.new_event_loop()
        self.number, self.events = 0, []
        self.loop.run_until_complete(self._connect(self._address()))
        return self

    def _address(self) -> str:
        """Of its DevTools; Chromium tells it in a file of its profile."""
        told, until = Path(self.folder.name) / "DevToolsActivePort", time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            if told.is_file() and len(lines := told.read_text().split("\n")) >= 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.05)
        self.process.kill()
        raise RuntimeError("Chromium does not start: " + self.process.stderr.read()[-2000:])

    async def _connect(self, address: str) -> None:
        self.client = aiohttp.ClientSession()
        self.socket = await self.client.ws_connect(address, max_msg_size=0, autoping=True)

    def __exit__(self, *_):
        self.loop.run_until_complete(self.client.close())
        self.loop.close()
        self.process.terminate()
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.folder.cleanup()

    def call(self, method: str, tab: str | None = None, **params) -> dict:
        """One command and its answer; events that come meanwhile are kept."""
        return self.loop.run_until_complete(asyncio.wait_for(self._call(method, tab, params), START_S))

    async def _call(self, method: str, tab: str | None, params: dict) -> dict:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params}
                                    | ({"sessionId": tab} if tab else {}))
        while True:
            told = await self.socket.receive_json()
            if told.get("id") == self.number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']['message']}")
                return told["result"]
            self.events.append(told)


class Tab:
    """A page of width x height CSS pixels; dpr: device pixels of one. A context manager."""

    def __init__(self, browser: Browser, url: str, width=1000, height=800, dpr=1, dark=False):
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.id = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=dpr, mobile=False)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.browser.call("Target.closeTarget", targetId=self.target)

    def call(self, method: str, **params) -> dict:
        """A command to this page."""
        return self.browser.call(method, self.id, **params)

    def js(self, expression: str):
        """What an expression is worth in the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def wait(self, expression: str, seconds: float = 20):
        """Until an expression is true; its value."""
        until = time.monotonic() + seconds
        while not (value := self.js(expression)):
            if time.monotonic() > until:
                raise AssertionError(f"not within {seconds} s: {expression}")
            time.sleep(0.05)
        return value

    def key(self, key: str, code: int) -> None:
        """Press and release."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                      text={"Enter": "\r", " ": " "}.get(key, ""))

    def pixels(self, canvas: str):
        """uint8 (row, column, 4) of a canvas, in device pixels."""
        import numpy as np
        wide, high, data = self.js(
            f"(() => {{ const c = document.getElementById('{canvas}'), d = c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data; let s = ''; for (let i = 0; i < d.length; i += 32768)"
            " s += String.fromCharCode(...d.subarray(i, i + 32768)); return [c.width, c.height, btoa(s)]; })()")
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(high, wide, 4)

    def told(self, method: str) -> list[dict]:
        """The events of that name so far."""
        self.js("0")
        return [e["params"] for e in self.browser.events if e.get("sessionId") == self.id and e["method"] == method]

    def photograph(self, path: str | Path) -> None:
        """What is seen, as a PNG."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def main() -> None:
    """A photograph of an address after so many seconds."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("url")
    p.add_argument("png")
    p.add_argument("--seconds", type=float, default=5)
    p.add_argument("--size", default="1000x760", type=lambda text: tuple(map(int, re.split("x", text))))
    p.add_argument("--dark", action="store_true")
    args = p.parse_args()
    with Browser() as browser, Tab(browser, args.url, *args.size, dark=args.dark) as tab:
        time.sleep(args.seconds)
        tab.photograph(args.png)


if __name__ == "__main__":
    main()
