"""What does a person see and do in the service's page, in a real browser, with runs that are still going on?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import served
import worlds
from browser import Seen, holds, opened
from hostile import HOSTILE, MARKUP, hostile
from ledgers import Made
from ruamel.yaml import YAML

from optimizer.output import certain
from optimizer.record.results import Results

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

VIEWS = {  # address -> what is there once it is drawn
    "#/": ".cards tbody tr",
    "#/run/trade": "#parallel [data-drawn]",
    "#/run/trade/c/best": "#coefficients .heatmaplayer image",
    "#/run/trade/pick": "#where .trace path.point",
    "#/compare/trade,twin": "#fronts .trace path.point",
    "#/new": "textarea",
    "#/new?run=trade&start=best": "textarea",
}
PHONE = {"width": 360, "height": 740}
OPAQUE = """() => {
  const canvas = document.querySelector("#front .cloud"), box = canvas.getBoundingClientRect();
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const at = data.findIndex((v, i) => i % 4 === 3 && v === 255) >> 2;  // the middle of a dot, as on a canvas
  const [x, y] = [at % canvas.width, Math.floor(at / canvas.width)];
  return { x: box.left + (x * box.width) / canvas.width, y: box.top + (y * box.height) / canvas.height };
}"""

WATCHED = """() => {  // which candidates each drawing of the front has in its faint trace
  globalThis.faded = [];
  const draw = Plotly.react;
  Plotly.react = (node, traces, ...how) => {
    if (node.closest("#front")) faded.push(traces[0].customdata);
    return draw.call(Plotly, node, traces, ...how);
  };
}"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the same objectives and items, and one of other objectives."""
    folder = tmp_path_factory.mktemp("served") / "runs"
    for name, objectives, count in (("trade", 3, 60), ("twin", 3, 40), ("other", 2, 20)):
        made = Made(folder / name, objectives=objectives, experts=3)
        made.more(count)
        made.heldout([0, 1, *range(30, 40)] if count > 30 else [0, 1])
        made.close()
    return folder


@pytest.fixture(scope="module")
def service(runs: Path) -> Iterator[served.Served]:
    with served.serving(runs) as there:
        yield there


def at(browser: Browser, service: served.Served, view: str, wait: str | None = None, **how: Any) -> Seen:
    """A view, drawn."""
    seen = opened(browser, f"{service.url}/{view}", **how)
    seen.page.wait_for_selector(wait or VIEWS[view])
    return seen


def text(page: Page, where: str, what: str) -> None:
    """Wait until an element has a text in it."""
    page.locator(where).filter(has_text=what).first.wait_for()


def quiet(seen: Seen, service: served.Served) -> None:
    """Nothing complained, nothing popped up, and nothing left the host."""
    assert seen.complaints == [] and seen.dialogs == []
    assert [url for url in seen.requests if not url.startswith((f"{service.url}/", "data:", "blob:"))] == []


@pytest.mark.parametrize("how", [{}, {"color_scheme": "dark"}, {"viewport": PHONE}], ids=["light", "dark", "phone"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_draws_what_it_is_for_fits_and_asks_nothing_of_elsewhere(
    browser: Browser, service: served.Served, view: str, how: dict[str, Any]
) -> None:
    seen = at(browser, service, view, **how)
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.locator("main h1").count() == 1 and page.title().endswith("mergeopt")
    quiet(seen, service)
    page.close()


def test_the_stages_of_a_long_search_are_folded_and_stay_as_open_as_they_are(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "runs" / "long", stage=5)
    made.more(60)
    with served.serving(tmp_path / "runs") as there:
        seen = at(browser, there, "#/run/long", "#progress details")
        rows = seen.page.locator("#progress details tr")
        assert not rows.first.is_visible()
        text(seen.page, "#progress summary", "13 stages; ")  # the anchors are one
        seen.page.locator("#progress summary").click()
        assert rows.last.is_visible()
        made.more(5)
        text(seen.page, "#progress summary", "14 stages; ")
        assert rows.last.is_visible() and rows.count() == 15
        quiet(seen, there)
        seen.page.close()
    made.close()


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_has_a_name_and_is_reached_by_the_keyboard(
    browser: Browser, service: served.Served, view: str
) -> None:
    seen = at(browser, service, view)
    page = seen.page
    holds(page, "!document.body.textContent.includes('Working it out')")  # what comes last has come
    tree = page.locator("body").aria_snapshot()
    assert (
        re.findall(
            r"- (?:button|link|textbox|combobox|checkbox|slider|searchbox|spinbutton|img)\s*(?::.*)?$", tree, re.M
        )
        == []
    )
    controls = "a[href], button, input, select, textarea, summary"
    closed = "details:not([open]) > :not(summary)"
    there = "(e) => !e.disabled && e.checkVisibility() && !e.closest(closed)"
    wanted = page.evaluate(
        f"([s, closed]) => [...document.querySelectorAll(s)].filter({there}).length", [controls, closed]
    )
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(wanted + 40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(s) => [...document.querySelectorAll(s)].indexOf(document.activeElement)", controls))
    assert len(reached - {-1}) == wanted
    page.close()


def test_a_run_is_followed_as_it_goes_on(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "runs" / "live")
    with served.serving(tmp_path / "runs") as service:
        seen = at(browser, service, "#/run/live", "#front .empty")
        page = seen.page
        assert page.locator(".tiles dd").first.inner_text() == "0 of 100"
        made.more(12)
        page.wait_for_selector("#front .trace path.point")
        text(page, ".tiles dd", "12 of 100")
        made.more(30)
        made.heldout([0, 1])
        text(page, ".tiles dd", "42 of 100")
        page.locator("#candidates select").select_option("all")
        text(page, "#candidates .pager", "of 42")
        page.goto(f"{service.url}/#/")
        made.more(3)
        text(page, ".cards tbody", "45 of 100")
        quiet(seen, service)
        page.close()
    made.close()


def test_what_matters_is_of_the_metric_that_was_chosen_last_whatever_comes_late(
    browser: Browser, tmp_path: Path
) -> None:
    made = Made(tmp_path / "runs" / "live")
    made.more(40)
    with served.serving(tmp_path / "runs") as service:
        seen = at(browser, service, "#/run/live", "#importance .shares li")
        page, shares, held = seen.page, seen.page.locator("#importance .shares"), dict[str, Any]()
        metric = page.locator("#importance select")

        def hold(name: str, address: re.Pattern[str]) -> None:
            page.route(address, lambda route: held.setdefault(name, route), times=1)

        hold("slow", re.compile("importance.metric=t0"))
        metric.select_option("t0.accuracy")
        metric.select_option("t1.accuracy")
        page.wait_for_selector("#importance .shares li")
        quick = shares.inner_text()
        with page.expect_response(re.compile("importance.metric=t0")):
            held.pop("slow").continue_()
        page.wait_for_timeout(300)
        assert shares.inner_text() == quick

        hold("news", re.compile("candidates.since="))
        with page.expect_request(re.compile("candidates.since=")):
            made.more(30)
        metric.select_option("t0.accuracy")
        page.wait_for_timeout(1000)
        latest = shares.inner_text()
        held.pop("news").continue_()
        text(page, ".tiles dd", "70 of 100")
        assert shares.inner_text() == latest != quick
        page.close()
    made.close()


def test_a_search_that_was_stopped_says_how_its_front_gets_heldout_scores(
    browser: Browser, service: served.Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = at(browser, service, "#/run/other", "#parallel [data-drawn]")
    asked = []
    seen.page.route("**/resume", lambda route: (asked.append(route.request.post_data_json), route.abort()))
    text(seen.page, ".phase", "no held-out scores")
    seen.page.get_by_role("button", name="Score them now").click()
    text(seen.page, "#said", "does not answer")
    assert asked == [{"evaluations": 20}]
    seen.page.close()


def test_a_front_that_has_its_heldout_scores_is_not_said_to_lack_them(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "runs" / "whole")
    made.more(20)
    made.heldout(list(range(20)))
    made.close()
    with served.serving(tmp_path / "runs") as there:
        seen = at(browser, there, "#/run/whole", "#parallel [data-drawn]")
        assert not seen.page.locator(".phase").is_visible()
        seen.page.close()


def test_a_new_search_like_another_starts_from_a_job_in_few_words(browser: Browser, service: served.Served) -> None:
    seen = at(browser, service, "#/run/trade")
    seen.page.get_by_role("link", name="New search like this").click()
    seen.page.wait_for_selector("textarea")
    job = YAML(typ="safe", pure=True).load(seen.page.locator("textarea").input_value())
    assert job.keys() <= {"name", "models", "evaluators", "objectives", "root"}
    quiet(seen, service)
    seen.page.close()


def test_news_merged_in_are_what_asking_for_all_would_give(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "runs" / "live", objectives=3)
    made.more(55)
    with served.serving(tmp_path / "runs") as service:
        seen = opened(browser, service.url)
        ask = "async (since) => await (await fetch(`/api/runs/live/candidates${since}`)).json()"
        before = seen.page.evaluate(ask, "")
        made.more(50)
        made.heldout([0, 1, 20])
        news, whole = (seen.page.evaluate(ask, since) for since in (f"?since={before['event']}", ""))
        assert 20 in news["numbers"] and 21 not in news["numbers"]
        merge = "async ([a, b]) => (await import('/columns.js')).merged(a, b)"
        merged = seen.page.evaluate(merge, [before, news])
        stages = [merged["stages"][s] for s in merged.pop("stage")]
        assert stages == [whole["stages"][s] for s in whole.pop("stage")]
        unlike = {key for key in whole if merged[key] != whole[key]}
        assert unlike <= {"stages", "ranks", "sures", "sure"}  # how sure the front is, is counted beside the answer
        seen.page.close()
    made.close()


def test_a_brush_selects_in_the_front_and_in_the_table(browser: Browser, service: served.Served) -> None:
    seen = at(browser, service, "#/run/trade")
    page = seen.page
    page.locator("#candidates select").select_option("all")
    axis = page.locator("#parallel .hit").first
    axis.scroll_into_view_if_needed()
    box = axis.bounding_box()
    assert box is not None
    across = box["x"] + box["width"] / 2
    page.mouse.move(across, box["y"] + 2)  # above the axis: its top
    page.mouse.down()
    page.mouse.move(across, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    said = page.locator("#parallel [role=status]")
    kept = int(re.match(r"(\d+) of 59 candidates kept", said.inner_text())[1])  # type: ignore[index]  # one failed
    assert 0 < kept < 59
    text(page, "#candidates .pager", f"1–{kept} of {kept}")  # a frame later
    drawn = "document.querySelectorAll('#front .scatterlayer .trace:first-child path.point').length"
    holds(page, f"{drawn} === {59 - kept}")  # what is not kept is one faint trace
    values = service.told("/api/runs/trade/candidates?failed=false")["values"][0]
    middle = (min(values) + max(values)) / 2
    assert kept == pytest.approx(sum(v > middle for v in values), abs=3)
    page.locator("#parallel summary").click()
    page.get_by_label("Lowest t0.accuracy").fill(str(middle))
    page.get_by_label("Lowest t0.accuracy").press("Enter")
    over = sum(v > middle for v in values)
    starts = f"document.querySelector('#parallel [role=status]').textContent.startsWith('{over} of')"
    holds(page, starts)
    page.get_by_role("button", name="Clear").click()
    text(page, "#candidates .pager", "of 60")
    assert said.inner_text() == ""
    quiet(seen, service)
    page.close()


def test_what_comes_while_there_are_brushes_is_drawn_as_they_keep_it(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "runs" / "live")
    made.more(40)
    with served.serving(tmp_path / "runs") as there:
        seen = at(browser, there, "#/run/live", "#parallel [data-drawn]")
        page = seen.page
        page.locator("#parallel summary").click()
        values = [v for v in there.told("/api/runs/live/candidates?failed=false")["values"][0] if v is not None]
        lowest = sorted(values)[len(values) // 2]
        page.get_by_label("Lowest t0.accuracy").fill(str(lowest))
        page.get_by_label("Lowest t0.accuracy").press("Enter")
        page.get_by_label("Highest t0.accuracy").fill("9")
        page.get_by_label("Highest t0.accuracy").press("Enter")
        text(page, "#parallel [role=status]", " of 40 candidates kept")
        page.wait_for_selector("#front .trace path.point")
        page.evaluate(WATCHED)
        made.more(30)
        text(page, ".tiles dd", "70 of 100")
        page.wait_for_timeout(300)  # of frames in which it is drawn again
        found = there.told("/api/runs/live/candidates?failed=false")
        low = {n for n, v in zip(found["numbers"], found["values"][0], strict=True) if v < lowest}
        drawn = page.evaluate("globalThis.faded")
        assert all(set(numbers) <= low for numbers in drawn) and set(drawn[-1]) == low
        quiet(seen, there)
        page.close()
    made.close()


def test_a_coordinate_that_is_brushed_stays_whatever_matters_more_by_then(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "runs" / "live", groups=8)
    made.more(40)
    with served.serving(tmp_path / "runs") as there:
        seen = at(browser, there, "#/run/live", "#parallel [data-drawn]")
        page, said = seen.page, seen.page.locator("#parallel [role=status]")
        page.locator("#parallel summary").click()
        names = there.told("/api/runs/live/coordinates?top=8")["names"]
        field = page.get_by_label(f"Lowest {names[2]}", exact=True)
        field.fill("0.5")
        field.press("Enter")
        before = said.inner_text()
        gone = names[1:3]

        def without(route: Route) -> None:
            told = route.fetch().json()
            left = [k for k, name in enumerate(told["names"]) if name not in gone]
            route.fulfill(json=told | {key: [told[key][k] for k in left] for key in ("names", "columns")})

        page.route("**/coordinates?top=8", without)
        made.more(30)
        page.get_by_label(f"Lowest {gone[0]}", exact=True).wait_for(state="detached")
        assert field.input_value() == "0.5"
        text(page, "#parallel [role=status]", "of 69 candidates kept")
        assert said.inner_text() != before and page.get_by_role("button", name="Clear").is_visible()
        quiet(seen, there)
        page.close()
    made.close()


def test_the_front_is_seen_in_three_dimensions_by_other_axes_and_with_bars(
    browser: Browser, service: served.Served
) -> None:
    seen = at(browser, service, "#/run/trade", "#front .trace path.point")
    page = seen.page
    page.get_by_label("across").select_option(index=2)
    holds(page, "document.querySelector('#front .xtitle').textContent.startsWith('t2.accuracy')")
    page.get_by_label("error bars").check()
    page.wait_for_selector("#front .errorbar")
    page.locator("#front .trace path.point").last.click(force=True)
    page.locator("#candidates tbody tr").nth(2).locator("td").first.click()
    chosen = page.locator("#candidates tbody tr.chosen a").inner_text()
    assert page.locator(".about h3 a").inner_text() == chosen
    page.get_by_label("deep").select_option(index=3)
    page.wait_for_selector("#front .gl-container canvas")
    page.get_by_label("deep").select_option(index=0)
    page.wait_for_selector("#front .trace path.point")
    assert seen.complaints == []
    page.close()


def test_a_point_is_chosen_before_the_drawing_library_has_come(browser: Browser, service: served.Served) -> None:
    seen, held = opened(browser, "about:blank"), list[Any]()
    page, heading = seen.page, seen.page.locator("#front .about h3")
    page.route("**/plotly.js", lambda route: held.append(route))
    page.goto(f"{service.url}/#/run/trade")
    page.wait_for_selector("#front .cloud[data-points]")
    best = heading.inner_text()
    assert best.startswith("Best mean")
    where = page.evaluate(OPAQUE)
    page.mouse.click(where["x"], where["y"])
    holds(page, "!document.querySelector('#front .about h3').textContent.startsWith('Best mean')")
    chosen = page.locator("#front .about h3 a").get_attribute("href") or ""
    assert re.fullmatch(r"#/run/trade/c/\d+", chosen)
    for route in held:
        route.continue_()
    page.wait_for_selector("#front .trace path.point")
    assert page.locator("#front .about h3 a").get_attribute("href") == chosen
    quiet(seen, service)
    page.close()


def test_names_on_the_front_touch_no_other(browser: Browser, service: served.Served) -> None:
    seen = at(browser, service, "#/run/trade", "#front .textpoint text")
    boxes = [b for t in seen.page.locator("#front .textpoint text").all() if (b := t.bounding_box()) and b["width"] > 1]
    assert boxes
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
            assert apart or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]
    seen.page.close()


@pytest.mark.parametrize("weights", [(50, 50, 50), (100, 0, 0), (0, 100, 20), (10, 30, 60)])
def test_sliders_pick_what_the_service_picks(
    browser: Browser, service: served.Served, weights: tuple[int, ...]
) -> None:
    seen = at(browser, service, "#/run/trade/pick", "#answer-card h3 a")
    page = seen.page
    for slider, weight in zip(page.get_by_role("slider").all(), weights, strict=True):
        slider.fill(str(weight))
    said = ",".join(f"t{k}.accuracy:{w}" for k, w in enumerate(weights))
    there = service.told(f"/api/runs/trade/pick?weights={said}")
    holds(page, f"document.querySelector('#answer-card h3').textContent === 'candidate {there['label']}'")
    page.get_by_label("At least t1.accuracy").fill("0.7")
    bound = service.told(f"/api/runs/trade/pick?weights={said}&where=t1.accuracy>=0.7")
    holds(page, f"document.querySelector('#answer-card h3').textContent === 'candidate {bound['label']}'")
    page.get_by_label("At least t1.accuracy").fill("7")
    page.wait_for_selector("#answer-card .empty")
    quiet(seen, service)
    page.close()


@pytest.mark.slow
def test_a_search_is_launched_followed_and_stopped_and_its_best_merge_exported(
    browser: Browser, tmp_path: Path
) -> None:
    job = worlds.classification(tmp_path, evaluations=400)
    (tmp_path / "runs").mkdir()
    with served.serving(tmp_path / "runs") as service:
        seen = at(browser, service, f"#token={served.TOKEN}", "main .empty")
        page = seen.page
        page.get_by_role("link", name="New search").first.click()
        page.locator("textarea").fill(f"root: {tmp_path}\n{job.read_text()}")
        page.get_by_role("button", name="Check").click()
        page.wait_for_selector("#job .notice.good", timeout=120_000)
        page.get_by_label("name", exact=True).fill("first")
        page.get_by_role("button", name="Launch").click()
        page.locator("#launch .notice a").click(timeout=120_000)
        page.wait_for_selector("#front .trace path.point", timeout=120_000)  # by itself, once there is a run
        page.get_by_role("button", name="Stop").click()
        page.wait_for_selector(".run-head .pill.stopped", timeout=120_000)
        page.get_by_role("link", name="Best candidate").click()
        page.get_by_role("button", name="Export").first.click()
        page.get_by_label("folder").fill("chosen")
        page.locator("main .controls .primary").click()
        page.locator("main [role=status]").filter(has_text="scores what the ledger says").wait_for(timeout=180_000)
        assert (tmp_path / "runs" / "first" / "exports" / "chosen" / "model.safetensors").exists()
        page.get_by_role("link", name="Use as start").click()
        page.wait_for_selector("textarea")
        begun = yaml_of(page.locator("textarea").input_value())["space"]["start"]
        best = service.told("/api/runs/first/candidates/best")
        for expert, column in zip(best["experts"], np.transpose(best["coefficients"]), strict=True):
            found = [begun[expert].get(group, begun[expert]["*"]) for group in best["groups"]]
            assert found == pytest.approx(column.tolist(), abs=1e-5)
        quiet(seen, service)
        page.close()


def yaml_of(given: str) -> Any:
    return YAML(typ="safe", pure=True).load(given)


def test_two_candidates_are_told_apart_item_by_item(browser: Browser, service: served.Served) -> None:
    seen = at(browser, service, "#/run/trade/c/30", VIEWS["#/run/trade/c/best"])
    page = seen.page
    page.locator("#compare select").first.select_option(label="a0 (0)")
    page.wait_for_selector("#compare .bars path")
    told = service.told("/api/runs/trade/compare?a=30&b=0")
    first = told["calibration"]["objectives"]["t0.accuracy"]
    cells = page.locator("#compare tbody tr").first.locator("td").all_inner_texts()
    assert cells[3:] == [str(first[k]) for k in ("wins", "losses", "ties")]
    assert page.locator("#compare .bars path").count() == 40
    page.get_by_label("Or compare with").fill("nothing-like-it")
    page.get_by_label("Or compare with").press("Enter")
    text(page, "#said", "nothing-like-it")
    page.close()


def test_how_sure_a_place_on_the_front_is_is_said_by_both_kinds_of_items(
    browser: Browser, service: served.Served
) -> None:
    confidence = Results(service.runs / "trade").confidence
    number, unseen = next(iter(confidence.unseen.items()))
    sure = confidence.seen[number]
    said = f"{certain.probability(sure)} by the calibration items, which chose it, and {certain.probability(unseen)} by"
    served.until(lambda: service.told(f"/api/runs/trade/candidates/{number}")["sure_heldout"], "it is counted")
    seen = at(browser, service, f"#/run/trade/c/{number}", "#scores .soft")
    assert said in seen.page.locator("#scores .soft").inner_text()
    seen.page.goto(f"{service.url}/#/run/trade/c/{next(n for n in confidence.seen if n not in confidence.unseen)}")
    text(seen.page, "#scores .soft", "held-out items may say otherwise")
    seen.page.close()


def test_noise_has_no_winner(browser: Browser, service: served.Served) -> None:
    errors = iter([1.0, 3.0])  # standard errors that the difference is from 0

    def answer(route: Route) -> None:
        found = route.fetch().json()
        for split in ("calibration", "heldout"):
            for one in (found[split] or {"objectives": {}})["objectives"].values():
                one.update(value=0.01, better="a", stderr=0.01 / next(errors, 3.0))
        route.fulfill(json=found)

    seen = opened(browser, "about:blank")
    seen.page.route("**/compare?*", answer)
    seen.page.goto(f"{service.url}/#/run/trade/c/30")
    seen.page.locator("#compare select").first.select_option(label="a0 (0)")
    text(seen.page, "#compare tbody", "this one")
    marks = [row.locator("td").nth(2).inner_text() for row in seen.page.locator("#compare tbody tr").all()]
    assert sorted(marks[:6]) == ["not told apart", *["this one"] * 5]
    seen.page.close()


def test_a_comparison_is_with_the_candidate_that_was_chosen_last(browser: Browser, service: served.Served) -> None:
    seen, held = at(browser, service, "#/run/trade/c/30", VIEWS["#/run/trade/c/best"]), list[Any]()
    page, told = seen.page, seen.page.locator("#compare tbody")
    slow, other = re.compile(r"compare\?a=30&b=0"), page.locator("#compare select").first
    page.route(slow, lambda route: held.append(route), times=1)
    with page.expect_request(slow):
        other.select_option(label="a0 (0)")
    other.select_option(label="a1 (1)")
    told.wait_for()
    quick = told.inner_text()
    with page.expect_response(slow):
        held.pop().continue_()
    page.wait_for_timeout(300)
    assert told.inner_text() == quick
    other.select_option(label="a0 (0)")
    holds(page, f"document.querySelector('#compare tbody').innerText !== {json.dumps(quick)}")
    quiet(seen, service)
    page.close()


def test_a_view_that_is_left_before_it_came_asks_for_no_more(browser: Browser, service: served.Served) -> None:
    seen = at(browser, service, "#/", VIEWS["#/"])
    page, asked = seen.page, re.compile("runs/trade/candidates")
    page.route(asked, lambda route: None)  # never answered
    with page.expect_request(asked):
        page.goto(f"{service.url}/#/run/trade")
    with page.expect_event("requestfailed", lambda request: bool(asked.search(request.url))):
        page.goto(f"{service.url}/#/run/twin")
    page.wait_for_selector("#parallel [data-drawn]")
    assert not [url for url in seen.requests if re.search("runs/trade/(events|importance|coordinates)", url)]
    quiet(seen, service)
    page.close()


def test_runs_that_are_not_comparable_are_refused_with_the_reason(browser: Browser, service: served.Served) -> None:
    reason = service.ask("/api/compare?runs=trade,other").json()["error"]
    seen = at(browser, service, "#/compare/trade,other", ".notice")
    assert reason in seen.page.locator(".notice").inner_text()
    seen.page.close()


def test_a_search_whose_driver_had_nothing_left_says_so(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "runs" / "early")
    made.more(20)
    made.heldout(list(range(20)))
    made.ledger.set_meta("done", True)
    made.close()
    Made(tmp_path / "runs" / "empty").close()
    with served.serving(tmp_path / "runs") as service:
        seen = at(browser, service, "#/", ".cards tbody tr")
        row = seen.page.locator("tbody tr").filter(has_text="empty")
        assert row.locator("[data-title=Hypervolume]").inner_text() == "–"
        seen.page.goto(f"{service.url}/#/run/early")
        text(seen.page, ".run-head .pill", "finished")
        text(seen.page, ".phase", "Ended at 20 of 100: its driver has nothing left to ask. To resume it takes a number")
        quiet(seen, service)
        seen.page.close()


def test_what_is_drafted_names_the_launch_and_no_name_is_the_jobs_own(browser: Browser, service: served.Served) -> None:
    seen, sent = at(browser, service, "#/new"), []
    page = seen.page
    page.route("**/jobs/draft", lambda route: route.fulfill(json={"yaml": "name: drafted\nmodels: {}\n"}))
    page.route("**/jobs/check", lambda route: route.fulfill(json={"ok": True, "problems": [], "plan": None}))
    page.route("**/jobs", lambda route: (sent.append(route.request.post_data_json), route.fulfill(json={"run": "x"})))
    page.get_by_label("base").fill("models/base")
    page.get_by_label("Name of expert 1").fill("one")
    page.get_by_label("Path of expert 1").fill("models/one")
    page.get_by_role("button", name="Draft the job").click()
    text(page, "#models", "Drafted below")
    assert page.get_by_label("name", exact=True).last.input_value() == "drafted"
    page.get_by_label("name", exact=True).last.fill(" ")
    page.get_by_role("button", name="Check").click()
    page.get_by_role("button", name="Launch").click()
    text(page, "#launch", "Started: x")
    assert sent == [{"yaml": "name: drafted\nmodels: {}\n"}]
    page.close()


def test_a_search_that_is_starting_is_cancelled_and_one_that_could_not_start_is_forgotten(
    browser: Browser, tmp_path: Path
) -> None:
    yaml = worlds.classification(tmp_path).read_text().replace("base: base", "base: nowhere")
    (tmp_path / "runs").mkdir()
    with served.serving(tmp_path / "runs") as service:
        begun = {"yaml": f"root: {tmp_path}\n{yaml}"}
        assert service.done("/api/jobs", **begun)["run"] == "pico", "the job's own name"
        seen = at(browser, service, f"#token={served.TOKEN}&/run/pico", "main .pill.starting")
        page = seen.page
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_selector("main .empty", timeout=60_000)  # no run
        service.done("/api/jobs", **begun)
        page.goto(f"{service.url}/#/run/pico")
        page.wait_for_selector("main .pill.failed", timeout=served.PATIENCE_SECONDS * 1000)
        page.get_by_role("link", name="Its job again").click()
        page.wait_for_selector("textarea")
        assert yaml_of(page.locator("textarea").input_value())["models"]["base"].endswith("nowhere")
        assert page.get_by_label("name", exact=True).input_value() == "pico", "its name is free"
        page.goto(f"{service.url}/#/")
        assert page.locator(".cards .pill").inner_text() == "failed"
        page.get_by_role("link", name="pico").click()
        page.get_by_role("button", name="Forget").click()
        page.wait_for_selector("main .empty")
        quiet(seen, service)
        page.close()


def test_what_is_empty_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with served.serving(tmp_path / "runs") as service:
        seen = at(browser, service, "#/", ".empty")
        assert "New search" in seen.page.locator(".empty").inner_text()
        seen.page.goto(f"{service.url}/#/run/none")
        seen.page.wait_for_selector(".notice.bad")
        assert "'none'" in seen.page.locator(".notice").inner_text()
        seen.page.goto(f"{service.url}/#/nowhere")
        text(seen.page, ".notice", "no such view")
        seen.page.close()


def test_the_token_leaves_the_address_at_once_and_opens_what_changes_things(
    browser: Browser, service: served.Served
) -> None:
    seen = at(browser, service, "#/run/trade")
    page = seen.page
    assert page.locator("#mode").inner_text() == "read-only"
    page.get_by_role("button", name="Resume").click()
    text(page, "#said", "token")
    page.close()
    seen = at(browser, service, f"#token={served.TOKEN}", VIEWS["#/"])
    assert served.TOKEN not in seen.page.url and not any(served.TOKEN in url for url in seen.requests[1:])
    assert seen.page.locator("#mode").inner_text() == ""
    seen.page.goto(f"{service.url}/#/new")
    draft = seen.page.get_by_role("button", name="Draft the job")
    draft.click()
    text(seen.page, "#models", "name the base")
    seen.page.get_by_label("base").fill("models/base")
    seen.page.get_by_label("Name of expert 1").fill("math")
    draft.click()
    text(seen.page, "#models", "math needs a name and a path")
    seen.page.goto(f"{service.url}/#/new?run=trade")
    seen.page.wait_for_function("() => document.querySelector('#job textarea')?.value.includes('trade')")
    seen.page.locator("textarea").fill("models: [")
    seen.page.get_by_role("button", name="Check").click()
    seen.page.wait_for_selector("#job .notice.bad")
    assert seen.page.get_by_role("button", name="Launch").is_disabled()
    quiet(seen, service)
    seen.page.close()


def test_a_candidates_log_wraps_within_itself_and_shows_its_own_line(browser: Browser, service: served.Served) -> None:
    seen = at(browser, service, "#/run/trade/c/30", VIEWS["#/run/trade/c/best"], viewport=PHONE)
    page = seen.page
    own, log = page.locator("#log .mine"), page.locator("#log .log")
    assert own.count() == 1 and own.inner_text().startswith("candidate 30 ")
    inside, around = own.bounding_box(), log.bounding_box()
    assert inside and around and around["height"] < PHONE["height"] / 2
    assert around["x"] <= inside["x"] and inside["x"] + inside["width"] <= around["x"] + around["width"] + 1
    assert around["y"] <= inside["y"] and inside["y"] + inside["height"] <= around["y"] + around["height"]
    assert log.evaluate("(e) => e.scrollWidth - e.clientWidth") <= 0
    quiet(seen, service)
    page.close()


PLAN = {
    "experts": ["spam", "mood"],
    "parameters": 1_200_000,
    "dtype": "float32",
    "workers": 4,
    "worker_bytes": 2_000_000_000,
    "on_cpu": True,
    "available_bytes": 12_000_000_000,
    "device_available_bytes": None,
    "merge_seconds": 3.0,
    "evaluations": 200,
    "gradients": 0,
    "warnings": [],
    "cache_kinds": {"tables": {"bytes": 0}},
    "said": {"a worker": f"a model of 1 GB {HOSTILE[0]}", "all merges": "at most 200 candidates:\n10 min"},
    "budget": {"evaluations": 200, "hours": 2.0, "money": None},
}


@pytest.mark.parametrize(
    ("plan", "free", "all_workers"),
    [
        (PLAN, "12.0 GB", "8.00 GB (4 at once)"),
        (PLAN | {"on_cpu": False, "device_available_bytes": 80_000_000_000}, "80.0 GB", None),
    ],
)
def test_what_a_check_found_is_told_in_a_table_and_in_sentences(
    browser: Browser, service: served.Served, plan: dict[str, Any], free: str, all_workers: str | None
) -> None:
    seen = opened(browser, "about:blank", viewport=PHONE)
    page = seen.page
    answer = json.dumps({"ok": True, "problems": [], "plan": plan})
    page.route("**/api/jobs/check", lambda route: route.fulfill(content_type="application/json", body=answer))
    page.goto(f"{service.url}/#token={served.TOKEN}&/new?run=trade")
    page.wait_for_function("() => document.querySelector('#job textarea')?.value.includes('trade')")
    page.get_by_role("button", name="Check").click()
    page.wait_for_selector("#job .plan table")
    rows = dict(row.split("\t") for row in page.locator("#job .plan tbody").inner_text().splitlines())
    assert rows.get("memory of all workers") == all_workers and rows["memory that is free"] == free
    assert rows["hours at most"] == "2"
    assert rows["writing all of them"].startswith("10 min by one worker") and "money at most" not in rows
    page.locator("#job .plan summary").click()
    said = page.locator("#job .plan dl").inner_text()
    assert (
        HOSTILE[0] in said and "10 min" in said and not re.search(r"[{}\[\]]|_bytes|null", said.replace(HOSTILE[0], ""))
    )
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    quiet(seen, service)
    page.close()


def test_the_theme_is_the_systems_until_it_is_switched(browser: Browser, service: served.Served) -> None:
    seen = at(browser, service, "#/run/trade", "#front .trace path.point", color_scheme="dark")
    page = seen.page
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('#front .xtitle')).fill"
    dark, drawn = page.evaluate(ground), page.evaluate(ink)
    page.locator("#theme").click()
    assert page.evaluate(ground) != dark
    holds(page, f"{ink} !== '{drawn}'")
    page.reload()
    page.wait_for_selector("h1")
    assert page.evaluate(ground) != dark
    page.close()


def test_ten_thousand_candidates_are_drawn_and_looked_through(browser: Browser, tmp_path: Path) -> None:
    made = Made(tmp_path / "runs" / "big", groups=50, experts=4, objectives=5, evaluations=10_000)
    made.more(10_000, batch=1000)
    made.close()
    with served.serving(tmp_path / "runs") as service:
        seen = opened(browser, f"{service.url}/#/run/big")
        page = seen.page
        page.wait_for_selector("#parallel [data-drawn='9800']", timeout=120_000)
        page.wait_for_selector("#front .cloud[data-points]")
        sent = page.evaluate("performance.getEntriesByType('resource').reduce((n, r) => n + r.transferSize, 0)")
        assert 1_000_000 < sent < 3_000_000
        page.locator("#candidates select").select_option("all")
        assert "of 10,000" in page.locator("#candidates .pager").inner_text()
        assert page.locator("#candidates tbody tr").count() == 50
        page.get_by_role("button", name="Next").click()
        assert page.locator("#candidates .pager").inner_text().startswith("51–100")
        page.get_by_role("searchbox").fill("9998")
        text(page, "#candidates .pager", "1–1 of 1")
        quiet(seen, service)
        page.close()


@pytest.mark.parametrize("view", [v for v in VIEWS if v != "#/new"])
def test_a_hostile_name_in_every_field_is_text_and_runs_nothing(
    browser: Browser, service: served.Served, view: str
) -> None:
    texts: dict[str, str] = {}

    def answer(route: Route) -> None:
        if route.request.url.endswith("/events"):
            route.abort()
            return
        real = route.fetch()
        kind = real.headers.get("content-type", "")
        body = json.dumps(hostile(real.json(), texts)) if "json" in kind else f"{real.text()}\n# {' '.join(HOSTILE)}"
        route.fulfill(status=real.status, content_type=kind, body=body)

    seen = opened(browser, "about:blank")
    page = seen.page
    page.route("**/api/**", answer)
    page.goto(f"{service.url}/{view}")
    page.wait_for_selector(VIEWS[view])
    for control in page.locator("main select").all():
        if control.is_visible() and control.locator("option").count() > 1:
            control.select_option(index=1)
    for point in page.locator(".trace path.point").all()[-2:]:
        point.hover(force=True)
    page.wait_for_timeout(300)
    assert [c for c in seen.complaints if not c.startswith("Failed to load resource")] == [] and seen.dialogs == []
    assert all(url.startswith((f"{service.url}/", "data:", "blob:", "about:")) for url in seen.requests)
    assert page.locator(MARKUP).count() == 0
    fields = page.locator("textarea").all()
    shown = page.locator("body").inner_text() + "".join(f.input_value() for f in fields)
    assert sum(attack in shown for attack in HOSTILE) >= 2
    page.unroute_all(behavior="ignoreErrors")  # what it asked for last may still be on its way
    page.close()
