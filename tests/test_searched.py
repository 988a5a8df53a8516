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
from optimizer.output.needs import print_check
from optimizer.output.plain import candidate
from optimizer.output.show import print_candidate
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
    assert "method dare_ties   " in shown and "every group" in shown and "lambda" in shown
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
        ("{method: [task_arithmetic, ties]}", "which of task_arithmetic, ties is best has none"),
        ("{options: {lambda: search}}", "space.options.lambda has none; fix its value"),
        ("{method: layer_swap}", "takes each group from one model"),
        ("{method: ties}", "'ties' with these options is not linear in its coefficients.*, or take a driver"),
        ("{method: model_stock, options: {filter_wise: true}}", "'model_stock' with these options is not linear"),
    ],
)
def test_drivers_that_ask_for_gradients_refuse_what_has_none(tmp_path: Path, space: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Run.create(job(tmp_path, "supervised", space), tmp_path / "run")


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
