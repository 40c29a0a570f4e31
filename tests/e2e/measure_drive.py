"""Measure a live drive in a headless Chromium against a server of two cores; prints one JSON object.

`python tests/e2e/measure_drive.py --server-cores 0,1 --seconds 20`. Frames are counted on the canvas, not believed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
from playwright.sync_api import Page, sync_playwright

COUNT_FRAMES = """(milliseconds) => new Promise((resolve) => {
  const canvas = document.querySelector("#drive .pane canvas");
  const context = canvas.getContext("2d"), seen = new Set(), began = performance.now();
  const look = () => {
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    let hash = 0;
    for (let at = 0; at < data.length; at += 1) hash = (Math.imul(hash, 31) + data[at]) | 0;
    seen.add(hash);
    const time = performance.now() - began;
    if (time < milliseconds) requestAnimationFrame(look);
    else resolve((1000 * (seen.size - 1)) / time);
  };
  look();
})"""
KEYS = "ikujolnmwsadrf"


def main() -> None:
    """Start the server and the browser, drive, and print what was seen."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--server-cores", default="0,1")
    asked.add_argument("--seconds", type=float, default=20.0)
    options = asked.parse_args()
    server = subprocess.Popen(
        ["taskset", "-c", options.server_cores, sys.executable, "-m", "foreframe_server", "serve", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        address = read_address(server)
        measured = {"server_cores": options.server_cores, "load_before": os.getloadavg()[0]}
        json.dump({**measured, **drive(address, options.seconds)}, sys.stdout, indent=2)
    finally:
        server.terminate()
        server.wait()


def read_address(server: subprocess.Popen[str]) -> str:
    """Read where the server answers. Raises RuntimeError when it does not start."""
    for line in server.stdout or ():
        found = re.search(r"https?://[\w.]+:\d+", line)
        if found:
            return found.group()
    raise RuntimeError("the server did not start")


def drive(address: str, seconds: float) -> dict[str, object]:
    """Drive with one key after the other, a third of a second each."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}/#drive")
        page.wait_for_selector("#drive .pane canvas[data-filled]")
        page.keyboard.press("Space")
        page.wait_for_selector("#drive .speed dd")
        rates = [_drive_on(page, KEYS[turn % len(KEYS)]) for turn in range(round(seconds))]
        told = [text.replace("\u202f", " ") for text in page.locator("#drive .speed dd").all_inner_texts()]
        browser.close()
    return {
        "frames_per_second": {"mean": float(np.mean(rates)), "worst_second": min(rates)},
        "input_to_frame_ms": {"last": told[1], "p95": told[2]},
        "server_ms": told[3],
        "a_frame_is": told[4],
    }


def _drive_on(page: Page, key: str) -> float:
    for _ in range(3):
        page.keyboard.down(key)
        page.wait_for_timeout(60)
        page.keyboard.up(key)
    rate: float = page.evaluate(COUNT_FRAMES, 820)
    return rate


if __name__ == "__main__":
    main()
