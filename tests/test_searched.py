"""Does a whole run search methods and options? Job, search, resume, what people are shown, and the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import classification

from optimizer import Job, Run
from optimizer.driver import Question
from optimizer.drivers.sampling import Random
from optimizer.errors import JobError, RunError
from optimizer.jobs.checking import check_job
from optimizer.jobs.paper import on_paper, rows_of
from optimizer.output.needs import print_check
from optimizer.output.plain import candidate, front
from optimizer.output.show import print_candidate, print_front
from optimizer.views.kept import kept
from searchspaces import Recipe

SPACE = """{granularity: layer, method: [task_arithmetic, dare_ties, layer_swap],
  options: {density: {low: 0.2, high: 0.9, per: expert}, dare_ties.normalize: {values: [true, false]},
            lambda: {low: 0.5, high: 1.5, per: group}}}"""


def job(folder: Path, driver: str = "tpe", space: str = SPACE, evaluations: int = 8) -> Job:
    path = classification(folder, evaluations, driver)
    path.write_text(
        path.read_text()
        .replace("space: {granularity: layer}", f"space: {space}")
        .replace(f"driver: {{name: {driver}}}", f"driver: {{name: {driver}, anchors: false}}")
    )
    return Job.load(path)


def chosen(run: Run, method: str) -> Any:
    results = run.results()
    return next(c for c in results.candidates.values() if results.recipe(c).method == method)


def test_methods_and_options_are_searched_shown_resumed_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = Run.create(job(tmp_path, "sobol", evaluations=12), tmp_path / "runs")
    run.search()
    results = run.results()
    assert not results.failures and len(results.candidates) == 12
    assert {results.recipe(c).method for c in results.candidates.values()} == {
        "task_arithmetic",
        "dare_ties",
        "layer_swap",
    }
    one = chosen(run, "dare_ties")
    said = candidate(results, one)
    assert said["method"] == "dare_ties" and set(said["options"]["density"]["embeddings"]) == {"spam", "mood"}
    assert set(said["options"]["lambda"]) == set(said["coefficients"])
    settings = results.settings(one)
    assert settings["method"] == "dare_ties" and settings["dare_ties.normalize"] in ("true", "false")
    assert 0.2 <= float(settings["density|spam"]) <= 0.9 and "embeddings|lambda" in settings
    assert "embeddings|pick" not in settings
    print_candidate(results, one)
    shown = capsys.readouterr().out
    assert f"candidate {one.number} (dare_ties)   asked as" in shown and "method dare_ties   " in shown
    print_front(results, everything=True)
    said, rows = capsys.readouterr().out, front(results)
    assert rows and all(f" {r['candidate']} ({r['method']}) " in f" {said}" for r in rows if not r["reference"])
    assert "every group" in shown and "lambda" in shown
    assert kept(results)["details"][one.number]["settings"] == settings
    swapped = results.recipe(chosen(run, "layer_swap"))
    assert np.isin(swapped.coefficients, (0, 1)).all() and swapped.options == {}
    run.export(str(one.number), tmp_path / "merged")
    assert Recipe.from_yaml((tmp_path / "merged" / "recipe.yaml").read_text()) == results.recipe(one)


@pytest.mark.parametrize("driver", ["cma", "tpe"])
def test_a_resumed_search_asks_the_same(tmp_path: Path, driver: str) -> None:
    whole = Run.create(job(tmp_path / "a", driver, evaluations=9), tmp_path / "whole")
    whole.search()
    parted = Run.create(job(tmp_path / "b", driver, evaluations=9), tmp_path / "parted")
    parted.search(on_answer=lambda search, answer: search.stop() if answer.number == 4 else None)
    assert len(parted.results().candidates) < 9
    parted.search()
    found = [[c.point.tobytes() for c in run.results().candidates.values()] for run in (whole, parted)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            "{method: ties, options: {density: {low: 0.3, high: 0.9}}}",
            ["density: starting point and anchors have 0.3, and not the default, 0.2 of ties; {start: VALUE}"],
        ),
        ("{method: ties, options: {density: {low: 0.3, high: 0.9, start: 0.3}}}", []),
        ("{method: ties, options: {density: search, lambda: search}}", []),
        (
            "{method: [ties, dare_ties], options: {density: search}}",
            ["density: starting point and anchors have 0.2, and not the default, 0.8 of dare_ties;"],
        ),
        ("{method: [ties, dare_ties], options: {ties.density: search, dare_ties.density: search}}", []),
        ("{method: tsv_m, options: {share: {values: [0.2, 0.5]}}}", ["have 0.5, and not the default, 1 of tsv_m"]),
        (
            "{method: della, options: {density: 0.9, epsilon: search}}",
            ["epsilon of della may be 0.15, and where density is 0.9 only 0.1 of that counts"],
        ),
        ("{method: della, options: {density: {spam: 0.9, mood: 0.05}, epsilon: 0.1}}", ["is 0.05 only 0.045 of"]),
        ("{method: della, options: {density: {spam: 0.9, mood: 0.5}, epsilon: {spam: 0.05, mood: 0.3}}}", []),
        ("{method: della, options: {density: 0.9, epsilon: 0.1}}", []),
        ("{method: breadcrumbs, options: {density: {low: 0.2, high: 1.0, start: 0.9}}}", []),
        ("{method: della, options: {density: search, epsilon: search}}", []),
        (
            "{method: breadcrumbs, options: {gamma: {low: 0, high: 0.2, per: group}}}",
            ["gamma of breadcrumbs may be 0.2"],
        ),
        ("{method: [linear, layer_swap]}", []),
    ],
)
def test_check_says_where_options_begin_and_what_of_them_says_nothing(
    tmp_path: Path, space: str, said: list[str]
) -> None:
    warnings = on_paper(job(tmp_path, space=space))["warnings"]
    assert len(warnings) == len(said) and all(words in w for words, w in zip(said, warnings, strict=True)), warnings


def test_paper_names_what_is_searched(tmp_path: Path) -> None:
    found = on_paper(job(tmp_path, space="{method: [ties, tsv_m], options: {density: search, tsv_m.lambda: search}}"))
    assert rows_of(found)["method"] == (
        "ties (normalize true, rescale false, lambda 1; searched: density)\ntsv_m (share 1; searched: tsv_m.lambda)"
    )


def test_check_says_what_is_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_job(job(tmp_path))
    assert (
        "method: task_arithmetic, dare_ties, layer_swap" in found["further"]
        and "density|spam: 0.2 to 0.9" in found["further"]
    )
    print_check(found)
    assert f"and {len(found['further'])} of method and options:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{method: [task_arithmetic, ties]}", "which of task_arithmetic, ties is best has none.*with driver.gradients"),
        ("{options: {lambda: search}}", "space.options.lambda has none; fix its value"),
        ("{method: layer_swap}", "takes each group from one model"),
        ("{method: ties}", "'ties' with these options is not linear in its coefficients.*, or take a driver"),
        ("{method: model_stock, options: {filter_wise: true}}", "'model_stock' with these options is not linear"),
    ],
)
def test_drivers_that_ask_for_gradients_refuse_what_has_none(tmp_path: Path, space: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Run.create(job(tmp_path, "supervised", space), tmp_path / "run")


@pytest.mark.parametrize("space", ["{options: {lambda: search}}", "{method: [tsv_m, ties]}", "{method: ties}"])
def test_auto_that_refuses_a_space_for_its_gradients_takes_it_without(tmp_path: Path, space: str) -> None:
    plain = job(tmp_path, "auto", space)
    asked = Job.parse(plain.model_dump(mode="json") | {"driver": {"name": "auto", "gradients": {}}}, tmp_path)
    with pytest.raises(JobError, match=r"or leave out driver\.gradients: by scores alone it searches that too"):
        on_paper(asked)
    on_paper(plain)


class Careless(Random):
    """A driver that has never heard of choices."""

    def ask(self, n: int) -> list[Question]:
        return [Question(q.number, q.point + 0.25, stage="careless") for q in super().ask(n)]


def test_a_driver_that_asks_what_is_no_point_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.drivers.sampling.Random", Careless)
    run = Run.create(
        job(tmp_path, "random", "{method: [task_arithmetic, linear], bounds: [-10, 10]}"), tmp_path / "run"
    )
    with pytest.raises(
        RunError, match=r"(?s)question 0 .careless. at a point that the space refuses: .*defect of the driver"
    ):
        run.search()
    assert not run.results().candidates
