"""How do questions reach Ray, and how often is one tried? No barrier, and no question blamed for a machine."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from optimizer.answer import Answer, Failure, FailureKind, Try
from optimizer.driver import Question
from optimizer.executors.fleet import Fleet
from optimizer.executors.placement import Share
from optimizer.executors.ray_session import LOCAL
from searchspaces.errors import first_line

log = logging.getLogger(__name__)

# how often a question is tried again; each kind counts its own, so that a timeout costs no half batch
RETRIES = 2  # elsewhere: its worker died
TIMEOUT_RETRIES = 1
OOM_RETRIES = 1  # at half the batch
LOST_RETRIES = 20  # a question whose node was lost: that is no fault of the question's


@dataclass
class _Task:
    """A question under way: which actor has it, since when, and what became of the attempts before."""

    question: Question
    tries: tuple[Try, ...] = ()
    worker: str = ""
    started: float = 0.0  # monotonic
    nodes: tuple[str, ...] = ()  # on which workers died of these attempts
    halved: bool = False

    @property
    def attempts(self) -> int:
        return len(self.tries) + 1


class RayExecutor:
    """Questions on Ray actors.

    `workers` is how many are wanted; see `optimizer.executors.fleet` for how many there are, and for `patience`.

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
        address: str = LOCAL,
        memory: int = 0,
        patience: float = 600.0,
    ) -> None:
        self._fleet = Fleet(target, spec, workers, Share(cpus, gpus, memory), address, patience)
        self._timeout = timeout
        self._queue: deque[_Task] = deque()
        self._running: dict[Any, _Task] = {}
        self._draining = False

    @property
    def slots(self) -> int:
        """How many workers are ready, which changes as machines come and go; at least 1."""
        return max(1, self.ready)

    @property
    def ready(self) -> int:
        return self._fleet.ready

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def start(self) -> None:
        """Connect to Ray, and make the workers; returns when one is ready. Raises as `Fleet.start`."""
        self._fleet.start()

    def submit(self, question: Question) -> None:
        self._queue.append(_Task(question))
        self._dispatch()

    def collect(self, timeout: float) -> list[Answer]:
        self._dispatch()
        starting = self._fleet.starting
        ready = self._wait([*self._running, *starting], timeout)
        self._fleet.watch(bool(ready))
        for ref in [r for r in ready if r in starting]:
            self._fleet.started(ref)
        answers = [answer for ref in ready if ref in self._running and (answer := self._finish(ref)) is not None]
        answers += self._overdue()
        self._dispatch()
        return answers

    def withdraw(self, number: int) -> None:
        self._queue = deque(t for t in self._queue if t.question.number != number or t.question.part[1] == 1)

    def drain(self) -> None:
        self._draining = True

    def close(self) -> None:
        """Kill the workers, and Ray where it is our own."""
        self._fleet.close()
        self._running.clear()
        self._queue.clear()

    def _dispatch(self) -> None:
        while self._fleet.idle and self._queue and not self._draining:
            task = self._queue.popleft()
            task.worker, ref = self._fleet.ask(task.question, task.halved)
            task.started = time.monotonic()
            self._running[ref] = task

    def _wait(self, awaited: list[Any], timeout: float) -> list[Any]:
        """Those that are there, all of them, once one is."""
        if not awaited:
            if self._queue and not self._draining:  # all workers are left out: a machine may join
                time.sleep(timeout)
            return []
        ready, rest = ray.wait(awaited, num_returns=1, timeout=self._patience(timeout))
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return list(ready)

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
        except OutOfMemoryError as error:  # Ray ended the worker before the system would have
            self._fleet.replace(task.worker)
            return self._again(replace(task, halved=True), OOM_RETRIES, "oom", first_line(error))
        except RayTaskError as error:
            if isinstance(error.cause, Exception) and hasattr(error.cause, "exit_code"):
                raise error.cause from error  # the run cannot go on, and the question is not to blame
            # the worker itself let an exception out: a defect, told as it is; the actor lives on
            self._fleet.free(task.worker)
            return _failed(task, "error", first_line(error.cause or error))
        except RayError as error:
            return self._died(task, error)
        self._fleet.free(task.worker)
        if task.attempts == 1:
            return answer
        return replace(answer, attempts=len(task.tries) + answer.attempts, tries=(*task.tries, *answer.tries))

    def _died(self, task: _Task, error: RayError) -> Answer | None:
        """A worker is gone. Where its node is there, the system may have taken its memory: the last try has less."""
        node = self._fleet.node(task.worker)
        task.nodes = (*task.nodes, node)
        self._fleet.replace(task.worker)
        retries = min(RETRIES + self._fleet.lost(task.nodes), LOST_RETRIES)
        reason = f"the worker died: {first_line(error)}"
        if not self._fleet.lost([node]):
            reason += " (a crash, or the system took its memory)"
            last = sum(t.kind == "infrastructure" for t in task.tries) == retries - 1
            task.halved = task.halved or last
        return self._again(task, retries, "infrastructure", reason)

    def _overdue(self) -> list[Answer]:
        if self._timeout is None:
            return []
        now = time.monotonic()
        late = [ref for ref, task in self._running.items() if now - task.started > self._timeout]
        answers = []
        for ref in late:
            task = self._running.pop(ref)
            self._fleet.replace(task.worker)
            answer = self._again(task, TIMEOUT_RETRIES, "timeout", f"no answer within {self._timeout:g} s")
            if answer is not None:
                answers.append(answer)
        return answers

    def _again(self, task: _Task, retries: int, kind: FailureKind, reason: str) -> Answer | None:
        """Queue the question once more, or give its failure when that kind of end befell it often enough."""
        if sum(t.kind == kind for t in task.tries) >= retries:
            return _failed(task, kind, reason)
        log.warning("candidate %d: %s; trying again", task.question.number, reason)
        tries = (*task.tries, Try(task.worker, kind, reason))
        self._queue.appendleft(_Task(task.question, tries, nodes=task.nodes, halved=task.halved))
        return None


def _failed(task: _Task, kind: FailureKind, reason: str) -> Answer:
    q = task.question
    return Answer(
        *(q.number, q.items.split),
        failure=Failure(kind, reason),
        worker=task.worker,
        attempts=task.attempts,
        part=q.part,
        tries=task.tries,
    )
