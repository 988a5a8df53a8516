"""How do questions reach Ray? Actors with one resident model each, and no barrier."""

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
from optimizer.errors import WorkerError
from optimizer.executors.executor import AnswersQuestions, make_worker
from optimizer.executors.placement import Share, shortage
from optimizer.executors.ray_session import LOCAL, connect
from searchspaces.errors import first_line

log = logging.getLogger(__name__)

# how often a question is tried again; each kind counts its own, so that a timeout costs no half batch
RETRIES = 2  # elsewhere: its worker died
TIMEOUT_RETRIES = 1
OOM_RETRIES = 1  # at half the batch
LOST_RETRIES = 20  # a question whose node was lost: that is no fault of the question's
QUIET_SECONDS = 10.0  # without an answer; then Ray is asked whether it is there at all
START_DEATHS = 3  # workers that died one after another as they started, before that is told as an error


class _Remote:
    """The actor: a worker made from text, when first needed."""

    def __init__(self, target: str, spec: str, name: str) -> None:
        self._made_from = (target, spec, name)
        self._worker: AnswersQuestions | None = None

    def start(self) -> AnswersQuestions:
        if self._worker is None:
            self._worker = make_worker(*self._made_from)
        return self._worker

    def ready(self) -> str:
        """Make the worker, and say on which node; what its construction raises reaches the caller, with its cause."""
        self.start()
        return str(ray.get_runtime_context().get_node_id())

    def answer(self, question: Question, halved: bool) -> Answer:
        return self.start().answer(question, halved)


@dataclass
class _Task:
    """A question under way: which actor has it, since when, and what became of the attempts before."""

    question: Question
    tries: tuple[Try, ...] = ()
    worker: int = -1
    started: float = 0.0  # monotonic
    nodes: tuple[str, ...] = ()  # on which workers died of these attempts
    halved: bool = False

    @property
    def attempts(self) -> int:
        return len(self.tries) + 1


class RayExecutor:
    """Questions on Ray actors.

    `workers` is how many are wanted. It starts as soon as one is ready, and goes on with as many as there are: those
    that find no place wait for a machine to join, which asks an autoscaling cluster for one, and those of a machine
    that leaves wait for another. `patience` is how long, in seconds, no machine need be large enough for any.

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
        self._target, self._spec, self._address = target, spec, address
        self._workers, self._share, self._timeout = workers, Share(cpus, gpus, memory), timeout
        self._for_a_machine = patience
        self._actors: dict[int, Any] = {}
        self._ready: set[int] = set()
        self._start_deaths = 0
        self._made = 0
        self._nodes: dict[int, str] = {}  # of each worker that is ready
        self._starting: dict[Any, int] = {}  # what tells that a worker is ready -> the worker
        self._idle: deque[int] = deque()
        self._queue: deque[_Task] = deque()
        self._running: dict[Any, _Task] = {}
        self._owns_ray = False
        self._quiet_since = time.monotonic()
        self._first = True  # whether no answer has come yet

    @property
    def slots(self) -> int:
        """How many workers are ready, which changes as machines come and go; at least 1."""
        return max(1, len(self._ready))

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def start(self) -> None:
        """Connect to Ray (a local one of our own unless an address is named); returns when one worker is ready.

        Raises WorkerError where no machine could hold a worker, and what the first worker's construction raised.
        """
        if not ray.is_initialized():
            self._owns_ray = True
            connect(self._address, self._workers * self._share.cpus)
        self._placeable()
        for _ in range(self._workers):
            self._make()
        last_held = time.monotonic()
        while not self._ready:
            ready, _ = ray.wait(list(self._starting), timeout=min(QUIET_SECONDS, self._for_a_machine))
            for ref in ready:
                self._started(ref)
            self._alive(bool(ready))
            if ready or not (short := shortage(self._share, 1, _machines())):
                last_held = time.monotonic()
            elif time.monotonic() - last_held > self._for_a_machine:
                raise WorkerError(
                    f"{short}; none joined within {self._for_a_machine:g} s (executor.patience): lower executor.cpus, "
                    "gpus or memory, or name a cluster with larger machines"
                )

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
        self._ready.clear()
        self._running.clear()
        self._queue.clear()
        if self._owns_ray:
            ray.shutdown()

    def _make(self) -> None:
        """A new worker, which joins the idle ones when it is ready."""
        index, self._made = self._made, self._made + 1
        share = self._share
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = ray.remote(_Remote).options(**options, **({"memory": share.memory} if share.memory else {}))
        self._actors[index] = actor.remote(self._target, self._spec, f"ray-{index}")
        self._starting[self._actors[index].ready.remote()] = index

    def _started(self, ref: Any) -> None:
        """A worker is ready for questions: only now may a question's deadline run.

        Before any worker is ready, what its construction raises ends the run; afterwards the others go on without it.
        """
        index = self._starting.pop(ref)
        try:
            self._nodes[index] = ray.get(ref)
        except RayTaskError as error:
            cause = _cause(error)
            if not self._ready:
                raise cause from error
            ray.kill(self._actors.pop(index))
            log.warning("worker %d is left out, it cannot start: %s", index, cause)
        except RayError as error:
            self._died_starting(index, error)
        else:
            self._start_deaths = 0
            self._ready.add(index)
            self._idle.append(index)

    def _died_starting(self, index: int, error: RayError) -> None:
        """Its machine may have left: another is made, unless this happens again and again."""
        self._actors.pop(index)
        self._start_deaths += 1
        said = first_line(error)
        if self._start_deaths < START_DEATHS:
            log.warning("worker %d died as it started, another is made: %s", index, said)
            self._make()
        elif self._ready:
            log.warning("worker %d died as it started, as did those before it, and is left out: %s", index, said)
        else:
            raise WorkerError(
                f"{START_DEATHS} workers in a row died as they started, the last with: {said}; 'mergeopt check' tries "
                "one in this process, 'mergeopt doctor' looks at this host"
            ) from error

    def _placeable(self) -> None:
        """What cannot be placed: an error where no machine can join, else a warning."""
        short = shortage(self._share, self._workers, _machines())
        if short is None:
            return
        if self._address == LOCAL:
            raise WorkerError(f"{short}; lower executor.workers, cpus, gpus or memory, or name a larger cluster")
        log.warning("%s; the others start when machines join", short)

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            task, index = self._queue.popleft(), self._idle.popleft()
            task.worker, task.started = index, time.monotonic()
            self._running[self._actors[index].answer.remote(task.question, task.halved)] = task

    def _alive(self, progress: bool) -> None:
        """Ray itself may go: a wait on a cluster without nodes would last for ever."""
        now = time.monotonic()
        if progress:
            self._quiet_since = now
        elif now - self._quiet_since > QUIET_SECONDS:
            self._quiet_since = now
            machines = _machines()
            if not machines:
                raise WorkerError("Ray has lost its last node; what was answered is kept, and resume starts Ray again")
            if not self._ready:
                short = shortage(self._share, 1, machines)
                log.warning("no worker is ready; %s", short or f"{len(self._starting)} of them are starting")
            elif self._first and self._running:
                self._first = False  # said once
                log.warning(
                    "no answer yet, %d workers are at their first questions; on a new installation they compile "
                    "kernels first, which takes about half a minute, once",
                    len(self._running),
                )

    def _patience(self, timeout: float) -> float:
        """Wait no longer than the next deadline."""
        if self._timeout is None or not self._running:
            return timeout
        first = min(task.started for task in self._running.values())
        return max(0.0, min(timeout, first + self._timeout - time.monotonic()))

    def _finish(self, ref: Any) -> Answer | None:
        task, self._first = self._running.pop(ref), False
        try:
            answer: Answer = ray.get(ref)
        except OutOfMemoryError as error:  # Ray ended the worker before the system would have
            self._replace(task.worker)
            return self._again(replace(task, halved=True), OOM_RETRIES, "oom", first_line(error))
        except RayTaskError as error:
            if isinstance(error.cause, Exception) and hasattr(error.cause, "exit_code"):
                raise error.cause from error  # the run cannot go on, and the question is not to blame
            # the worker itself let an exception out: a defect, told as it is; the actor lives on
            self._idle.append(task.worker)
            return _failed(task, "error", first_line(error.cause or error))
        except RayError as error:
            task.nodes = (*task.nodes, self._nodes.get(task.worker, ""))
            self._replace(task.worker)
            retries = min(RETRIES + self._lost(task), LOST_RETRIES)
            return self._again(task, retries, "infrastructure", f"the worker died: {first_line(error)}")
        self._idle.append(task.worker)
        if task.attempts == 1:
            return answer
        return replace(answer, attempts=len(task.tries) + answer.attempts, tries=(*task.tries, *answer.tries))

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
        """Queue the question once more, or give its failure when that kind of end befell it often enough."""
        if sum(t.kind == kind for t in task.tries) >= retries:
            return _failed(task, kind, reason)
        log.warning("candidate %d: %s; trying again", task.question.number, reason)
        tries = (*task.tries, Try(f"ray-{task.worker}", kind, reason))
        self._queue.appendleft(_Task(task.question, tries, nodes=task.nodes, halved=task.halved))
        return None

    def _lost(self, task: _Task) -> int:
        """How many of a question's workers died with their node, for which no question is to blame.

        Asked anew each time: a cluster notices late that a node is gone.
        """
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return sum(node not in alive for node in task.nodes)

    def _replace(self, index: int) -> None:
        self._ready.discard(index)
        ray.kill(self._actors.pop(index))
        self._nodes.pop(index, None)
        self._make()


def _machines() -> list[dict[str, float]]:
    """What each machine of the cluster has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _failed(task: _Task, kind: FailureKind, reason: str) -> Answer:
    q = task.question
    return Answer(
        *(q.number, q.items.split),
        failure=Failure(kind, reason),
        worker=f"ray-{task.worker}",
        attempts=task.attempts,
        part=q.part,
        tries=task.tries,
    )


def _cause(error: RayTaskError) -> Exception:
    """What a worker's construction raised: in its own words where they are meant for the user."""
    cause = error.cause
    if isinstance(cause, Exception) and hasattr(cause, "exit_code"):
        return cause
    return WorkerError(
        f"the workers cannot start: {type(cause).__name__}: {cause}; 'mergeopt check' tries one in this process"
    )
