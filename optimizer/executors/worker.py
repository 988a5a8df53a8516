"""How is one candidate scored? A worker keeps one resident model, rewrites its weights and runs the evaluators."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluators.errors import NonFinite as NonFiniteScores
from evaluators.evaluator import Evaluator, Measure, Scores, Setting, brings_head
from optimizer import drivers
from optimizer.answer import Answer, Failure, Try, training_loss
from optimizer.driver import Items, Question, Wants
from optimizer.executors.parts import shares
from optimizer.jobs.job import Job
from optimizer.jobs.needs import device_limit
from optimizer.jobs.problem import Problem
from optimizer.training.gathering import gathered, heads_of, merged_pool
from optimizer.training.teachers import teach
from optimizer.training.training import Training
from searchspaces import Recipe, Resident
from searchspaces.errors import CacheError, first_line, said
from searchspaces.errors import NonFinite as NonFiniteWeights
from searchspaces.models.stamps import Stamps

log = logging.getLogger(__name__)

RAYS_MARK = "ray_terminate_msg"  # of the SystemExit that it raises where a worker gets SIGTERM


def specification(job: Job, allow_code: bool) -> str:
    """What a worker is made from, as text: the resolved job, and whether the user's own code may run."""
    return json.dumps({"job": json.loads(job.model_dump_json()), "allow_code": allow_code})


class Worker:
    """One resident merged model and the evaluators prepared for it."""

    TARGET = "optimizer.executors.worker:Worker"

    def __init__(self, spec: str, name: str) -> None:
        data = json.loads(spec)
        self.name = name
        self.job = Job.model_validate(data["job"])
        entry = self.job.executor
        torch.set_num_threads(entry.threads)
        self.problem = Problem.open(self.job, data["allow_code"])
        self._stamps = Stamps(self.problem.pool)
        if self.job.hashes is not None:
            self.problem.unchanged(self.job.hashes)  # this host's copies may be others than the driver's
        hashes = self.problem.pool.hashes()
        self.space = self.problem.space(hashes)
        dtype = self.job.models.resident_dtype
        pool = self.problem.pool
        for method in self.job.space.methods:  # while no model of this worker's own is in memory
            gathered(self.problem, method, hashes)
        self.resident = Resident(
            *(pool, entry.device, dtype, entry.threads, entry.pool, device_limit(self.job, pool)),
            pools=partial(merged_pool, self.problem),
        )
        self._hashes, self._shrink = hashes, 0
        self._prepare(1)
        first = self.space.decode(self.space.domain.start)
        for device, source in self.resident.reads(first).items():  # a pool that is to live there is brought there now
            log.info("worker %s: base and experts for %s are %s", name, device, source)
        self._warm()

    def _warm(self) -> None:
        """Make what the first candidates would otherwise wait for: kernels, tables, processed task vectors.

        Each method's start is written once, the job's own last, so that a device is left with what that one merges; one
        item is differentiated where the driver asks for gradients. What cannot be made is no fault of a worker's: the
        candidate that needs it fails, and says so.
        """
        starts = self.space.starts
        todo = {recipe.method: partial(self.resident.write, recipe) for recipe in reversed(starts)}
        if (training := self.problem.training) is not None:
            wants: Wants = getattr(drivers.find(self.job.driver.name).load().Options, "asks", "gradient")
            one = Question(0, self.space.domain.start, wants, Items("train", 1), part=(0, len(training.tasks)))
            todo["a gradient"] = partial(self._differentiate, one, starts[0], Found())
        for what, work in todo.items():
            if failure := failure_of(work):
                log.warning("worker %s: the start of %s cannot be made: %s", self.name, what, failure)

    def _prepare(self, shrink: int) -> None:
        """Evaluators over the resident model, in batches so many times smaller than the job's."""
        if shrink == self._shrink:
            return
        self._shrink = 0  # where this fails, the next question prepares them anew
        setting = Setting(
            self.resident.model,
            Path(self.problem.pool.base.folder),
            self.resident.device,
            heads_of(self.problem.pool),
            shrink=shrink,
        )
        for evaluator in self.problem.evaluators:
            evaluator.prepare(setting)
        self.taught = teach(self.problem, self._hashes, lambda: self.resident)
        self._shrink = shrink

    def answer(self, question: Question, halved: bool = False) -> Answer:
        """Make the model what is asked about, and score it or differentiate; a failure is part of the answer.

        Where memory runs out, it is tried once more with batches of half the size (`halved`: with these at once).
        Raises PoolError where a file of the models was cut short or changed since it was opened, CacheError where what
        a method needs cannot be kept on this host.
        """
        self._stamps.check()
        found = self._tried(question, halved)
        self._stamps.check()  # what was written over meanwhile was read as weights of two checkpoints
        return found

    def _tried(self, question: Question, halved: bool) -> Answer:
        first = self._answer(question, 2 if halved else 1)
        if halved or first.failure is None or first.failure.kind != "oom":
            return first
        log.warning("candidate %d: %s; trying again with half the batch", question.number, first.failure)
        second = self._answer(question, 2)
        return replace(second, attempts=2, tries=[Try(self.name, first.failure.kind, first.failure.reason)])

    def _answer(self, question: Question, shrink: int) -> Answer:
        start = time.perf_counter()
        found = Found()
        failure = failure_of(partial(self._find, question, shrink, found))
        return pack(question, found, failure, time.perf_counter() - start, self.name)

    def _find(self, question: Question, shrink: int, found: Found) -> None:
        self._prepare(shrink)
        if question.model is not None:
            found.scores = self._score_model(question.model, question)
        else:
            self._answer_point(question, found)

    def _answer_point(self, question: Question, found: Found) -> None:
        recipe = self.space.decode(question.point)
        if question.wants == "grams":
            found.gradient = np.array([self.space.select(rows) for rows in self.resident.grams(recipe, question.part)])
            return
        self.resident.write(recipe)
        if question.wants == "scores":
            found.scores = {e.name: self._score(e, question) for e in self.problem.evaluators}
        else:
            self._differentiate(question, recipe, found)

    def _score_model(self, name: str, question: Question) -> dict[str, Scores]:
        """Scores of the base or an expert as it is.

        Evaluators that bring a head of their own do so here too; for the others an expert has its own, where the model
        has a place for it.
        """
        found: dict[str, Scores] = {}
        written: bool | None = None  # with its own heads?
        for evaluator in self.problem.evaluators:
            own = name != "base" and not brings_head(evaluator) and self.resident.has_heads(name)
            if written != own:
                self.resident.write_base() if name == "base" else self.resident.write_expert(name, own)
                written = own
            found[evaluator.name] = self._score(evaluator, question)
        return found

    def _score(self, evaluator: Evaluator, question: Question) -> Scores:
        return evaluator.score(self.resident.model, self.problem.rows(evaluator, question.items))

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


def failure_of(work: Callable[[], None]) -> Failure | None:
    """Why a candidate has failed, where this work raises; None where it was done.

    Raises CacheError, which is this host's fault, and would fail whatever is asked next: the run ends, and can be
    resumed; and what ends this process.
    """
    try:
        work()
    except (NonFiniteWeights, NonFiniteScores) as error:
        return Failure("nonfinite", str(error))
    except CacheError:
        raise
    except BaseException as error:
        # an evaluator is somebody else's code: whatever it raises fails this candidate, not the run
        if _ends_this_process(error):
            raise
        if _out_of_memory(error):
            return Failure("oom", first_line(error) if said(error).strip() else "out of memory")
        return Failure("error", f"{type(error).__name__}: {said(error)}")
    return None


def _ends_this_process(error: BaseException) -> bool:
    """Whether it came by a signal, as Ctrl-C does, and what Ray makes of SIGTERM; no sys.exit() of an evaluator."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and hasattr(error, RAYS_MARK))


def _out_of_memory(error: BaseException) -> bool:
    """Python's, an accelerator's, or that of torch's CPU allocator, which has no class of its own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in said(error)


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
