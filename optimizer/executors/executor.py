"""Where does a question run? One protocol, and the executor that runs it in this process."""

from __future__ import annotations

import importlib
import time
from collections import deque
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from optimizer.answer import Answer
from optimizer.driver import Question

if TYPE_CHECKING:
    from optimizer.record.attempt import Attempt


class AnswersQuestions(Protocol):
    """What an executor needs of a worker. `answer` never raises for a candidate's own failure: it reports it.

    What it raises with an `exit_code` is no candidate's failure but the end of the run: its inputs have changed.
    With `halved` items go through the model in batches of half the size.
    """

    def answer(self, question: Question, halved: bool = False) -> Answer: ...


class Executor(Protocol):
    """Runs questions, each in a worker that keeps one resident model. Answers come in whatever order they finish."""

    @property
    def slots(self) -> int:
        """How many questions may be given to it at once; at least 1."""
        ...

    @property
    def ready(self) -> int:
        """How many workers are ready for a question, or at one; 0 while all of them start, or have gone."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a worker is at a question now; one that merely waits for its turn can wait for another day."""
        ...

    def start(self) -> None:
        """Make the workers; raises what their construction raised."""
        ...

    def submit(self, question: Question) -> None: ...

    def collect(self, timeout: float) -> list[Answer]:
        """Answers that are ready, waiting at most `timeout` seconds for the first."""
        ...

    def withdraw(self, number: int) -> None:
        """Forget the parts of question `number` that no worker has been given."""
        ...

    def drain(self) -> None:
        """Give workers nothing more, neither what waits for one nor what is tried again; what they are at goes on."""
        ...

    def close(self) -> None:
        """Stop the workers; what is in flight is lost."""
        ...


class Around:
    """An executor that has another do the work: what it does not change goes through."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    @property
    def slots(self) -> int:
        return self._inner.slots

    @property
    def ready(self) -> int:
        return self._inner.ready

    @property
    def busy(self) -> bool:
        return self._inner.busy

    def start(self) -> None:
        self._inner.start()

    def withdraw(self, number: int) -> None:
        self._inner.withdraw(number)

    def drain(self) -> None:
        self._inner.drain()

    def close(self) -> None:
        self._inner.close()


def make_worker(target: str, spec: str, name: str) -> AnswersQuestions:
    """A worker from `module:Class` and a JSON specification: what travels to a worker is text, never an object."""
    module, _, attribute = target.partition(":")
    worker: Any = getattr(importlib.import_module(module), attribute)
    made: AnswersQuestions = worker(spec, name)
    return made


class Inline:
    """One worker in this process: questions run one after another, inside `collect`.

    A question that kills its worker kills this process: `attempt` says at which one it is.
    """

    slots = 1
    busy = False  # whenever somebody can ask

    def __init__(self, target: str, spec: str, attempt: Attempt | None = None) -> None:
        self._target, self._spec, self._attempt = target, spec, attempt
        self._worker: AnswersQuestions | None = None
        self._queue: deque[Question] = deque()
        self._draining = False

    @property
    def ready(self) -> int:
        return int(self._worker is not None)

    def start(self) -> None:
        self._worker = make_worker(self._target, self._spec, "inline")

    def submit(self, question: Question) -> None:
        self._queue.append(question)

    def collect(self, timeout: float) -> list[Answer]:
        if self._worker is None or not self._queue or self._draining:
            time.sleep(min(timeout, 0.01))
            return []
        question = self._queue.popleft()
        with nullcontext() if self._attempt is None else self._attempt.at(question):
            return [self._worker.answer(question)]

    def withdraw(self, number: int) -> None:
        self._queue = deque(q for q in self._queue if q.number != number or q.part[1] == 1)

    def drain(self) -> None:
        self._draining = True

    def close(self) -> None:
        self._queue.clear()
        self._worker = None
