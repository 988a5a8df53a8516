"""What a worker reports: scores, or why there are none; never an exception for a candidate's own fault."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import worlds

from evaluators.evaluator import Measure, Scores
from optimizer.driver import Question
from optimizer.errors import RunError
from optimizer.executors.worker import Found, Worker, pack, specification
from optimizer.jobs.job import Job
from optimizer.run import Run

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


def test_a_worker_refuses_models_that_are_not_those_of_the_run(tmp_path: Path) -> None:
    run = Run.create(Job.load(worlds.classification(tmp_path)), tmp_path / "runs")
    spec = json.loads(specification(run.job, False))
    spec["job"]["hashes"]["models"]["mood"] = "0" * 64
    with pytest.raises(RunError, match="model 'mood' has changed"):
        Worker(json.dumps(spec), "w")
