"""What does a person see of a run in its report, in a real browser? And can a name do anything there?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import worlds
from browser import Seen, holds, opened
from hostile import HOSTILE, MARKUP, hostile
from ledgers import ITEMS, Made

from optimizer import Run
from optimizer.output import certain, plain
from optimizer.record.paired import Sample, difference
from optimizer.record.results import Results
from optimizer.views import kept as keeping
from optimizer.views import report
from optimizer.views.bundle import bundled
from optimizer.views.kept import DETAILED, kept
from searchspaces import CoefficientSpace
from searchspaces.methods import METHODS, load

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

VIEWS = {  # address -> what is there once it is drawn
    "": "#parallel [data-drawn]",
    "#/run/pico/c/best": "#coefficients .heatmaplayer image",
    "#/run/pico/pick": "#where .trace path.point",
}
PHONE = {"width": 360, "height": 740}
NAN = float("nan")
PAIRS: dict[str, tuple[Any, ...]] = {  # what it is -> goal, and of each side value, standard error and items
    "means": ("max", (0.5, 0.2, [1, 0, 1, 0]), (0.25, 0.2, [0, 0, 1, 0])),
    "losses": ("min", (2.5, 0.2, [1, 4]), (1.5, 0.2, [1, 2])),
    "ties": ("max", (0.5, 0.2, [1, 0]), (0.5, 0.2, [1, 0])),
    "items that it says nothing of": ("max", (0.5, 0.2, [1, NAN, 0]), (1.0, 0.2, [1, NAN, 1])),
    "other items": ("max", (0.5, 0.2, [1, NAN, 0]), (1.0, 0.2, [1, 1, NAN])),
    "no item that it says anything of": ("max", (0.5, 0.2, [NAN, NAN]), (1.0, 0.2, [NAN, NAN])),
    "one item": ("min", (1.0, 0.2, [1]), (0.0, 0.2, [0])),
    "no means": ("max", (0.9, 0.2, [1, 0]), (0.5, 0.1, [1, 0])),
    "a mean but for five in a million": ("max", (0.500005, 0.2, [1, 0, 1, 0]), (0.25, 0.2, [0, 0, 1, 0])),
    "a mean but for half of one": ("max", (0.5000005, 0.2, [1, 0, 1, 0]), (0.25, 0.2, [0, 0, 1, 0])),
    "other numbers of items": ("max", (0.5, 0.2, [1, 0]), (1.0, 0.2, [1])),
    "no items": ("max", (0.5, 0.3, None), (0.25, 0.4, None)),
    "no errors": ("max", (0.5, None, None), (0.25, 0.4, None)),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return worlds.searched(worlds.classification(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def address(finished: Run) -> str:
    return finished.report().as_uri()


def at(browser: Browser, address: str, view: str = "", **how: Any) -> Seen:
    """A view of the report, drawn."""
    seen = opened(browser, address + view, **how)
    seen.page.wait_for_selector(VIEWS[view])
    return seen


def quiet(seen: Seen, address: str) -> None:
    """Nothing complained, nothing popped up, and nothing was asked for but the file."""
    assert seen.complaints == [] and seen.dialogs == []
    assert [url for url in seen.requests if not url.startswith((address, "data:", "blob:"))] == []


def text(page: Page, where: str, what: str) -> None:
    """Wait until an element has a text in it."""
    page.locator(where).filter(has_text=what).first.wait_for()


@pytest.mark.parametrize("how", [{}, {"color_scheme": "dark"}, {"viewport": PHONE}], ids=["light", "dark", "phone"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_draws_what_it_is_for_fits_and_asks_for_nothing(
    browser: Browser, address: str, view: str, how: dict[str, Any]
) -> None:
    seen = at(browser, address, view, **how)
    assert seen.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert seen.page.locator("main h1").count() == 1 and seen.page.title().endswith("mergeopt")
    quiet(seen, address)
    seen.page.close()


def test_the_run_is_told_whole(browser: Browser, finished: Run, address: str) -> None:
    seen, results = at(browser, address), finished.results()
    page = seen.page
    assert page.locator("#front .trace path.point").count() >= 14 and page.locator("#progress .trace").count() >= 2
    assert page.locator("#curse, #sure tbody th").first.inner_text() == "spam.accuracy"
    sure = max(results.confidence.seen.values())
    assert certain.probability(sure) in page.locator("#likeliest").inner_text()
    assert page.locator("#knee").count() == (results.front.knee() is not None)
    assert page.locator("#importance .shares li").count() == min(12, len(results.domain.names))
    page.locator("#candidates select").select_option("all")
    assert f"of {len(results.candidates)}" in page.locator("#candidates .pager").inner_text()
    page.get_by_label("error bars").check()
    page.wait_for_selector("#front .errorbar")
    page.locator("#front .trace path.point").last.hover(force=True)
    page.wait_for_selector("#front .hovertext")
    assert page.get_by_role("button", name="Resume").count() == 0, "nobody is there to do it"
    quiet(seen, address)
    page.close()


def test_a_brush_selects_in_front_and_table(browser: Browser, address: str) -> None:
    seen = at(browser, address)
    page = seen.page
    page.locator("#candidates select").select_option("all")
    axis = page.locator("#parallel .hit").first
    axis.scroll_into_view_if_needed()
    box = axis.bounding_box()
    assert box is not None
    across = box["x"] + box["width"] / 2
    page.mouse.move(across, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(across, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    kept = int(page.locator("#parallel [role=status]").inner_text().split()[0])
    text(page, "#candidates .pager", f"of {kept}")
    quiet(seen, address)
    page.close()


def test_the_front_is_seen_in_three_dimensions_and_compiles_nothing(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "solid", objectives=3)
    made.more(30)
    made.close()
    address = report.write_report(Results(made.folder), tmp_path / "report.html").as_uri()
    seen = at(browser, address)
    seen.page.get_by_label("deep").select_option(index=3)
    seen.page.wait_for_selector("#front .gl-container canvas")
    seen.page.wait_for_timeout(300)
    quiet(seen, address)
    assert "unsafe-eval" not in (tmp_path / "report.html").read_text().partition("<style>")[0]
    seen.page.close()


def test_two_candidates_differ_by_what_compare_says(browser: Browser, finished: Run, address: str) -> None:
    results = finished.results()
    a, b = results.pick("best"), results.candidates[0]
    seen = at(browser, address, "#/run/pico/c/best")
    page = seen.page
    page.locator("#compare select").first.select_option("0")
    page.wait_for_selector("#compare table")
    data = kept(results)
    said = plain.differences(results, a, b)
    module = bundled("kept.js").replace('modules["kept.js"] =', 'globalThis.kept = modules["kept.js"] =')
    page.close()
    blank = opened(browser, "about:blank").page
    blank.evaluate(module)
    for one in (str(a.number), "best"):
        found = blank.evaluate(
            "async ([data, a, b]) => await kept.keptSource(data).compare('', a, b)",
            [json.loads(json.dumps(data)), one, "0"],
        )
        for split in ("calibration", "heldout"):
            for name, d in said[split]["objectives"].items():
                there = found[split]["objectives"][name]
                assert {k: there[k] for k in ("better", "paired", "wins", "losses", "ties")} == {
                    k: d[k] for k in ("better", "paired", "wins", "losses", "ties")
                }
                assert there["value"] == pytest.approx(d["value"], abs=1e-5)
                assert there["stderr"] == pytest.approx(d["stderr"], rel=1e-3)
        assert np.array(found["coefficients"]) == pytest.approx(
            results.coefficients(a)[2] - results.coefficients(b)[2], abs=1e-5
        )
    quiet(seen, address)
    blank.close()


@pytest.mark.parametrize("text", ["best", "surest", "knee", "0", "best:spam.accuracy", "uniform"])
def test_a_name_means_what_it_means_to_the_program(browser: Browser, finished: Run, address: str, text: str) -> None:
    results = finished.results()
    if text == "knee" and results.front.knee() is None:
        text = "best"
    wanted = results.pick(text)
    page = opened(browser, f"{address}#/run/pico/c/{text}").page
    page.wait_for_selector("#asked code")
    assert page.locator("#asked code").inner_text() == wanted.recipe
    page.goto(f"{address}#/run/pico/c/nobody")
    page.wait_for_selector(".notice.bad")
    page.close()


def test_the_front_is_zoomed_to_where_anchors_would_squeeze_it(
    browser: Browser, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads(json.dumps(kept(finished.results())))
    table = data["candidates"]
    far = next(i for i, anchor in enumerate(table["anchor"]) if anchor and not table["front"][i])
    table["values"][0][far] = -50.0
    monkeypatch.setattr(report, "kept", lambda results: data)
    address = report.write_report(finished.results(), tmp_path / "report.html").as_uri()
    for view, card in (("", "#front"), ("#/run/pico/pick", "#where")):
        seen = at(browser, address, view)
        page = seen.page
        zoom = page.locator(f"{card} .tick").filter(has_text="zoom to front")
        assert zoom.locator("input").is_checked() and "of the anchors and models are outside" in zoom.inner_text()
        ticks = (
            f"[...document.querySelectorAll('{card} .xtick text')].map((t) => Number(t.textContent.replace('−', '-')))"
        )
        assert min(page.evaluate(ticks)) > -5
        zoom.locator("input").uncheck()
        holds(page, f"Math.min(...{ticks}) < -20")
        assert zoom.inner_text() == "zoom to front"
        quiet(seen, address)
        page.close()


def test_a_front_that_nothing_squeezes_is_shown_with_all_else(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "even")
    made.more(30)
    made.close()
    address = report.write_report(Results(made.folder), tmp_path / "report.html").as_uri()
    page = at(browser, address).page
    assert not page.locator("#front .tick").filter(has_text="zoom").locator("input").is_checked()
    page.close()


@pytest.mark.parametrize("how", [{"viewport": PHONE}, {}], ids=["phone", "desk"])
def test_names_and_tables_are_whole_where_there_is_little_room(
    browser: Browser, tmp_path: Path, how: dict[str, Any]
) -> None:
    made = Made(tmp_path / "made", groups=7)
    made.more(120)
    made.heldout(list(range(100)))
    made.close()
    address = report.write_report(Results(made.folder), tmp_path / "report.html").as_uri()
    page = at(browser, address, **how).page
    names = page.locator("#importance .shares .name")
    assert len(set(names.all_inner_texts())) == names.count() > 8
    assert set(names.all_inner_texts()) <= {f"…{g}.weight|e{k}" for g in range(7) for k in range(2)}
    for what in ("#importance .shares .name", "#sure table", "#items table"):
        cut = f"[...document.querySelectorAll('{what}')].filter((e) => e.scrollWidth > e.parentElement.clientWidth)"
        assert page.evaluate(f"{cut}.length") == 0, what
    ends = "[...document.querySelectorAll('#parallel .axis-title')].map((e) => e.getBoundingClientRect().right)"
    whole = "document.querySelector('#parallel svg').getBoundingClientRect().right"
    assert page.evaluate(f"Math.max(...{ends}) <= {whole}")
    page.close()


def test_candidates_fit_a_desk_and_keep_their_names_in_view_where_they_do_not(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "made", objectives=5)
    made.more(60)
    made.heldout(list(range(60)))
    made.close()
    address = report.write_report(Results(made.folder), tmp_path / "report.html").as_uri()
    region = "document.querySelector('#candidates .scroll')"
    page = at(browser, address, viewport={"width": 1280, "height": 800}).page
    for shown in ("all", "failed"):
        page.locator("#candidates select").select_option(shown)
        assert page.evaluate(f"{region}.scrollWidth - {region}.clientWidth") <= 0
    page.close()
    page = at(browser, address, viewport=PHONE).page
    page.evaluate(f"{region}.scrollLeft = 300")
    left = "document.querySelector('#candidates tbody th').getBoundingClientRect().left"
    assert page.evaluate(f"{region}.scrollLeft") == 300
    assert abs(page.evaluate(f"{left} - {region}.getBoundingClientRect().left")) <= 1
    page.close()


TRACES = "document.querySelector('#front .figure').data.map((t) => [t.name, t.x, t.hovertext, t.text])"


def test_anchors_and_models_are_drawn_by_both_of_their_scores_and_named(
    browser: Browser, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = kept(finished.results())
    table = data["candidates"]
    beside = [i for i, anchor in enumerate(table["anchor"]) if anchor and not table["front"][i]]
    low, high = (pick(v for column in table["values"] for v in column) for pick in (min, max))
    for column in table["heldout"]:
        column[beside[0]] = low - (high - low)  # far from its other score, and from all else
    label = table["labels"][table["numbers"][beside[0]]]
    scores = {"values": [low, high], "stderr": [None, None], "heldout": [high, low], "heldout_stderr": [None, None]}
    data["run"]["references"] = [{"label": "a model", **scores}]
    monkeypatch.setattr(report, "kept", lambda results: data)
    address = report.write_report(finished.results(), tmp_path / "report.html").as_uri()
    seen = at(browser, address)
    page = seen.page
    page.locator("#front .tick").filter(has_text="zoom").locator("input").uncheck()
    holds(page, f"{TRACES}.some(([name]) => name === 'anchors, held-out')")
    drawn = {name: (x, hover, names) for name, x, hover, names in page.evaluate(TRACES)}
    x, hover, names = drawn["anchors, held-out"]
    assert x == [table["heldout"][0][i] for i in beside]
    assert all(table["labels"][table["numbers"][i]] in said for i, said in zip(beside, hover, strict=True))
    assert all("held-out items" in said for said in hover) and f"{label}, held-out" in names
    x, hover, _ = drawn["models, held-out"]
    assert x == [high] and hover[0].startswith("a model · held-out items")
    page.locator("#front .tick").filter(has_text="held-out").locator("input").uncheck()
    holds(page, f"{TRACES}.every(([name]) => !name.includes('held-out'))")
    items = page.locator("#items tbody tr").first.inner_text().split()
    assert items[0] == "spam" and items[1:] == ["30", "30"]
    quiet(seen, address)
    page.close()


@pytest.mark.parametrize("crowd", [False, True])
def test_a_name_of_the_sweep_gives_way_to_a_crowd_of_points(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crowd: bool
) -> None:
    made = Made(tmp_path / "made")
    made.more(300)
    made.close()
    data = kept(Results(made.folder))
    table = data["candidates"]
    table["labels"] |= {0: "global 0.1"}
    middle = [float(np.mean([v for v in column if v is not None])) for column in table["values"]]
    rest = [i for i, n in enumerate(table["numbers"]) if n > 1 and not table["front"][i] and table["rank"][i] >= 0]
    for k, column in enumerate(table["values"]):
        wide = max(v for v in column if v is not None) - middle[k]
        column[table["numbers"].index(0)] = middle[k]
        for j, i in enumerate(rest):
            place = (j % 16 - 7.5) / 40 if k == 0 else (j // 16 - 7.5) / 40
            column[i] = middle[k] + wide * (place if crowd else -1)
    monkeypatch.setattr(report, "kept", lambda results: data)
    address = report.write_report(Results(made.folder), tmp_path / "report.html").as_uri()
    page = at(browser, address).page
    holds(page, f"{TRACES}.some(([name]) => name === 'anchors')")
    names = {name: names for name, _, _, names in page.evaluate(TRACES)}["anchors"]
    assert ("global 0.1" in names) != crowd
    page.close()


def test_what_is_picked_is_in_view_while_sliders_are_dragged_on_a_phone(browser: Browser, explained: str) -> None:
    page = at(browser, explained, "#/run/pico/pick", viewport=PHONE).page
    bar, slider = page.locator(".at-once"), page.get_by_role("slider").first
    slider.scroll_into_view_if_needed()
    seen = set()
    for weight, share in (("0", 0), ("100", 67)):
        slider.fill(weight)
        holds(page, f"document.querySelector('#worth output').textContent === '{share} %'")
        box, over = bar.bounding_box(), slider.bounding_box()
        assert box and over and over["y"] + over["height"] <= box["y"] <= box["y"] + box["height"] <= PHONE["height"]
        assert bar.locator("a").inner_text() == page.locator("#answer-card h3").inner_text()
        assert "null" not in page.locator("main").inner_text()
        seen.add(bar.inner_text())
    assert len(seen) == 2
    page.get_by_label("At least").first.fill("7")
    text(page, ".at-once", "No candidate")
    page.set_viewport_size({"width": 1280, "height": 800})
    assert not bar.is_visible(), "the answer itself is beside them"
    page.close()


def test_error_bars_are_taken_off_where_a_trade_off_is_picked(browser: Browser, address: str) -> None:
    page = at(browser, address, "#/run/pico/pick").page
    page.wait_for_selector("#where .errorbar", state="attached")
    page.get_by_label("error bars").uncheck()
    page.wait_for_selector("#where .errorbar", state="detached")
    page.close()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"phase": "search", "status": "stopped"}, "--evaluations 14 scores them now"),
        ({"phase": "heldout", "status": "running", "heldout_answered": 3, "heldout_asked": 9}, "3 of 9 are"),
        ({"phase": "heldout", "status": "stopped", "heldout_answered": 3, "heldout_asked": 9}, "mergeopt resume pico"),
        ({"phase": "finalists", "status": "running"}, "most promising are now scored on all"),
        ({"phase": "over", "status": "finished"}, ""),
        (
            {"phase": "over", "status": "finished", "evaluations": 99, "driver_done": True},
            "nothing left to ask. To resume",
        ),
        (
            {"phase": "over", "status": "finished", "evaluations": 99, "driver_done": True, "repeated": 7},
            "asked 7 times",
        ),
        ({"phase": "over", "status": "finished", "evaluations": 99, "reached": "2 hours are up"}, "2 hours are up"),
    ],
)
def test_what_a_run_is_at_is_said_in_a_sentence(
    browser: Browser,
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: dict[str, Any],
    words: str,
) -> None:
    data = json.loads(json.dumps(kept(finished.results())))
    data["run"] |= run
    if run["phase"] == "search":
        data["candidates"]["heldout"] = [[None] * len(column) for column in data["candidates"]["heldout"]]
    data["run"]["fidelity"] = {"rungs": [8, 20], "partly": 5, "whole": 9, "time": 0.4, "checked": 10, "within": 9}
    monkeypatch.setattr(report, "kept", lambda results: data)
    address = report.write_report(finished.results(), tmp_path / "report.html").as_uri()
    page = at(browser, address).page
    phase = page.locator(".phase")
    assert phase.is_visible() == bool(words) and words in (phase.text_content() or "")
    assert "8, then 20 of each task" in page.locator("#fidelity").inner_text()
    page.close()


def test_names_that_every_object_has_are_drawn_as_any_other(
    browser: Browser, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads(json.dumps(kept(finished.results())))
    names = ["constructor", "toString", "__proto__"]
    for key in ("groups", "experts"):
        data["run"][key][: len(names)] = names[: len(data["run"][key])]
    monkeypatch.setattr(report, "kept", lambda results: data)
    address = report.write_report(finished.results(), tmp_path / "report.html").as_uri()
    seen = at(browser, address, "#/run/pico/c/best")
    for axis, key in (("y", "groups"), ("x", "experts")):
        assert seen.page.locator(f"#coefficients .{axis}tick text").all_text_contents() == data["run"][key]
    seen.page.locator("#coefficients .nsewdrag").hover(position={"x": 5, "y": 5}, force=True)
    text(seen.page, "#coefficients .hovertext", "constructor")
    quiet(seen, address)
    seen.page.close()


def test_a_gap_within_its_error_is_neither_better_nor_worse(
    browser: Browser, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads(json.dumps(kept(finished.results())))
    gaps = [(-0.005, 0.05), (0.3, 0.1), (-0.3, 0.1), (0.1, None)]
    name = data["run"]["objectives"][0]["name"]
    data["run"]["curse"] = [{"objective": name, "value": v, "stderr": e} for v, e in gaps]
    monkeypatch.setattr(report, "kept", lambda results: data)
    address = report.write_report(finished.results(), tmp_path / "report.html").as_uri()
    page = at(browser, address).page
    looked = page.locator("#sure tbody td:last-child").all_inner_texts()
    assert looked == ["not told apart", "better", "worse", "better"]
    page.close()


WORDS = {  # view -> words that it explains where they stand
    "": ("hypervolume", "epsilon", "share", "coordinate", "anchors", "winner's curse", "gap", "sure", "rank", "stage"),
    "#/run/pico/c/best": ("calibration", "held-out", "standard error", "recipe"),
    "#/run/pico/pick": ("front", "anchors' range"),
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A run of simulated scores, whose best candidate is an anchor by name."""
    made = Made(tmp_path_factory.mktemp("simulated") / "pico")
    made.more(40)
    made.heldout(list(range(40)))
    made.close()
    return Results(made.folder)


@pytest.fixture(scope="module")
def explained(simulated: Results, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = kept(simulated)
    table = data["candidates"]
    table["labels"] |= {table["numbers"][table["rank"].index(0)]: "global 0.2"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "kept", lambda results: data)
        yield report.write_report(simulated, tmp_path_factory.mktemp("report") / "report.html").as_uri()


@pytest.mark.parametrize("view", VIEWS)
def test_a_word_that_nobody_brings_along_is_explained_where_it_stands(
    browser: Browser, explained: str, view: str
) -> None:
    seen = at(browser, explained, view)
    page = seen.page
    tip = page.locator(".tip")
    for word in WORDS[view]:
        node = page.locator(f'[data-word="{word}"]').first
        node.focus()
        said = tip.inner_text()
        meaning = "document.getElementById(document.activeElement.getAttribute('aria-describedby')).textContent"
        assert said and said == page.evaluate(meaning), "a screen reader is told the same"
        page.keyboard.press("Escape")
        assert not tip.is_visible()
        page.evaluate("document.activeElement.blur()")
        node.hover()
        assert tip.inner_text() == said
        box, words = tip.bounding_box(), node.bounding_box()
        assert box and words and box["x"] >= 0 and box["x"] + box["width"] <= page.evaluate("innerWidth")
        page.mouse.move(box["x"] + 15, box["y"] + box["height"] / 2, steps=8)
        assert tip.is_visible(), "it can be pointed at"
        page.mouse.move(0, 0)
        assert not tip.is_visible()
    for head in page.locator(".sort[data-word]").all()[:1]:
        head.click()
        assert tip.is_visible()
        page.mouse.move(0, 0)
        assert not tip.is_visible(), "rows that were sorted are seen"
    quiet(seen, explained)
    page.close()


def test_a_tap_explains_a_word_and_another_takes_that_away(browser: Browser, explained: str) -> None:
    page = at(browser, explained, viewport=PHONE, has_touch=True).page
    text(page, "#front .about", "Every expert with the coefficient 0.2 in")
    page.locator('[data-word="hypervolume"]').first.tap()
    text(page, ".tip", "box")
    page.locator("h1").tap()
    assert not page.locator(".tip").is_visible()
    page.close()


def test_what_an_anchor_is_called_is_said_in_a_sentence(browser: Browser) -> None:
    labels = [
        label
        for method in METHODS
        for several in ([method], sorted({method, "task_arithmetic"}))
        for label, _ in CoefficientSpace(
            tensors=["a.weight", "b.weight"],
            experts=["x (1)", "y"][: load(method).experts[1]],
            method=several,
            granularity="tensor",
        ).anchors()
    ]
    assert {"base", "uniform", "global 0.3", "expert: x (1)"} <= set(labels)
    page = opened(browser, "about:blank").page
    module = 'modules["glossary.js"] ='
    page.evaluate(bundled("glossary.js").replace(module, f"globalThis.glossary = {module}"))
    others = ["start", "37", "stage 3", "uniformly"]
    found = page.evaluate("(labels) => labels.map((label) => glossary.anchorSaid(label))", [*labels, *others])
    assert None not in found[: 1 - len(others)] and found[1 - len(others) :] == [None, None, None]
    sweep = [said for label, said in zip(labels, found, strict=False) if label.startswith("global 0.3")]
    assert sweep and all("coefficient 0.3 in" in said for said in sweep)
    page.close()


def test_what_needs_a_server_is_told_as_a_command(browser: Browser, address: str) -> None:
    seen = at(browser, address, "#/run/pico/c/best")
    assert "mergeopt export pico" in seen.page.locator("main").inner_text()
    assert seen.page.get_by_role("button", name="Export").count() == 0 and seen.page.locator("#log").count() == 0
    seen.page.close()


def test_paper_is_light_and_has_no_controls(browser: Browser, address: str) -> None:
    seen = at(browser, address, color_scheme="dark")
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert not seen.page.locator("#theme").is_visible() and not seen.page.locator("#front .controls").is_visible()
    ink = "getComputedStyle(document.querySelector('#front .xtitle')).fill"
    holds(seen.page, f"{ink} === getComputedStyle(document.body).color")
    assert (
        seen.page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor") == "rgb(255, 255, 255)"
    )
    quiet(seen, address)
    seen.page.close()


def test_a_large_run_travels_compactly(tmp_path: Path) -> None:
    made = Made(tmp_path / "large", groups=20, objectives=3)
    made.more(1500)
    made.close()
    results = Results(made.folder)
    data = kept(results)
    assert len(data["candidates"]["numbers"]) == 1500 and len(data["details"]) == DETAILED
    front = set(results.front.nondominated)
    assert front <= set(data["details"])
    gains = [stage["gain"] for stage in data["run"]["stages"]]
    assert gains == [stage.gain for stage in results.growth.stages] and sum(gains) > 0
    itemised = {n for metrics in data["items"].values() for of in metrics.values() for n in of}
    assert itemised <= front | {0, 1} and itemised & front
    assert len(json.dumps(data, separators=(",", ":"))) < 3_000_000


@pytest.mark.parametrize("room", [4 * ITEMS, 15 * ITEMS, 16 * ITEMS])
def test_a_tight_report_has_both_splits_of_the_front_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    made = Made(tmp_path / "tight")
    made.more(30)
    made.heldout(list(range(30)))
    made.close()
    results = Results(made.folder)
    monkeypatch.setattr(keeping, "ITEM_VALUES", room)
    items = kept(results)["items"]
    wanted = [c.number for c in results.on_front][: room // (4 * ITEMS)]  # of two objectives on two splits
    assert set(items) == {"calibration", "heldout"}
    assert all(list(of) == wanted for metrics in items.values() for of in metrics.values())


def test_a_report_pairs_items_as_the_program_does(browser: Browser) -> None:
    page = opened(browser, "about:blank").page
    page.evaluate(bundled("kept.js").replace('modules["kept.js"] =', 'globalThis.kept = modules["kept.js"] ='))
    for name, (goal, *sides) in PAIRS.items():
        sign = 1 if goal == "min" else -1
        samples = [Sample.of(sign, v, e, None if x is None else np.array(x, np.float32)) for v, e, x in sides]
        d = difference(*samples)
        measures = [{"value": v, "stderr": e} for v, e, _ in sides]
        items = [None if x is None else [None if np.isnan(i) else i for i in x] for _, _, x in sides]
        found = page.evaluate("([goal, [a, b], [x, y]]) => kept.difference(goal, a, b, x, y)", [goal, measures, items])
        told = {k: getattr(d, k) for k in ("paired", "wins", "losses", "ties")}
        assert {k: found[k] for k in told} == told, name
        assert found["better"] == (None if d.value == 0 else "a" if d.value < 0 else "b"), name
        assert found["value"] == pytest.approx(sign * d.value), name
        known = None if np.isnan(d.stderr) else pytest.approx(d.stderr, rel=1e-6)
        assert found["stderr"] == known, name
    page.close()


@pytest.mark.parametrize("view", VIEWS)
def test_a_hostile_name_in_every_field_is_text_and_runs_nothing(
    browser: Browser, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    texts: dict[str, str] = {}
    results = finished.results()
    data = hostile(json.loads(json.dumps(kept(results))), texts)
    data["candidates"]["reasons"] = {"3": " ".join(HOSTILE)}
    data["run"]["provenance"] = {t: [t] for t in HOSTILE}
    data["run"]["broken"] = {t: t for t in HOSTILE}
    monkeypatch.setattr(report, "kept", lambda results: data)
    monkeypatch.setattr(results, "name", " ".join(HOSTILE))
    address = report.write_report(results, tmp_path / "report.html").as_uri()
    seen = opened(browser, address + view)
    page = seen.page
    page.wait_for_selector(VIEWS[view])
    for control in page.locator("main select").all():
        if control.is_visible() and control.locator("option").count() > 1:
            control.select_option(index=1)
    for point in page.locator(".trace path.point").all()[-2:]:
        point.hover(force=True)
    page.wait_for_timeout(300)
    quiet(seen, address)
    assert page.locator(MARKUP).count() == 0
    shown = page.locator("body").inner_text()
    assert sum(attack in shown for attack in HOSTILE) >= (len(HOSTILE) if view == "" else 2)
    page.close()


@pytest.mark.parametrize(
    "text",
    [
        'import x from "./b.js";\n',
        'import { a,\n b } from "./b.js";\n',
        "export default 3;\n",
        'const a = import("./b.js");\n',
    ],
)
def test_a_module_that_is_written_otherwise_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.js").write_text(text)
    (tmp_path / "b.js").write_text("export const a = 1;\n")
    with pytest.raises(ValueError, match=r"a\.js: expected imports and exports of one line each"):
        bundled("a.js", tmp_path)


def test_modules_that_import_one_another_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text('import { b } from "./b.js";\nexport const a = 1;\n')
    (tmp_path / "b.js").write_text('import { a } from "./a.js";\nexport const b = 1;\n')
    with pytest.raises(ValueError, match=r"a\.js -> b\.js -> a\.js"):
        bundled("a.js", tmp_path)
