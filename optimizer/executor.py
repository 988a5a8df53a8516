"""Where does a question run? One protocol, and the executor that runs it in this process."""

from __future__ import annotations

import importlib
import time
from collections import deque
from typing import Any, Protocol

from optimizer.answer import Answer
from optimizer.driver import Question


class AnswersQuestions(Protocol):
    """What an executor needs of a worker. `answer` never raises for a candidate's own failure: it reports it."""

    def answer(self, question: Question) -> Answer: ...


class Executor(Protocol):
    """Runs questions, each in a worker that keeps one resident model. Answers come in whatever order they finish."""

    @property
    def slots(self) -> int:
        """How many questions can run at once."""
        ...

    def start(self) -> None:
        """Make the workers; raises what their construction raised."""
        ...

    def submit(self, question: Question) -> None: ...

    def collect(self, timeout: float) -> list[Answer]:
        """Answers that are ready, waiting at most `timeout` seconds for the first."""
        ...

    def close(self) -> None:
        """Stop the workers; what is in flight is lost."""
        ...


def make_worker(target: str, spec: str, name: str) -> AnswersQuestions:
    """A worker from `module:Class` and a JSON specification: what travels to a worker is text, never an object."""
    module, _, attribute = target.partition(":")
    worker: Any = getattr(importlib.import_module(module), attribute)
    made: AnswersQuestions = worker(spec, name)
    return made


class Inline:
    """One worker in this process: questions run one after another, inside `collect`."""

    slots = 1

    def __init__(self, target: str, spec: str) -> None:
        self._target, self._spec = target, spec
        self._worker: AnswersQuestions | None = None
        self._queue: deque[Question] = deque()

    def start(self) -> None:
        self._worker = make_worker(self._target, self._spec, "inline")

    def submit(self, question: Question) -> None:
        self._queue.append(question)

    def collect(self, timeout: float) -> list[Answer]:
        if self._worker is None or not self._queue:
            time.sleep(min(timeout, 0.01))
            return []
        return [self._worker.answer(self._queue.popleft())]

    def close(self) -> None:
        self._queue.clear()
        self._worker = None
