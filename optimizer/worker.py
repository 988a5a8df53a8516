"""How is one candidate scored? A worker keeps one resident model, rewrites its weights and runs the evaluators."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from evaluators.errors import NonFinite as NonFiniteScores
from evaluators.evaluator import Head, Measure, Scores, Setting
from optimizer.answer import Answer, Failure
from optimizer.driver import Question
from optimizer.job import Job
from optimizer.problem import Problem
from searchspaces import Pool, Resident
from searchspaces.errors import NonFinite as NonFiniteWeights


def specification(job: Job, allow_code: bool) -> str:
    """What a worker is made from, as text: the resolved job, and whether the user's own code may run."""
    return json.dumps({"job": json.loads(job.model_dump_json()), "allow_code": allow_code})


def heads_of(pool: Pool) -> dict[str, Head]:
    """Each expert's task head, as evaluators take it."""
    return {name: Head(pool.experts[name].folder, tensors) for name, tensors in pool.heads.items()}


class Worker:
    """One resident merged model and the evaluators prepared for it."""

    TARGET = "optimizer.worker:Worker"

    def __init__(self, spec: str, name: str) -> None:
        data = json.loads(spec)
        self.name = name
        self.job = Job.model_validate(data["job"])
        entry = self.job.executor
        torch.set_num_threads(entry.threads)
        self.problem = Problem.open(self.job, data["allow_code"])
        if self.job.hashes is not None:
            self.problem.unchanged(self.job.hashes)  # this host's copies may be others than the driver's
        hashes = self.problem.pool.hashes()
        self.space = self.problem.space(hashes)
        dtype = getattr(torch, self.job.models.dtype) if self.job.models.dtype else None
        self.resident = Resident(self.problem.pool, entry.device, dtype, entry.threads)
        setting = Setting(
            self.resident.model,
            Path(self.problem.pool.base.folder),
            torch.device(entry.device),
            heads_of(self.problem.pool),
        )
        for evaluator in self.problem.evaluators:
            evaluator.prepare(setting)

    def answer(self, question: Question) -> Answer:
        """Materialise the point and score it; a candidate's own failure is part of the answer."""
        start = time.perf_counter()
        scores: dict[str, Scores] = {}
        failure = None
        try:
            self.resident.write(self.space.decode(question.point))
            for evaluator in self.problem.evaluators:
                items = getattr(evaluator.splits, question.items.split)
                scores[evaluator.name] = evaluator.score(self.resident.model, items)
        except (NonFiniteWeights, NonFiniteScores) as error:
            failure = Failure("nonfinite", str(error))
        except (MemoryError, torch.OutOfMemoryError) as error:
            failure = Failure("oom", str(error).splitlines()[0] if str(error) else "out of memory")
        except Exception as error:
            # an evaluator is somebody else's code: whatever it raises fails this candidate, not the run
            failure = Failure("error", f"{type(error).__name__}: {error}")
        return pack(question, scores, failure, time.perf_counter() - start, self.name)


def pack(question: Question, scores: dict[str, Scores], failure: Failure | None, seconds: float, worker: str) -> Answer:
    """Scores under qualified names. A value that is not finite fails the candidate, whoever reported it."""
    measures: dict[str, Measure] = {}
    per_item: dict[str, np.ndarray] = {}
    for name, found in scores.items():
        measures.update({f"{name}.{metric}": measure for metric, measure in found.measures.items()})
        per_item.update({f"{name}.{metric}": values for metric, values in found.per_item.items()})
    if failure is None:
        bad = [k for k, m in measures.items() if not (np.isfinite(m.value) and np.isfinite(m.stderr))]
        if bad:
            failure = Failure("nonfinite", f"{bad[0]} is {measures[bad[0]].value} +- {measures[bad[0]].stderr}")
    if failure is not None:
        measures, per_item = {}, {}
    return Answer(question.number, question.items.split, measures, per_item, failure, seconds, worker)
