"""What does a person see of a run, in a real browser? And can a name that is somebody else's do anything there?"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import worlds
from browser import opened

from optimizer import Run
from optimizer.output import certain, report
from optimizer.record.results import Results

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "\"'><svg onload=alert(3)>",
    "<a href='javascript:alert(4)'>go</a><b>bold</b>",
    "{{7*7}}${alert(5)}",
    "<style>*{display:none}</style><iframe src=http://localhost:1/>",
    "</title><meta http-equiv=refresh content=0;url=http://localhost:1/>",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return worlds.searched(worlds.classification(tmp_path_factory.mktemp("world")))


def test_the_report_draws_every_figure_and_asks_for_nothing(browser: Browser, finished: Run) -> None:
    address = finished.report().as_uri()
    seen = opened(browser, address)
    page = seen.page
    page.wait_for_selector("#parallel .axis-title")
    assert seen.complaints == [] and seen.requests == [address] and seen.dialogs == []
    assert page.locator("#front .trace path.point").count() >= 14
    assert page.locator("#table tr").count() > 3 and page.locator("#heat .heatmaplayer image").count() == 1
    assert page.locator("#curve .trace").count() == 2
    results = finished.results()
    assert page.locator("#sure tbody tr").count() == len(results.on_front)
    sure = max(results.confidence.seen.values())
    assert page.locator("#sure tbody tr td").nth(1).inner_text() == certain.probability(sure)
    assert page.locator("#curse tbody tr td").first.inner_text() == "spam.accuracy"
    assert ("Knee: candidate" in page.locator("#knee").inner_text()) == (results.front.knee() is not None)
    chosen = page.locator("#candidate")
    chosen.select_option(index=1)
    page.locator("#axis-x").select_option(index=1)
    page.locator("#show-bars").check()
    page.wait_for_selector("#front .errorbar")
    page.locator("#front .trace path.point").last.hover(force=True)
    page.wait_for_selector("#front .hovertext")
    assert seen.complaints == [] and seen.requests == [address]
    page.close()


def test_a_hostile_name_in_every_field_is_text_and_runs_nothing(
    browser: Browser, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = cycle(HOSTILE)

    def hostile(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: hostile(inner, name) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [hostile(inner, key) for inner in value]
        return f"{value} {next(texts)}" if isinstance(value, str) and key != "goal" else value

    results = finished.results()
    data = hostile(report.page_data(results))
    data["failures"] = [{"n": t, "stage": t, "reason": t} for t in HOSTILE]
    monkeypatch.setattr(report, "page_data", lambda results: data)
    monkeypatch.setattr(results, "name", " ".join(HOSTILE))
    monkeypatch.setattr(Results, "provenance", property(lambda self: {t: [t] for t in HOSTILE}))
    address = report.write_report(results, tmp_path / "report.html").as_uri()
    seen = opened(browser, address)
    page = seen.page
    page.wait_for_selector("#parallel .axis-title")
    for control in ("#candidate", "#axis-x", "#axis-y"):
        page.locator(control).select_option(index=1)
    page.locator("#front .trace path.point").last.hover(force=True)
    assert seen.complaints == [] and seen.requests == [address] and seen.dialogs == []
    assert page.locator("img[src=x], iframe, main svg[onload], a[href^='javascript:'], main b b").count() == 0
    shown = page.locator("body").inner_text()
    assert all(text in shown for text in HOSTILE)
    page.close()
