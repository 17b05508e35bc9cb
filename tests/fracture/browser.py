"""A headless Chromium that tests drive through the DevTools protocol, over two pipes and with nothing to install."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REQUIRED = "FRACTURE_REQUIRE_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60
"""Seconds."""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--remote-debugging-pipe")


def executable() -> str:
    """Chromium on this machine; without one the test is skipped, or fails where a browser is required."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        reason = f"no Chromium found (looked for {', '.join(NAMES)}); apt-get install chromium"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{reason}, and {REQUIRED}=1 requires one")
        pytest.skip(reason)
    return found


class Page:
    """A tab: what is said to it, and what it said by itself."""

    def __init__(self, sink: int, source: int) -> None:
        self._sink, self._source, self._buffer, self._last = sink, source, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Says one thing, and returns the answer; what comes in between is kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._sink, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, url: str) -> None:
        """Loads a file's address anew, and waits until it has loaded."""
        self.call("Page.navigate", url="about:blank")
        while self.run("location.protocol") != "about:":
            pass
        self.events.clear()
        self.call("Page.navigate", url=url)
        while self.run("location.protocol + document.readyState") != "file:complete":
            pass

    def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """The text that is seen at the first place that fits."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def press(self, key: str) -> None:
        """Presses a key where the focus is."""
        codes = {"Enter": 13, "Tab": 9, "ArrowDown": 40, " ": 32}
        typed = {"Enter": "\r", " ": " "}.get(key)
        more = {"windowsVirtualKeyCode": codes[key], "key": key, "code": {" ": "Space"}.get(key, key)}
        self.call("Input.dispatchKeyEvent", type="keyDown", **more, **({"text": typed} if typed else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    def write(self, text: str) -> None:
        """Types a text where the focus is."""
        self.call("Input.insertText", text=text)

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings that the page gave rise to."""
        self.run("1")
        methods = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [event for event in self.events if event.get("method") in methods]

    def requests(self) -> list[str]:
        """The addresses that the page asked for."""
        self.run("1")
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [item["request"]["url"] for item in sent]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._source], [], [], PATIENCE)[0], "the browser does not answer"
            more = os.read(self._source, 1 << 16)
            assert more, "the browser has gone"
            self._buffer += more
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A browser with one tab, gone at the end."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # The browser reads from 3 and writes to 4, which may be taken here.
    source, sink = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_browser[0], from_browser[1]))
    command = [executable(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    redirected = f'exec "$0" "$@" 3<&{source} 4>&{sink}'
    browser = subprocess.Popen(["bash", "-c", redirected, *command], pass_fds=(source, sink), **quiet)
    for end in (to_browser[0], from_browser[1], source, sink):
        os.close(end)
    try:
        yield Page(to_browser[1], from_browser[0])
    finally:
        browser.terminate()
        browser.wait(timeout=PATIENCE)
        os.close(to_browser[1])
        os.close(from_browser[0])
