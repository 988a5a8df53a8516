"""Memory that runs out: tried once more with half the batch, then a failure of that candidate alone."""

from __future__ import annotations

import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import worlds
from simulated import Bowl

from evaluators.evaluator import Measure, Metric, Scores, Setting, Splits
from optimizer.answer import Answer
from optimizer.driver import Items, Question
from optimizer.executors.cluster import RayExecutor
from optimizer.executors.worker import Worker, specification
from optimizer.jobs.job import Job

MB = 2**20


class Hungry:
    """An evaluator that holds `each` MB for every item of a batch of 64."""

    name, metrics, losses, files = "hungry", (Metric("m", "max", "how many items a batch has"),), {}, ()
    splits = Splits(np.arange(4), np.arange(4, 8))

    def __init__(self, each: int) -> None:
        self.each = each

    def prepare(self, setting: Setting) -> None:
        self.size = setting.size(64)

    def score(self, model: Any, items: Any) -> Scores:
        torch.empty(self.size * self.each * MB, dtype=torch.uint8).fill_(1)
        return Scores({"m": Measure(float(self.size), None, 1)}, {})


def capped(check: Callable[[], None], room: int) -> None:
    """Run a check in a child that may map `room` bytes more than it has."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room,) * 2)
            check()
        except BaseException:
            traceback.print_exc()
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    return Worker(specification(Job.load(worlds.language(tmp_path_factory.mktemp("world"))), False), "w")


def test_half_the_batch_is_tried_once_and_the_job_s_own_size_again_after_it(worker: Worker) -> None:
    def check() -> None:
        hungry = Hungry(4)  # 256 MB, 128 MB at half the batch
        worker.problem = SimpleNamespace(  # type: ignore[assignment]
            evaluators=[hungry], pool=worker.problem.pool, pupils=[], rows=worker.problem.rows, job=worker.job
        )
        worker._shrink = 0
        start = worker.space.domain.start
        answer = worker.answer(Question(0, start))
        assert answer.failure is None and answer.attempts == 2 and answer.measures["hungry.m"].value == 32
        (first,) = answer.tries
        assert first.kind == "oom" and "can't allocate memory" in first.reason and first.worker == "w"
        hungry.each = 1
        answer = worker.answer(Question(1, start))
        assert answer.attempts == 1 and answer.measures["hungry.m"].value == 64, "a batch is halved for that candidate"
        assert worker.answer(Question(2, start), halved=True).measures["hungry.m"].value == 32
        hungry.each = 100
        answer = worker.answer(Question(3, start))
        assert answer.failure is not None and answer.failure.kind == "oom" and answer.attempts == 2
        hungry.each = 1
        assert worker.answer(Question(4, start)).failure is None, "the worker goes on"

    capped(check, 200 * MB)


def test_halved_batches_score_what_whole_ones_do(worker: Worker) -> None:
    question = Question(0, worker.space.domain.start, items=Items("heldout"))
    whole, halved = worker.answer(question), worker.answer(question, halved=True)
    assert worker.problem.evaluators[0]._size == 16  # type: ignore[attr-defined]
    assert halved.measures["text.loss"].value == pytest.approx(whole.measures["text.loss"].value, rel=1e-5)
    again = worker.answer(question)
    assert again.agrees(whole), "after it the batches are those of before, to the bit"


def test_a_checkpoint_cut_short_under_a_worker_ends_the_run_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Worker(specification(Job.load(worlds.language(tmp_path)), False), "w")
    file = tmp_path / "experts" / "two" / "model.safetensors"
    whole, times = file.read_bytes(), file.stat()
    question = Question(0, made.space.domain.start)
    before = made.answer(question)
    os.truncate(file, 1000)
    with pytest.raises(
        ValueError, match=rf"expert 'two'.*model.safetensors had {len(whole)} bytes and has 1000"
    ) as error:
        made.answer(question)
    assert error.value.exit_code == 2  # type: ignore[attr-defined]
    file.write_bytes(whole)
    with pytest.raises(ValueError, match=r"expert 'two'.*was written to since it was opened"):
        made.answer(question)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert made.answer(question).agrees(before)
    write = made.resident.write
    monkeypatch.setattr(made.resident, "write", lambda recipe: (file.write_bytes(whole), write(recipe)))
    with pytest.raises(ValueError, match=r"expert 'two'.*was written to since it was opened"):
        made.answer(question)  # after this candidate was begun, and no other follows
    file.unlink()
    with pytest.raises(ValueError, match=r"expert 'two'.*is gone since it was opened"):
        made.answer(question)


@pytest.mark.slow
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="memory is filled: other tests would be ended for it")
def test_a_worker_that_ray_ends_for_want_of_memory_is_tried_at_half_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()
    limit = 1 - (memory.available - 1.5e9) / memory.total
    if limit > 0.8:
        pytest.skip("this machine has too little memory left to fill some")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    executor = RayExecutor(Bowl.TARGET, json.dumps({"eats": (0.5, 3.0)}), workers=1, cpus=1)
    executor.start()
    try:
        executor.submit(Question(7, np.array([0.6, 0.5])))
        found: list[Answer] = []
        while not found:
            found = executor.collect(timeout=0.5)
        (answer,) = found
        assert answer.attempts == 2 and answer.failure is None, "half the batch has room"
        assert [t.kind for t in answer.tries] == ["oom"] and "low on memory" in answer.tries[0].reason
    finally:
        executor.close()
