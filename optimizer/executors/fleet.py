"""Which workers are there on Ray? Actors with one resident model each: made, waited for, replaced and killed."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from optimizer.answer import Answer
from optimizer.driver import Question
from optimizer.errors import WorkerError
from optimizer.executors.executor import AnswersQuestions, make_worker
from optimizer.executors.placement import Share, shortage
from optimizer.executors.ray_session import LOCAL, connect
from optimizer.executors.saying import Saying
from searchspaces.errors import first_line

log = logging.getLogger(__name__)

QUIET_SECONDS = 10.0  # in which nothing came; then Ray is asked which machines there are
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

    def node(self) -> str:
        """On which node this is: said as soon as it has a place there, before the worker is made."""
        return str(ray.get_runtime_context().get_node_id())

    def ready(self) -> None:
        """Make the worker; what its construction raises reaches the caller, with its cause."""
        self.start()

    def answer(self, question: Question, halved: bool) -> Answer:
        return self.start().answer(question, halved)


class Fleet:
    """Workers by name. It starts as soon as one is ready, and goes on with as many as there are.

    Those that find no place wait for a machine to join, which asks an autoscaling cluster for one, and those of a
    machine that leaves wait for another. `patience` is how long, in seconds, no machine need be large enough for any.
    A machine on which one cannot be made is given none from then on: which machine is tried first decides nothing.
    """

    def __init__(self, target: str, spec: str, workers: int, share: Share, address: str, patience: float) -> None:
        self._target, self._spec, self._address = target, spec, address
        self._workers, self._share, self._patience = workers, share, patience
        self._actors: dict[str, Any] = {}
        self._ready: set[str] = set()
        self._began = False  # whether one has been ready
        self._start_deaths = 0
        self._made = 0
        self._placed: dict[str, Any] = {}  # worker -> what tells its node
        self._barred: set[str] = set()  # nodes on which a worker could not be made
        self._left_out = 0  # workers that are made again when a machine joins
        self._cause: Exception | None = None  # why the last of them could not start
        self._nodes: set[str] = set()  # that were there when last looked at
        self._idle: deque[str] = deque()
        self._owns_ray = False
        self._said = Saying()  # why none is ready
        self._looked = self._hoped = time.monotonic()  # when there was last a machine for workers
        self.starting: dict[Any, str] = {}  # what tells that a worker is ready -> the worker

    @property
    def ready(self) -> int:
        """How many workers are ready for questions, or at one."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether a worker waits for a question."""
        return bool(self._idle)

    def start(self) -> None:
        """Connect to Ray (a local one of our own unless an address is named); returns when one worker is ready.

        Raises WorkerError where no machine could hold a worker, and where none could be made on any machine what the
        last one's construction raised.
        """
        if not ray.is_initialized():
            self._owns_ray = True
            connect(self._address, self._workers * self._share.cpus)
        self._placeable()
        for _ in range(self._workers):
            self._make()
        self._hoped = time.monotonic()
        while not self._ready:
            ready, _ = ray.wait(list(self.starting), timeout=min(QUIET_SECONDS, self._patience))
            for ref in ready:
                self.started(ref)
            self.watch(bool(ready))

    def ask(self, question: Question, halved: bool) -> tuple[str, Any]:
        """Give the worker that has been idle for longest a question: its name, and what will be the answer."""
        name = self._idle.popleft()
        return name, self._actors[name].answer.remote(question, halved)

    def free(self, name: str) -> None:
        """A worker has answered."""
        self._idle.append(name)

    def started(self, ref: Any) -> None:
        """A worker is ready for questions: only now may a question's deadline run.

        What its construction raises ends the run only where no worker has been ready, and none is starting.
        """
        name = self.starting.pop(ref)
        try:
            ray.get(ref)
        except RayTaskError as error:
            self._barred.add(self.node(name))
            ray.kill(self._gone(name))
            self._make_elsewhere(name, _cause(error))
        except RayError as error:
            self._died_starting(name, error)
        else:
            self._began, self._start_deaths = True, 0
            self._ready.add(name)
            self._idle.append(name)
            self._said.over()

    def _make(self) -> None:
        """A new worker, which joins the idle ones when it is ready."""
        name, self._made = f"ray-{self._made}", self._made + 1
        share = self._share
        options: dict[str, Any] = {"num_cpus": share.cpus, "num_gpus": share.gpus}
        if share.memory:
            options["memory"] = share.memory
        if self._barred:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._barred))})"}
        actor = (
            ray.remote(_Remote)
            .options(**options, max_restarts=0, max_task_retries=0)
            .remote(self._target, self._spec, name)
        )
        self._actors[name], self._placed[name] = actor, actor.node.remote()
        self.starting[actor.ready.remote()] = name

    def _make_elsewhere(self, name: str, cause: Exception) -> None:
        """Another in the place of one that cannot be made where it was: on a machine that may do better, if any."""
        if self._room(_alive()):
            log.warning("worker %s cannot start, another is made on another machine: %s", name, cause)
            self._make()
        else:
            self._leave_out(name, cause)

    def _leave_out(self, name: str, cause: Exception) -> None:
        self._left_out, self._cause = self._left_out + 1, cause
        if not self._began and not self.starting:
            raise cause
        until = "" if self._address == LOCAL else " until a machine joins"
        log.warning("worker %s is left out%s, it cannot start: %s", name, until, cause)

    def _died_starting(self, name: str, error: RayError) -> None:
        """Its machine may have left: another is made, unless this happens again and again."""
        self._gone(name)
        self._start_deaths += 1
        said = first_line(error)
        if self._start_deaths < START_DEATHS:
            log.warning("worker %s died as it started, another is made: %s", name, said)
            self._make()
            return
        text = (
            f"{self._start_deaths} workers in a row died as they started, the last with: {said}; 'mergeopt check' "
            "tries one in this process, 'mergeopt doctor' looks at this host"
        )
        self._leave_out(name, WorkerError(text))

    def _placeable(self) -> None:
        """What cannot be placed: an error where no machine can join, else a warning."""
        alive = _alive()
        self._nodes = {node["NodeID"] for node in alive}
        short = shortage(self._share, self._workers, _resources(alive))
        if short is None:
            return
        if self._address == LOCAL:
            raise WorkerError(f"{short}; lower executor.workers, cpus, gpus or memory, or name a larger cluster")
        log.warning("%s; the others start when machines join", short)

    def replace(self, name: str) -> None:
        """Kill a worker, and make another."""
        self._ready.discard(name)
        ray.kill(self._gone(name))
        self._make()

    def node(self, name: str) -> str:
        """On which node a worker is, or was when it died; nothing where it never had a place."""
        placed = self._placed.get(name)
        if placed is None or not ray.wait([placed], timeout=0)[0]:
            return ""
        try:
            return str(ray.get(placed))
        except RayError:
            return ""

    def lost(self, nodes: Iterable[str]) -> int:
        """How many of these nodes are gone. Asked anew each time: a cluster notices late that one is."""
        alive = {node["NodeID"] for node in _alive()}
        return sum(node not in alive for node in nodes)

    def watch(self, progress: bool) -> None:
        """Look at the machines where nothing has come for a while, or workers are left out: to be called all the time.

        Ray itself may go: a wait on a cluster without nodes would last for ever. Raises WorkerError where it has, and
        where no machine has been large enough for a worker for as long as `patience`, at the start or later; what kept
        the workers from starting, where that is so on every machine.
        """
        now = time.monotonic()
        if progress and not self._left_out:
            self._looked = now
        if now - self._looked <= min(QUIET_SECONDS, self._patience):
            return
        self._looked = now
        alive = _alive()
        if not alive:
            raise WorkerError("Ray has lost its last node; what was answered is kept, and resume starts Ray again")
        self._welcome({node["NodeID"] for node in alive})
        if self._ready or (self.starting and self._room(alive)):
            self._hoped = now
        if self._ready:
            self._said.over()
        else:
            self._tell(shortage(self._share, 1, _resources(alive)), now - self._hoped > self._patience)

    def _room(self, alive: Iterable[dict[str, Any]]) -> bool:
        """Whether a machine could hold a worker on which none has failed to start."""
        machines = _resources(node for node in alive if node["NodeID"] not in self._barred)
        return shortage(self._share, 1, machines) is None

    def _welcome(self, nodes: set[str]) -> None:
        """Where a machine has joined, those that were left out are made again."""
        joined, self._nodes = nodes - self._nodes, nodes
        if joined and self._left_out:
            again, self._left_out, self._start_deaths = self._left_out, 0, 0
            for _ in range(again):
                self._make()

    def _tell(self, short: str | None, over: bool) -> None:
        """Say why no worker is ready, and end the run where patience is over."""
        if short is not None and over:
            raise WorkerError(
                f"{short}; none joined within {self._patience:g} s (executor.patience): lower executor.cpus, gpus or "
                "memory, or name a cluster with larger machines; what was answered is kept"
            )
        if over and self._cause is not None:
            raise self._cause
        why = short or self._waiting()
        if self._said.anew(why, time.monotonic()):
            log.warning("no worker is ready; %s", why)

    def _waiting(self) -> str:
        """How many workers are starting, how many wait for room, and how many for another machine."""
        refs = [self._placed[name] for name in self.starting.values()]
        placed = len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if refs else 0
        parts = [
            (placed, "starting (models are read; on a new installation kernels are compiled, a minute or two, once)"),
            (len(refs) - placed, "waiting for room on a machine"),
            (self._left_out, f"left out until a machine joins, as they cannot start: {self._cause}"),
        ]
        return "; ".join(f"{count} {'is' if count == 1 else 'are'} {what}" for count, what in parts if count)

    def _gone(self, name: str) -> Any:
        """Forget a worker; its actor."""
        self._placed.pop(name, None)
        return self._actors.pop(name)

    def close(self) -> None:
        """Kill the workers, and Ray where it is our own."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._placed.clear()
        self._ready.clear()
        if self._owns_ray:
            ray.shutdown()


def _alive() -> list[dict[str, Any]]:
    """The machines of the cluster, as Ray tells of them."""
    return [node for node in ray.nodes() if node["Alive"]]


def _resources(nodes: Iterable[dict[str, Any]]) -> list[dict[str, float]]:
    """What each of these has in all."""
    return [node["Resources"] for node in nodes]


def _cause(error: RayTaskError) -> Exception:
    """What a worker's construction raised: in its own words where they are meant for the user."""
    cause = error.cause
    if isinstance(cause, Exception) and hasattr(cause, "exit_code"):
        return cause
    return WorkerError(
        f"the workers cannot start: {type(cause).__name__}: {cause}; 'mergeopt check' tries one in this process"
    )
