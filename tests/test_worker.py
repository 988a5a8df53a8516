"""What a worker reports: scores, or why there are none; never an exception for a candidate's own fault."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import worlds

from evaluators.evaluator import Measure, Scores
from optimizer.driver import Question
from optimizer.errors import RunError
from optimizer.executors.worker import Found, Worker, pack, specification
from optimizer.jobs.checking import check_job
from optimizer.jobs.job import Job
from optimizer.run import Run
from searchspaces import Recipe, Resident
from searchspaces.errors import NonFinite

QUESTION = Question(7, np.zeros(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["value", "stderr"])
def test_a_number_that_is_not_finite_fails_the_candidate_whoever_reports_it(bad: float, where: str) -> None:
    measure = Measure(**{"value": 0.5, "stderr": 0.1, "count": 9, where: bad})
    answer = pack(QUESTION, Found({"mine": Scores({"m": measure}, {})}), None, 1.0, "w")
    assert answer.failure is not None and answer.failure.kind == "nonfinite" and "mine.m" in answer.failure.reason
    assert not answer.measures


def job_with(folder: Path, code: str) -> Job:
    worlds.classification(folder)
    (folder / "mine.py").write_text(code)
    (folder / "job.yaml").write_text("""
models: {base: base, experts: {spam: experts/spam}, heads: ["classifier.*"]}
evaluators: [{kind: function, name: f, function: "mine.py:f", metrics: {m: max}, data: data/spam.jsonl}]
objectives: [f.m]
executor: {kind: inline}
""")
    return Job.load(folder / "job.yaml")


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("def f(model, rows, tokenizer): raise RuntimeError('boom')", "error", "boom"),
        ("def f(model, rows, tokenizer): raise MemoryError", "oom", "out of memory"),
        ("def f(model, rows, tokenizer): return {'m': float('nan')}", "nonfinite", "f"),
    ],
)
def test_what_a_users_function_does_wrong_is_that_candidates_failure(
    tmp_path: Path, code: str, kind: str, reason: str
) -> None:
    worker = Worker(specification(job_with(tmp_path, code), allow_code=True), "w")
    failure = worker.answer(Question(0, worker.space.domain.start)).failure
    assert failure is not None and failure.kind == kind and reason in failure.reason


@pytest.mark.parametrize("hold", ["device", "stream"])
def test_where_the_pool_is_changes_no_answer_beyond_rounding_and_is_logged(
    tmp_path: Path, hold: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job.load(worlds.language(tmp_path))
    held = job.model_copy(update={"executor": job.executor.model_copy(update={"pool": hold})})
    with caplog.at_level("INFO", "optimizer.executors.worker"):
        workers = [Worker(specification(j, False), name) for j, name in ((job, "kernels"), (held, "w"))]
    ours, theirs = (w.answer(Question(0, w.space.domain.start)) for w in workers)
    assert ours.measures["text.loss"].value == pytest.approx(theirs.measures["text.loss"].value, rel=1e-5)
    said = [record.getMessage() for record in caplog.records]
    assert "worker kernels: base and experts for cpu are mapped" in said[0]
    assert said[1].endswith({"device": "on cpu", "stream": "streamed to cpu for every candidate"}[hold])


@pytest.mark.parametrize(
    ("driver", "method", "before", "scored"),
    [
        ("sobol", "[task_arithmetic, linear]", ["linear", "task_arithmetic"], []),
        ("supervised", "task_arithmetic", ["task_arithmetic", "gradient"], ["task_arithmetic", "gradient"]),
    ],
)
def test_what_candidates_need_is_made_before_a_worker_is_ready_and_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    driver: str,
    method: str,
    before: list[str],
    scored: list[str],
) -> None:
    """One write of each method's start, the job's own last, and one gradient where the driver wants such."""
    done: list[str] = []
    written, pulled = Resident.write, Resident.gradient

    def write(self: Resident, recipe: Recipe) -> None:
        done.append(recipe.method)
        if recipe.method == "linear":
            raise NonFinite("a weight is NaN")
        written(self, recipe)

    def gradient(self: Resident, recipe: Recipe) -> np.ndarray:
        done.append("gradient")
        return pulled(self, recipe)

    monkeypatch.setattr(Resident, "write", write)
    monkeypatch.setattr(Resident, "gradient", gradient)
    path = worlds.classification(tmp_path, driver=driver)
    path.write_text(path.read_text().replace("granularity: layer", f"granularity: layer, method: {method}"))
    assert check_job(Job.load(path))["candidate_seconds"] > 0, "what one method cannot is no other's fault"
    # a score on held-out items, one on those of the search, and a gradient: nothing is done only to have been done
    assert done[: len(before)] == before and done[len(before) :] == ["task_arithmetic"] * 2 + scored
    assert ("the start of linear cannot be made: nonfinite: a weight is NaN" in caplog.text) == ("linear" in before)


def test_a_worker_refuses_models_that_are_not_those_of_the_run(tmp_path: Path) -> None:
    run = Run.create(Job.load(worlds.classification(tmp_path)), tmp_path / "runs")
    spec = json.loads(specification(run.job, False))
    spec["job"]["hashes"]["models"]["mood"] = "0" * 64
    with pytest.raises(RunError, match=r"model 'mood': sha256 was .* it has changed"):
        Worker(json.dumps(spec), "w")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit("over"), "GeneratorExit: over"),
        (asyncio.CancelledError(), "CancelledError: "),
        (Unspeakable(), "Unspeakable: its text cannot be made (ValueError)"),
    ],
)
def test_whatever_an_evaluator_raises_fails_its_candidate_and_not_the_run(
    raised: BaseException, said: str, scoring: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(scoring, raised, monkeypatch)
    found = scoring.answer(Question(0, scoring.space.domain.start)).failure
    assert found is not None and (found.kind, found.reason) == ("error", said)


def test_what_a_signal_raised_ends_the_worker_and_fails_no_candidate(
    scoring: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._raylet import raise_sys_exit_with_custom_error_message

    with pytest.raises(SystemExit) as of_ray:  # as its workers do at SIGTERM
        raise_sys_exit_with_custom_error_message("The process receives a SIGTERM.", exit_code=1)
    for raised in (KeyboardInterrupt(), of_ray.value):
        raising(scoring, raised, monkeypatch)
        with pytest.raises(type(raised)):
            scoring.answer(Question(0, scoring.space.domain.start))


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    return Worker(specification(Job.load(worlds.classification(tmp_path_factory.mktemp("world"))), False), "w")


def raising(worker: Worker, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(*given: object) -> None:
        raise error

    monkeypatch.setattr(worker.problem.evaluators[0], "score", score)
