"""What a run may spend: said in the job, predicted by check, kept by the driver."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import worlds
from program import Program

from optimizer import Job, Run
from optimizer.errors import JobError
from optimizer.jobs.assemble import limits
from optimizer.jobs.checking import check_job
from optimizer.output.needs import print_check
from optimizer.searching.budget import Limits


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.language(tmp_path_factory.mktemp("world"), evaluations=8)


def budgeted(world: Path, budget: str, executor: str = "{kind: inline}") -> Path:
    text = world.read_text().replace("budget: {evaluations: 8}", f"budget: {budget}")
    path = world.with_name("budgeted.yaml")
    path.write_text(text.replace("executor: {kind: inline}", f"executor: {executor}"))
    return path


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("{hours: 0}", r"budget\.hours: Input should be greater than 0"),
        ("{hours: two}", r"budget\.hours: .*got str 'two'"),
        ("{money: 5}", "money needs to know what an hour costs; add budget.price_per_hour$"),
        ("{gpu_hours: 5}", r"no GPU is set aside .* set executor\.gpus, or use budget\.hours"),
        ("{days: 1}", r"budget\.days: unknown key"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(world: Path, budget: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Job.load(budgeted(world, budget))


def test_the_gpus_of_all_workers_are_counted(world: Path) -> None:
    job = Job.load(budgeted(world, "{gpu_hours: 4}", "{kind: ray, workers: 3, gpus: 0.5, device: cuda}"))
    assert limits(job) == Limits(gpu_hours=4, gpus=0.5)
    assert limits(job).spent(2.0, workers=3) == {"hours": 2, "gpu_hours": 3, "money": 0}


def test_check_says_what_the_search_will_spend_and_which_limit_ends_it(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = check_job(Job.load(budgeted(world, "{evaluations: 8, money: 1.0e-7, price_per_hour: 3}")))
    assert found["spends"]["money"] == pytest.approx(3 * found["search_seconds"] / 3600)
    assert found["reached"].startswith("budget.money: ")
    print_check(found)
    said = capsys.readouterr().out
    assert "at budget.price_per_hour" in said and "the budget ends the search before that: budget.money: " in said


def test_the_candidates_wanted_are_what_an_edit_or_a_call_said_last(world: Path, tmp_path: Path) -> None:
    folder = Run.create(Job.load(budgeted(world, "{evaluations: 2}")), tmp_path).folder
    path = folder / "job.yaml"
    for edit, call, wanted in ((3, None, 3), (None, 4, 4), (None, None, 4), (2, 5, 5)):
        if edit is not None:
            path.write_text(re.sub(r"evaluations: \d+", f"evaluations: {edit}", path.read_text()))
        search = Run(folder).search(evaluations=call, heldout=False)
        assert search.answered == wanted, (edit, call)


def test_a_run_that_reached_its_hours_is_finished_and_says_so_and_more_hours_go_on(
    world: Path, tmp_path: Path, mergeopt: Program
) -> None:
    def said_by(*arguments: str | Path) -> str:
        said = mergeopt(*arguments, "--runs", tmp_path)
        assert not said.code, said.err
        return said.out

    said = said_by("run", budgeted(world, "{evaluations: 8, hours: 1.0e-9}"))
    assert "the budget ended the search: budget.hours: " in said
    status = json.loads(said_by("status", "words", "--json"))
    assert status["finished"] and status["answered"] < 8 and status["heldout"] > 0
    assert status["reached"].startswith("budget.hours") and status["spent"]["hours"] > 1e-9
    assert "budget.hours" in said_by("status", "words")
    path = tmp_path / "words" / "job.yaml"
    path.write_text(path.read_text().replace("hours: 1e-09", "hours: 10").replace("hours: 1.0e-09", "hours: 10"))
    assert Run(tmp_path / "words").job.budget.hours == 10
    assert "8/8" in said_by("resume", "words")
    assert json.loads(said_by("status", "words", "--json"))["reached"] is None
