"""How does a driver ask whose next question follows from its state alone? One by one; a replay asks the same again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from optimizer.driver import DriverError, Question

CLOSE = 1e-9  # products of matrices differ between processors in their last bits, and their questions are the same


class OneByOne(ABC):
    """`ask` and `replay` of a driver that says what is due, and notes that it was asked."""

    _name: str

    def ask(self, n: int) -> list[Question]:
        """At most n of those that are due, one after the other."""
        questions: list[Question] = []
        while len(questions) < n and (question := self._next()) is not None:
            self._take(question)
            questions.append(question)
        return questions

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Arithmetic alone. Raises DriverError where a question is not what would be asked."""
        for recorded in questions:
            question = self._next()
            if question is None or question.wants != recorded.wants or not _same(question, recorded):
                raise DriverError(
                    f"the recorded question {recorded.number} is not what {self._name} asks there; resume with the job "
                    "file and the version that the run began with, or start a new run"
                )
            self._take(question)

    @abstractmethod
    def _next(self) -> Question | None:
        """The question that is due now, if any."""

    @abstractmethod
    def _take(self, question: Question) -> None:
        """Note that it was asked."""


def _same(asked: Question, recorded: Question) -> bool:
    return np.allclose(asked.point, recorded.point, rtol=CLOSE, atol=CLOSE)
