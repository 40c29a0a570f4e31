"""A headless Chromium, and visits to the page in which nothing may go wrong unseen. Knows no view of the page."""

import contextlib
import shutil
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 10_000
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
FIND_UNLABELLED = """() => [...document.querySelectorAll("input, select, textarea, button, canvas[role], svg[role]")]
  .filter((one) => one.checkVisibility())
  .filter((one) => !(one.ariaLabel || one.labels?.length || one.ariaLabelledByElements?.length
    || (one.tagName === "BUTTON" && one.textContent.trim())))
  .map((one) => one.outerHTML.slice(0, 120))"""
FIND_FAINT = """() => {
  const surface = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    surface.clearRect(0, 0, 1, 1);
    surface.fillStyle = colour;
    surface.fillRect(0, 0, 1, 1);
    return [...surface.getImageData(0, 0, 1, 1).data];
  };
  const light = (channels) => {
    const [red, green, blue] = channels.slice(0, 3).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const under = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] > 250) return found;
    }
    return rgba(getComputedStyle(document.documentElement).colorScheme.includes("dark") ? "black" : "white");
  };
  const ratio = (one) => {
    const [high, low] = [light(rgba(getComputedStyle(one).color)), light(under(one))].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const hasText = (one) => [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  return [...document.querySelectorAll("body *")].filter((one) => one instanceof HTMLElement && hasText(one))
    .filter((one) => one.checkVisibility() && !one.closest(":disabled, .unseen") && ratio(one) < 4.5)
    .map((one) => `${one.tagName} ${one.textContent.trim().slice(0, 40)} ${ratio(one).toFixed(2)}`);
}"""
IS_PAINTED = """(canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Set();
  for (let at = 0; at < data.length; at += 4) if (data[at + 3]) colours.add(data.slice(at, at + 3).join());
  return colours.size > 16;
}"""


@dataclass
class Visit:
    """A page that somebody looks at, and all that went wrong in it or left its host."""

    page: object
    address: str
    faults: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def watch(self):
        host = urlsplit(self.address).netloc
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.faults.append(said.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda asked: self._check_host(asked.url, host))
        return self

    def _check_host(self, url, host):
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != host:
            self.foreign.append(url)

    def open(self, view="playground"):
        self.page.goto(f"{self.address}/#{view}")
        self.page.wait_for_selector(f"#{view}:not([hidden]):not([aria-busy]) > *")
        return self.page

    def unlabelled(self):
        return self.page.evaluate(FIND_UNLABELLED)

    def faint(self):
        return self.page.evaluate(FIND_FAINT)

    def is_painted(self, selector):
        return self.page.locator(selector).first.evaluate(IS_PAINTED)

    def forgive(self, *words):
        """Take out what Chromium itself says of replies that are refusals, or of a server that is gone."""
        self.faults = [fault for fault in self.faults if not any(word in fault for word in words)]


@pytest.fixture(scope="module")
def browser():
    """One browser for a module, whose tests may not use an event loop of their own."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@contextlib.contextmanager
def visit_address(browser, address, *, width=1280, height=800, scheme="light"):
    """A visit by somebody who has never been here; fails where it left a fault or its host."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    visit = Visit(context.new_page(), address).watch()
    try:
        yield visit
        assert visit.faults == []
        assert visit.foreign == []
    finally:
        context.close()


@pytest.fixture
def visiting(browser):
    return lambda address, **options: visit_address(browser, address, **options)
