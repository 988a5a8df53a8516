"""How do questions reach Ray? Actors with one resident model each, and no barrier. The only file that imports ray."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # GPU-less workers see what the machine has
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from optimizer.answer import Answer, Failure, FailureKind
from optimizer.driver import Question
from optimizer.errors import WorkerError
from optimizer.executor import AnswersQuestions, make_worker

log = logging.getLogger(__name__)

RETRIES = 2  # a question whose worker died is tried this often elsewhere
TIMEOUT_RETRIES = 1
QUIET_SECONDS = 10.0  # without an answer; then Ray is asked whether it is there at all


class _Remote:
    """The actor: a worker made from text, when first needed."""

    def __init__(self, target: str, spec: str, name: str) -> None:
        self._made_from = (target, spec, name)
        self._worker: AnswersQuestions | None = None

    def start(self) -> AnswersQuestions:
        if self._worker is None:
            self._worker = make_worker(*self._made_from)
        return self._worker

    def ready(self) -> None:
        """Make the worker; what its construction raises reaches the caller as a task's error, with its cause."""
        self.start()

    def answer(self, question: Question) -> Answer:
        return self.start().answer(question)


@dataclass
class _Task:
    """A question under way: which actor has it, since when, and how often it was tried."""

    question: Question
    attempts: int = 1
    worker: int = -1
    started: float = 0.0  # monotonic


class RayExecutor:
    """Questions on Ray actors.

    A dead or overdue worker is replaced, and its question tried again elsewhere before it counts as failed. Ray's own
    restarts and retries stay off: they would run a poisonous question again and again.
    """

    def __init__(
        self,
        target: str,
        spec: str,
        workers: int = 2,
        cpus: float = 1.0,
        gpus: float = 0.0,
        timeout: float | None = None,
        address: str = "local",
    ) -> None:
        self.slots = workers
        self._target, self._spec, self._address = target, spec, address
        self._cpus, self._gpus, self._timeout = cpus, gpus, timeout
        self._actors: dict[int, Any] = {}
        self._made = 0
        self._starting: dict[Any, int] = {}  # what tells that a worker is ready -> the worker
        self._idle: deque[int] = deque()
        self._queue: deque[_Task] = deque()
        self._running: dict[Any, _Task] = {}
        self._owns_ray = False
        self._quiet_since = time.monotonic()

    def start(self) -> None:
        """Connect to Ray (a local one of our own unless an address is named) and make the workers."""
        if not ray.is_initialized():
            self._owns_ray = True
            term = signal.getsignal(signal.SIGTERM)
            local = {"num_cpus": max(1, round(self.slots * self._cpus + 0.499))} if self._address == "local" else {}
            ray.init(
                address=self._address,
                include_dashboard=False if self._address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **local,
            )
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, term)  # Ray takes it, and would end us without a drain
        self._placeable()
        for _ in range(self.slots):
            self._make()
        while self._starting:
            ready, _ = ray.wait(list(self._starting), num_returns=1)
            self._started(ready[0])

    def submit(self, question: Question) -> None:
        self._queue.append(_Task(question))
        self._dispatch()

    def collect(self, timeout: float) -> list[Answer]:
        self._dispatch()
        if not self._running and not self._starting:
            return []
        awaited = [*self._running, *self._starting]
        ready, rest = ray.wait(awaited, num_returns=1, timeout=self._patience(timeout))
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        self._alive(bool(ready))
        for ref in [r for r in ready if r in self._starting]:
            self._started(ref)
        answers = [answer for ref in ready if ref in self._running and (answer := self._finish(ref)) is not None]
        answers += self._overdue()
        self._dispatch()
        return answers

    def close(self) -> None:
        """Kill the workers, and Ray where it is our own."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._running.clear()
        self._queue.clear()
        if self._owns_ray:
            ray.shutdown()

    def _make(self) -> None:
        """A new worker, which joins the idle ones when it is ready."""
        index, self._made = self._made, self._made + 1
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = ray.remote(_Remote).options(**options)
        self._actors[index] = actor.remote(self._target, self._spec, f"ray-{index}")
        self._starting[self._actors[index].ready.remote()] = index

    def _started(self, ref: Any) -> None:
        """A worker is ready for questions: only now may a question's deadline run."""
        index = self._starting.pop(ref)
        try:
            ray.get(ref)
        except RayTaskError as error:
            raise _cause(error) from error
        except RayError as error:
            raise WorkerError(f"a worker died as it started: {str(error).splitlines()[0]}") from error
        self._idle.append(index)

    def _placeable(self) -> None:
        """Raises WorkerError where the cluster as it is could never hold the workers: they would wait for ever."""
        there = ray.cluster_resources()
        for kind, each in (("CPU", self._cpus), ("GPU", self._gpus)):
            if each * self.slots > there.get(kind, 0.0) + 1e-9:
                raise WorkerError(
                    f"{self.slots} workers of {each:g} {kind} each need {each * self.slots:g}, the cluster has "
                    f"{there.get(kind, 0.0):g}; lower executor.workers, cpus or gpus, or name a larger cluster"
                )

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            task, index = self._queue.popleft(), self._idle.popleft()
            task.worker, task.started = index, time.monotonic()
            self._running[self._actors[index].answer.remote(task.question)] = task

    def _alive(self, progress: bool) -> None:
        """Ray itself may go: a wait on a cluster without nodes would last for ever."""
        now = time.monotonic()
        if progress:
            self._quiet_since = now
        elif now - self._quiet_since > QUIET_SECONDS:
            self._quiet_since = now
            if not any(node["Alive"] for node in ray.nodes()):
                raise WorkerError("Ray has lost its last node; what was answered is kept, and resume starts Ray again")

    def _patience(self, timeout: float) -> float:
        """Wait no longer than the next deadline."""
        if self._timeout is None or not self._running:
            return timeout
        first = min(task.started for task in self._running.values())
        return max(0.0, min(timeout, first + self._timeout - time.monotonic()))

    def _finish(self, ref: Any) -> Answer | None:
        task = self._running.pop(ref)
        try:
            answer: Answer = ray.get(ref)
        except RayTaskError as error:
            # the worker itself let an exception out: a defect, told as it is; the actor lives on
            self._idle.append(task.worker)
            return _failed(task, "error", str(error.cause or error).splitlines()[0])
        except RayError as error:
            self._replace(task.worker)
            return self._again(task, RETRIES, "infrastructure", f"the worker died: {str(error).splitlines()[0]}")
        self._idle.append(task.worker)
        return answer if task.attempts == 1 else replace(answer, attempts=task.attempts)

    def _overdue(self) -> list[Answer]:
        if self._timeout is None:
            return []
        now = time.monotonic()
        late = [ref for ref, task in self._running.items() if now - task.started > self._timeout]
        answers = []
        for ref in late:
            task = self._running.pop(ref)
            self._replace(task.worker)
            answer = self._again(task, TIMEOUT_RETRIES, "timeout", f"no answer within {self._timeout:g} s")
            if answer is not None:
                answers.append(answer)
        return answers

    def _again(self, task: _Task, retries: int, kind: FailureKind, reason: str) -> Answer | None:
        """Queue the question once more, or give its failure when it was tried often enough."""
        if task.attempts > retries:
            return _failed(task, kind, reason)
        log.warning("candidate %d: %s; trying again", task.question.number, reason)
        self._queue.appendleft(_Task(task.question, task.attempts + 1))
        return None

    def _replace(self, index: int) -> None:
        ray.kill(self._actors.pop(index))
        self._make()


def _failed(task: _Task, kind: FailureKind, reason: str) -> Answer:
    q = task.question
    return Answer(
        *(q.number, q.items.split),
        failure=Failure(kind, reason),
        worker=f"ray-{task.worker}",
        attempts=task.attempts,
        part=q.part,
    )


def _cause(error: RayTaskError) -> Exception:
    """What a worker's construction raised: in its own words where they are meant for the user."""
    cause = error.cause
    if isinstance(cause, Exception) and hasattr(cause, "exit_code"):
        return cause
    return WorkerError(
        f"the workers cannot start: {type(cause).__name__}: {cause}; 'mergeopt check' tries one in this process"
    )
