"""How is one candidate scored? A worker keeps one resident model, rewrites its weights and runs the evaluators."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluators.errors import NonFinite as NonFiniteScores
from evaluators.evaluator import Measure, Scores, Setting
from optimizer.answer import Answer, Failure, training_loss
from optimizer.driver import Question
from optimizer.gathering import gathered, heads_of, merged_pool
from optimizer.job import Job
from optimizer.needs import device_limit
from optimizer.parts import shares
from optimizer.problem import Problem
from optimizer.teachers import teach
from optimizer.training import Training
from searchspaces import Recipe, Resident
from searchspaces.errors import NonFinite as NonFiniteWeights

log = logging.getLogger(__name__)


def specification(job: Job, allow_code: bool) -> str:
    """What a worker is made from, as text: the resolved job, and whether the user's own code may run."""
    return json.dumps({"job": json.loads(job.model_dump_json()), "allow_code": allow_code})


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
        pool = self.problem.pool
        for method in self.job.space.methods:  # while no model of this worker's own is in memory
            gathered(self.problem, method, hashes)
        self.resident = Resident(
            *(pool, entry.device, dtype, entry.threads, entry.pool, device_limit(self.job, pool)),
            pools=partial(merged_pool, self.problem),
        )
        setting = Setting(
            self.resident.model,
            Path(self.problem.pool.base.folder),
            self.resident.device,
            heads_of(self.problem.pool),
        )
        for evaluator in self.problem.evaluators:
            evaluator.prepare(setting)
        teach(self.problem, hashes, lambda: self.resident)
        first = self.space.decode(self.space.domain.start)
        for device, source in self.resident.reads(first).items():  # a pool that is to live there is brought there now
            log.info("worker %s: base and experts for %s are %s", name, device, source)

    def answer(self, question: Question) -> Answer:
        """Materialise the point, and score it or differentiate; a candidate's own failure is part of the answer."""
        start = time.perf_counter()
        found = Found()
        failure = None
        try:
            recipe = self.space.decode(question.point)
            self.resident.write(recipe)
            if question.wants == "scores":
                found.scores = self._score(question)
            else:
                self._differentiate(question, recipe, found)
        except (NonFiniteWeights, NonFiniteScores) as error:
            failure = Failure("nonfinite", str(error))
        except (MemoryError, torch.OutOfMemoryError) as error:
            failure = Failure("oom", str(error).splitlines()[0] if str(error) else "out of memory")
        except Exception as error:
            # an evaluator is somebody else's code: whatever it raises fails this candidate, not the run
            failure = Failure("error", f"{type(error).__name__}: {error}")
        return pack(question, found, failure, time.perf_counter() - start, self.name)

    def _score(self, question: Question) -> dict[str, Scores]:
        return {
            e.name: e.score(self.resident.model, self.problem.rows(e, question.items)) for e in self.problem.evaluators
        }

    def _differentiate(self, question: Question, recipe: Recipe, found: Found) -> None:
        """The derivatives that a question, or this part of it, wants."""
        training = self.problem.training
        if training is None:
            raise ValueError("this job has no losses to differentiate; its driver is one that asks for scores")
        count = len(training.tasks)
        if question.wants == "sizes":
            found.gradient = self.space.select(self.resident.sizes(recipe))[np.newaxis]
            return
        one = question.wants != "gradients"
        found.gradient = np.zeros((1 if one else count, len(question.point)))
        with self.resident.tracking():
            for task, share, of in shares(count, question.part):
                self._backward(training, task, (share, of), question, found)
                if not one:
                    found.gradient[task] += self._pulled(question, recipe)
                    self.resident.forget()
            if question.wants == "gradient":
                found.gradient[0] = self._pulled(question, recipe) / count
            elif question.wants == "cosines":
                found.gradient[0] = self.space.select(self.resident.cosines(recipe))

    def _backward(
        self, training: Training, task: int, share: tuple[int, int], question: Question, found: Found
    ) -> None:
        """Forward and backward over a share of one task's minibatch; gradients add up in the resident model."""
        evaluator = training.tasks[task]
        minibatch = self.problem.rows(evaluator, question.items)
        rows = minibatch[share[0] :: share[1]]
        if not len(rows):
            return
        total = 0.0
        for loss in evaluator.loss(self.resident.model, rows, training.loss, minibatch):
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        name = training_loss(evaluator.name)
        before = found.measures.get(name, Measure(0.0, None, 0))
        found.measures[name] = Measure(before.value + total, None, before.count + len(rows))

    def _pulled(self, question: Question, recipe: Recipe) -> NDArray[np.float64]:
        return self.space.pull(question.point, self.resident.gradient(recipe))


@dataclass
class Found:
    """What an answer is made of, as it comes."""

    scores: dict[str, Scores] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    gradient: NDArray[np.float64] | None = None


def pack(question: Question, found: Found, failure: Failure | None, seconds: float, worker: str) -> Answer:
    """Scores under qualified names. A value that is not finite fails the candidate, whoever reported it."""
    measures = dict(found.measures)
    per_item: dict[str, NDArray[np.float32]] = {}
    for name, scores in found.scores.items():
        measures.update({f"{name}.{metric}": measure for metric, measure in scores.measures.items()})
        per_item.update({f"{name}.{metric}": values for metric, values in scores.per_item.items()})
    if failure is None and found.gradient is not None and not np.isfinite(found.gradient).all():
        failure = Failure("nonfinite", "the gradient has NaN or infinity")
    if failure is None:
        bad = [k for k, m in measures.items() if not (np.isfinite(m.value) and np.isfinite(m.stderr or 0.0))]
        if bad:
            failure = Failure("nonfinite", f"{bad[0]} is {measures[bad[0]].value} +- {measures[bad[0]].stderr}")
    gradient = found.gradient
    if failure is not None:
        measures, per_item, gradient = {}, {}, None
    return Answer(
        *(question.number, question.items.split, measures, per_item, failure, seconds, worker),
        gradient=gradient,
        part=question.part,
    )
