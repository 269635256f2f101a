"""Chromium, driven by Playwright, without a network; and pages of reports in it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# Keeps what is written on canvases, with its place on the canvas: from corner to corner of its box.
_WATCH = """
window.written = new Map();
for (const name of ["width", "height"]) {
  const own = Object.getOwnPropertyDescriptor(HTMLCanvasElement.prototype, name);
  const set = function (value) { window.written.set(this.id, []); own.set.call(this, value); };
  Object.defineProperty(HTMLCanvasElement.prototype, name, { ...own, set });
}
const fillText = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const m = this.measureText(text), there = this.getTransform(), ratio = window.devicePixelRatio;
  const high = [x - m.actualBoundingBoxLeft, y - m.actualBoundingBoxAscent];
  const low = [x + m.actualBoundingBoxRight, y + m.actualBoundingBoxDescent];
  const places = [high, low].map(([a, b]) => there.transformPoint({ x: a, y: b }));
  const xs = places.map((p) => p.x / ratio), ys = places.map((p) => p.y / ratio);
  const box = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  const size = [this.canvas.clientWidth, this.canvas.clientHeight];
  if (this.canvas.id) window.written.get(this.canvas.id)?.push({ text, box, size });
  return fillText.call(this, text, x, y);
};
"""


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def require_browser() -> None:
    """Skip a test without a browser; fail it where GPUCAL_REQUIRE_BROWSER is set, as in CI."""
    lacking = [] if chromium() else ["chromium"]
    lacking += [] if importlib.util.find_spec("playwright") else ["playwright"]
    if lacking:
        told = f"{' and '.join(lacking)} not installed"
        (pytest.fail if os.environ.get("GPUCAL_REQUIRE_BROWSER") else pytest.skip)(told)


@contextmanager
def started() -> Iterator[Any]:
    """Start the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and what it said: errors of the console, and what it asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def facts(self, script: str) -> Any:
        return self.page.evaluate(script)

    def rows(self) -> list[str]:
        """The planet and visit of each row that the table shows."""
        return self.facts(
            "[...rows.children].map((r) => [...r.children].slice(0, 2).map((c) => c.textContent).join('/'))"
        )

    def chosen(self) -> str:
        return str(self.facts("document.documentElement.dataset.observation"))

    def chooses(self, key: str) -> None:
        """Wait until an observation is shown."""
        self.page.wait_for_function("(key) => document.documentElement.dataset.observation === key", arg=key)
        assert self.facts("which.textContent") == "planet {} visit {}".format(*key.split("/"))

    def blank(self) -> list[str]:
        """The canvases that nothing is drawn on."""
        return self.facts(
            """[...document.querySelectorAll("section:not([hidden]) canvas[id]")].filter((c) => {
              const data = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
              return new Set(data).size < 3;
            }).map((c) => c.id)"""
        )

    def words(self) -> set[str]:
        """The canvases that hold a line of words instead of a figure."""
        return {canvas for canvas, texts in self.facts("[...window.written]") if len(texts) == 1}

    def overlapping(self) -> list[str]:
        """Texts on canvases that overlap another, or are cut off at an edge."""
        found = []
        written = self.facts("[...window.written]")
        assert sum(len(texts) for _, texts in written) > 3
        for canvas, texts in written:
            for at, one in enumerate(texts):
                left, top, right, bottom = one["box"]
                width, height = one["size"]
                if left < -0.5 or top < -0.5 or right > width + 0.5 or bottom > height + 0.5:
                    found.append(f"{canvas}: {one['text']} is cut off")
                for other in texts[:at]:
                    a, b, c, d = other["box"]
                    if left < c - 0.5 and right > a + 0.5 and top < d - 0.5 and bottom > b + 0.5:
                        found.append(f"{canvas}: {one['text']} on {other['text']}")
        return found


@contextmanager
def opened(browser: Any, path: Path, width: int = 1280, **how: Any) -> Iterator[Opened]:
    """Open a file, wait until it is drawn, and in the end require that it made no error and asked for nothing."""
    scripts = how.get("java_script_enabled", True)
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, accept_downloads=True, **how)
    context.set_default_timeout(20_000)
    page = context.new_page()
    seen = Opened(page)
    page.on("console", lambda message: seen.errors.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.asked.append(request.url))
    page.add_init_script(_WATCH)
    page.goto(path.as_uri())
    if scripts:
        page.wait_for_selector("html[data-lines]", state="attached")
    yield seen
    assert seen.errors == []
    assert [url for url in seen.asked if not url.startswith("blob:")] == [path.as_uri()]
    context.close()
