"""Chromium without a window: what a page says, prints and asks for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(
    address: str, folder: Path, *options: str, width: int = 1100, seconds: int = 2
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Open a page; return what the browser printed, and the addresses that the page asked for."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--virtual-time-budget={1000 * seconds}",
               f"--user-data-dir={folder / 'profile'}", f"--log-net-log={folder / 'net.json'}",
               "--enable-logging=stderr", f"--window-size={width},900", *options, address]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    events = [event.get("params", {}) for event in json.loads((folder / "net.json").read_text())["events"]]
    # what the browser asks for on its own behalf comes from no page
    asked = {event["url"] for event in events if event.get("initiator", "not an origin") != "not an origin"}
    return ran, {url for url in asked if not url.startswith(("file:", "data:", "chrome"))}
