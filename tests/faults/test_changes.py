"""Inputs that changed before a resume: refused with the difference, and a child run goes on from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import worlds
from program import mergeopt

from optimizer import Job, Run
from optimizer.errors import RunError, WorkerError
from optimizer.executors.executor import Inline
from optimizer.jobs.changes import differences, edits, identity
from optimizer.jobs.job_search import DriverEntry
from optimizer.record.inherited import PARENT


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job.load(worlds.classification(tmp_path_factory.mktemp("world"), evaluations=6))


def leaves(value: Any, where: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every value of a job."""
    if isinstance(value, dict) and value:
        return [path for key in value for path in leaves(value[key], (*where, key))]
    if isinstance(value, list) and value:
        return [path for i, entry in enumerate(value) for path in leaves(entry, (*where, i))]
    return [where]


def test_every_value_of_a_job_that_is_edited_is_named_with_what_it_was_and_is(job: Job) -> None:
    made = identity(job)
    paths = leaves(made)
    assert len(paths) > 30
    for path in paths:
        now = identity(job)
        at: Any = now
        for key in path[:-1]:
            at = at[key]
        was, at[path[-1]] = at[path[-1]], "something else"
        (said,) = differences(made, now)
        assert said.endswith(f": was {was!r}, is 'something else'")
        names = [str(key) for key in path if isinstance(key, str)]
        assert all(name in said for name in names), said
        del at[path[-1]]
        assert any(line.endswith("is not set") or ": was [" in line for line in differences(made, now)), path
    assert not {"budget", "executor", "name", "root"} & made.keys()
    assert list(differences(made, identity(job))) == []


def test_how_objectives_are_weighed_is_named_and_runs_from_before_it_could_be_said_go_on(job: Job) -> None:
    made, said = identity(job), job.driver.model_copy(update={"scalarisation": "tchebycheff"})
    assert "scalarisation" not in made["driver"]
    (line,) = differences(made, identity(job.model_copy(update={"driver": said})))
    assert line == "driver.scalarisation: was not set, is 'tchebycheff'"


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({"name": "cma"}, {"name": "supervised"}, ["driver.name"]),
        ({"name": "supervised"}, {"name": "cma"}, ["driver.name"]),
        ({"name": "supervised"}, {"name": "adamerging"}, ["driver.name"]),
        ({"name": "cma"}, {"name": "supervised", "gradients": {"train": 0.5}}, ["driver.name", "driver.gradients"]),
        ({"name": "supervised"}, {"name": "supervised", "gradients": {"train": 0.5}}, ["driver.gradients.train"]),
        ({"name": "auto"}, {"name": "auto", "gradients": {}}, ["driver.gradients"]),
    ],
)
def test_another_driver_is_named_without_what_follows_from_its_name(
    job: Job, before: dict[str, Any], after: dict[str, Any], lines: list[str]
) -> None:
    made, now = (identity(job.model_copy(update={"driver": DriverEntry(**said)})) for said in (before, after))
    assert [line.partition(":")[0] for line in edits(made, now)] == lines


def test_an_edited_run_is_refused_and_forked_into_a_child_that_knows_what_changed(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.create(job, tmp_path / "runs")
    path = run.folder / "job.yaml"
    path.write_text(path.read_text().replace("granularity: layer", "granularity: model").replace("seed: 0", "seed: 3"))
    with pytest.raises(RunError) as error:
        Run(run.folder).search()
    said = str(error.value)
    assert "space.granularity: was 'layer', is 'model'; seed: was 0, is 3" in said and "resume pico --fork NAME" in said
    assert mergeopt("resume", run.folder, "--fork", "child") == 0, capsys.readouterr().err
    results = Run(tmp_path / "runs" / "child").results()
    assert len(results.candidates) == 6 and results.parent == {
        "name": "pico",
        "changed": ["space.granularity: was 'layer', is 'model'", "seed: was 0, is 3"],
    }
    assert Run(run.folder).results().parent is None
    assert not (tmp_path / "runs" / "child" / PARENT).exists(), "another seed draws other items"
    with pytest.raises(RunError, match="exists already"):
        Run(run.folder).fork("child")


def test_a_child_of_another_driver_does_not_pay_again_for_what_its_parent_answered(job: Job, tmp_path: Path) -> None:
    run = Run.create(job, tmp_path / "runs")
    run.search(evaluations=4)
    path = run.folder / "job.yaml"
    path.write_text(path.read_text().replace("name: sobol", "name: random"))
    child = Run(run.folder).fork("child")
    shutil.rmtree(run.folder)  # it needs its parent no longer
    child.search(heldout=False)
    found = [(c.worker, c.attempts) for c in child.results().candidates.values()]
    assert 3 <= found.count(("run pico", 0)) < len(found) == 6, found


def test_a_child_that_cannot_start_frees_its_name(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(self: Inline) -> None:
        raise WorkerError("no worker can start")

    run = Run.create(job, tmp_path / "runs")
    monkeypatch.setattr(Inline, "start", start)
    assert mergeopt("resume", run.folder, "--fork", "child") == 1
    assert "no worker can start" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["pico"]


def test_a_child_of_changed_data_names_the_file_and_both_hashes(tmp_path: Path) -> None:
    run = Run.create(Job.load(worlds.language(tmp_path)), tmp_path / "runs")
    worlds.items(tmp_path / "data" / "text.jsonl", 44, 5)
    with pytest.raises(RunError, match=r"data .*text\.jsonl.* has changed.*resume --fork NAME"):
        run.search()
    child = run.fork("child")
    assert not (child.folder / PARENT).exists(), "its parent's answers are of other items"
    (said,) = child.results().parent["changed"]  # type: ignore[index]
    assert "text.jsonl" in said and "sha256 was" in said
