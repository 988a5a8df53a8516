"""How soon is the page there, and how soon does it follow a hand? Headless Chromium on a run of 10,000 candidates.

The run has 200 coefficients and 5 objectives. From the address to what is painted: anything, the heading's figures, the
table, the front, all views; the first visit reads the ledger, later ones do not. Then the longest task that each
interaction gives the browser's main thread: a brushed axis, another axis of the front, a sorted table, a dragged
slider. Printed too as shares of the bounds: 1.5 s to the heading and the table of a run that the service has read, and
100 ms a task.

    python benchmarks/page.py [--candidates 10000] [--visits 5] [--times 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import browser
from service import large, service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WATCH = """
window.painted = {};
const views = {
  heading: ".tiles dd", table: "#candidates tbody tr", front: "#front .main-svg .trace", all: "#parallel [data-drawn]",
};
new MutationObserver(() => {
  for (const [name, selector] of Object.entries(views)) {
    if (!(name in window.painted) && document.querySelector(selector)) {
      window.painted[name] = null;
      requestAnimationFrame(() => setTimeout(() => { window.painted[name] = performance.now(); }));
    }
  }
}).observe(document, { childList: true, subtree: true, attributes: true });
window.tasks = [];
new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((e) => e.duration)))
  .observe({ type: "longtask", buffered: true });
"""  # tasks of less than 50 ms are not reported, and count as none
FIRST = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
ALL = "() => Object.keys(window.painted).length === 4 && !Object.values(window.painted).includes(null)"
BOUND, TASK = 1.5, 100.0  # s, ms
SETTLED = 2500  # ms, in which everything that an interaction starts is over


def main() -> None:
    """Make the run, visit it, and take it in hand."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--candidates", type=int, default=10_000)
    arguments.add_argument("--visits", type=int, default=5)
    arguments.add_argument("--times", type=int, default=5, help="how often each interaction is done")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large(Path(folder) / "runs", chosen.candidates)
        with service(Path(folder) / "runs") as url:
            for started in browser.browser():
                paints(started, url, chosen.visits)
                hands(started, url, chosen.times)


def paints(started: Browser, url: str, visits: int) -> None:
    """Seconds from the address to each view: of the first visit, and the median and the most of the others."""
    found = [_visit(started, url) for _ in range(visits + 1)]
    print(f"{visits} visits after a first one")
    print(f"{'s until there is':<20}{'first visit':>12}{'median':>9}{'most':>9}{'of 1.5 s':>10}")
    for name in found[0]:
        later = [visit[name] / 1e3 for visit in found[1:]]
        share = f"{statistics.median(later) / BOUND:.2f}" if name in ("heading", "table") else ""
        print(f"{name:<20}{found[0][name] / 1e3:>12.2f}{statistics.median(later):>9.2f}{max(later):>9.2f}{share:>10}")


def _visit(started: Browser, url: str) -> dict[str, float]:
    page = _opened(started, f"{url}/#/run/large")
    found = {"anything": float(page.evaluate(FIRST)), **page.evaluate("window.painted")}
    page.wait_for_timeout(SETTLED)  # so that the next visit begins at rest
    page.context.close()
    return found


def _opened(started: Browser, address: str) -> Page:
    page = started.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.add_init_script(WATCH)
    page.goto(address)
    page.wait_for_function(ALL)
    return page


def hands(started: Browser, url: str, times: int) -> None:
    """The longest tasks of each interaction, in milliseconds."""
    page = _opened(started, f"{url}/#/run/large")
    page.wait_for_timeout(5 * SETTLED)
    print(f"{'ms at most':<28}{'median':>9}{'most':>9}{'of 100 ms':>11}   of {times} times; 0: less than 50")
    axes = page.locator("#parallel .hit")
    axes.first.scroll_into_view_if_needed()
    clear = page.get_by_role("button", name="Clear")
    _told(page, "a brush dropped on an axis", times, lambda i: _brush(page, axes.nth(i % 2), i), clear.click)
    across = page.get_by_label("across")
    _told(page, "another axis of the front", times, lambda i: across.select_option(index=i % 4 + 1))
    _told(page, "held-out, or without", times, lambda _: page.get_by_label("held-out").first.click())
    _told(page, "the table sorted", times, lambda i: page.locator("#candidates .sort").nth(i % 4 + 1).click())
    page.goto(f"{url}/#/run/large/pick")
    slider = page.get_by_role("slider").first
    slider.wait_for()
    page.wait_for_timeout(SETTLED)
    _told(page, "a slider of what it is worth", times, lambda i: slider.fill(str(15 * i + 10)))


def _told(page: Page, name: str, times: int, act: Callable[[int], Any], after: Callable[[], Any] | None = None) -> None:
    longest = []
    for i in range(times):
        page.evaluate("window.tasks.length = 0")
        act(i)
        page.wait_for_timeout(SETTLED)
        longest.append(max(page.evaluate("window.tasks"), default=0.0))
        if after is not None:
            after()
            page.wait_for_timeout(SETTLED)
    print(f"{name:<28}{statistics.median(longest):>9.0f}{max(longest):>9.0f}{max(longest) / TASK:>11.2f}")


def _brush(page: Page, axis: Any, i: int) -> None:
    box = axis.bounding_box()
    x, top, height = box["x"] + box["width"] / 2, box["y"], box["height"]
    page.mouse.move(x, top + height * (0.05 + 0.03 * i))
    page.mouse.down()
    page.mouse.move(x, top + height * 0.6, steps=6)
    page.mouse.up()


if __name__ == "__main__":
    main()
