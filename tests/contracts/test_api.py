"""What the service owes whoever asks: each path its own shape, the same as the program says, and refusals in words."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import worlds
from ledgers import Made
from ruamel.yaml import YAML
from served import TOKEN, Served, serving

from optimizer import Job, Run
from optimizer.output import plain
from optimizer.record.results import Results
from optimizer.service import answers, files
from optimizer.views import candidate_values, run_values

RUN = "/api/runs/pico"
FIRST = "embeddings|spam"

# path -> what its answer is
READS = {
    "/api/version": answers.Version,
    "/api/runs": answers.Runs,
    RUN: run_values.Run,
    f"{RUN}/candidates": candidate_values.Candidates,
    f"{RUN}/candidates?front=1&order=mean&limit=3": candidate_values.Candidates,
    f"{RUN}/candidates/best": candidate_values.Candidate,
    f"{RUN}/candidates/0": candidate_values.Candidate,
    f"{RUN}/candidates/best:mood.cross_entropy": candidate_values.Candidate,
    f"{RUN}/candidates/expert: spam": candidate_values.Candidate,
    f"{RUN}/coordinates?names={FIRST}": candidate_values.Coordinates,
    f"{RUN}/coordinates?top=3": candidate_values.Coordinates,
    f"{RUN}/compare?a=best&b=0": candidate_values.Pair,
    f"{RUN}/curve": run_values.Curve,
    f"{RUN}/log?tail=5": answers.Log,
    f"{RUN}/pick?weights=spam.accuracy:1&where=mood.cross_entropy<=9": run_values.Picked,
    "/api/compare?runs=pico,twin": run_values.Fronts,
    "/api/exports": answers.Exports,
}

# path -> status, and what its reason has in it
REFUSALS = {
    "/api/nothing": (404, "no such page"),
    "/api/runs/none": (404, "no run 'none'"),
    "/api/runs/.service": (404, "no run has such a name"),
    "/api/runs/broken": (409, "not a ledger"),
    "/api/runs/none/candidates": (404, "no run 'none'"),
    "/api/runs/none/events": (404, "no run 'none'"),
    "/api/runs/none/log": (404, "no run 'none'"),
    f"{RUN}/candidates?order=nothing": (422, "order: expected mean, number or a metric"),
    f"{RUN}/candidates?limit=-1": (422, "limit"),
    f"{RUN}/candidates/nothing": (404, "no candidate 'nothing'"),
    f"{RUN}/candidates/99999": (404, "no candidate '99999'"),
    f"{RUN}/coordinates?names=nothing": (422, "no coordinate 'nothing'"),
    f"{RUN}/coordinates?names={','.join(f'w{i}' for i in range(201))}": (422, "at most 200 coordinates"),
    f"{RUN}/candidates/²": (404, "no candidate '²'"),
    f"{RUN}/importance?metric=nothing": (422, "no metric 'nothing'"),
    f"{RUN}/pick?weights=spam.accuracy": (422, "weights: expected METRIC:NUMBER"),
    f"{RUN}/pick?weights=spam.accuracy:-1": (422, "numbers from 0"),
    f"{RUN}/pick?weights=nothing:1": (422, "no objective 'nothing'"),
    f"{RUN}/pick?where=spam.accuracy>>1": (422, "where: expected a metric"),
    f"{RUN}/pick?where=spam.accuracy>=2": (409, "ask for less"),
    f"{RUN}/table.exe": (422, "kind"),
    "/api/compare?runs=pico": (422, "2 to"),
    "/api/compare?runs=pico,other": (409, "trade off other objectives"),
    "/api/compare?runs=other,others": (409, "scored on other items of t0"),
    "/api/exports/0000000000000000": (404, "no export"),
    "/api/exports/..": (404, "no such page"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return worlds.searched(worlds.classification(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def service(run: Run) -> Iterator[Served]:
    runs = run.folder.parent
    job = run.folder.parents[1] / "job.yaml"
    job.write_text(job.read_text().replace("name: pico", "name: twin").replace("seed: 0", "seed: 1"))
    worlds.searched(job)
    for name, kept in (("other", 40), ("others", 30)):
        made = Made(runs / name)
        made.more(30)
        made.close()
        splits = {task: {"calibration": list(range(kept)), "heldout": [99]} for task in ("t0", "t1")}
        (made.folder / "splits.json").write_text(json.dumps(splits))
    (runs / "broken").mkdir()
    (runs / "broken" / "ledger.db").write_text("no ledger at all" * 99)
    with serving(runs) as served:
        yield served


@pytest.mark.parametrize("path", READS)
def test_each_path_answers_in_its_shape(service: Served, path: str) -> None:
    answer = service.ask(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert "NaN" not in answer.text and "Infinity" not in answer.text
    READS[path].model_validate_json(answer.content)


@pytest.mark.parametrize("path", REFUSALS)
def test_each_refusal_is_a_sentence(service: Served, path: str) -> None:
    status, text = REFUSALS[path]
    answer = service.ask(path)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"] and text in answer.json()["error"]


def test_every_path_is_in_this_table_and_described(service: Served) -> None:
    described = service.told("/api/openapi.json")["paths"]
    asked = [p.partition("?")[0] for p in (*READS, *REFUSALS)]
    others = {"/api/events", "/api/schema/job", "/api/runs/{run}/job"}
    for path, methods in described.items():
        form = re.sub(r"\{[a-z]+\}", "[^/]+", path)
        assert path in others or "post" in methods or any(re.fullmatch(form, p) for p in asked), path
        assert all(m.get("description") for m in methods.values()), path


def test_a_line_says_what_status_says(service: Served, run: Run) -> None:
    said = plain.status(run.results())
    line = next(r for r in service.told("/api/runs")["runs"] if r["name"] == "pico")
    for name in ("evaluations", "answered", "failed", "repeated"):
        assert line[name] == said[name]
    assert line["status"] == "finished" and line["best"]["number"] == said["best"]["candidate"]
    assert line["hypervolume"] == pytest.approx(said["hypervolume"], rel=1e-5)
    assert line["spark"][-1] == line["hypervolume"] and len(line["spark"]) <= 60
    assert (line["driver"], line["method"]) == ("sobol", "task_arithmetic")
    assert line["created"] < line["updated"]


def test_a_run_that_cannot_be_read_is_a_line_that_says_why(service: Served) -> None:
    line = next(r for r in service.told("/api/runs")["runs"] if r["name"] == "broken")
    assert line["status"] == "failed" and "not a ledger" in line["error"]


def test_a_run_says_what_the_program_says(service: Served, run: Run) -> None:
    results, found = run.results(), service.told(RUN)
    assert found["knee"] == results.front.knee() and found["verdict"] == results.verdict
    assert found["experts"] == ["spam", "mood"] and found["groups"] == list(results.axes[0])
    assert [a["name"] for a in found["axes"]] == list(results.domain.names)
    assert [g["value"] for g in found["curse"]] == pytest.approx([g["value"] for g in plain.curse(results)])
    assert sum(s["count"] for s in found["stages"]) == len(results.scored)
    assert sum(s["gain"] for s in found["stages"]) == pytest.approx(results.front.hypervolume)
    assert (
        found["seed"] == 0
        and found["heldout_done"]
        and found["calibration"]["spam"].items() >= {"items": 30, "heldout": 30}.items()
    )


def test_columns_say_what_candidates_are(service: Served, run: Run) -> None:
    results, found = run.results(), service.told(f"{RUN}/candidates")
    assert found["total"] == len(found["numbers"]) == len(results.candidates)
    assert found["event"] == results.event and set(found["now"]) == set(results.front.nondominated)
    order = results.front.by_mean()
    for i, number in enumerate(found["numbers"]):
        c = results.candidates[number]
        assert found["stages"][found["stage"][i]] == ("anchors" if c.is_anchor else c.stage)
        assert found["recipe"][i] == c.recipe[:12] and found["front"][i] == (number in results.front.nondominated)
        assert found["rank"][i] == (order.index(number) if number in order else -1)
        assert found["anchor"][i] == c.is_anchor == (str(number) in found["labels"])
        for o, values, held in zip(results.objectives, found["values"], found["heldout"], strict=True):
            assert values[i] == pytest.approx(c.measures[o.name].value, rel=1e-5)
            assert held[i] == (pytest.approx(c.heldout[o.name].value, rel=1e-5) if c.heldout else None)
    sure = results.confidence.seen
    assert {n: s for n, s in zip(found["numbers"], found["sure"], strict=True) if s is not None} == {
        n: round(p, 3) for n, p in sure.items()
    }


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ("front=1", lambda results, c: c.number in results.front.nondominated),
        ("stage=anchors", lambda results, c: c.is_anchor),
        ("stage=sobol", lambda results, c: c.stage == "sobol"),
        ("failed=1", lambda results, c: c.failure is not None),
        ("failed=0", lambda results, c: c.failure is None),
        ("since=20", lambda results, c: c.event > 20),
    ],
)
def test_what_is_left_out_is_left_out(service: Served, run: Run, wanted: str, holds: Any) -> None:
    results, found = run.results(), service.told(f"{RUN}/candidates?{wanted}")
    assert found["numbers"] == sorted(n for n, c in results.candidates.items() if holds(results, c))
    assert (found["ranks"] is not None) == wanted.startswith("since")
    some = service.told(f"{RUN}/candidates?{wanted}&limit=2&offset=1")
    assert some["numbers"] == found["numbers"][1:3] and some["total"] == found["total"]


@pytest.mark.parametrize("metric", ["spam.accuracy", "mood.cross_entropy", "mean"])
def test_an_order_is_kept_in_candidates(service: Served, run: Run, metric: str) -> None:
    results, found = run.results(), service.told(f"{RUN}/candidates?order={metric}")["numbers"]
    best = results.pick("best" if metric == "mean" else f"best:{metric}")
    assert found[0] == best.number and sorted(found) == sorted(results.candidates)


@pytest.mark.parametrize("pick", ["best", "0", "surest", "uniform", "expert: mood"])
def test_one_candidate_says_what_show_says(service: Served, run: Run, pick: str) -> None:
    results = run.results()
    chosen = results.pick(pick)
    said, found = plain.candidate(results, chosen), service.told(f"{RUN}/candidates/{pick}")
    assert (found["number"], found["label"], found["recipe"]) == (chosen.number, chosen.label, chosen.recipe)
    told = {
        g: dict(zip(found["experts"], row, strict=True))
        for g, row in zip(found["groups"], found["coefficients"], strict=True)
    }
    for group, row in said["coefficients"].items():
        assert told[group] == pytest.approx(row, rel=1e-5)
    assert found["measures"] == said["calibration"] and found["heldout"] == said["heldout"]
    assert found["point"] == pytest.approx(chosen.point.tolist(), rel=1e-5)


def test_a_comparison_says_what_compare_says(service: Served, run: Run) -> None:
    results = run.results()
    a, b = results.pick("best"), results.candidates[0]
    said, found = plain.compared(results, a, b), service.told(f"{RUN}/compare?a=best&b=0")
    for split in ("calibration", "heldout"):
        assert found[split] == said[split]
        kept = results.items([a.number, b.number], split)
        for metric, values in found["items"][split].items():
            difference = kept[a.number][metric].astype(float) - kept[b.number][metric]
            assert values == pytest.approx(difference.tolist(), rel=1e-4, abs=1e-6)
    assert set(found["items"]["calibration"]) >= {o.name for o in results.objectives}


def test_the_curve_is_the_runs(service: Served, run: Run) -> None:
    results, found = run.results(), service.told(f"{RUN}/curve")
    assert found["answered"] == [n for n, _, _ in results.curve]
    assert found["hypervolume"] == pytest.approx([v for _, v, _ in results.curve], rel=1e-5)
    assert found["epsilon"] == pytest.approx([e for _, _, e in results.curve], rel=1e-5, abs=1e-9)


def test_wishes_pick_what_they_are_best_served_by(service: Served, run: Run) -> None:
    results = run.results()
    for o in results.objectives:
        found = service.told(f"{RUN}/pick?weights={o.name}:2")
        best = min(o.sign * c.measures[o.name].value for c in results.on_front)
        assert o.sign * found["values"][o.name] == best and found["meeting"] == len(results.on_front)
    assert service.told(f"{RUN}/pick")["number"] == results.on_front[0].number


def test_a_coordinate_that_is_named_twice_comes_once(service: Served) -> None:
    assert service.told(f"{RUN}/coordinates?names={FIRST},{FIRST}")["names"] == [FIRST]


def test_coordinates_are_in_the_order_of_candidates(service: Served, run: Run) -> None:
    results = run.results()
    found = service.told(f"{RUN}/coordinates?names={FIRST}")
    assert found["numbers"] == service.told(f"{RUN}/candidates")["numbers"]
    place = results.domain.names.index(FIRST)
    assert found["columns"] == [pytest.approx([results.candidates[n].point[place] for n in found["numbers"]], rel=1e-5)]


def test_importance_is_a_share_and_what_decides_comes_first(service: Served) -> None:
    found = service.told("/api/runs/other/importance?metric=t0.accuracy")
    shares = [i["importance"] for i in found]
    assert sum(shares) == pytest.approx(1, rel=1e-2) and shares == sorted(shares, reverse=True)
    names = service.told("/api/runs/other/coordinates?top=4")["names"]
    assert names == [i["name"] for i in service.told("/api/runs/other/importance")[:4]]


def test_fronts_that_are_comparable_are_told_in_each_others_units(service: Served, run: Run) -> None:
    found = service.told("/api/compare?runs=pico,twin")
    one, other = found["runs"]
    against = plain.against(run.results(), Results(run.folder.with_name("twin")))
    assert one["against"]["twin"]["epsilon"] == pytest.approx(against["epsilon"], rel=1e-5, abs=1e-9)
    assert one["numbers"] == [c.number for c in run.results().on_front] and other["name"] == "twin"


def test_tables_have_every_candidate_and_run_nothing(service: Served, run: Run) -> None:
    results = run.results()
    rows = service.told(f"{RUN}/table.json")
    assert [r["number"] for r in rows] == list(results.candidates)
    assert rows[0]["spam.accuracy"] == results.candidates[0].measures["spam.accuracy"].value
    table = pq.read_table(io.BytesIO(service.ask(f"{RUN}/table.parquet").content))
    assert table.column_names == list(rows[0]) and table.num_rows == len(rows)
    lines = service.ask(f"{RUN}/table.csv").text.splitlines()
    assert len(lines) == len(rows) + 1 and lines[0].startswith("number,label,")


def test_a_job_for_another_run_says_no_more_than_a_person_would_and_means_the_same(service: Served, run: Run) -> None:
    for asked in ("short=1", "start=best"):
        text = service.ask(f"{RUN}/job?{asked}").text
        found = Job.parse(YAML(typ="safe", pure=True).load(text), run.folder)
        start = {"start": found.space.start}
        space = run.job.space.model_copy(update=start if asked.startswith("start") else {})
        assert found == run.job.model_copy(update={"hashes": None, "space": space})
        assert "hashes" not in text and len(text.splitlines()) < 50


def test_what_a_run_is_at_is_told(service: Served, run: Run) -> None:
    found = service.told(RUN)
    assert found["phase"] == "over" and found["heldout_answered"] == found["heldout_asked"] > 0
    assert found["fidelity"] is None and found["broken"] == {}
    other = service.told("/api/runs/other")
    assert other["phase"] == "search" and other["heldout_asked"] == 0


def test_the_job_is_told_and_so_is_the_schema_of_jobs(service: Served, run: Run) -> None:
    assert service.ask(f"{RUN}/job").text == (run.folder / "job.yaml").read_text()
    assert service.ask(f"{RUN}/job").headers["content-type"].startswith("text/plain")
    assert "evaluators" in service.told("/api/schema/job")["properties"]


def test_who_has_the_token_is_told_so(service: Served) -> None:
    assert service.told("/api/version")["read_only"] is True
    assert service.told("/api/version", token=TOKEN)["read_only"] is False


def test_pages_and_plotly_are_sent_once(service: Served) -> None:
    for path, kind in (("/", "text/html"), ("/plotly.js", "text/javascript")):
        first = service.ask(path)
        assert first.status_code == 200 and first.headers["content-type"].startswith(kind)
        again = service.ask(path, headers={"If-None-Match": first.headers["etag"]})
        assert again.status_code == 304 and not again.content
    packed, whole = (service.ask("/plotly.js", headers={"Accept-Encoding": e}) for e in ("gzip", "identity"))
    assert packed.headers["content-encoding"] == "gzip" and packed.content == whole.content
    assert "content-encoding" not in whole.headers


def test_a_page_that_is_not_there_leads_nowhere(service: Served, tmp_path: Path) -> None:
    for path in ("/nothing.html", "/../answers.py", "/..%2fanswers.py", "/%2e%2e/answers.py", "//etc/passwd"):
        assert service.ask(path).status_code == 404


def test_the_pages_script_is_made_once_and_anew_where_a_file_is_another(
    service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "main.js").write_text("export const a = 1;\n")
    made: list[str] = []
    monkeypatch.setattr(files, "PAGE", page)
    monkeypatch.setattr(files, "bundled", lambda name: made.append(name) or (page / name).read_text())
    assert [service.ask("/page.js").text for _ in range(3)] == ["export const a = 1;\n"] * 3 and len(made) == 1
    (page / "main.js").write_text("export const a = 2;\n")
    os.utime(page / "main.js", ns=(1, 1))
    assert service.ask("/page.js").text == "export const a = 2;\n" and len(made) == 2


def test_what_the_api_describes_of_a_start_is_what_it_gives(service: Served) -> None:
    said = service.told("/api/openapi.json")["paths"]["/api/runs/{run}/job"]["get"]["description"]
    assert "every expert's in every group" in said
