"""Take the documentation's pictures of the page in a headless Chromium: `python tests/e2e/take_pictures.py docs`."""

import io
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from foreframe_server.cli.serving import running_server
from foreframe_server.settings import Settings

QUALITY = 88
DRIVE_MS = 1800
PATIENCE_MS = 60_000
SIZE = {"width": 1280, "height": 860}


def main(folder: Path) -> None:
    """Start a server, use each view as somebody would, and write one picture of each."""
    with running_server(Settings(http={"port": 0})) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for view, use in VIEWS.items():
            page = browser.new_page(viewport=SIZE)
            page.goto(f"{address}/#{view}")
            use(page)
            # Frames are shown as they are decoded; nothing else moves any more.
            page.wait_for_load_state("networkidle")
            _write(page.screenshot(), folder / f"page-{view}.webp")
        browser.close()


def predict(page: Page) -> None:
    """Predict a clip's future and show where the members differ."""
    page.get_by_role("button", name="Predict").click()
    page.wait_for_selector("[data-trust]", timeout=PATIENCE_MS)
    page.get_by_label("Variance overlay").fill("45")


def drive(page: Page) -> None:
    """Move the left arm for a second or two, go back, branch, and move it the other way."""
    page.wait_for_selector("#drive .pane canvas[data-filled]")
    page.keyboard.press("x")
    _move(page, "k")
    page.locator("#drive-scrub").fill("3")
    page.get_by_role("button", name="Branch here").click()
    page.wait_for_selector("#drive .pane:nth-child(2):not([hidden])")
    _move(page, "i")
    page.locator("#drive-scrub").fill("10")


def _move(page: Page, key: str) -> None:
    page.locator("#drive .actions .first").click()
    page.keyboard.down(key)
    page.wait_for_timeout(DRIVE_MS)
    page.keyboard.up(key)
    page.locator("#drive .actions .first").click()


def rank(page: Page) -> None:
    """Score plans towards a picture of the clip's future."""
    page.wait_for_selector("#candidates .goal-frames canvas[data-filled]")
    page.get_by_role("button", name="Score").click()
    page.wait_for_selector("#candidates .ranking", timeout=PATIENCE_MS)


VIEWS: Mapping[str, Callable[[Page], None]] = {"playground": predict, "drive": drive, "candidates": rank}


def _write(picture: bytes, path: Path) -> None:
    Image.open(io.BytesIO(picture)).convert("RGB").save(path, quality=QUALITY, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
